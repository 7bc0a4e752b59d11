"""Latents and tokens: packing, sizes, and a linear map from latent channels to RGB.

The VAE turns 8 x 8 pixels into one latent cell of 16 channels; FLUX packs 2 x 2 cells into one token of 64 numbers.
So a picture of h x w pixels is `latents` (16, h/8, w/8) and `tokens` (h/16 w/16, 64).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from fluxnb.errors import InputError, shorten

__all__ = ["LinearRGB", "fit_linear", "pack", "token_grid", "tokens_in", "unpack"]

PIXELS_PER_CELL = 8
PIXELS_PER_TOKEN = 16

Latents = Float[Tensor, "*batch channels height width"]
Tokens = Float[Tensor, "*batch tokens features"]
Pixels = UInt8[Tensor, "*batch height width 3"]


def pack(latents: Latents) -> Tokens:
    """Latents (..., 16, h/8, w/8) as FLUX's tokens (..., h/16 w/16, 64); no number changes.

    Example:
        >>> pack(torch.zeros(1, 16, 4, 6)).shape
        torch.Size([1, 6, 64])
    """
    return rearrange(latents, "... c (h ph) (w pw) -> ... (h w) (c ph pw)", ph=2, pw=2)


def unpack(tokens: Tokens, height: int, width: int) -> Latents:
    """Tokens (..., h/16 w/16, 64) as latents (..., 16, h/8, w/8) of a picture of height x width pixels.

    Raises:
        InputError: so many tokens are not a picture of that size.
    """
    rows, columns = token_grid(height, width)
    if tokens.shape[-2] != rows * columns:
        raise InputError(
            f"{tokens.shape[-2]} tokens for {height} x {width} pixels",
            f"that size has {rows} x {columns} = {rows * columns} tokens",
            "give the size the tokens were made for",
        )
    return rearrange(tokens, "... (h w) (c ph pw) -> ... c (h ph) (w pw)", h=rows, w=columns, ph=2, pw=2)


def token_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens in a picture of so many pixels.

    Example:
        >>> token_grid(128, 256)
        (8, 16)
    """
    return height // PIXELS_PER_TOKEN, width // PIXELS_PER_TOKEN


def tokens_in(height: int, width: int) -> int:
    """How many image tokens a picture of so many pixels has: 64 at 128 px, 4096 at 1024 px."""
    rows, columns = token_grid(height, width)
    return rows * columns


@dataclass(frozen=True, kw_only=True)
class LinearRGB:
    """A straight line from the 16 latent channels to red, green and blue: a preview for next to nothing.

    It stands for the VAE at one eighth of the size; `error` says how well, as the root mean square difference of its
    pictures, drawn at full size, from the VAE's own (0 to 1 scale), on the pictures it was fitted on.
    """

    weight: tuple[tuple[float, ...], ...]  # one row per colour, one number per channel
    bias: tuple[float, float, float]
    error: float

    def __call__(self, latents: Latents) -> Pixels:
        """The preview of latents (..., 16, h/8, w/8) as bytes (..., h/8, w/8, 3)."""
        weight = torch.tensor(self.weight, dtype=torch.float32, device=latents.device)
        bias = torch.tensor(self.bias, dtype=torch.float32, device=latents.device)
        rgb = torch.einsum("oc,...chw->...hwo", weight, latents.float()) + bias
        return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)

    def pictures(self, latents: Latents, size: tuple[int, int] | None = None) -> list[Image.Image]:
        """The previews of latents (n, 16, h/8, w/8) as pictures, brought to (width, height) pixels where asked."""
        frames = [Image.fromarray(frame.numpy()) for frame in self(latents).cpu()]
        return frames if size is None else [frame.resize(size, Image.Resampling.BICUBIC) for frame in frames]

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; `from_json` has it again, equal to the last bit."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> LinearRGB:
        """The map that `to_json` told; what came from a file is checked.

        Raises:
            ValueError, KeyError, TypeError: it is no such map.
        """
        rows = tuple(tuple(_number(value) for value in row) for row in told["weight"])
        red, green, blue = (_number(value) for value in told["bias"])
        if len(rows) != 3 or len({len(row) for row in rows}) != 1 or not rows[0]:
            raise ValueError("a preview has three rows of one length")
        return cls(weight=rows, bias=(red, green, blue), error=_number(told["error"]))


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{shorten(value)} is no number")
    return float(value)


def fit_linear(
    latents: Sequence[Float[Tensor, "channels _h _w"]], pictures: Sequence[Float[Tensor, "3 _height _width"]]
) -> LinearRGB:
    """The least-squares map from latents to the pictures they stand for, averaged down to the latent grid.

    Arguments:
        latents: one (16, h/8, w/8) per picture, scaled as the transformer sees them.
        pictures: one (3, h, w) per latent, 0 to 1.
    """
    rows, goals = [], []
    for latent, picture in zip(latents, pictures, strict=True):
        small = torch.nn.functional.adaptive_avg_pool2d(picture.float(), latent.shape[-2:])
        rows.append(rearrange(latent.float(), "c h w -> (h w) c"))
        goals.append(rearrange(small, "c h w -> (h w) c"))
    inputs, target = torch.cat(rows).double(), torch.cat(goals).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    # A pinch of ridge: an untrained VAE may give two equal channels, and the plain solution would then be anything.
    ridge = 1e-6 * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ target)
    # What the fit leaves over at its own size; `fit_preview` replaces it by the distance from the VAE.
    error = float((inputs @ solution - target).pow(2).mean().sqrt())
    red, green, blue = solution[-1].tolist()
    return LinearRGB(weight=tuple(tuple(row) for row in solution[:-1].T.tolist()), bias=(red, green, blue), error=error)
