"""Where a word was looked for, laid over a picture: bright where the model looked, dark elsewhere.

Light instead of colour: a veil of black over any picture, which no colour of the picture can be mistaken for and every
eye tells apart.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.records import Trajectory

__all__ = ["lit", "looked_at", "strengths", "telling", "veil"]

DARK = 0.82  # how much of the picture a full veil takes away


def looked_at(trajectory: Trajectory) -> tuple[int, ...]:
    """The places in `walk.steps` of the steps that kept attention."""
    return tuple(place for place, step in enumerate(trajectory.steps) if "attention" in step.tensors)


def strengths(trajectory: Trajectory, word: str) -> Float[Tensor, "steps rows columns"]:
    """How strongly a word was looked for, 0 to 1, at each step that kept attention.

    One scale for all steps of the word: 0 is its weakest place at any of them, 1 its strongest but for one in a
    hundred. Words differ a hundredfold in the attention they get, so each has a scale of its own.
    """
    maps = trajectory.attention(word)
    low, high = float(maps.min()), float(maps.flatten().quantile(0.99))
    return ((maps - low) / max(high - low, 1e-12)).clamp(0, 1)


def telling(trajectory: Trajectory, most: int) -> tuple[str, ...]:
    """The words with most to see, in the prompt's order: those whose attention differs most from place to place."""
    words = tuple(dict.fromkeys(word.casefold() for word in trajectory.words))
    spread = {word: float(trajectory.attention(word).flatten(1).std(dim=1, correction=0).mean()) for word in words}
    chosen = sorted(words, key=lambda word: -spread[word])[:most]
    return tuple(word for word in words if word in chosen)


def veil(strength: Float[Tensor, "rows columns"]) -> Image.Image:
    """Black, RGBA, one pixel a token: clear where the word was looked for, dark elsewhere."""
    alpha = (255 * DARK * (1 - strength)).round().to(torch.uint8)
    empty = torch.zeros(*alpha.shape, 3, dtype=torch.uint8)
    return Image.fromarray(torch.cat([empty, alpha[..., None]], dim=-1).numpy())


def lit(picture: Image.Image, strength: Float[Tensor, "rows columns"], size: tuple[int, int]) -> Image.Image:
    """A picture under the veil, both brought to (width, height) pixels."""
    under = picture.convert("RGBA").resize(size, Image.Resampling.BICUBIC)
    return Image.alpha_composite(under, veil(strength).resize(size, Image.Resampling.BICUBIC)).convert("RGB")
