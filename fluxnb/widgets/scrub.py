"""The scrubber: every step of one walk or several, in a notebook, moved without the kernel.

The front end stands as files in `static/`; the self-contained page of `fluxnb.html.page` is made of the same files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import traitlets

from fluxnb.html.front_end import script, style
from fluxnb.records import Film, Sweep, Trajectory
from fluxnb.visuals.frames import SHOWS, Decode, frame_sets, payload
from fluxnb.widgets.view import View, still

__all__ = ["Scrubber", "scrub"]


class Scrubber(View):
    """A film of one or several walks with one slider: sigma.

    Frames travel once, as binary WebP, and every move after that happens in the browser; the kernel may be busy or
    gone. Keys: arrows step, space plays, x v c n choose what is shown, w goes through the words of a
    prompt whose attention was kept (bright is where the model looked for it), + - 0 zoom; drag moves a zoomed picture,
    all walks together. Setting `.sigma` from Python moves the slider; moving the slider sends nothing back.

    Arguments:
        data: what is shown, as `fluxnb.visuals.frames.payload` describes it.
        frames: the pictures it numbers, WebP bytes.
        sigma: the noise level in view, 1 to 0.
    """

    _esm = script("scrubber")
    _css = style("scrubber")

    data = traitlets.Dict().tag(sync=True)
    frames = traitlets.List(traitlets.Bytes()).tag(sync=True)
    sigma = traitlets.Float(1.0, min=0.0, max=1.0).tag(sync=True)

    def __init__(self, data: dict[str, Any], frames: list[bytes], *, still: bytes | None = None, **traits: Any) -> None:
        super().__init__(data=data, frames=frames, **traits)
        self._still = still

    def __repr__(self) -> str:
        trajectories = self.data.get("trajectories", [])
        return f"Scrubber({len(trajectories)} walk{'' if len(trajectories) == 1 else 's'}, {len(self.frames)} frames)"

    def to_html(self, path: str | Path) -> Path:
        """Write the same scrubber as one page that needs no kernel and no network; returns its path."""
        from fluxnb.html import page as html

        return html.write_page(path, self.data, self.frames)


def scrub(
    trajectories: Trajectory | Film | Sweep | Sequence[Trajectory | Film],
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
    rolls = frame_sets(trajectories, shows=shows, decode=decode, labels=labels)
    data, frames = payload(trajectories, rolls)
    pictures = [roll.final or next((f[-1] for f in roll.frames.values() if f), None) for roll in rolls]
    return Scrubber(data, frames, still=still([picture for picture in pictures if picture is not None]))
