"""Figures with axes: the schedule, the velocity, the moment the picture locks in, and the path itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fluxnb.errors import InputError
from fluxnb.metrics import distance_to_final, principal, velocity_norm
from fluxnb.plots.captions import common
from fluxnb.plots.style import COLOURS, FAINT, INK, MARKERS, SMALL, SOFT, above, canvas, styled
from fluxnb.records import Trajectory
from fluxnb.visuals.frames import tell_apart

__all__ = ["lock_in", "path", "sigma_curve", "velocity"]


def sigma_curve(trajectories: Trajectory | Sequence[Trajectory], *, ax: Axes | None = None) -> Figure:
    """The noise levels each walk visits, step by step; the length of a step is how far sigma falls in it.

    Arguments:
        walks: one Trajectory or several.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.
    """

    def draw(axes: Axes, trajectory: Trajectory, look: dict[str, Any]) -> None:
        done = len(trajectory.steps) + 1
        places = [index / (len(trajectory.sigmas) - 1) for index in range(len(trajectory.sigmas))]
        axes.plot(places[:done], trajectory.sigmas[:done], **look)
        if done < len(trajectory.sigmas):  # planned and not walked
            axes.plot(places[done - 1 :], trajectory.sigmas[done - 1 :], color=look["color"], ls=":", lw=1)

    figure, axes = _curves(trajectories, ax, draw, "Noise levels along the way")
    axes.set(xlabel="share of the steps", ylabel="σ, share of noise", xlim=(-0.02, 1.02), ylim=(-0.03, 1.05))
    return figure


def velocity(trajectories: Trajectory | Sequence[Trajectory], *, ax: Axes | None = None) -> Figure:
    """The length of the velocity at each sigma, as root mean square per number.

    On a perfectly straight path it would not change; noise has 1, so values near or above 1 say that the model's
    answer still contains the whole noise.

    Arguments:
        walks: one Trajectory or several.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.
    """

    def draw(axes: Axes, trajectory: Trajectory, look: dict[str, Any]) -> None:
        axes.plot([step.sigma for step in trajectory.steps], velocity_norm(trajectory), **look)

    figure, axes = _curves(trajectories, ax, draw, "How strong the velocity is")
    axes.set(xlabel="σ, from noise to picture", ylabel="velocity, rms per number", xlim=(1.03, -0.03))
    axes.set_ylim(bottom=0)
    return figure


def lock_in(trajectories: Trajectory | Sequence[Trajectory], *, ax: Axes | None = None) -> Figure:
    """How far the clean estimate still is from the final picture, at each sigma.

    1 is the distance of the first estimate, 0 the final latents. Where a curve comes down, the picture is decided;
    what follows is detail. One step has one estimate, which is final, and draws a single point.

    Arguments:
        walks: one Trajectory or several, with x, v and x_next kept.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: a walk whose run kept no tensors.
    """

    def draw(axes: Axes, trajectory: Trajectory, look: dict[str, Any]) -> None:
        away = distance_to_final(trajectory)
        first = away[0] if away[0] > 1e-9 * float(trajectory.final.float().std()) else 1.0
        levels = [*(step.sigma for step in trajectory.steps if step.kept), trajectory.sigmas[len(trajectory.steps)]]
        axes.plot(levels, [*(value / first for value in away), 0.0], **look)

    figure, axes = _curves(trajectories, ax, draw, "When the picture is decided")
    axes.axhline(0.5, color=FAINT, lw=0.8, zorder=0)
    axes.annotate("half way", (1.02, 0.5), (0, 3), textcoords="offset points", color=SOFT, fontsize=SMALL)
    axes.set(xlabel="σ, from noise to picture", ylabel="distance to the final picture", xlim=(1.03, -0.03))
    axes.set_ylim(bottom=-0.03)
    return figure


def path(trajectories: Trajectory | Sequence[Trajectory], *, ax: Axes | None = None) -> Figure:
    """The walks as paths, seen in the two directions in which all their points differ most (principal components).

    Filled points are x, from noise (large) to picture (small); the thin dashed line is the straight way; open
    points are the clean estimates. The axes say what share of the spread each direction carries; the rest is not
    seen here, so a path that looks straight need not be.

    Arguments:
        walks: one Trajectory or several of one size, with all tensors kept.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: walks of different sizes, or without tensors.
    """
    several = _several(trajectories)
    if len({(trajectory.height, trajectory.width) for trajectory in several}) > 1:
        raise InputError("walks of different sizes", "one space holds one size", "run them at one height and width")
    points = [_points(trajectory) for trajectory in several]
    seen, share = principal(torch.cat([part for xs, cleans in points for part in (xs, cleans)]))
    with styled():
        figure, axes = canvas(ax, 5.6, 4.4)
        begin = 0
        for order, ((xs, cleans), label) in enumerate(zip(points, tell_apart(several), strict=True)):
            sampled, begin = seen[begin : begin + len(xs)], begin + len(xs)
            thought, begin = seen[begin : begin + len(cleans)], begin + len(cleans)
            colour, marker = COLOURS[order % 7], MARKERS[order % 7]
            axes.plot(*sampled[[0, -1]].T.tolist(), color=colour, lw=0.8, ls=(0, (4, 4)), alpha=0.6)
            axes.plot(*sampled.T.tolist(), color=colour, label=label, zorder=3)
            small = min(1.0, 14 / len(sampled))  # many points: a chain of beads, not a smear
            sizes = [small * (70 - 54 * place / max(len(sampled) - 1, 1)) for place in range(len(sampled))]
            axes.scatter(
                sampled[:, 0].tolist(), sampled[:, 1].tolist(), s=sizes, color=colour, marker=marker, zorder=4, lw=0
            )
            axes.plot(*thought.T.tolist(), color=colour, lw=0.7, alpha=0.45)
            axes.scatter(
                thought[:, 0].tolist(),
                thought[:, 1].tolist(),
                s=22 * small,
                facecolor="white",
                edgecolor=colour,
                marker=marker,
                lw=0.9,
                zorder=4,
            )
        axes.annotate("noise", seen[0].tolist(), (8, 6), textcoords="offset points", color=SOFT, fontsize=SMALL)
        axes.set_xlabel(f"first direction, {share[0]:.0%} of the spread\n● x    ○ clean estimate    - - straight")
        axes.set_ylabel(f"second direction, {share[1]:.0%}")
        axes.set_aspect("equal", adjustable="datalim")
        axes.tick_params(labelbottom=False, labelleft=False, length=0)
        _finish(axes, several, "The way from noise to picture")
    return figure


def _curves(
    trajectories: Trajectory | Sequence[Trajectory],
    ax: Axes | None,
    draw: Callable[[Axes, Trajectory, dict[str, Any]], None],
    title: str,
) -> tuple[Figure, Axes]:
    """One curve a walk, in the caller's axes or new ones, told apart and titled; the axes are left to be named."""
    several = _several(trajectories)
    with styled():
        figure, axes = canvas(ax)
        for order, (trajectory, label) in enumerate(zip(several, tell_apart(several), strict=True)):
            draw(axes, trajectory, {"label": label, **_look(order, len(trajectory))})
        _finish(axes, several, title)
    return figure, axes


