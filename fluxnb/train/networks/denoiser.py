"""The denoiser (text encoders and transformer as one network): building, sampling, saving and loading."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fluxnb.records.latents import pack, unpack
from fluxnb.train.config import Sizes
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.networks.build import build_text_encoder, build_text_encoder_2, build_transformer


def image_ids(height: int, width: int, device: torch.device) -> Tensor:
    """Positions (tokens, 3) of the image tokens for FLUX's rotary embedding; height and width are in tokens."""
    ids = torch.zeros(height, width, 3, device=device)
    ids[..., 1] = torch.arange(height, device=device)[:, None]
    ids[..., 2] = torch.arange(width, device=device)[None]
    return ids.flatten(0, 1)


class Denoiser(nn.Module):
    """Text encoders and transformer as one network, from packed tokens and captions to a velocity.

    Attributes:
        text_encoder: CLIP, of which only the pooled output is used, as in FLUX.
        text_encoder_2: T5, one vector per token.
        transformer: of FLUX's class.
    """

    def __init__(self, text_encoder: nn.Module, text_encoder_2: nn.Module, transformer: nn.Module):
        super().__init__()
        self.text_encoder, self.text_encoder_2, self.transformer = text_encoder, text_encoder_2, transformer

    def encode(self, clip_ids: Tensor, t5_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Prompt encodings: pooled (B, d) and sequence (B, L, e). As in FLUX, padding is not masked."""
        return self.text_encoder(clip_ids).pooler_output, self.text_encoder_2(t5_ids)[0]

    def forward(
        self, tokens: Tensor, sigma: Tensor, pooled: Tensor, sequence: Tensor, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """Velocity (B, rows columns, 64) of packed tokens at sigma (B,).

        Args:
            grid: rows and columns of the tokens; None for a square picture.
        """
        return self.transformer(
            hidden_states=tokens,
            timestep=sigma,
            pooled_projections=pooled,
            encoder_hidden_states=sequence,
            img_ids=image_ids(*(grid or square_grid(tokens)), tokens.device),
            txt_ids=torch.zeros(sequence.shape[1], 3, device=tokens.device),
            return_dict=False,
        )[0]


def square_grid(tokens: Tensor) -> tuple[int, int]:
    """Rows and columns of the packed tokens (B, n, ...) of a square picture."""
    side = round(tokens.shape[1] ** 0.5)
    return side, side


def build_denoiser(sizes: Sizes) -> Denoiser:
    """An untrained denoiser."""
    tokens = Tokens.of(sizes)
    return Denoiser(
        build_text_encoder(sizes, len(tokens.clip)),
        build_text_encoder_2(sizes, len(tokens.t5)),
        build_transformer(sizes),
    )


@torch.no_grad()
def sample(
    model: Denoiser,
    clip_ids: Tensor,
    t5_ids: Tensor,
    noise: Tensor,
    sigmas: tuple[float, ...],
    *,
    guidance: float = 1.0,
    empty: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Integrate the flow from noise (B, 16, h, w) along `sigmas` with Euler steps; returns latents (B, 16, h, w).

    `guidance` above 1 applies classifier-free guidance (2207.12598); `empty` then holds the token ids of the empty
    caption. All tensors are on one device.
    """
    side = noise.shape[-1] * 8
    pooled, sequence = model.encode(clip_ids, t5_ids)
    if guidance > 1 and empty is not None:
        empty_pooled, empty_sequence = (e.expand(len(noise), *e.shape[1:]) for e in model.encode(*empty))
        pooled, sequence = torch.cat((pooled, empty_pooled)), torch.cat((sequence, empty_sequence))
    x = pack(noise)
    for sigma, following in itertools.pairwise(sigmas):
        double = torch.cat((x, x)) if guidance > 1 else x
        velocity = model(double, torch.full((len(double),), sigma, device=x.device), pooled, sequence).float()
        if guidance > 1:
            conditional, unconditional = velocity.chunk(2)
            velocity = unconditional + guidance * (conditional - unconditional)
        x = x + (following - sigma) * velocity
    return unpack(x, side, side)


def find_autoencoder(folder: Path) -> Path | None:
    """The autoencoder's folder in a run or in a shipped folder; None if there is none."""
    return next((path for path in (folder / "base" / "vae", folder / "vae") if path.is_dir()), None)


def save_denoiser(model: Denoiser, out: Path) -> None:
    """Write `transformer.safetensors` and `text.safetensors` to `out` in float16."""
    half = {name: tensor.detach().half().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for part, is_transformer in (("transformer", True), ("text", False)):
        named = {name: tensor for name, tensor in half.items() if name.startswith("transformer.") == is_transformer}
        save_file(named, out / f"{part}.part")
        (out / f"{part}.part").rename(out / f"{part}.safetensors")


def load_denoiser(sizes: Sizes, out: Path) -> Denoiser:
    """Load what `save_denoiser` wrote, in float32 and in evaluation mode."""
    model = build_denoiser(sizes)
    state = load_file(out / "transformer.safetensors") | load_file(out / "text.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    return model.eval()


def with_transformer(model: Denoiser, path: Path) -> Denoiser:
    """A copy of the denoiser with the transformer saved at `path`; the text encoders are shared."""
    transformer = copy.deepcopy(model.transformer)
    transformer.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return Denoiser(model.text_encoder, model.text_encoder_2, transformer).eval()


def save_transformer(transformer: FluxTransformer2DModel, path: Path) -> None:
    """Write a transformer to one file in float16, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {name: t.detach().half().cpu().contiguous() for name, t in transformer.state_dict().items()}
    save_file(half, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
