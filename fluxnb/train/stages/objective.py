"""What the networks are asked to do, as pure functions: the loss of the flow and of the autoencoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxnb.flow import interpolate, velocity_target
from fluxnb.records.latents import pack

SHIFT = 1.6  # FLUX's own at 64 tokens: e^mu with mu = 0.4675
# A fifth of the times is drawn uniformly: the logit-normal alone puts 0.7 % above 0.95, where one-step pictures live.
UNIFORM = 0.2
# Of contrast beside colour. Sixty steps of a trained decoder: sharpness 0.904 to 0.930 with 1, to 0.950 with 4, for
# 0.16 and 0.36 dB of PSNR.
STEEP = 3.0


def draw_sigmas(count: int, device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """Noise levels (count,) in (0, 1): logit-normal with FLUX's shift (SD3, 2403.03206), a fifth uniform."""
    normal = torch.randn(count, device=device, generator=generator).sigmoid()
    shifted = SHIFT * normal / (1 + (SHIFT - 1) * normal)
    uniform, coin = torch.rand(2, count, device=device, generator=generator)
    return torch.where(coin < UNIFORM, uniform, shifted)


def image_ids(height: int, width: int, device: torch.device) -> Tensor:
    """Where each token sits, (tokens, 3) as FLUX's rotary embedding takes it; sizes in tokens."""
    ids = torch.zeros(height, width, 3, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)[None]
    return ids.flatten(0, 1)


class Denoiser(nn.Module):
    """Text encoders and transformer as one network from tokens and words to a velocity; what the teacher trains."""

    def __init__(self, text_encoder: nn.Module, text_encoder_2: nn.Module, transformer: nn.Module):
        super().__init__()
        self.text_encoder, self.text_encoder_2, self.transformer = text_encoder, text_encoder_2, transformer

    def encode(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled (B, d) and sequence (B, L, e); as FLUX does, without a mask."""
        return self.text_encoder(clip_ids).pooler_output, self.text_encoder_2(t5_ids)[0]

    def forward(self, tokens: Tensor, sigma: Tensor, pooled: Tensor, sequence: Tensor) -> Tensor:
        """Velocity (B, 64, 64) of packed tokens (B, 64, 64) at sigma (B,)."""
        side = round(tokens.shape[1] ** 0.5)
        return self.transformer(
            hidden_states=tokens,
            timestep=sigma,
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            img_ids=image_ids(side, side, tokens.device),
            txt_ids=torch.zeros(sequence.shape[1], 3, device=tokens.device),
            return_dict=False,
        )[0]


def flow_loss(
    model: Denoiser, latents: Tensor, clip_ids: Tensor, t5_ids: Tensor, sigma: Tensor, noise: Tensor
) -> Tensor:
    """Rectified flow matching (2209.03003): mean square of the velocity's error, one number per picture (B,)."""
    x = pack(interpolate(latents, noise, sigma[:, None, None, None]))
    velocity = model(x, sigma, *model.encode(clip_ids, t5_ids))
    return (velocity.float() - pack(velocity_target(latents, noise))).square().mean((1, 2))


def picture_loss(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Error of colours, of edges and of contrast, the mean over a batch of pictures (B, 3, H, W) in [-1, 1].

    The squares are what PSNR counts; the edges keep lettering crisp without a perceptual network. Where an edge may
    lie here or there, both are least wrong about a blurred one: the contrast asks for an edge as steep as it is.
    """
    loss = F.l1_loss(drawn, wanted) + 4 * F.mse_loss(drawn, wanted)
    for axis in (2, 3):
        edges, wanted_edges = drawn.diff(dim=axis), wanted.diff(dim=axis)
        loss = loss + 0.5 * F.l1_loss(edges, wanted_edges) + STEEP * F.l1_loss(contrast(edges), contrast(wanted_edges))
    return loss


def contrast(edges: Tensor, window: int = 8) -> Tensor:
    """Root mean square of differences between neighbours (B, C, H, W), in windows side by side."""
    return (F.avg_pool2d(edges.square(), window) + 1e-4).sqrt()  # below 0.01 there is nothing to see
