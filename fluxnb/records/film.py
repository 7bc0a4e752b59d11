"""Film: the decoded frames of a walk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from fluxnb.display import figure
from fluxnb.records.trajectory import png_bytes

__all__ = ["Film"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """The decoded frames of a walk: what they show and who decoded them.

    Arguments:
        frames: one picture per step shown, in order.
        what: "x", "v", "clean", "noise" or "x_next".
        by: "vae", "linear", "tiny" ... the decoder.
        sigmas: the level of each frame.
        steps: the step index of each frame.
        caption: one line that says whose walk it is.
        error: root mean square difference from the VAE's pictures (0 to 1 scale), where known; 0.0 for the VAE.
        seconds: for decoding all frames.
    """

    frames: tuple[Image.Image, ...] = field(repr=False)
    what: str
    by: str
    sigmas: tuple[float, ...]
    steps: tuple[int, ...]
    caption: str
    error: float | None = None
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.frames)

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self.frames)

    def __getitem__(self, index: int) -> Image.Image:
        return self.frames[index]

    def _repr_png_(self) -> bytes | None:
        return figure(self) or (png_bytes(self.frames[-1]) if self.frames else None)
