"""Titles and subtitles of figures, and line wrapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fluxnb.plots.style import text_width, truncate
from fluxnb.records import Film, Sweep, Trajectory
from fluxnb.visuals.labels import NAMES, value_label

__all__ = ["common_subtitle", "subtitle_of", "sweep_subtitle", "title_of", "wrap"]


def title_of(trajectory: Trajectory | Film) -> str:
    """The prompt of a trajectory, or the caption of a film."""
    if isinstance(trajectory, Film):
        return trajectory.caption
    return trajectory.prompt or "No recipe"


def subtitle_of(trajectory: Trajectory | Film) -> str:
    """Model, seed, steps and size of one trajectory."""
    if isinstance(trajectory, Film):
        return f"{NAMES.get(trajectory.what, trajectory.what)}, {len(trajectory)} frames"
    facts = trajectory.caption.removeprefix(trajectory.prompt or "no recipe").removeprefix(", ")
    return " · ".join(part for part in (truncate(facts, 80), f"{trajectory.width} × {trajectory.height} px") if part)


def common_subtitle(trajectories: Sequence[Trajectory | Film]) -> str:
    """Prompt, model, seed and steps, those in which all trajectories agree."""
    recipes = [
        (trajectory.recipe, trajectory)
        for trajectory in trajectories
        if isinstance(trajectory, Trajectory) and trajectory.recipe is not None
    ]
    if len(recipes) < len(trajectories) or not recipes:
        return truncate("; ".join(dict.fromkeys(trajectory.caption for trajectory in trajectories)), 110)
    facts = [
        {recipe.prompt for recipe, _ in recipes},
        {trajectory.model for _, trajectory in recipes},
        {value_label("seed", recipe.seed) for recipe, _ in recipes},
        {value_label("steps", len(trajectory)) for _, trajectory in recipes},
    ]
    shared = [truncate(next(iter(values)), 70) for values in facts if len(values) == 1]
    return " · ".join(part for part in shared if part)


def sweep_subtitle(sweep: Sweep, axes: Mapping[str, Sequence[Any]]) -> str:
    """Model, count of pictures, the seed and steps that are not among the labels of the grid, and who drew it."""
    recipe = sweep[0].recipe
    fixed = [value_label(name, getattr(recipe, name)) for name in ("seed", "steps") if len(axes.get(name, (0,))) == 1]
    model = sweep.model or recipe.model or ""
    status = "" if sweep.finished else "unfinished"
    return " · ".join(part for part in (model, *fixed, f"{len(sweep)} pictures", status, sweep.note) if part)


def wrap(text: str, width: int) -> str:
    r"""A text on at most four lines of at most `width` columns each.

    Example:
        >>> wrap("a fox in the snow", 8)
        'a fox in\nthe snow'
    """
    lines = [""]
    for word in text.split():
        if len(lines) > 4:
            break
        if lines[-1] and text_width(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for char in word:  # a word wider than a line, or a script without spaces, breaks anywhere
            if lines[-1] and text_width(lines[-1] + char) > width:
                lines.append("")
            lines[-1] += char
    return "\n".join(lines[:4] if len(lines) <= 4 else [*lines[:3], truncate(lines[3] + " …", width)])
