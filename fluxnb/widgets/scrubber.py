"""The scrubber: every step of one or several trajectories, browsed by sigma without the kernel.

The front end is in `front-end/src`; `fluxnb.html.page` builds self-contained pages from the same files.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import traitlets

from fluxnb.arguments import entry_point
from fluxnb.html import page as html
from fluxnb.html.front_end import script, style
from fluxnb.records import Film, Sweep, Trajectory
from fluxnb.visuals.frames import SHOWS, Decode, frame_sets, payload
from fluxnb.widgets.fallback import fallback_png
from fluxnb.widgets.view import View

__all__ = ["Scrubber", "scrub"]


class Scrubber(View):
    """Frames of one or several trajectories with a slider over sigma.

    All frames are sent once, as WebP; moving the slider needs only the browser, so a busy or stopped kernel does not
    matter. Keys: arrows move one step, space plays, x v c n select the displayed quantity, w selects the next prompt
    word if attention was recorded (bright regions attend to the word), + - 0 zoom. Dragging pans a zoomed image; all
    trajectories pan together. `.sigma` is a trait in both directions, so two scrubbers can be linked.

    Arguments:
        data: description of the frames, from `fluxnb.visuals.frames.payload`.
        frames: the WebP images that `data` refers to by number.
        fallback: PNG bytes for readers that cannot run the widget.
        sigma: the displayed noise level, from 1 to 0.
    """

    _view = "scrubber"
    _esm = script("scrubber")
    _css = style("scrubber")

    data = traitlets.Dict().tag(sync=True)
    frames = traitlets.List(traitlets.Bytes()).tag(sync=True)
    sigma = traitlets.Float(0.0, min=0.0, max=1.0).tag(sync=True)

    def __init__(
        self, data: dict[str, Any], frames: list[bytes], *, fallback: bytes | None = None, **traits: Any
    ) -> None:
        super().__init__(data=data, frames=frames, **traits)
        self._fallback = fallback

    def __repr__(self) -> str:
        count = len(self.data.get("trajectories", []))
        return f"Scrubber({count} {'trajectory' if count == 1 else 'trajectories'}, {len(self.frames)} frames)"

    def _content(self) -> tuple[dict[str, Any], list[bytes]]:
        return self.data, self.frames

    def _stills(self, data: dict[str, Any]) -> list[html.Still]:
        return html.stills_of(data)

    @entry_point("path")
    def to_html(self, path: str | Path) -> Path:
        """Write the scrubber as one HTML page that needs no kernel and no network; returns the path."""
        return html.write_page(path, self.data, self.frames)


@entry_point("shows", "decode", "labels")
def scrub(
    trajectories: Trajectory | Film | Sweep | Sequence[Trajectory | Film],
    *,
    shows: Sequence[str] = SHOWS,
    decode: Decode | None = None,
    labels: Sequence[str] | None = None,
) -> Scrubber:
    """A slider over the steps of one trajectory, or of several at equal sigma.

    Arguments:
        trajectories: a Trajectory, a Film, a Sweep, or a list of trajectories and films, for example of a teacher
            and its student, or of 1 and 50 steps.
        shows: the quantities that can be selected, of "clean", "x", "v", "noise"; the first is displayed first.
        decode: maps latents in space to images; None uses each trajectory's linear preview.
        labels: a short name per trajectory; None uses what differs between them.

    Returns:
        The Scrubber, a widget that displays itself as the last line of a cell.

    Raises:
        InputError: nothing to display, or trajectories that retained no tensors.

    Example:
        >>> scrub([teacher, student], shows=["clean", "x"])                         # doctest: +SKIP
        Scrubber(2 trajectories, 18 frames)
    """
    sets = frame_sets(trajectories, shows=shows, decode=decode, labels=labels)
    data, frames = payload(trajectories, sets)
    images = [each.final or next((f[-1] for f in each.frames.values() if f), None) for each in sets]
    captions = [[each["label"]] for each in data["trajectories"]] if len(sets) > 1 else [[]]
    drawn = [(image, lines) for image, lines in zip(images, captions, strict=True) if image is not None]
    return Scrubber(data, frames, fallback=fallback_png([image for image, _ in drawn], [lines for _, lines in drawn]))
