"""Where things stand in a figure made of pictures: in inches, from the top left, so that frames keep their size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from fluxnb.plots.style import FAINT, INK, SOFT, plain
from fluxnb.records import Cell, Trajectory
from fluxnb.visuals.frames import FrameSet

__all__ = ["FRAME", "GAP", "HEAD", "blocks_of", "box", "evenly", "frame", "rule", "spaced", "spot", "square", "write"]

FRAME = 1.05  # inches, the side of a frame
GAP = 0.07
HEAD = 0.62  # above the frames, for title and subtitle


def spot(figure: Figure, left: float, top: float, wide: float, high: float) -> Any:
    """An empty place for a picture, in inches from the top left."""
    width, height = figure.get_size_inches()
    return plain(figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height)))


def frame(
    figure: Figure, left: float, top: float, wide: float, high: float, image: Image.Image, *, accent: bool = False
) -> None:
    """A picture at a place; `accent` frames it."""
    axes = spot(figure, left, top, wide, high)
    # A linear preview has one pixel for 8 x 8; drawn smooth it reads as the blurred picture it is, not as a mosaic.
    axes.imshow(np.asarray(image.convert("RGB")), interpolation="bicubic", aspect="auto")
    for spine in axes.spines.values():
        spine.set(visible=accent, color=INK, linewidth=1.0)


def square(figure: Figure, left: float, top: float, wide: float, high: float, cell: Cell | None) -> None:
    """A cell of a grid, or the empty square of one that was never made."""
    if cell is not None:
        frame(figure, left, top, wide, high, cell.image)
        return
    axes = spot(figure, left, top, wide, high)
    for spine in axes.spines.values():
        spine.set(visible=True, color=FAINT, linewidth=0.7)


def write(figure: Figure, left: float, top: float, text: str, size: float, colour: str) -> None:
    """Words at a place."""
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, fontsize=size, color=colour, va="top", ha="left",
                linespacing=1.25)  # fmt: skip


def rule(left: float, right: float, y: float, drop: float = 0.0) -> Any:
    """A thin line, in shares of the figure; with `drop`, a tick."""
    return Line2D([left, right], [y, y - drop], color=FAINT if not drop else SOFT, linewidth=0.8, zorder=-1)


def box(roll: FrameSet | Trajectory) -> tuple[float, float]:
    """The size of a frame in inches: the longer side is FRAME."""
    longest = max(roll.width, roll.height)
    return FRAME * roll.width / longest, FRAME * roll.height / longest


def evenly(count: int, most: int) -> list[int]:
    """Indices of at most so many out of `count`, the first and the last always."""
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))}) if count else []


def spaced(sigmas: Sequence[float], gap: float, *, closes: bool) -> list[int]:
    """Indices of the levels at least `gap` apart, counted from noise; the end at 0 keeps its place free."""
    shown: list[int] = []
    for index, sigma in enumerate(sigmas):
        free_of_last = not shown or sigmas[shown[-1]] - sigma >= gap - 1e-6
        if free_of_last and (sigma >= gap - 1e-6 or not closes):
            shown.append(index)
    return shown


def blocks_of(axes: dict[str, tuple[Any, ...]], names: list[str]) -> list[dict[str, Any]]:
    """Every combination of the values of these axes."""
    blocks: list[dict[str, Any]] = [{}]
    for name in names:
        blocks = [{**block, name: value} for block in blocks for value in axes[name]]
    return blocks
