"""The teacher's loss on scenes that no training sees: what says whether it still falls, and which of two runs is ahead.

Scenes, noise and noise levels are drawn on the CPU from fixed seeds: every run, on every device, is asked the same.
The loss of the training says less: each batch has other noise levels, a tenth of its captions are empty, and its
scenes come back.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.train.config import Sizes
from fluxnb.train.data.batches import draw_chunks
from fluxnb.train.data.render import Renderer
from fluxnb.train.stages.autoencoder import FRESH, encode
from fluxnb.train.stages.objective import draw_sigmas


class Validation:
    """Asks for the loss of the same rows each time it is called.

    Arguments:
        count: how many scenes.
        batch: how many of them at a time; the mean over all does not depend on it.
    """

    def __init__(self, vae: AutoencoderKL, renderer: Renderer, sizes: Sizes, count: int, batch: int):
        device, generator = renderer.device, torch.Generator().manual_seed(FRESH)
        chunks = list(draw_chunks(count, FRESH, sizes, workers=1))
        latents = torch.cat([encode(vae, renderer, chunk.layout.to(device)) for chunk in chunks])
        noise = torch.randn(latents.shape, generator=generator).to(device)
        sigmas = draw_sigmas(count, torch.device("cpu"), generator).to(device)
        clip, t5 = (torch.cat([getattr(chunk, name) for chunk in chunks]).to(device) for name in ("clip_ids", "t5_ids"))
        self.rows = (latents.float(), clip.long(), t5.long(), sigmas, noise)
        self.count, self.batch = count, batch

    @torch.no_grad()
    def __call__(self, loss_of: Callable[..., Tensor]) -> float:
        """The mean of `loss_of(latents, clip_ids, t5_ids, sigmas, noise)`, one number per scene.

        Plain, not compiled: another graph would take longer to make than all these looks together.
        """
        found = [loss_of(*part) for part in zip(*(rows.split(self.batch) for rows in self.rows), strict=True)]
        return float(torch.cat(found).mean())
