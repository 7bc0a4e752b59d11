"""The picture of a widget for readers that display neither a widget nor HTML."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fluxnb.records import Cell
from fluxnb.visuals.fonts import font_for, shortened
from fluxnb.visuals.labels import value_label, value_labels

__all__ = ["fallback_of_cells", "fallback_png"]

GAP = 4  # pixels between pictures
TEXT = 10  # pixels, size of a caption
LINE = 13  # pixels, height of a line of text
INK = "#222222"


def fallback_png(
    images: Sequence[Image.Image],
    captions: Sequence[Sequence[str]] = (),
    *,
    title: str = "",
    columns: int = 8,
    side: int = 128,
    limit: int = 8,
) -> bytes | None:
    """PNG bytes of a contact sheet of the first pictures; the last line states how many are not displayed.

    Arguments:
        images: the pictures.
        captions: lines of text below each picture, cut to its width.
        title: a line of text above all of them.
        columns: the largest number of pictures beside each other.
        side: width of each picture in pixels.
        limit: how many pictures are displayed.

    Returns:
        The bytes, None without pictures.
    """
    thumbnails = [
        image.convert("RGB").resize((side, max(1, side * image.height // image.width))) for image in images[:limit]
    ]
    if not thumbnails:
        return None
    columns = max(1, min(columns, len(thumbnails)))
    rows = -(-len(thumbnails) // columns)
    lines = max((len(each) for each in captions[:limit]), default=0)
    head = LINE + GAP if title else 0
    foot = f"{len(thumbnails)} of {len(images)} pictures displayed" if len(images) > len(thumbnails) else ""
    row_height = max(image.height for image in thumbnails) + lines * LINE + GAP
    width = columns * (side + GAP) - GAP
    height = head + rows * row_height - GAP + (LINE + GAP if foot else 0)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    _write(draw, (0, 0), title, width)
    for index, image in enumerate(thumbnails):
        left, top = index % columns * (side + GAP), head + index // columns * row_height
        sheet.paste(image, (left, top))
        for line, text in enumerate(captions[index] if captions else ()):
            _write(draw, (left, top + image.height + line * LINE), text, side)
    _write(draw, (0, height - LINE), foot, width)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def fallback_of_cells(cells: Sequence[Cell], axes: Mapping[str, Sequence[Any]], *, side: int = 80) -> bytes | None:
    """The contact sheet of a grid: seed and steps below each picture, and its prompt where prompts differ.

    Arguments:
        cells: the cells in the order in which they are displayed.
        axes: field names and their values, in order; the last one is displayed across.
        side: width of each picture in pixels.
    """
    if not cells:
        return None
    prompts = list(dict.fromkeys(cell.recipe.prompt for cell in cells))
    names = dict(zip(prompts, value_labels("prompt", prompts), strict=True))
    across = len(list(axes.values())[-1]) if axes else 0
    captions = []
    for cell in cells:
        lines = [value_label("seed", cell.recipe.seed), value_label("steps", cell.recipe.steps)]
        captions.append(([names[cell.recipe.prompt]] if len(prompts) > 1 else []) + lines)
    title = prompts[0] if len(prompts) == 1 else ""
    columns = 8 // across * across or 8 if across else 8  # whole rows of the last axis
    return fallback_png([cell.image for cell in cells], captions, title=title, columns=columns, side=side, limit=24)


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, width: int) -> None:
    """Write one line of text, cut to a width."""
    if text:
        path, line = font_for(" ".join(text[:200].split()))
        font = ImageFont.truetype(path, TEXT)
        draw.text(place, shortened(line, font, width), fill=INK, font=font)
