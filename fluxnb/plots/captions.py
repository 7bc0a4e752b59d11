"""What a figure says: titles, and labels that name only what differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fluxnb.plots.style import breadth, clip
from fluxnb.records import Film, Sweep, Trajectory
from fluxnb.visuals.labels import NAMES, value_of, values_of

__all__ = ["common", "facts_of", "subtitle_of", "title_of", "value_of", "values_of", "wrap"]


def title_of(trajectory: Trajectory | Film) -> str:
    """What a figure of this walk is called: its prompt."""
    if isinstance(trajectory, Film):
        return trajectory.caption
    return "A watched call" if trajectory.recipe is None else trajectory.recipe.prompt


def subtitle_of(trajectory: Trajectory | Film) -> str:
    """Whose walk it is: model, seed, steps, size."""
    if isinstance(trajectory, Film):
        return f"{NAMES.get(trajectory.what, trajectory.what)}, {len(trajectory)} frames"
    said = (
        trajectory.caption
        if trajectory.recipe is None
        else trajectory.caption.removeprefix(trajectory.recipe.prompt).removeprefix(", ")
    )
    return " · ".join(part for part in (clip(said, 80), f"{trajectory.width} × {trajectory.height} px") if part)


def common(trajectories: Sequence[Trajectory | Film]) -> str:
    """What all walks share, for the line under the title: prompt, model and seed where they agree."""
    known = [
        trajectory
        for trajectory in trajectories
        if isinstance(trajectory, Trajectory) and trajectory.recipe is not None
    ]
    if len(known) < len(trajectories) or not known:
        return clip("; ".join(dict.fromkeys(trajectory.caption for trajectory in trajectories)), 110)
    facts = [
        {trajectory.recipe.prompt for trajectory in known if trajectory.recipe},
        {trajectory.model for trajectory in known},
        {f"seed {trajectory.recipe.seed}" for trajectory in known if trajectory.recipe},
        {f"{len(trajectory)} step{'' if len(trajectory) == 1 else 's'}" for trajectory in known},
    ]
    shared = [clip(next(iter(fact)), 70) for fact in facts if len(fact) == 1]
    return " · ".join(part for part in shared if part)


def facts_of(sweep: Sweep, axes: dict[str, tuple[Any, ...]]) -> str:
    """Model, seed and steps under the title, those that the labels of the grid do not say anyway."""
    recipe = sweep[0].recipe
    fixed = [value_of(name, getattr(recipe, name)) for name in ("seed", "steps") if len(axes.get(name, (0,))) == 1]
    model = sweep.model or recipe.model or ""
    done = "" if sweep.finished else "unfinished"
    return " · ".join(part for part in (model, *fixed, f"{len(sweep)} pictures", done) if part)


def wrap(text: str, width: int) -> str:
    """Text on at most four lines, each no broader than so many letters."""
    lines = [""]
    for word in text.split():
        if len(lines) > 4:
            break
        if lines[-1] and breadth(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        if lines[-1]:
            lines.append("")
        for each in word:  # a word broader than a line, and a script without spaces, breaks where it must
            if lines[-1] and breadth(lines[-1] + each) > width:
                lines.append("")
            lines[-1] += each
    return "\n".join(lines[:4] if len(lines) <= 4 else [*lines[:3], clip(lines[3] + " …", width)])