def _several(trajectories: Trajectory | Sequence[Trajectory]) -> list[Trajectory]:
    several = [trajectories] if isinstance(trajectories, Trajectory) else list(trajectories)
    if not several:
        raise InputError("no walk", "at least one is needed", "give what fnb.run returned")
    for trajectory in several:
        if not isinstance(trajectory, Trajectory):
            raise InputError(
                f"a {type(trajectory).__name__}", "this view measures Trajectories", "give what fnb.run returned"
            )
    return several


def _look(order: int, count: int) -> dict[str, Any]:
    """Colour, marker and size of a line; the fewer the steps the larger the marker, so that equal points nest."""
    size = 2.5 if count > 12 else 4 + 6 / max(count, 1)
    colour, marker = COLOURS[order % len(COLOURS)], MARKERS[order % len(MARKERS)]
    return {"color": colour, "marker": marker, "ms": size, "zorder": 2 + count / 1000}


def _finish(axes: Axes, trajectories: Sequence[Trajectory], title: str) -> None:
    above(axes, title, common(trajectories))
    if len(trajectories) > 1:
        axes.legend(loc="best", labelcolor=INK, handlelength=1.8)


def _points(trajectory: Trajectory) -> tuple[Tensor, Tensor]:
    """All x of a walk with its end, and all clean estimates, one point per row."""
    steps = [step for step in trajectory.steps if step.kept]
    if not steps:
        raise InputError("a walk without tensors", "its run kept no x and v", "run again with keep=fnb.Keep()")
    xs = [step.x.float().flatten() for step in steps]
    return torch.stack([*xs, trajectory.final.float().flatten()]), torch.stack([step.clean.flatten() for step in steps])
