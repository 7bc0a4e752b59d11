"""memory(): what each way of holding a model takes of the device, from the prompt to the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fluxnb.errors import InputError, validates_own_input
from fluxnb.plots.style import COLOURS, FAINT, INK, SMALL, SOFT, above, canvas, styled

__all__ = ["memory"]

Course = Sequence[tuple[float, float]]


@validates_own_input
def memory(
    courses: Mapping[str, Course],
    *,
    peaks: Mapping[str, float] | None = None,
    cards: Sequence[float] = (8, 12, 16, 24),
    title: str = "Memory on the device over time",
    subtitle: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Memory over time, one line for each way of holding a model, with the sizes of cards as rules.

    Arguments:
        courses: by name, (seconds, GiB) from the prompt to the picture; each level holds until the next point, and the
            last point says when it ends.
        peaks: GiB by name, where they are known better than from the points: samples miss what is short.
        cards: sizes to draw as rules, GiB.
        title, subtitle: what stands above.
        ax: where to draw; a new figure by default.

    Raises:
        InputError: nothing to draw.

    Example:
        >>> memory({"lean": [(0, 16.5), (0.1, 16.9), (0.8, 18.7), (0.9, 16.3)]})
        <fluxnb.plots.style.View size 616x374 with 1 Axes>
    """
    if not courses or not all(courses.values()):
        raise InputError("courses without points", "each needs at least one (seconds, GiB)", "leave empty ones out")
    with styled():
        figure, axes = canvas(ax, 6.4, 3.6)
        end = max(points[-1][0] for points in courses.values()) * 1.25  # names need room
        most = {name: max(level for _, level in points) for name, points in courses.items()} | dict(peaks or {})
        top = max(*most.values(), *cards) * 1.08
        for card in cards:
            axes.axhline(card, color=FAINT, linewidth=0.8, zorder=0)
            axes.annotate(
                f"{card:g} GB card", (1, card), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                fontsize=SMALL, color=SOFT, va="center", annotation_clip=False,
            )  # fmt: skip
        heights = _apart({name: most[name] for name in courses}, top / 18)
        for (name, points), colour in zip(courses.items(), COLOURS * len(courses), strict=False):
            times, levels = zip(*points, strict=True)
            axes.step(times, levels, where="post", color=colour)
            axes.annotate(
                f"{name}, {most[name]:.1f}", (times[-1], heights[name]), (5, 0), textcoords="offset points",
                color=colour, fontsize=SMALL + 0.5, va="center", annotation_clip=False,
            )  # fmt: skip
        axes.set(xlim=(0, end), ylim=(0, top), xlabel="seconds", ylabel="GiB")
        axes.yaxis.label.set_color(INK)
        above(axes, title, subtitle or "beside each line its name and its peak in GiB")
    return figure


def _apart(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """The same heights, those too close to the one below moved up, so that each can be read."""
    placed: dict[str, float] = {}
    for name in sorted(heights, key=heights.__getitem__):
        placed[name] = max(heights[name], max(placed.values(), default=-gap) + gap)
    return placed
