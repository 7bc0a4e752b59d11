"""Geometry: how the numbers of x are arranged in a picture, as plain values that a record carries.

A VAE encodes a square of pixels as one latent cell. Some transformers take these latents as they are, others as tokens
that hold the channels of several cells each. Views read the geometry from a record and need no model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, unknown_choice

__all__ = ["FLUX1", "LAYOUTS", "ORDERS", "PREDICTIONS", "Geometry"]

LAYOUTS = ("tokens", "spatial")
ORDERS = ("c ph pw", "ph pw c")
# What the network computes: the velocity at sigma, the mean velocity between sigma and the next level, or the output of
# a TrigFlow network, which is recorded as the velocity of the equal rectified flow.
PREDICTIONS = ("velocity", "mean velocity", "trigflow")
MOST_CHANNELS = 1024
MOST_PIXELS = 128  # of a cell, and of a token, per side
MOST_CELLS = 16  # of a token, per side

Latents = Float[Tensor, "*batch channels height width"]
State = Float[Tensor, "*shape"]


@entry_point()
@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How the numbers of x are arranged in a picture.

    Arguments:
        channels: of a latent cell.
        cell: pixels per side of a latent cell.
        patch: cells per side of a token of the transformer.
        layout: "tokens", x is (tokens, features); or "spatial", x is (channels, rows, columns) of cells.
        order: of the features of a token: "c ph pw" or "ph pw c", with c the channels and ph, pw the cells of a token.

    Raises:
        InputError: a value out of range.

    Example:
        >>> Geometry(channels=32, layout="tokens").shape(64, 96), Geometry(layout="spatial").shape(64, 96)
        ((24, 128), (16, 8, 12))
    """

    channels: int = 16
    cell: int = 8
    patch: int = 2
    layout: str = "tokens"
    order: str = "c ph pw"

    def __post_init__(self) -> None:
        for name, most in (("channels", MOST_CHANNELS), ("cell", MOST_PIXELS), ("patch", MOST_CELLS)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise InputError(f"{name}={value!r} of a geometry", f"1 to {most} is possible", f"try {name}=8")
        if self.pixels > MOST_PIXELS:
            raise InputError(f"tokens of {self.pixels} pixels", f"1 to {MOST_PIXELS} is possible", "try patch=1")
        if self.layout not in LAYOUTS:
            raise unknown_choice("layout", self.layout, LAYOUTS)
        if self.order not in ORDERS:
            raise unknown_choice("order", self.order, ORDERS)

    @property
    def pixels(self) -> int:
        """Pixels per side of a token."""
        return self.cell * self.patch

    @property
    def features(self) -> int:
        """Numbers in a token."""
        return self.channels * self.patch**2

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens in a picture of height x width pixels.

        Example:
            >>> FLUX1.grid(128, 256)
            (8, 16)
        """
        return height // self.pixels, width // self.pixels

    def tokens(self, height: int, width: int) -> int:
        """The number of tokens of a picture."""
        rows, columns = self.grid(height, width)
        return rows * columns

    def shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of x for a picture of height x width pixels."""
        if self.layout == "spatial":
            return self.channels, height // self.cell, width // self.cell
        return self.tokens(height, width), self.features

    def numbers(self, height: int, width: int) -> int:
        """The count of numbers in x."""
        return math.prod(self.shape(height, width))

    def latents(self, x: State, height: int, width: int) -> Latents:
        """Rearrange x (..., tokens, features) or (..., channels, rows, columns) into latents in space.

        Raises:
            InputError: the shape does not fit the size.
        """
        shape = self.shape(height, width)
        if tuple(x.shape[-len(shape) :]) != shape:
            rows, columns = self.grid(height, width)
            given, needed = f"x of {tuple(x.shape)}", f"x of {shape}"
            if self.layout == "tokens" and x.ndim > 1 and x.shape[-1] == self.features:
                given, needed = f"{x.shape[-2]} tokens", f"{rows} x {columns} = {rows * columns} tokens"
            raise InputError(
                f"{given} for {height} x {width} pixels", f"that size has {needed}", "give the size of the run"
            )
        if self.layout == "spatial":
            return x
        rows, columns = self.grid(height, width)
        pattern = f"... (h w) ({self.order}) -> ... c (h ph) (w pw)"
        return rearrange(x, pattern, h=rows, w=columns, ph=self.patch, pw=self.patch)

    def arrange(self, latents: Latents) -> State:
        """The inverse of `latents`: latents in space (..., channels, rows, columns) as x."""
        if self.layout == "spatial":
            return latents
        pattern = f"... c (h ph) (w pw) -> ... (h w) ({self.order})"
        return rearrange(latents, pattern, ph=self.patch, pw=self.patch)

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values; `from_json` restores an equal geometry from it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Geometry:
        """The geometry of a dictionary written by `to_json`; every value is checked.

        Raises:
            TypeError, InputError: not such a dictionary.
        """
        return cls(**values)


# Of records that state none: files written before geometry was part of them.
FLUX1 = Geometry()
