"""What walks and cells are called: short names that say only what differs. Plain text, not escaped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxnb.records import Film, Sweep, Trajectory

__all__ = ["NAMES", "differing", "label_of", "tell_apart", "value_of"]

NAMES = {
    "x": "x",
    "v": "velocity",
    "clean": "clean estimate",
    "noise": "noise estimate",
    "x_next": "x after the step",
}


def label_of(walk: Trajectory) -> str:
    """A short name for one walk: its steps and its seed."""
    steps = value_of("steps", len(walk.steps))
    return steps if walk.recipe is None else f"{steps}, seed {walk.recipe.seed}"


def tell_apart(walks: Sequence[Trajectory | Film]) -> list[str]:
    """Labels that name only what differs: the model, the seed, the steps, the prompt."""
    if any(isinstance(walk, Film) or walk.recipe is None for walk in walks) or len(walks) == 1:
        return [label_of(walk) if isinstance(walk, Trajectory) else NAMES.get(walk.what, walk.what) for walk in walks]
    facts = [
        {
            "model": walk.model,
            "steps": value_of("steps", len(walk.steps)),
            "seed": f"seed {walk.recipe.seed}",
            "sampler": walk.recipe.sampler,
            "guidance": "" if walk.recipe.guidance is None else f"guidance {walk.recipe.guidance:g}",
            "prompt": walk.recipe.prompt,
        }
        for walk in walks
        if isinstance(walk, Trajectory) and walk.recipe is not None
    ]
    differ = [name for name in facts[0] if len({fact[name] for fact in facts}) > 1] or ["steps", "seed"]
    return [", ".join(fact[name] for name in differ if fact[name]) for fact in facts]


def differing(sweep: Sweep) -> list[str]:
    """Labels for the cells of a grid: the values of the axes that have several."""
    axes = [name for name, values in sweep.axes.items() if len(values) > 1]
    labels = [", ".join(value_of(name, getattr(cell.recipe, name)) for name in axes) for cell in sweep.cells]
    return [label or cell.recipe.prompt for label, cell in zip(labels, sweep.cells, strict=True)]


def value_of(name: str | None, value: Any) -> str:
    """A value of an axis in words."""
    if name == "prompt":
        return str(value)
    if name == "steps":
        return f"{value} step" if value == 1 else f"{value} steps"
    if name == "guidance" and value is not None:
        return f"guidance {value:g}"
    return f"{name} {value}"
