"""Base class of the widgets: an anywidget with a readable repr and a static image as a fallback."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import anywidget
from PIL import Image

__all__ = ["View", "fallback_png"]


class View(anywidget.AnyWidget):
    """A widget with a static image for readers without a kernel or without JavaScript.

    Subclasses set `_fallback` to PNG bytes, or leave it at None, and define `__repr__`: the inherited repr holds a
    memory address, which differs between two runs of a notebook.
    """

    _fallback: bytes | None = None

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget and the fallback image."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        data = {**data, "text/plain": repr(self)}
        if self._fallback is not None:
            data["image/png"] = base64.b64encode(self._fallback).decode("ascii")
        return data, metadata


def fallback_png(images: Sequence[Image.Image], *, columns: int = 8, side: int = 128, limit: int = 8) -> bytes | None:
    """PNG bytes of a contact sheet of the first `limit` images, each `side` pixels wide; None without images."""
    thumbnails = [
        image.convert("RGB").resize((side, max(1, side * image.height // image.width))) for image in images[:limit]
    ]
    if not thumbnails:
        return None
    columns = max(1, min(columns, len(thumbnails)))
    row_height = max(image.height for image in thumbnails) + 4
    rows = -(-len(thumbnails) // columns)
    sheet = Image.new("RGB", (columns * (side + 4) - 4, rows * row_height - 4), "white")
    for index, image in enumerate(thumbnails):
        sheet.paste(image, (index % columns * (side + 4), index // columns * row_height))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
