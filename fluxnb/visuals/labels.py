"""What walks and cells are called: short names that say only what differs. Plain text, not escaped."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from fluxnb.records import Film, Sweep, Trajectory

__all__ = ["NAMES", "differing", "label_of", "tell_apart", "value_of", "values_of"]

LONG = 24  # letters; a beginning that prompts share is left out from here on
NAMES = {
    "x": "x",
    "v": "velocity",
    "clean": "clean estimate",
    "noise": "noise estimate",
    "x_next": "x after the step",
}


def label_of(trajectory: Trajectory) -> str:
    """A short name for one walk: its steps and its seed."""
    steps = value_of("steps", len(trajectory.steps))
    return steps if trajectory.recipe is None else f"{steps}, seed {trajectory.recipe.seed}"


def tell_apart(trajectories: Sequence[Trajectory | Film]) -> list[str]:
    """Labels that name only what differs: the model, the seed, the steps, the prompt."""
    if (
        any(isinstance(trajectory, Film) or trajectory.recipe is None for trajectory in trajectories)
        or len(trajectories) == 1
    ):
        return [
            label_of(trajectory) if isinstance(trajectory, Trajectory) else NAMES.get(trajectory.what, trajectory.what)
            for trajectory in trajectories
        ]
    facts = [
        {
            "model": trajectory.model,
            "steps": value_of("steps", len(trajectory.steps)),
            "seed": f"seed {trajectory.recipe.seed}",
            "sampler": trajectory.recipe.sampler,
            "guidance": "" if trajectory.recipe.guidance is None else f"guidance {trajectory.recipe.guidance:g}",
            "prompt": trajectory.recipe.prompt,
        }
        for trajectory in trajectories
        if isinstance(trajectory, Trajectory) and trajectory.recipe is not None
    ]
    differ = [name for name in facts[0] if len({fact[name] for fact in facts}) > 1] or ["steps", "seed"]
    return [", ".join(fact[name] for name in differ if fact[name]) for fact in facts]


def differing(sweep: Sweep) -> list[str]:
    """Labels for the cells of a grid: the values of the axes that have several."""
    axes = [name for name, values in sweep.axes.items() if len(values) > 1]
    labels = [", ".join(value_of(name, getattr(cell.recipe, name)) for name in axes) for cell in sweep.cells]
    return [label or cell.recipe.prompt for label, cell in zip(labels, sweep.cells, strict=True)]


def values_of(name: str, values: Sequence[Any]) -> list[str]:
    """The values of an axis in words; prompts that begin alike for long are cut to where they part.

    Example:
        >>> values_of("prompt", ["a photograph of a fox in the snow, noon", "a photograph of a fox in the snow, dusk"])
        ['… noon', '… dusk']
    """
    texts = [value_of(name, value) for value in values]
    words = [text.split(" ") for text in texts]
    most = min(len(each) for each in words) - 1  # something is left of every one
    alike = sum(1 for _ in itertools.takewhile(lambda each: len(set(each)) == 1, zip(*words, strict=False)))
    alike = min(alike, most)
    if name != "prompt" or len(texts) < 2 or len(" ".join(words[0][:alike])) < LONG:
        return texts
    return [" ".join(["…", *each[alike:]]) for each in words]


def value_of(name: str | None, value: Any) -> str:
    """A value of an axis in words."""
    if name == "prompt":
        return str(value)
    if name == "steps":
        return f"{value} step" if value == 1 else f"{value} steps"
    if name == "guidance" and value is not None:
        return f"guidance {value:g}"
    return f"{name} {value}"
