"""Attention to a word, laid over a picture: the picture where attention is high, dark elsewhere.

Brightness instead of color: a colored map could be confused with the colors of the picture.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.records import Trajectory

__all__ = ["darken", "normalized_attention", "overlay", "steps_with_attention", "words_with_most_contrast"]

DARKEST = 0.82  # opacity of the overlay where attention is lowest


def steps_with_attention(trajectory: Trajectory) -> tuple[int, ...]:
    """Indices in `trajectory.steps` of the steps that kept attention."""
    return tuple(index for index, step in enumerate(trajectory.steps) if "attention" in step.tensors)


def normalized_attention(trajectory: Trajectory, word: str) -> Float[Tensor, "steps rows columns"]:
    """Attention to a word in 0 to 1, for each step that kept attention.

    All steps of the word share one scale: 0 is the lowest value, 1 the 99th percentile. Words differ a hundredfold in
    the attention they get, so each has a scale of its own.

    Raises:
        InputError: no such word, or no step kept attention.
    """
    maps = trajectory.attention(word)
    finite = maps[maps.isfinite()].numpy()  # torch's quantile takes at most 16 million numbers
    low, high = (float(finite.min()), float(np.quantile(finite, 0.99))) if finite.size else (0.0, 1.0)
    return ((maps - low) / max(high - low, 1e-12)).nan_to_num(nan=0.0).clamp(0, 1)


def words_with_most_contrast(trajectory: Trajectory, most: int) -> tuple[str, ...]:
    """The words whose attention varies most over the picture, at most `most`, in the order of the prompt."""
    words = tuple(dict.fromkeys(word.casefold() for word in trajectory.words))
    spread = {word: float(trajectory.attention(word).flatten(1).std(dim=1, correction=0).mean()) for word in words}
    chosen = sorted(words, key=lambda word: -spread[word])[:most]
    return tuple(word for word in words if word in chosen)


def overlay(strength: Float[Tensor, "rows columns"]) -> Image.Image:
    """A black RGBA image of one pixel a token: transparent where `strength` is 1, dark where it is 0."""
    alpha = (255 * DARKEST * (1 - strength)).round().to(torch.uint8)
    black = torch.zeros(*alpha.shape, 3, dtype=torch.uint8)
    return Image.fromarray(torch.cat([black, alpha[..., None]], dim=-1).numpy())


def darken(picture: Image.Image, strength: Float[Tensor, "rows columns"], size: tuple[int, int]) -> Image.Image:
    """A picture below its overlay, both resized to (width, height) pixels."""
    below = picture.convert("RGBA").resize(size, Image.Resampling.BICUBIC)
    return Image.alpha_composite(below, overlay(strength).resize(size, Image.Resampling.BICUBIC)).convert("RGB")
