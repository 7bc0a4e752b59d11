"""What every widget of fluxnb is: an anywidget with a readable repr and a still picture for who cannot run it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import anywidget
from PIL import Image

__all__ = ["View", "still"]


class View(anywidget.AnyWidget):
    """A widget that leaves a picture behind, for readers without a kernel or without JavaScript.

    Children set `_still` to PNG bytes, or leave it at None, and say in `__repr__` what they show: the inherited one
    holds a memory address, which no two runs share and no notebook test survives.
    """

    _still: bytes | None = None

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget, and beside it the still picture."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        data = {**data, "text/plain": repr(self)}
        if self._still is not None:
            data["image/png"] = base64.b64encode(self._still).decode("ascii")
        return data, metadata


def still(pictures: Sequence[Image.Image], columns: int = 8, side: int = 128, most: int = 8) -> bytes | None:
    """Some pictures, small, in rows: PNG bytes a quarter of a widget's weight at most; None where there are none."""
    small = [
        picture.convert("RGB").resize((side, max(1, side * picture.height // picture.width)))
        for picture in pictures[:most]
    ]
    if not small:
        return None
    columns = max(1, min(columns, len(small)))
    step = max(picture.height for picture in small) + 4
    rows = -(-len(small) // columns)
    sheet = Image.new("RGB", (columns * (side + 4) - 4, rows * step - 4), "white")
    for place, picture in enumerate(small):
        sheet.paste(picture, (place % columns * (side + 4), place // columns * step))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
