"""FLUX.1: schnell, dev, and fluxnb's own pocket, which has the same architecture.

The VAE encodes 8 x 8 pixels as a cell of 16 channels; the transformer takes 2 x 2 cells as one token of 64 numbers.
Prompts are read by T5 (a sequence) and CLIP (one vector). Offload presets, compilation, CUDA graphs, the adaLN cache
and attention maps are written for this family alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxnb.families.family import Family, Guidance, Limit, Model
from fluxnb.io.packaged import packaged_defaults
from fluxnb.records import Geometry, Pair

__all__ = ["FLUX1", "even", "scaled_from_vae", "scaled_to_vae", "tokens_of_noise"]

# Guidance 3.5 and 512 tokens are the defaults of FLUX.1-dev, 256 tokens those of schnell (black-forest-labs/flux).
DEV = {"steps": 28, "guidance_kind": "embedded", "guidance": 3.5, "max_sequence_length": 512}


def encode(pipe: Any, prompt: str, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """T5's sequence (1, length, D) and CLIP's pooled vector (1, P) of one prompt."""
    embeds, pooled, _ = pipe.encode_prompt(prompt=prompt, prompt_2=None, max_sequence_length=length, device=device)
    return embeds, pooled


def limits(pipe: Any, prompt: str, length: int) -> tuple[Limit, ...]:
    """CLIP's limit is that of its tokenizer; T5 reads `length` tokens."""
    return (
        Limit(encoder="CLIP", tokenizer=pipe.tokenizer, tokens=pipe.tokenizer_max_length, text=prompt),
        Limit(encoder="T5", tokenizer=pipe.tokenizer_2, tokens=length, text=prompt),
    )


def tokens_of_noise(
    pipe: Any, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, generators: Any
) -> Tensor:
    """The noise of a call as tokens of 2 x 2 cells, drawn by the pipeline."""
    channels = pipe.transformer.config.in_channels // 4
    drawn: Tensor = pipe.prepare_latents(shape[0], channels, *shape[1:], dtype, device, generators)[0]
    return drawn


def scaled_to_vae(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the VAE decodes them, without the scale and shift of the transformer's."""
    # In the order of the pipelines; another order may change the last bit.
    return (latents / (vae.config.get("scaling_factor") or 1.0)) + (vae.config.get("shift_factor") or 0.0)


def scaled_from_vae(vae: Any, encoded: Tensor) -> Tensor:
    """What the VAE encoded in the scale of the transformer."""
    return (encoded - (vae.config.get("shift_factor") or 0.0)) * (vae.config.get("scaling_factor") or 1.0)


def size_of_vae(pipe: Any) -> dict[str, Any]:
    """The default size of pictures that the VAE's configuration gives."""
    sample = getattr(getattr(getattr(pipe, "vae", None), "config", None), "sample_size", None)
    return {"size": sample} if isinstance(sample, int) and 64 <= sample <= 2048 and sample % 16 == 0 else {}


def configured(pipe: Any) -> dict[str, Any]:
    """Defaults by configuration: dev's where the transformer takes guidance, the VAE's size, the tokenizer's limit."""
    values: dict[str, Any] = {}
    if getattr(pipe.transformer.config, "guidance_embeds", False):
        values.update(DEV)
    values.update(size_of_vae(pipe))
    # The limit of a tokenizer is 512 for FLUX, 1e30 where none is set.
    limit = getattr(getattr(pipe, "tokenizer_2", None), "model_max_length", None)
    if isinstance(limit, int) and 0 < limit < values.get("max_sequence_length", 256):
        values["max_sequence_length"] = limit
    return values


def even(steps: int) -> list[float]:
    """The levels 1, (n-1)/n, ..., 1/n, exactly as FluxPipeline makes them."""
    levels: list[float] = np.linspace(1.0, 1 / steps, steps).tolist()
    return levels


FLUX1 = Family(
    name="FLUX.1",
    pipelines=("FluxPipeline",),
    since="0.39",
    geometry=Geometry(channels=16, cell=8, patch=2, layout="tokens"),
    even=even,
    guidance=Guidance(argument="true_cfg_scale", needs_negative=True),
    encoders=("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
    components={
        "transformer": ("diffusers", "FluxTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL|AutoencoderTiny"),
        "scheduler": ("diffusers", r"\w+Scheduler"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "text_encoder_2": ("transformers", "T5EncoderModel"),
        "tokenizer": ("transformers", "CLIPTokenizer(Fast)?"),
        "tokenizer_2": ("transformers", "T5Tokenizer(Fast)?"),
        "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
        "feature_extractor": ("transformers", "CLIPImageProcessor(Fast)?"),
    },
    models={
        "pocket": Model(defaults=packaged_defaults("pocket")),
        "pocket-base": Model(defaults=packaged_defaults("pocket-base")),
        "schnell": Model(repo="black-forest-labs/FLUX.1-schnell", gated=True),
        "dev": Model(
            repo="black-forest-labs/FLUX.1-dev", licence="FLUX.1 [dev] non-commercial", gated=True, defaults=DEV
        ),
    },
    pairs=(
        Pair(
            teacher="pocket-base",
            student="pocket",
            kind="trajectory",
            method="reflow, then LADD with a regression on the teacher's pairs",
        ),
    ),
    encode=encode,
    limits=limits,
    noise=tokens_of_noise,
    given_latents=lambda x, height, width: x,
    to_vae=scaled_to_vae,
    from_vae=scaled_from_vae,
    configured=configured,
    exclusive=True,
)
