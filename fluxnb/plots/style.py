"""How every figure looks: one type scale, thin rules, white space, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

__all__ = ["COLOURS", "FAINT", "INK", "MARKERS", "View", "breadth", "clip", "heading", "plain", "styled"]

# Okabe and Ito, "Color Universal Design" (2008), darkest first; yellow is left out, it fades on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # so that no line is told apart by colour alone
INK = "#222222"
SOFT = "#6b6b6b"
FAINT = "#d8d8d8"

TITLE, TEXT, SMALL = 11.5, 9.0, 7.5  # points

_RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it, so a figure looks the same everywhere
    "font.size": TEXT,
    "text.color": INK,
    "text.parse_math": False,  # a prompt with two dollar signs is text
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.labelsize": TEXT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": SMALL + 0.5,
    "ytick.labelsize": SMALL + 0.5,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": SMALL + 0.5,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


class View(Figure):
    """A matplotlib Figure that shows itself once as the last line of a cell, whether or not pyplot is there."""

    def _repr_png_(self) -> bytes:
        drawn, small = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", bbox_inches="tight", pad_inches=0.12)
        # Without the alpha that nobody sees, and packed well: a notebook is committed with its figures.
        Image.open(drawn).convert("RGB").save(small, "PNG", optimize=True)
        return small.getvalue()


@contextmanager
def styled() -> Iterator[None]:
    """The look of fluxnb, for the figure being drawn and nothing else."""
    with mpl.rc_context(_RC):
        yield


def new(width: float, height: float) -> View:
    """An empty figure of so many inches, at a resolution that reads well on a screen and stays small in a file."""
    return View(figsize=(width, height), dpi=110)


def canvas(ax: Axes | None, width: float = 5.6, height: float = 3.4) -> tuple[Figure, Axes]:
    """The axes to draw in: the caller's, or those of a new figure."""
    if ax is not None:
        ax.spines[["top", "right"]].set_visible(False)
        return (ax.figure if isinstance(ax.figure, Figure) else ax.figure.figure), ax
    figure = new(width, height)
    return figure, figure.add_axes((0.11, 0.15, 0.86, 0.66))


def placed(figure: View, ax: Axes | None) -> Figure:
    """A figure made of pictures: itself, or, where the caller has axes, drawn into those as one picture."""
    if ax is None:
        return figure
    with Image.open(io.BytesIO(figure._repr_png_())) as picture:
        plain(ax).imshow(np.asarray(picture))
    return ax.figure if isinstance(ax.figure, Figure) else ax.figure.figure


def heading(figure: Figure, title: str, subtitle: str, *, left: float = 0.0, top: float = 1.0) -> None:
    """What a stranger reads first: the title in ink, and below it, smaller, whose walk this is."""
    inch = 1.0 / figure.get_figheight()
    figure.text(left, top - 0.02 * inch, title, fontsize=TITLE, color=INK, va="top", ha="left")
    figure.text(left, top - 0.27 * inch, subtitle, fontsize=SMALL + 0.5, color=SOFT, va="top", ha="left")


def above(ax: Axes, title: str, subtitle: str) -> None:
    """The same heading for a plot with axes, at its own left edge."""
    ax.annotate(title, (0, 1), (0, 25), xycoords="axes fraction", textcoords="offset points", fontsize=TITLE,
                color=INK, va="bottom", annotation_clip=False)  # fmt: skip
    ax.annotate(subtitle, (0, 1), (0, 11), xycoords="axes fraction", textcoords="offset points",
                fontsize=SMALL + 0.5, color=SOFT, va="bottom", annotation_clip=False)  # fmt: skip


def plain(ax: Axes) -> Axes:
    """Axes for a picture: no ticks, no frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def breadth(text: str) -> int:
    """How broad a text is, in letters: an ideograph or an emoji is two, a mark that stands on a letter none."""
    marks = ("Mn", "Me", "Cf")
    return sum(
        0 if unicodedata.category(each) in marks else 1 + (unicodedata.east_asian_width(each) in "WF") for each in text
    )


def clip(text: str, limit: int = 90) -> str:
    """A prompt on one line, cut where it would run out of the figure, and never read as mathematics."""
    line = " ".join(text.split())
    if breadth(line) <= limit:
        return line
    room = limit - 1
    for place, each in enumerate(line):
        room -= breadth(each)
        if room < 0:
            return line[:place].rstrip() + "…"
    return line
