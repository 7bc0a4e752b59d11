"""Placement of pictures and text in a figure, in inches from the top left, so that frames keep their size."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from fluxnb.plots.style import FAINT, INK, SOFT, hide_axes
from fluxnb.records import Cell, Trajectory
from fluxnb.visuals.frames import FrameSet, at_most

__all__ = [
    "FRAME",
    "GAP",
    "HEAD",
    "Box",
    "add_axes",
    "combinations",
    "draw_cell",
    "draw_frame",
    "draw_text",
    "evenly_spaced",
    "frame_size",
    "line",
    "without_overlap",
]

FRAME = 1.05  # inches, the side of a frame
GAP = 0.07
LARGEST_FRAME = 2048  # pixels on the longer side; a frame has 116 in a figure of the usual resolution
HEAD = 0.62  # above the frames, for title and subtitle


class Box(NamedTuple):
    """A rectangle in inches; `left` and `top` count from the top left corner of the figure."""

    left: float
    top: float
    width: float
    height: float


def add_axes(figure: Figure, box: Box) -> Axes:
    """Add axes without ticks and spines at a rectangle."""
    width, height = figure.get_size_inches()
    place = (box.left / width, 1 - (box.top + box.height) / height, box.width / width, box.height / height)
    return hide_axes(figure.add_axes(place))


def draw_frame(figure: Figure, box: Box, image: Image.Image, *, accent: bool = False) -> None:
    """Draw a picture into a rectangle, with an outline if `accent` is set."""
    axes = add_axes(figure, box)
    image = at_most(image, LARGEST_FRAME)
    # A linear preview has one pixel for 8 x 8; bicubic interpolation displays it as a blurred picture, not a mosaic.
    axes.imshow(np.asarray(image.convert("RGB")), interpolation="bicubic", aspect="auto")
    for spine in axes.spines.values():
        spine.set(visible=accent, color=INK, linewidth=1.0)


def draw_cell(figure: Figure, box: Box, cell: Cell | None) -> None:
    """Draw the picture of a cell, or an empty square for None."""
    if cell is not None:
        draw_frame(figure, box, cell.image)
        return
    for spine in add_axes(figure, box).spines.values():
        spine.set(visible=True, color=FAINT, linewidth=0.7)


def draw_text(figure: Figure, left: float, top: float, text: str, *, size: float, color: str = INK) -> None:
    """Write text whose top left corner is at (left, top)."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, fontsize=size, color=color, va="top", ha="left",
                linespacing=1.25)  # fmt: skip


def line(left: float, right: float, y: float, *, drop: float = 0.0) -> Line2D:
    """A thin line in figure coordinates (0 to 1); `drop` lowers its right end, which makes a tick."""
    return Line2D([left, right], [y, y - drop], color=FAINT if not drop else SOFT, linewidth=0.8, zorder=-1)


def frame_size(frames: FrameSet | Trajectory) -> tuple[float, float]:
    """Width and height of a frame in inches; the longer side is FRAME."""
    longest = max(frames.width, frames.height)
    return FRAME * frames.width / longest, FRAME * frames.height / longest


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most `most` indices out of `count`, evenly spaced, with the first and the last.

    Example:
        >>> evenly_spaced(28, 4)
        [0, 9, 18, 27]
    """
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))}) if count else []


def without_overlap(sigmas: Sequence[float], gap: float, *, final: bool) -> list[int]:
    """Indices of levels at least `gap` apart, from sigma 1 downwards; `final` reserves the space at sigma 0."""
    chosen: list[int] = []
    for index, sigma in enumerate(sigmas):
        clear_of_previous = not chosen or sigmas[chosen[-1]] - sigma >= gap - 1e-6
        if clear_of_previous and (sigma >= gap - 1e-6 or not final):
            chosen.append(index)
    return chosen


def combinations(axes: Mapping[str, Sequence[Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Every combination of the values of the named axes, the last name fastest."""
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(axes[name] for name in names))]
