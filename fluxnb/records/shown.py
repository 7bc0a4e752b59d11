"""How a record shows itself: drawn by a view that is asked by name, since records stand below the views."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from fluxnb.errors import FluxnbError

__all__ = ["figure", "png"]


def figure(view: str, record: object) -> bytes | None:
    """The record drawn by a view, as PNG bytes; None where nothing can be drawn."""
    try:
        draw: Callable[[object], Any] = getattr(importlib.import_module("fluxnb.plots"), view)
        return bytes(draw(record)._repr_png_())
    except (ImportError, AttributeError, FluxnbError):
        return None  # no matplotlib, or nothing kept to draw: the plain picture is shown instead


def png(image: Image.Image) -> bytes:
    """A picture as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
