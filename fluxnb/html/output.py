"""HTML for the output of a notebook cell: it remains when the notebook is closed, and connects to a live widget.

The output is self-contained like a page: a reopened notebook, nbconvert, Jupyter Book and nbviewer display it without
a kernel, and where scripts do not run a sheet of the pictures remains. While the widget with the same key exists in the
browser window, the output displays that widget instead of its own contents.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from fluxnb.html.front_end import script, style
from fluxnb.html.grid_page import preview_fact
from fluxnb.html.page import Still, elements
from fluxnb.visuals.frames import webp

__all__ = ["MOST_BYTES", "bounded", "host", "output"]

MOST_BYTES = 4 * 2**20  # of frames in one output; a notebook of several outputs should open quickly
SIDES = (512, 384, 256, 192, 128, 96, 64, 48)  # pixels, tried in this order

_HOST = """<style>{css}</style>
<div data-fluxnb="{key}"><p>{text}</p></div>
<script type="module">
{js}
mountPage("{key}", null, []);
</script>"""


def output(
    view: str,
    data: dict[str, Any],
    frames: Sequence[bytes],
    *,
    key: str,
    stills: Callable[[dict[str, Any]], Sequence[Still]],
    behind: bool = False,
) -> str:
    """The HTML of a finished view.

    Arguments:
        view: a name of `fluxnb.html.front_end.VIEWS`.
        data: JSON data for the view.
        frames: WebP bytes, to which `data` refers by number.
        key: the trait `key` of the widget that the output belongs to.
        stills: the pictures of the sheet, from the data.
        behind: True displays the contents only while the widget does not exist.
    """
    data, frames = bounded(data, frames)
    name, options = (f"{key}-saved", {"behind": key}) if behind else (key, None)
    body, _ = elements(view, data, frames, stills(data), key=name, options=options)
    return f"<style>{style(view)}</style>\n{body}"


def host(view: str, *, key: str, text: str) -> str:
    """The HTML of a widget that has no finished contents: the live widget, or a text while it does not exist."""
    return _HOST.format(css=style(view), key=key, text=html.escape(text), js=script(view))


def bounded(data: dict[str, Any], frames: Sequence[bytes]) -> tuple[dict[str, Any], list[bytes]]:
    """The data and frames of a view within `MOST_BYTES`; the note of the view states by how much they are reduced.

    Pictures are reduced first, down to 48 pixels; if that is not enough, the frames of the steps are left out.
    """
    if _size(frames) <= MOST_BYTES:
        return data, list(frames)
    images = [_open(frame) for frame in frames]
    largest = max(max(image.size) for image in images)
    guess = largest * (MOST_BYTES / _size(frames)) ** 0.5
    sides = [side for side in SIDES if side <= max(1.5 * guess, SIDES[-1]) and side < largest]
    for side in sides:
        reduced = [_reduced(image, side) for image in images]
        if _size(reduced) <= MOST_BYTES:
            text = f"saved here at {side} of {largest} px; widget.to_html(path) has all pixels"
            return _with_note(_as_previews(data, side), text), reduced
    data, numbers = _without_steps(data)
    side = next((side for side in sides if len(numbers) * side * side / 8 <= MOST_BYTES), SIDES[-1])
    text = f"saved here at {side} of {largest} px and without steps; widget.to_html(path) has both"
    return _with_note(_as_previews(data, side), text), [_reduced(images[number], side) for number in numbers]


def _size(frames: Sequence[bytes]) -> int:
    """Size of the frames as base64."""
    return sum(4 * -(-len(frame) // 3) for frame in frames)


def _open(frame: bytes) -> Image.Image:
    with Image.open(io.BytesIO(frame)) as image:
        return image.convert("RGBA" if image.mode == "RGBA" else "RGB")


def _reduced(image: Image.Image, side: int) -> bytes:
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return webp(image, quality=80, lossless=False)


def _with_note(data: dict[str, Any], text: str) -> dict[str, Any]:
    return {**data, "note": " · ".join(part for part in (str(data.get("note", "")), text) if part)}


def _as_previews(data: dict[str, Any], side: int) -> dict[str, Any]:
    """The data of cells whose pictures are reduced to `side` pixels, with that fact."""
    if "cells" not in data:
        return data
    cells = []
    for cell in data["cells"]:
        facts = [fact for fact in cell["facts"] if fact[0] != "pixels"]
        side_of = min(side, max(cell["width"], cell["height"]))
        cells.append({**cell, "preview": side_of, "facts": [*facts, preview_fact(side_of)]})
    return {**data, "cells": cells}


def _without_steps(data: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
    """The data without the frames of steps, and the old numbers of the frames that remain, in their new order."""
    name = "cells" if "cells" in data else "trajectories"
    numbers = list(dict.fromkeys(each["final"] for each in data[name] if each["final"] is not None))
    places = {number: place for place, number in enumerate(numbers)}
    without: dict[str, Any] = {"sigmas": [], "frames": {}, "overlays": []}
    entries = [{**each, **without, "final": places.get(each["final"])} for each in data[name]]
    return {**data, name: entries, **({"words": []} if "words" in data else {})}, numbers
