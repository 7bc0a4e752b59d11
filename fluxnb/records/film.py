"""Film: the decoded frames of a trajectory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image

from fluxnb.display import figure
from fluxnb.records.trajectory import png_bytes

__all__ = ["Film"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """The decoded frames of a trajectory.

    Arguments:
        frames: one image per decoded step, in order.
        what: the decoded quantity: "x", "v", "clean", "noise" or "x_next".
        by: the decoder: "vae", "linear", or the name of another.
        sigmas: the noise level of each frame.
        steps: the step index of each frame.
        caption: of the trajectory.
        error: root mean square difference from the images of the VAE (0 to 1 scale); 0.0 for the VAE, None if unknown.
        seconds: time spent on decoding all frames.

    Example:
        >>> fnb.film(flux, trajectory, what="clean").frames[0].size                 # doctest: +SKIP
        (128, 128)
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
