"""Fitting the linear preview to a VAE: a handful of pictures drawn in code, encoded, and a least-squares line."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fluxnb.latents import LinearRGB, fit_linear

__all__ = ["fit_preview", "samples"]


def samples(size: int = 128) -> Float[Tensor, "count 3 height width"]:
    """Eight pictures, 0 to 1, that cover colour and brightness: plain grounds, gradients, discs and stripes."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    draw = torch.Generator().manual_seed(0)
    pictures = []
    for index in range(8):
        one, two, three = torch.rand(3, 3, generator=draw)
        picture = one[:, None, None] * x + two[:, None, None] * (1 - x)
        picture = picture * (0.4 + 0.6 * (y if index % 2 else 1 - y))
        for radius in (0.30, 0.18):
            cx, cy = (0.2 + 0.6 * torch.rand(2, generator=draw)).tolist()
            colour = torch.rand(3, generator=draw)
            picture = torch.where((x - cx) ** 2 + (y - cy) ** 2 < radius**2, colour[:, None, None], picture)
        stripes = torch.sin(6.28 * (3 + index) * y) > 0.7
        pictures.append(torch.where(stripes, three[:, None, None], picture) if index % 3 == 0 else picture)
    return torch.stack(pictures).clamp(0, 1)


def fit_preview(pipe: Any) -> LinearRGB:
    """The linear preview of a pipeline's VAE. Deterministic: the posterior's mean, and pictures that are fixed."""
    vae, device = pipe.vae, pipe._execution_device
    pictures, latents = samples(), []
    with torch.no_grad():
        for picture in pictures:
            given = (picture[None] * 2 - 1).to(device=device, dtype=vae.dtype)
            mean = vae.encode(given).latent_dist.mean
            latents.append(((mean - vae.config.shift_factor) * vae.config.scaling_factor)[0].float().cpu())
    pipe.maybe_free_model_hooks()
    return fit_linear(latents, list(pictures))
