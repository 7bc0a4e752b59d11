"""Figures with axes: noise levels, velocity, distance to the final latents, paths, and device memory over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError
from fluxnb.metrics import distance_to_final, principal, velocity_norm
from fluxnb.plots.captions import common_subtitle, wrap
from fluxnb.plots.style import (
    COLORS,
    FAINT,
    INK,
    MARKERS,
    SMALL,
    SOFT,
    axes_heading,
    axes_or_new,
    make_drawable,
    style_context,
)
from fluxnb.records import Trajectory
from fluxnb.visuals.labels import distinct_labels, pair_note

__all__ = ["lock_in", "memory", "path", "sigma_curve", "velocity"]

Plane = Float[np.ndarray, "_ 2"]
MemorySeries = Sequence[Sequence[float]]  # pairs of seconds and GiB, also as JSON has them


@entry_point("trajectories", "ax")
def sigma_curve(trajectories: Trajectory | Sequence[Trajectory], *, ax: Axes | None = None) -> Figure:
    """Plot the noise level sigma at each step; steps planned but not sampled are dotted.

    Arguments:
        trajectories: one Trajectory or several.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: an empty list, or something that is not a Trajectory.
    """

    def draw(axes: Axes, trajectory: Trajectory, line_style: dict[str, Any]) -> None:
        sampled = len(trajectory.steps) + 1
        shares = [index / (len(trajectory.sigmas) - 1) for index in range(len(trajectory.sigmas))]
        axes.plot(shares[:sampled], trajectory.sigmas[:sampled], **line_style)
        if sampled < len(trajectory.sigmas):
            rest = slice(sampled - 1, None)
            axes.plot(shares[rest], trajectory.sigmas[rest], color=line_style["color"], ls=":", lw=1)

    figure, axes = _curves(trajectories, ax, draw, "Noise levels along the way")
    axes.set(xlabel="share of the steps", ylabel="σ, share of noise", xlim=(-0.02, 1.02), ylim=(-0.03, 1.05))
    return figure


@entry_point("trajectories", "ax")
def velocity(trajectories: Trajectory | Sequence[Trajectory], *, ax: Axes | None = None) -> Figure:
    """Plot the root mean square of the velocity over sigma.

    It is constant on a straight path. Unit noise has 1, so a value near or above 1 means that the velocity still
    contains all of the noise.

    Arguments:
        trajectories: one Trajectory or several.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: an empty list, or something that is not a Trajectory.
    """

    def draw(axes: Axes, trajectory: Trajectory, line_style: dict[str, Any]) -> None:
        axes.plot([step.sigma for step in trajectory.steps], velocity_norm(trajectory), **line_style)

    figure, axes = _curves(trajectories, ax, draw, "How strong the velocity is")
    axes.set(xlabel="σ, from noise to picture", ylabel="velocity, rms per number", xlim=(1.03, -0.03))
    axes.set_ylim(bottom=0)
    return figure


@entry_point("trajectories", "ax")
def lock_in(trajectories: Trajectory | Sequence[Trajectory], *, ax: Axes | None = None) -> Figure:
    """Plot the distance of the clean estimate from the final latents over sigma.

    1 is the distance of the first estimate and 0 the final latents. The picture is decided where a curve falls; later
    steps add detail. A trajectory of one step has one estimate, which is final, and is drawn as a single point.

    Arguments:
        trajectories: one Trajectory or several, with x, v and x_next kept.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: a trajectory without tensors, an empty list, or something that is not a Trajectory.
    """

    def draw(axes: Axes, trajectory: Trajectory, line_style: dict[str, Any]) -> None:
        distances = distance_to_final(trajectory)
        # A first distance that is rounding error only (one step) is not used as the unit.
        unit = distances[0] if distances[0] > 1e-9 * float(trajectory.final.float().std()) else 1.0
        levels = [*(step.sigma for step in trajectory.steps if step.kept), trajectory.sigmas[len(trajectory.steps)]]
        axes.plot(levels, [*(value / unit for value in distances), 0.0], **line_style)

    figure, axes = _curves(trajectories, ax, draw, "When the picture is decided")
    axes.axhline(0.5, color=FAINT, lw=0.8, zorder=0)
    axes.annotate("half way", (1.02, 0.5), (0, 3), textcoords="offset points", color=SOFT, fontsize=SMALL)
    axes.set(xlabel="σ, from noise to picture", ylabel="distance to the final picture", xlim=(1.03, -0.03))
    axes.set_ylim(bottom=-0.03)
    return figure


@entry_point("trajectories", "ax")
def path(trajectories: Trajectory | Sequence[Trajectory], *, ax: Axes | None = None) -> Figure:
    """Plot trajectories in the two principal directions of all their points.

    Filled points are x, larger near noise; open points are the clean estimates; the dashed line is the straight path.
    The axis labels give the share of the variance along each direction. The remaining variance is not displayed, so a
    path that looks straight need not be straight.

    Arguments:
        trajectories: one Trajectory or several of one size, with all tensors kept.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: trajectories of different sizes or without tensors, an empty list, or something that is not a
            Trajectory.
    """
    several = _as_list(trajectories)
    if len({(trajectory.height, trajectory.width) for trajectory in several}) > 1:
        raise InputError(
            "trajectories of different sizes",
            "all must have one height and width",
            "run them again with the same height= and width=",
        )
    points = [_points(trajectory) for trajectory in several]
    projected, share = principal(torch.cat([part for xs, cleans in points for part in (xs, cleans)]))
    with style_context():
        figure, axes = axes_or_new(ax, 5.6, 4.4)
        begin = 0
        for order, ((xs, cleans), label) in enumerate(zip(points, distinct_labels(several), strict=True)):
            middle, end = begin + len(xs), begin + len(xs) + len(cleans)
            _draw_path(axes, projected[begin:middle], projected[middle:end], order, label)
            begin = end
        axes.annotate("noise", projected[0].tolist(), (8, 6), textcoords="offset points", color=SOFT, fontsize=SMALL)
        axes.set_xlabel(f"first direction, {share[0]:.0%} of the spread\n● x    ○ clean estimate    - - straight")
        axes.set_ylabel(f"second direction, {share[1]:.0%}")
        axes.set_aspect("equal", adjustable="datalim")
        axes.tick_params(labelbottom=False, labelleft=False, length=0)
        _add_heading_and_legend(axes, several, "The way from noise to picture")
    return figure


def _draw_path(axes: Axes, xs: Plane, cleans: Plane, order: int, label: str) -> None:
    """Draw the projected points of one trajectory: x with the straight line, and the clean estimates."""
    color, marker = COLORS[order % len(COLORS)], MARKERS[order % len(MARKERS)]
    axes.plot(*xs[[0, -1]].T.tolist(), color=color, lw=0.8, ls=(0, (4, 4)), alpha=0.6)
    axes.plot(*xs.T.tolist(), color=color, label=label, zorder=3)
    scale = min(1.0, 14 / len(xs))  # many points are drawn smaller, so that they stay apart
    sizes = [scale * (70 - 54 * index / max(len(xs) - 1, 1)) for index in range(len(xs))]
    axes.scatter(xs[:, 0], xs[:, 1], s=sizes, color=color, marker=marker, zorder=4, lw=0)
    axes.plot(*cleans.T.tolist(), color=color, lw=0.7, alpha=0.45)
    axes.scatter(
        cleans[:, 0], cleans[:, 1], s=22 * scale, facecolor="white", edgecolor=color, marker=marker, lw=0.9, zorder=4
    )  # fmt: skip


def _curves(
    trajectories: Trajectory | Sequence[Trajectory],
    ax: Axes | None,
    draw: Callable[[Axes, Trajectory, dict[str, Any]], None],
    title: str,
) -> tuple[Figure, Axes]:
    """Draw one labeled curve for each trajectory; the caller names the axes."""
    several = _as_list(trajectories)
    with style_context():
        figure, axes = axes_or_new(ax)
        for order, (trajectory, label) in enumerate(zip(several, distinct_labels(several), strict=True)):
            draw(axes, trajectory, {"label": label, **_line_style(order, len(trajectory))})
        _add_heading_and_legend(axes, several, title)
    return figure, axes


def _as_list(trajectories: Trajectory | Sequence[Trajectory]) -> list[Trajectory]:
    several = [trajectories] if isinstance(trajectories, Trajectory) else list(trajectories)
    if not several:
        raise InputError("no trajectory", "at least one is needed", "pass the result of fnb.run")
    for trajectory in several:
        if not isinstance(trajectory, Trajectory):
            raise InputError(
                f"a {type(trajectory).__name__}", "this figure takes a Trajectory", "pass the result of fnb.run"
            )
    return several


def _line_style(order: int, count: int) -> dict[str, Any]:
    """Color, marker and size of a line; fewer steps have larger markers, so that coinciding points stay visible."""
    size = 2.5 if count > 12 else 4 + 6 / max(count, 1)
    color, marker = COLORS[order % len(COLORS)], MARKERS[order % len(MARKERS)]
    return {"color": color, "marker": marker, "ms": size, "zorder": 2 + count / 1000}


def _add_heading_and_legend(axes: Axes, trajectories: Sequence[Trajectory], title: str) -> None:
    axes_heading(axes, title, common_subtitle(trajectories))
    if len(trajectories) > 1:
        note = {"title": wrap(pair_note(trajectories), 46), "title_fontsize": SMALL - 0.5, "alignment": "left"}
        axes.legend(loc="best", labelcolor=INK, handlelength=1.8, **note)
    make_drawable(axes)


def _points(trajectory: Trajectory) -> tuple[Tensor, Tensor]:
    """All x of a trajectory with the final latents, and all clean estimates; one flat point a row."""
    steps = [step for step in trajectory.steps if step.kept]
    if not steps:
        raise InputError("a trajectory without tensors", "x and v are needed", "run again with keep=fnb.Keep()")
    xs = [step.x.float().flatten() for step in steps]
    return torch.stack([*xs, trajectory.final.float().flatten()]), torch.stack([step.clean.flatten() for step in steps])


@entry_point(
    "ax",
    courses='courses={"lean": [(0.0, 16.5), (0.8, 18.7)]}',
    peaks='peaks={"lean": 18.9}',
    cards="cards=(12, 24)",
    title='title="Memory"',
    subtitle='subtitle="H100"',
)
def memory(
    courses: Mapping[str, MemorySeries],
    *,
    peaks: Mapping[str, float] | None = None,
    cards: Sequence[float] = (8, 12, 16, 24),
    title: str = "Memory on the device over time",
    subtitle: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Plot device memory over time, one line for each preset, with the sizes of cards as horizontal lines.

    Arguments:
        courses: name to (seconds, GiB) points from the prompt to the picture; a level holds until the next point, and
            the last point marks the end.
        peaks: GiB by name, where the peak is known from a measurement; sampled points miss short peaks.
        cards: sizes of cards to draw, in GiB.
        title, subtitle: text above the figure.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: no series, or one without points.

    Example:
        >>> memory({"lean": [(0, 16.5), (0.1, 16.9), (0.8, 18.7), (0.9, 16.3)]})
        <View size 704x396 with 1 Axes>
    """
    if not courses or not all(courses.values()):
        raise InputError("courses without points", "each needs at least one (seconds, GiB)", "leave empty ones out")
    with style_context():
        figure, axes = axes_or_new(ax, 6.4, 3.6)
        end = max(points[-1][0] for points in courses.values()) * 1.25  # leaves space for the names
        highest = {name: max(level for _, level in points) for name, points in courses.items()} | dict(peaks or {})
        top = max(*highest.values(), *cards) * 1.08
        for card in cards:
            axes.axhline(card, color=FAINT, linewidth=0.8, zorder=0)
            axes.annotate(
                f"{card:g} GB card", (1, card), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                fontsize=SMALL, color=SOFT, va="center", annotation_clip=False,
            )  # fmt: skip
        label_heights = _spread({name: highest[name] for name in courses}, top / 18)
        for (name, points), color in zip(courses.items(), COLORS * len(courses), strict=False):
            times, levels = zip(*points, strict=True)
            axes.step(times, levels, where="post", color=color)
            axes.annotate(
                f"{name}, {highest[name]:.1f}", (times[-1], label_heights[name]), (5, 0), textcoords="offset points",
                color=color, fontsize=SMALL + 0.5, va="center", annotation_clip=False,
            )  # fmt: skip
        axes.set(xlim=(0, end), ylim=(0, top), xlabel="seconds", ylabel="GiB")
        axes.yaxis.label.set_color(INK)
        axes_heading(axes, title, subtitle or "beside each line its name and its peak in GiB")
        make_drawable(axes)
    return figure


def _spread(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Raise heights that are less than `gap` above the one below, so that their labels do not overlap."""
    placed: dict[str, float] = {}
    for name in sorted(heights, key=heights.__getitem__):
        placed[name] = max(heights[name], max(placed.values(), default=-gap) + gap)
    return placed
