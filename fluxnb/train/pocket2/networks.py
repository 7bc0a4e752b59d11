"""The networks of the second pocket, of the same classes as FLUX.1, and their files."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fluxnb.train.data.vocabulary import CLIP_TOKENS, clip_tokenizer, t5_tokenizer
from fluxnb.train.networks import build
from fluxnb.train.pocket2.config import Sizes


def build_autoencoder(sizes: Sizes) -> AutoencoderKL:
    """An untrained autoencoder with 16 latent channels and a downsampling by 8."""
    vae = build.build_autoencoder(sizes)
    vae.register_to_config(sample_size=sizes.default_size)
    return vae


@functools.lru_cache(64)
def image_ids(rows: int, columns: int, device: torch.device) -> Tensor:
    """Positions of the image tokens for FLUX's rotary embedding, (rows columns, 3)."""
    ids = torch.zeros(rows, columns, 3, device=device)
    ids[..., 1] = torch.arange(rows, device=device)[:, None]
    ids[..., 2] = torch.arange(columns, device=device)[None]
    return ids.flatten(0, 1)


class Denoiser(nn.Module):
    """Text encoders and transformer as one network that predicts the velocity.

    Arguments:
        text_encoder: CLIP, of which only the pooled output is used, as in FLUX.
        text_encoder_2: T5, one vector per token.
        transformer: of FLUX's class.
    """

    def __init__(self, text_encoder: nn.Module, text_encoder_2: nn.Module, transformer: nn.Module):
        super().__init__()
        self.text_encoder, self.text_encoder_2, self.transformer = text_encoder, text_encoder_2, transformer

    def encode(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled (B, d) and per-token (B, L, e) prompt embeddings; without a mask, as in FLUX's pipeline."""
        return self.text_encoder(clip_ids).pooler_output, self.text_encoder_2(t5_ids)[0]

    def forward(self, tokens: Tensor, sigma: Tensor, pooled: Tensor, sequence: Tensor, grid: tuple[int, int]) -> Tensor:
        """Velocity (B, rows columns, 64) of packed tokens at sigma (B,); `grid` is (rows, columns)."""
        return self.transformer(
            hidden_states=tokens,
            timestep=sigma,
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            img_ids=image_ids(*grid, tokens.device),
            txt_ids=torch.zeros(sequence.shape[1], 3, device=tokens.device),
            return_dict=False,
        )[0]


def build_denoiser(sizes: Sizes) -> Denoiser:
    """An untrained teacher, initialized with adaLN-Zero as in DiT (2212.09748)."""
    clip = dataclasses.replace(sizes, text_tokens=CLIP_TOKENS)
    transformer = build.build_transformer(sizes)
    transformer.register_to_config(sample_size=sizes.default_size // 8)
    return Denoiser(
        build.build_text_encoder(clip, len(clip_tokenizer())),
        build.build_text_encoder_2(sizes, len(t5_tokenizer())),
        transformer,
    )


def save_denoiser(model: Denoiser, out: Path, name: str = "teacher") -> None:
    """Save transformer and text encoders in float16 as `out`/`name`.safetensors, atomically."""
    half = {key: tensor.detach().half().cpu().contiguous() for key, tensor in model.state_dict().items()}
    half.pop("text_encoder_2.encoder.embed_tokens.weight", None)  # the same tensor as `shared`
    save_file(half, out / f"{name}.part")
    (out / f"{name}.part").rename(out / f"{name}.safetensors")


def load_denoiser(sizes: Sizes, file: Path) -> Denoiser:
    """Load a file of `save_denoiser` in float32, in evaluation mode."""
    model = build_denoiser(sizes)
    missing, unexpected = model.load_state_dict({k: t.float() for k, t in load_file(file).items()}, strict=False)
    if unexpected or set(missing) - {"text_encoder_2.encoder.embed_tokens.weight"}:
        raise ValueError(
            f"{file} has weights of another network: missing {missing}, unexpected {unexpected}. "
            "Use the preset with which it was trained (--preset)."
        )
    return model.eval()
