"""The scrubber: every step of one walk or several, in a notebook, moved without the kernel.

The front end stands as files in `static/`; the self-contained page of `fluxnb.export.html` is made of the same files.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from PIL import Image

from fluxnb.frames import SHOWS, Decode, Reel, payload, reels
from fluxnb.records import Film, Sweep, Trajectory

__all__ = ["Scrubber", "scrub"]

_STATIC = Path(__file__).parent / "static"


class Scrubber(anywidget.AnyWidget):
    """A film of one or several walks with one slider: sigma.

    Frames travel once, as binary WebP, and every move after that happens in the browser; the kernel may be busy or
    gone. Keys: arrows step, space plays, x v c n choose what is shown, + - 0 zoom; drag moves a zoomed picture, all
    walks together. Setting `.sigma` from Python moves the slider; moving the slider sends nothing back.

    Arguments:
        data: what is shown, as `fluxnb.frames.payload` describes it.
        frames: the pictures it numbers, WebP bytes.
        sigma: the noise level in view, 1 to 0.
    """

    _esm = _STATIC / "scrubber.js"
    _css = _STATIC / "scrubber.css"

    data = traitlets.Dict().tag(sync=True)
    frames = traitlets.List(traitlets.Bytes()).tag(sync=True)
    sigma = traitlets.Float(1.0, min=0.0, max=1.0).tag(sync=True)

    def __init__(self, data: dict[str, Any], frames: list[bytes], *, still: bytes | None = None, **traits: Any) -> None:
        super().__init__(data=data, frames=frames, **traits)
        self._still = still

    def __repr__(self) -> str:
        # The inherited one holds a memory address, which no two runs share and no notebook test survives.
        walks = self.data.get("walks", [])
        return f"Scrubber({len(walks)} walk{'' if len(walks) == 1 else 's'}, {len(self.frames)} frames)"

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget, and beside it a still picture for readers without a kernel or without JavaScript."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        data = {**data, "text/plain": repr(self)}
        if self._still is not None:
            data["image/png"] = base64.b64encode(self._still).decode("ascii")
        return data, metadata

    def to_html(self, path: str | Path) -> Path:
        """Write the same scrubber as one page that needs no kernel and no network; returns its path."""
        from fluxnb.export import html

        return html.write_page(path, self.data, self.frames)


def scrub(
    walks: Trajectory | Film | Sweep | Sequence[Trajectory | Film],
    *,
    shows: Sequence[str] = SHOWS,
    decode: Decode | None = None,
    labels: Sequence[str] | None = None,
) -> Scrubber:
    """A scrubber over one walk, or over several in step with each other by sigma.

    Arguments:
        walks: a Trajectory, a Film, a Sweep, or a list of the first two; teacher and student, say, or 1 and 50 steps.
        shows: what can be chosen, of "clean", "x", "v", "noise"; the first is shown first.
        decode: from latents (n, 16, h/8, w/8) to pictures; None for each walk's own linear preview.
        labels: a short name per walk; None for what differs between them.

    Returns:
        The Scrubber, a widget; as the last line of a cell it shows itself.

    Raises:
        InputError: nothing to show, or walks whose runs kept no tensors.

    Example:
        >>> scrub([walk, other], shows=["clean", "x"])                              # doctest: +SKIP
        Scrubber(2 walks, 18 frames)
    """
    rolls = reels(walks, shows=shows, decode=decode, labels=labels)
    data, frames = payload(walks, rolls)
    return Scrubber(data, frames, still=_still(rolls))


def _still(rolls: Sequence[Reel]) -> bytes | None:
    """One small row of pictures, a quarter of a scrubber's weight at most: what a reader without JavaScript sees."""
    pictures = [roll.final or next((f[-1] for f in roll.frames.values() if f), None) for roll in rolls[:8]]
    small = [
        picture.convert("RGB").resize((128, 128 * picture.height // picture.width)) for picture in pictures if picture
    ]
    if not small:
        return None
    row = Image.new("RGB", (sum(p.width + 4 for p in small) - 4, max(p.height for p in small)), "white")
    left = 0
    for picture in small:
        row.paste(picture, (left, 0))
        left += picture.width + 4
    buffer = io.BytesIO()
    row.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
