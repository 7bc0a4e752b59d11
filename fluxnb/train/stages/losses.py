"""Loss functions of autoencoder, teacher, judge and T5, and the distribution of the noise levels.

Those of the student are in `student`, and that of its critic is in `networks.critic`.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxnb.flow import interpolate, velocity_target
from fluxnb.records.latents import pack
from fluxnb.train.networks.denoiser import Denoiser
from fluxnb.train.networks.judge import Attributes

SHIFT = 1.6  # of the noise levels at 64 tokens, FLUX's own; it grows with the square root of the tokens (2403.03206)
# Share of noise levels drawn uniformly. The logit-normal alone draws 0.7 % above 0.95, the levels of one-step sampling.
UNIFORM = 0.2
# Weight of the contrast term. Sixty steps with a trained decoder raise sharpness from 0.904 to 0.930 with weight 1 and
# to 0.950 with weight 4, at a cost of 0.16 and 0.36 dB of PSNR.
CONTRAST_WEIGHT = 3.0


@dataclasses.dataclass(frozen=True)
class Batch:
    """Input of the loss: latents (B, 16, h, w), token ids, noise levels (B,), and noise like the latents."""

    latents: Tensor
    clip_ids: Tensor
    t5_ids: Tensor
    sigmas: Tensor
    noise: Tensor


def draw_sigmas(count: int, tokens: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Noise levels (count,) in (0, 1): shifted logit-normal, with a larger shift for more tokens; a fifth uniform."""
    shift = SHIFT * math.sqrt(tokens / 64)
    normal = torch.randn(count, device=device, generator=generator).sigmoid()
    uniform, coin = torch.rand(2, count, device=device, generator=generator)
    return torch.where(coin < UNIFORM, uniform, shift * normal / (1 + (shift - 1) * normal))


def flow_loss(model: Denoiser, batch: Batch) -> Tensor:
    """Rectified-flow loss (2209.03003): mean squared error of the velocity of each picture, (B,)."""
    sigma = batch.sigmas[:, None, None, None]
    x = pack(interpolate(batch.latents, batch.noise, sigma))
    grid = (batch.latents.shape[2] // 2, batch.latents.shape[3] // 2)
    velocity = model(x, batch.sigmas, *model.encode(batch.clip_ids, batch.t5_ids), grid)
    return (velocity.float() - pack(velocity_target(batch.latents, batch.noise))).square().mean((1, 2))


def attribute_loss(logits: Attributes, target: Attributes) -> Tensor:
    """Cross entropy, summed over the attributes; each of the letters is one, since a sign is read if all are right."""
    losses = [
        F.cross_entropy(predicted.flatten(0, -2).float(), right.flatten(), label_smoothing=0.02)
        * (predicted.shape[1] if predicted.ndim == 3 else 1)
        for predicted, right in zip(logits.columns(), target.columns(), strict=True)
    ]
    return torch.stack(losses).sum()


def picture_loss(output: Tensor, target: Tensor) -> Tensor:
    """Reconstruction loss of pictures (B, 3, H, W) in [-1, 1]: colors, edges and contrast.

    The squared error is what PSNR measures, and the edge term keeps lettering crisp without a perceptual network. Where
    the position of an edge is uncertain, both are lowest for a blurred edge; the contrast term, which ignores
    position within a window, counteracts that.
    """
    loss = F.l1_loss(output, target) + 4 * F.mse_loss(output, target)
    for axis in (2, 3):
        edges, target_edges = output.diff(dim=axis), target.diff(dim=axis)
        contrast_error = F.l1_loss(contrast(edges), contrast(target_edges))
        loss = loss + 0.5 * F.l1_loss(edges, target_edges) + CONTRAST_WEIGHT * contrast_error
    return loss


def contrast(edges: Tensor, window: int = 8) -> Tensor:
    """Root mean square of pixel differences (B, C, H, W) in adjacent windows."""
    return (F.avg_pool2d(edges.square(), window) + 1e-4).sqrt()  # contrast below 0.01 is invisible
