"""Figures with axes: the schedule, the velocity, the moment the picture locks in, and the path itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from fluxnb import metrics
from fluxnb.errors import InputError
from fluxnb.frames import tell_apart
from fluxnb.plots.style import COLOURS, FAINT, INK, MARKERS, SMALL, SOFT, above, canvas, styled
from fluxnb.plots.words import common
from fluxnb.records import Trajectory

__all__ = ["lock_in", "path", "sigma_curve", "velocity"]


def sigma_curve(walks: Trajectory | Sequence[Trajectory], *, ax: Axes | None = None) -> Figure:
    """The noise levels each walk visits, step by step; the length of a step is how far sigma falls in it.

    Arguments:
        walks: one Trajectory or several.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.
    """

    def draw(axes: Axes, walk: Trajectory, look: dict[str, Any]) -> None:
        done = len(walk.steps) + 1
        places = [index / (len(walk.sigmas) - 1) for index in range(len(walk.sigmas))]
        axes.plot(places[:done], walk.sigmas[:done], **look)
        if done < len(walk.sigmas):  # planned and not walked
            axes.plot(places[done - 1 :], walk.sigmas[done - 1 :], color=look["color"], ls=":", lw=1)

    figure, axes = _curves(walks, ax, draw, "Noise levels along the way")
    axes.set(xlabel="share of the steps", ylabel="σ, share of noise", xlim=(-0.02, 1.02), ylim=(-0.03, 1.05))
    return figure


def velocity(walks: Trajectory | Sequence[Trajectory], *, ax: Axes | None = None) -> Figure:
    """The length of the velocity at each sigma, as root mean square per number.

    On a perfectly straight path it would not change; noise has 1, so values near or above 1 say that the model's
    answer still contains the whole noise.

    Arguments:
        walks: one Trajectory or several.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.
    """

    def draw(axes: Axes, walk: Trajectory, look: dict[str, Any]) -> None:
        axes.plot([step.sigma for step in walk.steps], metrics.velocity_norm(walk), **look)

    figure, axes = _curves(walks, ax, draw, "How strong the velocity is")
    axes.set(xlabel="σ, from noise to picture", ylabel="velocity, rms per number", xlim=(1.03, -0.03))
    axes.set_ylim(bottom=0)
    return figure


def lock_in(walks: Trajectory | Sequence[Trajectory], *, ax: Axes | None = None) -> Figure:
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

    def draw(axes: Axes, walk: Trajectory, look: dict[str, Any]) -> None:
        away = metrics.distance_to_final(walk)
        first = away[0] if away[0] > 1e-9 * float(walk.final.float().std()) else 1.0
        levels = [*(step.sigma for step in walk.steps if step.kept), walk.sigmas[len(walk.steps)]]
        axes.plot(levels, [*(value / first for value in away), 0.0], **look)

    figure, axes = _curves(walks, ax, draw, "When the picture is decided")
    axes.axhline(0.5, color=FAINT, lw=0.8, zorder=0)
    axes.annotate("half way", (1.02, 0.5), (0, 3), textcoords="offset points", color=SOFT, fontsize=SMALL)
    axes.set(xlabel="σ, from noise to picture", ylabel="distance to the final picture", xlim=(1.03, -0.03))
    axes.set_ylim(bottom=-0.03)
    return figure


def path(walks: Trajectory | Sequence[Trajectory], *, ax: Axes | None = None) -> Figure:
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
    several = _several(walks)
    if len({(walk.height, walk.width) for walk in several}) > 1:
        raise InputError("walks of different sizes", "one space holds one size", "run them at one height and width")
    points = [_points(walk) for walk in several]
    seen, share = metrics.principal(torch.cat([part for xs, cleans in points for part in (xs, cleans)]))
    with styled():
        figure, axes = canvas(ax, 5.6, 4.4)
        begin = 0
        for order, ((xs, cleans), label) in enumerate(zip(points, tell_apart(several), strict=True)):
            walked, begin = seen[begin : begin + len(xs)], begin + len(xs)
            thought, begin = seen[begin : begin + len(cleans)], begin + len(cleans)
            colour, marker = COLOURS[order % 7], MARKERS[order % 7]
            axes.plot(*walked[[0, -1]].T.tolist(), color=colour, lw=0.8, ls=(0, (4, 4)), alpha=0.6)
            axes.plot(*walked.T.tolist(), color=colour, label=label, zorder=3)
            small = min(1.0, 14 / len(walked))  # many points: a chain of beads, not a smear
            sizes = [small * (70 - 54 * place / max(len(walked) - 1, 1)) for place in range(len(walked))]
            axes.scatter(
                walked[:, 0].tolist(), walked[:, 1].tolist(), s=sizes, color=colour, marker=marker, zorder=4, lw=0
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
    walks: Trajectory | Sequence[Trajectory],
    ax: Axes | None,
    draw: Callable[[Axes, Trajectory, dict[str, Any]], None],
    title: str,
) -> tuple[Figure, Axes]:
    """One curve a walk, in the caller's axes or new ones, told apart and titled; the axes are left to be named."""
    several = _several(walks)
    with styled():
        figure, axes = canvas(ax)
        for order, (walk, label) in enumerate(zip(several, tell_apart(several), strict=True)):
            draw(axes, walk, {"label": label, **_look(order, len(walk))})
        _finish(axes, several, title)
    return figure, axes


def _several(walks: Trajectory | Sequence[Trajectory]) -> list[Trajectory]:
    several = [walks] if isinstance(walks, Trajectory) else list(walks)
    if not several:
        raise InputError("no walk", "at least one is needed", "give what fnb.run returned")
    for walk in several:
        if not isinstance(walk, Trajectory):
            raise InputError(
                f"a {type(walk).__name__}", "this view measures Trajectories", "give what fnb.run returned"
            )
    return several


def _look(order: int, count: int) -> dict[str, Any]:
    """Colour, marker and size of a line; the fewer the steps the larger the marker, so that equal points nest."""
    size = 2.5 if count > 12 else 4 + 6 / max(count, 1)
    colour, marker = COLOURS[order % len(COLOURS)], MARKERS[order % len(MARKERS)]
    return {"color": colour, "marker": marker, "ms": size, "zorder": 2 + count / 1000}


def _finish(axes: Axes, walks: Sequence[Trajectory], title: str) -> None:
    above(axes, title, common(walks))
    if len(walks) > 1:
        axes.legend(loc="best", labelcolor=INK, handlelength=1.8)


def _points(walk: Trajectory) -> tuple[Tensor, Tensor]:
    """All x of a walk with its end, and all clean estimates, one point per row."""
    steps = [step for step in walk.steps if step.kept]
    if not steps:
        raise InputError("a walk without tensors", "its run kept no x and v", "run again with keep=fnb.Keep()")
    xs = [step.x.float().flatten() for step in steps]
    return torch.stack([*xs, walk.final.float().flatten()]), torch.stack([step.clean.flatten() for step in steps])
