"""The critic of LADD: the frozen teacher's features, and small heads that tell its latents from the student's.

Sauer et al. 2024, 2403.12015: instead of a second network on decoded pictures, the teacher itself looks at
renoised latents, and one head after every block judges what it sees there, token by token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from fluxnb.train.stages.objective import image_ids

#: Half of the renoise levels high, where composition shows, and half low, where texture does; in logits.
LEVELS = (1.0, -1.0)


def features(
    body: FluxTransformer2DModel, tokens: Tensor, sigma: Tensor, pooled: Tensor, sequence: Tensor
) -> list[Tensor]:
    """The image tokens (B, 64, width) after every block, each normalised; gradients reach `tokens`.

    The same arithmetic as `FluxTransformer2DModel.forward`, kept here because that one gives away its end only.
    """
    side = round(tokens.shape[1] ** 0.5)
    ids = torch.cat((torch.zeros(sequence.shape[1], 3, device=tokens.device), image_ids(side, side, tokens.device)))
    img, txt = body.x_embedder(tokens), body.context_embedder(sequence)
    temb, rotary = body.time_text_embed(sigma * 1000, pooled), body.pos_embed(ids)
    seen = []
    for block in (*body.transformer_blocks, *body.single_transformer_blocks):
        txt, img = block(hidden_states=img, encoder_hidden_states=txt, temb=temb, image_rotary_emb=rotary)
        seen.append(F.layer_norm(img.float(), img.shape[-1:]))
    return seen


class Head(nn.Module):
    """One block's features to one logit a token, through 3x3 convolutions on their grid."""

    def __init__(self, width: int, condition: int, inner: int = 64):
        super().__init__()
        self.enter = nn.Conv2d(width, inner, 1)
        self.film = nn.Linear(condition, 2 * inner)
        self.one, self.two = nn.Conv2d(inner, inner, 3, 1, 1), nn.Conv2d(inner, inner, 3, 1, 1)
        self.norm = nn.GroupNorm(8, inner)
        self.leave = nn.Conv2d(inner, 1, 1)

    def forward(self, seen: Tensor, condition: Tensor) -> Tensor:
        """Logits (B, tokens) of features (B, tokens, width), given noise level and words (B, condition)."""
        side = round(seen.shape[1] ** 0.5)
        x = self.enter(seen.transpose(1, 2).unflatten(2, (side, side)))
        scale, shift = self.film(condition)[:, :, None, None].chunk(2, 1)
        y = F.silu(self.norm(self.one(F.silu(x))) * (1 + scale) + shift)
        return self.leave(F.silu(x + self.two(y))).flatten(1)


class Critic(nn.Module):
    """A head after every block; all know the noise level and the pooled words."""

    def __init__(self, body: FluxTransformer2DModel, inner: int = 64):
        super().__init__()
        blocks = len(body.transformer_blocks) + len(body.single_transformer_blocks)
        config = body.config
        width = config.num_attention_heads * config.attention_head_dim
        self.level = nn.Sequential(nn.Linear(16, inner), nn.SiLU(), nn.Linear(inner, inner))
        self.words = nn.Linear(config.pooled_projection_dim, inner)
        self.heads = nn.ModuleList(Head(width, inner, inner) for _ in range(blocks))

    def forward(self, seen: list[Tensor], sigma: Tensor, pooled: Tensor) -> Tensor:
        """Logits (B, blocks, tokens): above 0 the teacher's, below the student's."""
        waves = sigma[:, None] * torch.pi * 2 ** torch.arange(8, device=sigma.device) / 2
        condition = F.silu(self.level(torch.cat((waves.sin(), waves.cos()), 1)) + self.words(pooled))
        return torch.stack([head(part, condition) for head, part in zip(self.heads, seen, strict=True)], 1).float()


def draw_levels(count: int, device: torch.device) -> Tensor:
    """Renoise levels (count,): logit-normal around either of `LEVELS`, each for about half of the rows."""
    means = torch.tensor(LEVELS, device=device)[torch.randint(len(LEVELS), (count,), device=device)]
    return (means + torch.randn(count, device=device)).sigmoid()


def critic_loss(real: Tensor, fake: Tensor, wrong: Tensor) -> Tensor:
    """Hinge: the teacher's latents above 1, the student's below -1, and right latents under wrong words too."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean() + 0.25 * F.relu(1 + wrong).mean()
