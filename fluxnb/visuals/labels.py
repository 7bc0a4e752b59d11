"""Short labels of trajectories and cells, which name only what differs. Plain text, not escaped."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from fluxnb.records import Film, Pair, Sweep, Trajectory

__all__ = ["NAMES", "cell_labels", "distinct_labels", "label_of", "name_of", "pair_note", "value_label", "value_labels"]

LONG_PREFIX = 24  # characters; a common beginning of prompts is cut from this length on
NAMES = {
    "x": "x",
    "v": "velocity",
    "clean": "clean estimate",
    "noise": "noise estimate",
    "x_next": "x after the step",
}


def name_of(show: str, records: Sequence[object] = ()) -> str:
    """The name of a quantity, for a heading or a button.

    The velocity of a flow map is the mean over its step, so x - sigma v is no estimate of the picture there.
    """
    flow_map = any(isinstance(each, Trajectory) and each.predicts == "mean velocity" for each in records)
    return "where the step points" if show == "clean" and flow_map else NAMES[show]


def label_of(trajectory: Trajectory) -> str:
    """Steps and seed of one trajectory, for example "4 steps, seed 3"."""
    steps = value_label("steps", trajectory.step_count)
    return steps if trajectory.recipe is None else f"{steps}, seed {trajectory.recipe.seed}"


def distinct_labels(trajectories: Sequence[Trajectory | Film]) -> list[str]:
    """One label for each trajectory, of those of model, steps, seed, sampler, guidance and prompt that differ."""
    facts = [
        {
            "model": trajectory.model,
            "steps": value_label("steps", trajectory.step_count),
            "seed": value_label("seed", trajectory.recipe.seed),
            "sampler": trajectory.recipe.sampler,
            "guidance": ""
            if trajectory.recipe.guidance is None
            else value_label("guidance", trajectory.recipe.guidance),
            "prompt": trajectory.recipe.prompt,
        }
        for trajectory in trajectories
        if isinstance(trajectory, Trajectory) and trajectory.recipe is not None
    ]
    if len(facts) < len(trajectories) or len(trajectories) == 1:
        return [
            label_of(trajectory) if isinstance(trajectory, Trajectory) else NAMES.get(trajectory.what, trajectory.what)
            for trajectory in trajectories
        ]
    differ = [name for name in facts[0] if len({fact[name] for fact in facts}) > 1] or ["steps", "seed"]
    return [", ".join(fact[name] for name in differ if fact[name]) for fact in facts]


def pair_note(trajectories: Sequence[object]) -> str:
    """What the distillation keeps, where trajectories of a student are beside those of its teacher; else "".

    Every comparison displays it: on a student that matches the distribution only, equal seeds promise no equal picture.

    Example:
        >>> pair_note([fnb.run(student, "a fox"), fnb.run(teacher, "a fox")])       # doctest: +SKIP
        'klein matches the distribution only: the same seed promises a similar layout at best (teacher: klein-base).'
    """
    models: dict[Pair, set[str]] = {}
    for trajectory in trajectories:
        if isinstance(trajectory, Trajectory) and trajectory.pair is not None:
            models.setdefault(trajectory.pair, set()).add(trajectory.model)
    return " ".join(str(pair) for pair, compared in models.items() if len(compared) > 1)


def cell_labels(sweep: Sweep) -> list[str]:
    """One label for each cell: its values on the axes that have several."""
    axes = [name for name, values in sweep.axes.items() if len(values) > 1]
    labels = [", ".join(value_label(name, getattr(cell.recipe, name)) for name in axes) for cell in sweep.cells]
    return [label or cell.recipe.prompt for label, cell in zip(labels, sweep.cells, strict=True)]


def value_labels(name: str, values: Sequence[Any]) -> list[str]:
    """The values of an axis as text; a long common beginning of prompts is cut.

    Example:
        >>> value_labels("prompt", ["a photograph of a fox in snow, noon", "a photograph of a fox in snow, dusk"])
        ['… noon', '… dusk']
    """
    texts = [value_label(name, value) for value in values]
    words = [text.split(" ") for text in texts]
    longest = min(len(each) for each in words) - 1  # at least one word of each prompt remains
    common = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*words, strict=False)))
    common = min(common, longest)
    if name != "prompt" or len(texts) < 2 or len(" ".join(words[0][:common])) < LONG_PREFIX:
        return texts
    return [" ".join(["…", *each[common:]]) for each in words]


def value_label(name: str | None, value: Any) -> str:
    """One value of an axis as text.

    Example:
        >>> value_label("steps", 4), value_label("seed", 3)
        ('4 steps', 'seed 3')
    """
    if name == "prompt":
        return str(value)
    if name == "steps":
        return f"{value} step" if value == 1 else f"{value} steps"
    if name == "guidance" and value is not None:
        return f"guidance {value:g}"
    return f"{name} {value}"
