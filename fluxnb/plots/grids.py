"""Figures for lessons: pictures in rows and columns, empty charts in the package's style, and alternative texts."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten
from fluxnb.plots.captions import wrap
from fluxnb.plots.layout import FRAME, GAP, HEAD, Box, draw_frame, draw_text
from fluxnb.plots.style import COLORS, SMALL, TEXT, View, draw_into, heading, new_figure, style_context

__all__ = ["chart", "describe", "pictures"]

CHART_MARGINS = {"left": 0.7, "right": 0.25, "bottom": 0.55, "top": 0.4}  # inches around the axes of a chart


@entry_point(
    "labels",
    "ax",
    rows="rows=[[trajectory]]",
    columns='columns=["1 step"]',
    title='title="A fox"',
    note='note="pocket"',
    alt='alt="four pictures of a fox"',
    size="size=1.2",
)
def pictures(
    rows: Sequence[Sequence[Any]],
    *,
    columns: Sequence[str] = (),
    labels: Sequence[str] = (),
    title: str = "",
    note: str = "",
    alt: str = "",
    size: float = FRAME,
    ax: Axes | None = None,
) -> Figure:
    """Show pictures in rows and columns.

    Arguments:
        rows: one sequence a row, of images, of records with an `image`, or of None for an empty place.
        columns: one text above each column.
        labels: one text at the left of each row.
        title: the heading.
        note: smaller text below the heading.
        alt: the alternative text; title and note where left out.
        size: inches, the side of a picture.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: no picture, or texts that do not match the rows or columns.

    Example:
        >>> pictures([[run(flux, "a fox", seed=seed) for seed in range(4)]])       # doctest: +SKIP
        <View size 492x176 with 4 Axes>
    """
    wide = max((len(row) for row in rows), default=0)
    if not wide:
        raise InputError("no pictures", "at least one row of one picture is needed", "try pictures([[trajectory]])")
    _require(size, "size", 10)
    for item in itertools.chain.from_iterable(rows):
        if item is not None and not isinstance(getattr(item, "image", item), Image.Image):
            raise InputError(
                f"{shorten(item)} among the pictures", "an image or a record with one", "try trajectory.image"
            )
    for name, texts, count in (("columns", columns, wide), ("labels", labels, len(rows))):
        if texts and len(texts) != count:
            raise InputError(f"{name}={shorten(list(texts))}", f"{count} are needed", "or leave it out")
    left = 0.25 + 0.065 * max(map(len, wrap_lines(labels))) if labels else 0.0
    top = (HEAD - (0.0 if note else 0.24) if title or note else 0.05) + (0.24 if columns else 0.0)
    with style_context():
        figure = new_figure(float(left + wide * (size + GAP)), float(top + len(rows) * (size + GAP)))
        if title or note:
            heading(figure, title, note)
        for column, text in enumerate(columns):
            draw_text(figure, left + column * (size + GAP), top - 0.2, text, size=SMALL + 0.5)
        for index, row in enumerate(rows):
            y = top + index * (size + GAP)
            if labels:
                draw_text(figure, 0.0, y + size / 2 - 0.08, wrap(labels[index], 20), size=TEXT)
            for column, item in enumerate(row):
                if item is not None:
                    box = Box(left + column * (size + GAP), y, size, size)
                    draw_frame(figure, box, item if isinstance(item, Image.Image) else item.image)
    return draw_into(describe(figure, alt), ax)


def wrap_lines(labels: Sequence[str]) -> list[str]:
    """The lines of all labels."""
    return [line for label in labels for line in wrap(label, 20).split("\n")]


def _require(value: float | int, name: str, largest: int) -> None:
    if not 0 < value <= largest:  # also refuses NaN
        raise InputError(f"{name}={shorten(value)}", f"above 0 and at most {largest:g}", f"try {name}=1")


@entry_point(columns="columns=1", width="width=5.6", height="height=3.0", alt='alt="a falling curve"')
def chart(*, columns: int = 1, width: float = 5.6, height: float = 3.0, alt: str = "") -> tuple[View, list[Axes]]:
    """An empty figure with axes side by side, in the style of the other figures.

    Arguments:
        columns: how many axes.
        width, height: inches of each of them, with labels.
        alt: the alternative text.

    Raises:
        InputError: no axes or more than ten, or a side that is not above 0 and at most 40.

    Returns:
        The Figure, which displays itself as the last line of a cell, and its axes from left to right.

    Example:
        >>> figure, (ax,) = chart(alt="Error against steps, falling.")
        >>> len(chart(columns=2)[1])
        2
    """
    for value, name, largest in ((columns, "columns", 10), (width, "width", 40), (height, "height", 40)):
        _require(value, name, largest)
    margins = CHART_MARGINS
    with style_context():
        figure = new_figure(float(columns * width), float(height))
        size = ((width - margins["left"] - margins["right"]) / (columns * width),
                (height - margins["bottom"] - margins["top"]) / height)  # fmt: skip
        lefts = (np.arange(columns) * width + margins["left"]) / (columns * width)
        axes = [figure.add_axes((float(left), margins["bottom"] / height, *size)) for left in lefts]
    for ax in axes:
        ax.set_prop_cycle(color=COLORS)
    return describe(figure, alt), axes


@entry_point(figure="figure=fnb.filmstrip(trajectory)", alt='alt="four steps of a fox"')
def describe(figure: View, alt: str) -> View:
    """Set the alternative text of a figure, which is stored with its picture in a notebook.

    Arguments:
        figure: from a function of this package.
        alt: what the picture displays, in words; the figure's heading remains where empty.

    Returns:
        The same figure.

    Example:
        >>> describe(filmstrip(trajectory), "Four steps from noise to a fox.")      # doctest: +SKIP
    """
    figure.alt = alt or figure.alt
    return figure
