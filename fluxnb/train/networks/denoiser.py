"""The denoiser (text encoders and transformer as one network): building, sampling, saving and loading."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from fluxnb.errors import InputError
from fluxnb.records.latents import pack, unpack
from fluxnb.train.config import Sizes
from fluxnb.train.networks.build import build_text_encoder, build_text_encoder_2, build_transformer
from fluxnb.train.networks.weights import load_weights, save_weights

SHARED = "text_encoder_2.encoder.embed_tokens.weight"  # the same tensor as `shared`, and not stored


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

    def forward(self, tokens: Tensor, sigma: Tensor, pooled: Tensor, sequence: Tensor, grid: tuple[int, int]) -> Tensor:
        """Velocity (B, rows columns, 64) of packed tokens at sigma (B,).

        Arguments:
            grid: rows and columns of the tokens.
        """
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
    """An untrained denoiser."""
    t5 = build_text_encoder_2(sizes)  # before the others: their order determines the random weights
    return Denoiser(build_text_encoder(sizes), t5, build_transformer(sizes))


@torch.no_grad()
def sample(
    model: Denoiser,
    clip_ids: Tensor,
    t5_ids: Tensor,
    noise: Tensor,
    steps: int,
    *,
    guidance: float = 1.0,
    empty: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Sample latents (B, 16, h, w) with equal Euler steps.

    Classifier-free guidance is applied if `guidance` is above 1 and `empty`, the ids of the empty caption, is given.
    """
    height, width = noise.shape[2:]
    grid = (height // 2, width // 2)
    guided = guidance > 1 and empty is not None
    pooled, sequence = model.encode(clip_ids, t5_ids)
    if guided and empty is not None:
        uncond = (e.expand(len(noise), *e.shape[1:]) for e in model.encode(*empty))
        pooled, sequence = (torch.cat(pair) for pair in zip((pooled, sequence), uncond, strict=True))
    x = pack(noise)
    for step in range(steps):
        sigma = 1 - step / steps
        both = torch.cat((x, x)) if guided else x
        velocity = model(both, torch.full((len(both),), sigma, device=x.device), pooled, sequence, grid).float()
        if guided:
            conditional, unconditional = velocity.chunk(2)
            velocity = unconditional + guidance * (conditional - unconditional)
        x = x - velocity / steps
    return unpack(x, 8 * height, 8 * width)


def save_denoiser(model: Denoiser, out: Path, name: str = "teacher") -> None:
    """Save transformer and text encoders in float16 as `out`/`name`.safetensors, atomically."""
    save_weights(model, out / f"{name}.safetensors", without=(SHARED,))


def load_denoiser(sizes: Sizes, file: Path) -> Denoiser:
    """Load a file of `save_denoiser` in float32, in evaluation mode.

    A file with fewer single blocks is extended by blocks that change nothing until they are trained.

    Raises:
        InputError: the file has the weights of a network of other sizes.
    """
    model = build_denoiser(sizes)
    weights = with_more_blocks(load_weights(file), sizes.single_blocks)
    required = {name: tensor.shape for name, tensor in model.state_dict().items() if name != SHARED}
    found = {name: tensor.shape for name, tensor in weights.items()}
    differing = [name for name in required | found if required.get(name) != found.get(name)]
    if differing:
        raise InputError(
            f"weights of another network in {file}, such as {differing[0]}",
            "a network has the sizes of its preset",
            "type the --preset with which the weights were trained",
        )
    model.load_state_dict(weights, strict=False)
    return model.eval()


def with_more_blocks(weights: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Weights of a network with `count` single blocks that computes what one with fewer blocks computes.

    Each added block follows the one that it is a copy of. Its last layer is zero, so that at first it passes its input
    on, and it has gradients because its gate is not (block expansion, 2401.02415). A network with `count` blocks or
    more is returned as it is.
    """
    start = "transformer.single_transformer_blocks."
    inside = {name: tensor for name, tensor in weights.items() if name.startswith(start)}
    has = 1 + max(int(name.removeprefix(start).split(".")[0]) for name in inside)
    if has >= count:
        return weights
    grown = {name: tensor for name, tensor in weights.items() if name not in inside}
    origins = [index * has // count for index in range(count)]
    for index, origin in enumerate(origins):
        added = origin in origins[:index]
        for name, tensor in inside.items():
            number, rest = name.removeprefix(start).split(".", 1)
            if int(number) == origin:
                zero = added and rest.startswith("proj_out.")
                grown[f"{start}{index}.{rest}"] = torch.zeros_like(tensor) if zero else tensor.clone()
    return grown


def with_transformer(model: Denoiser, path: Path) -> Denoiser:
    """A copy of the denoiser with the transformer saved at `path`; the text encoders are shared."""
    transformer = copy.deepcopy(model.transformer)
    transformer.load_state_dict(load_weights(path))
    return Denoiser(model.text_encoder, model.text_encoder_2, transformer).eval()
