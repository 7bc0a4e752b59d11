"""The critic of LADD: features of the frozen teacher, and small heads that classify latents as real or the student's.

Sauer et al. 2024, 2403.12015. The teacher itself is the feature network: it processes renoised latents, and one head
after each block classifies every token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from fluxnb.train.networks.denoiser import image_ids

#: Means, in logits, of the two halves of the renoise levels: high levels show composition, low ones texture.
LEVELS = (1.0, -1.0)


def block_features(
    teacher: FluxTransformer2DModel,
    tokens: Tensor,
    sigma: Tensor,
    pooled: Tensor,
    sequence: Tensor,
    *,
    grid: tuple[int, int],
) -> list[Tensor]:
    """The normalized image tokens (B, rows columns, width) after each block; gradients flow to `tokens`.

    This repeats the arithmetic of `FluxTransformer2DModel.forward`, which returns the output of the last layer only.

    Arguments:
        grid: rows and columns of the tokens.
    """
    positions = image_ids(*grid, tokens.device)
    ids = torch.cat((torch.zeros(sequence.shape[1], 3, device=tokens.device), positions))
    img, txt = teacher.x_embedder(tokens), teacher.context_embedder(sequence)
    temb, rotary = teacher.time_text_embed(sigma * 1000, pooled), teacher.pos_embed(ids)
    features = []
    for block in (*teacher.transformer_blocks, *teacher.single_transformer_blocks):
        txt, img = block(hidden_states=img, encoder_hidden_states=txt, temb=temb, image_rotary_emb=rotary)
        features.append(F.layer_norm(img.float(), img.shape[-1:]))
    return features


class Head(nn.Module):
    """One logit per token from the features of one block, by 3x3 convolutions on the token grid."""

    def __init__(self, width: int, condition: int, inner: int = 64):
        super().__init__()
        self.conv_in = nn.Conv2d(width, inner, 1)
        self.film = nn.Linear(condition, 2 * inner)
        self.conv_1, self.conv_2 = nn.Conv2d(inner, inner, 3, 1, 1), nn.Conv2d(inner, inner, 3, 1, 1)
        self.norm = nn.GroupNorm(8, inner)
        self.conv_out = nn.Conv2d(inner, 1, 1)

    def forward(self, features: Tensor, condition: Tensor, grid: tuple[int, int]) -> Tensor:
        """Logits (B, tokens) of features (B, tokens, width), given noise level and caption (B, condition)."""
        x = self.conv_in(features.transpose(1, 2).unflatten(2, grid))
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
        y = F.silu(self.norm(self.conv_1(F.silu(x))) * (1 + scale) + shift)
        return self.conv_out(F.silu(x + self.conv_2(y))).flatten(1)


class Critic(nn.Module):
    """One head per block of the teacher, each conditioned on the noise level and the pooled prompt encoding."""

    def __init__(self, teacher: FluxTransformer2DModel, inner: int = 64):
        super().__init__()
        blocks = len(teacher.transformer_blocks) + len(teacher.single_transformer_blocks)
        config = teacher.config
        width = config.num_attention_heads * config.attention_head_dim
        self.level = nn.Sequential(nn.Linear(16, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.prompt = nn.Linear(config.pooled_projection_dim, inner)
        self.heads = nn.ModuleList(Head(width, inner, inner) for _ in range(blocks))

    def forward(self, features: list[Tensor], sigma: Tensor, pooled: Tensor, grid: tuple[int, int]) -> Tensor:
        """Logits (B, blocks, tokens): positive for the teacher's latents, negative for the student's."""
        waves = sigma[:, None] * torch.pi * 2 ** torch.arange(8, device=sigma.device) / 2
        condition = F.silu(self.level(torch.cat((waves.sin(), waves.cos()), 1)) + self.prompt(pooled))
        logits = [head(part, condition, grid) for head, part in zip(self.heads, features, strict=True)]
        return torch.stack(logits, 1).float()


def draw_levels(count: int, device: torch.device) -> Tensor:
    """Renoise levels (count,) from a mixture of two logit-normals with the means `LEVELS`, equally weighted."""
    means = torch.tensor(LEVELS, device=device)[torch.randint(len(LEVELS), (count,), device=device)]
    return (means + torch.randn(count, device=device)).sigmoid()


def critic_loss(real: Tensor, fake: Tensor, mismatched: Tensor) -> Tensor:
    """Hinge loss: real logits above 1, fake ones below -1, and also real latents with a mismatched caption below -1."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean() + 0.25 * F.relu(1 + mismatched).mean()
