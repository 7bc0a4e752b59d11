"""Style shared by all figures: font sizes, line widths and a color-blind-safe palette."""

from __future__ import annotations

import base64
import io
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from fluxnb.visuals.fonts import DEFAULT, drawable

__all__ = [
    "COLORS",
    "FAINT",
    "INK",
    "MARKERS",
    "SMALL",
    "SOFT",
    "TEXT",
    "TITLE",
    "View",
    "axes_heading",
    "axes_or_new",
    "draw_into",
    "heading",
    "hide_axes",
    "make_drawable",
    "new_figure",
    "style_context",
    "text_width",
    "truncate",
]

# Okabe and Ito, "Color Universal Design" (2008), darkest first, without yellow, which has little contrast on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # lines differ in more than color
INK = "#222222"
SOFT = "#6b6b6b"
FAINT = "#d8d8d8"

TITLE, TEXT, SMALL = 11.5, 9.0, 7.5  # points

_RC: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": [DEFAULT],  # shipped with matplotlib, so figures are equal on every machine
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
    """A matplotlib Figure that displays itself as the last line of a cell without pyplot.

    Attributes:
        alt: the alternative text of its picture in a notebook; the heading unless set.
    """

    alt: str = ""

    def draw(self, renderer: Any) -> None:
        """Draw the figure, with fonts for all its texts."""
        make_drawable(self)
        super().draw(renderer)

    def _repr_png_(self) -> bytes:
        drawn, packed = io.BytesIO(), io.BytesIO()
        self.savefig(drawn, format="png", bbox_inches="tight", pad_inches=0.12)
        # Dropping the opaque alpha channel and optimizing keeps committed notebooks small.
        Image.open(drawn).convert("RGB").save(packed, "PNG", optimize=True)
        return packed.getvalue()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        metadata = {"image/png": {"alt": self.alt}} if self.alt else {}
        return {"image/png": base64.b64encode(self._repr_png_()).decode()}, metadata


@contextmanager
def style_context() -> Iterator[None]:
    """Apply the style inside the block and restore matplotlib's settings afterwards."""
    with mpl.rc_context(_RC):
        yield


def new_figure(width: float, height: float) -> View:
    """An empty figure of width x height inches at 110 dpi."""
    return View(figsize=(width, height), dpi=110)


def axes_or_new(ax: Axes | None, width: float = 5.6, height: float = 3.4) -> tuple[Figure, Axes]:
    """The figure and axes to draw in: those of `ax`, or new ones of width x height inches."""
    if ax is not None:
        ax.spines[["top", "right"]].set_visible(False)
        return _figure_of(ax), ax
    figure = new_figure(width, height)
    return figure, figure.add_axes((0.11, 0.15, 0.86, 0.66))


def draw_into(figure: View, ax: Axes | None) -> Figure:
    """Return the figure itself, or, if `ax` is given, draw it there as one picture and return the figure of `ax`."""
    if ax is None:
        return figure
    with Image.open(io.BytesIO(figure._repr_png_())) as picture:
        hide_axes(ax).imshow(np.asarray(picture))
    return _figure_of(ax)


def _figure_of(ax: Axes) -> Figure:
    return ax.figure if isinstance(ax.figure, Figure) else ax.figure.figure


def make_drawable(artist: Artist) -> None:
    """Set the fonts of all texts of a figure or of axes, so that no glyph is missing.

    Characters that no font of this machine has are replaced by an empty box.
    """
    for text in artist.findobj(Text):
        if isinstance(text, Text) and not (given := text.get_text()).isascii():
            drawn, families = drawable(given)
            if drawn != given:
                text.set_text(drawn)
            if len(families) > 1:
                text.set_fontfamily(list(families))


def heading(figure: Figure, title: str, subtitle: str, *, left: float = 0.0, top: float = 1.0) -> None:
    """Write title and subtitle at the top left of a figure."""
    if isinstance(figure, View):
        figure.alt = figure.alt or ", ".join(filter(None, (title, subtitle)))
    inch = 1.0 / figure.get_figheight()
    figure.text(left, top - 0.02 * inch, title, fontsize=TITLE, color=INK, va="top", ha="left")
    figure.text(left, top - 0.27 * inch, subtitle, fontsize=SMALL + 0.5, color=SOFT, va="top", ha="left")


def axes_heading(ax: Axes, title: str, subtitle: str) -> None:
    """Write title and subtitle above axes, aligned with their left edge."""
    ax.annotate(title, (0, 1), (0, 25), xycoords="axes fraction", textcoords="offset points", fontsize=TITLE,
                color=INK, va="bottom", annotation_clip=False)  # fmt: skip
    ax.annotate(subtitle, (0, 1), (0, 11), xycoords="axes fraction", textcoords="offset points",
                fontsize=SMALL + 0.5, color=SOFT, va="bottom", annotation_clip=False)  # fmt: skip


def hide_axes(ax: Axes) -> Axes:
    """Remove ticks and spines, for axes that show a picture."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def text_width(text: str) -> int:
    """Width of a text in columns: 2 for ideographs and emoji, 0 for combining marks, 1 for everything else.

    Example:
        >>> text_width("fox"), text_width("狐狸")
        (3, 4)
    """
    marks = ("Mn", "Me", "Cf")
    return sum(
        0 if unicodedata.category(char) in marks else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text
    )


def truncate(text: str, limit: int = 90) -> str:
    """A text on one line, cut to `limit` columns with an ellipsis.

    Example:
        >>> truncate("a fox in the snow", 10)
        'a fox in…'
    """
    single_line = " ".join(text.split())
    if text_width(single_line) <= limit:
        return single_line
    available = limit - 1
    for index, char in enumerate(single_line):
        available -= text_width(char)
        if available < 0:
            return single_line[:index].rstrip() + "…"
    return single_line
