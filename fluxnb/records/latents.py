"""Latents as pictures: a linear map from latent channels to RGB, and the packing of FLUX.1's latents into tokens.

The arrangement of other families is a `Geometry`; the functions here are short names for that of FLUX.1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from fluxnb.errors import shorten
from fluxnb.records.geometry import FLUX1

__all__ = ["Decode", "LinearRGB", "fit_linear", "pack", "to_pixels", "token_grid", "tokens_in", "unpack"]

Latents = Float[Tensor, "*batch channels height width"]
Tokens = Float[Tensor, "*batch tokens features"]
# From latents in space (frames, channels, rows, columns) to one picture each, as `flux.decode` does.
Decode = Callable[[Tensor], Sequence[Image.Image]]
Pixels = UInt8[Tensor, "*batch height width 3"]


def pack(latents: Latents) -> Tokens:
    """Rearrange latents (..., 16, h/8, w/8) into the tokens of FLUX.1 (..., h/16 w/16, 64).

    Example:
        >>> pack(torch.zeros(1, 16, 4, 6)).shape
        torch.Size([1, 6, 64])
    """
    return FLUX1.arrange(latents)


def unpack(tokens: Tokens, height: int, width: int) -> Latents:
    """Rearrange tokens (..., h/16 w/16, 64) into latents (..., 16, h/8, w/8) of an image of height x width pixels.

    Raises:
        InputError: the number of tokens does not fit the size.
    """
    return FLUX1.latents(tokens, height, width)


def to_pixels(colors: Float[Tensor, "*batch 3 height width"]) -> Pixels:
    """Colors (..., 3, height, width) from 0 to 1 as bytes (..., height, width, 3), with the bytes of diffusers.

    diffusers rounds on the CPU. Rounding on a GPU gives the same bytes, and a quarter of the data is transferred.
    """
    return (colors.float() * 255).round().to(torch.uint8).movedim(-3, -1).contiguous()


def token_grid(height: int, width: int) -> tuple[int, int]:
    """Rows and columns of tokens of FLUX.1 in an image of height x width pixels.

    Example:
        >>> token_grid(128, 256)
        (8, 16)
    """
    return FLUX1.grid(height, width)


def tokens_in(height: int, width: int) -> int:
    """The number of tokens of FLUX.1 in an image: 64 at 128 px, 4096 at 1024 px."""
    return FLUX1.tokens(height, width)


@dataclass(frozen=True, kw_only=True)
class LinearRGB:
    """A linear map from latent channels to RGB, one pixel for each latent cell: a preview without the VAE.

    Arguments:
        weight: one row per color, one number per latent channel.
        bias: of red, green and blue.
        error: root mean square difference (0 to 1 scale) from the images of the VAE at full size, on the images of the
            fit.
    """

    weight: tuple[tuple[float, ...], ...]
    bias: tuple[float, float, float]
    error: float

    def __call__(self, latents: Latents) -> Pixels:
        """The preview of latents (..., channels, rows, columns) as bytes (..., rows, columns, 3); black where NaN."""
        weight = torch.tensor(self.weight, dtype=torch.float32, device=latents.device)
        bias = torch.tensor(self.bias, dtype=torch.float32, device=latents.device)
        # The bytes of an einsum over the channels, in an eighth of its time.
        rgb = (weight @ latents.float().flatten(-2)).unflatten(-1, latents.shape[-2:]).movedim(-3, -1) + bias
        return (rgb.nan_to_num(nan=0.0).clamp(0, 1) * 255).round().to(torch.uint8)

    def pictures(self, latents: Latents, size: tuple[int, int] | None = None) -> list[Image.Image]:
        """The previews of latents (n, channels, rows, columns), resized to `size` (width, height) if given."""
        frames = [Image.fromarray(frame.numpy()) for frame in self(latents).cpu()]
        return frames if size is None else [frame.resize(size, Image.Resampling.BICUBIC) for frame in frames]

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain numbers; `from_json` restores an equal map from it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> LinearRGB:
        """The map of a dictionary written by `to_json`; every number is checked.

        Raises:
            ValueError, KeyError, TypeError: not such a dictionary.
        """
        rows = tuple(tuple(_number(value) for value in row) for row in values["weight"])
        red, green, blue = (_number(value) for value in values["bias"])
        if len(rows) != 3 or len({len(row) for row in rows}) != 1 or not rows[0]:
            raise ValueError("a preview has three rows of one length")
        return cls(weight=rows, bias=(red, green, blue), error=_number(values["error"]))


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{shorten(value)} is no number")
    return float(value)


def fit_linear(
    latents: Sequence[Float[Tensor, "channels _h _w"]], pictures: Sequence[Float[Tensor, "3 _height _width"]]
) -> LinearRGB:
    """The least-squares map from latents to their images, averaged down to the latent grid.

    Arguments:
        latents: one (channels, rows, columns) per image, in the scale of the transformer.
        pictures: one image (3, h, w) per latent, 0 to 1.
    """
    rows, goals = [], []
    for latent, picture in zip(latents, pictures, strict=True):
        small = torch.nn.functional.adaptive_avg_pool2d(picture.float(), latent.shape[-2:])
        rows.append(rearrange(latent.float(), "c h w -> (h w) c"))
        goals.append(rearrange(small, "c h w -> (h w) c"))
    inputs, target = torch.cat(rows).double(), torch.cat(goals).double()
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)
    # A small ridge term: two channels of an untrained VAE may be equal, and the problem would be singular.
    ridge = 1e-6 * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ target)
    # The residual at the size of the latents; `fit_preview` replaces it by the distance from the VAE.
    error = float((inputs @ solution - target).pow(2).mean().sqrt())
    red, green, blue = solution[-1].tolist()
    return LinearRGB(weight=tuple(tuple(row) for row in solution[:-1].T.tolist()), bias=(red, green, blue), error=error)
