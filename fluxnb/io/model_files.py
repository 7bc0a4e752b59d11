"""FLUX.1 models by the names that programs give to their files."""

from __future__ import annotations

import re

__all__ = ["has_fewer_bits", "is_vae_of_flux1", "known_model"]

LONGEST_NAME = 500  # characters; the file of a longer name is not known
# Parts of names about the storage of the weights, which do not change the model.
_LOSSY = re.compile(r"fp8|e4m3fn|e5m2|gguf|nf4|bnb|svdq|int4|int8|fp4|q\d|quantized|\d ?bit|mxfp|scaled")
_VAE = re.compile(r"(^|[/\\_-])(ae|flux.*vae.*)\.")
_STORED = (
    r"flux|flux1|flux\.1|1|safetensors|sft|ckpt|gguf|fp8|fp16|bf16|fp32|fp4|e4m3fn|e5m2|scaled|nf4|bnb|svdq|int4|int8"
    r"|r32|r128|q\d(?:[k01]|[k01]?[sml])?|[k01sml]|quantized|v1|v2|v0|unet|transformer|diffusion|model|checkpoint|full|all"
    r"|in|one|0|nunchaku|comfy|comfyui|kijai|11gb|black|forest|labs|blackforestlabs|hf|org|mflux|bit|[348]|mxfp8"
)
_PART = re.compile(rf"(?:{_STORED})\Z")


def known_model(name: str) -> str | None:
    """The name of a model in a recipe, "schnell" or "dev", for a name of its file; None for any other model.

    A part of the name that is not known, such as that of a fine-tuned model, makes it another model.

    Example:
        >>> known_model("FLUX1/flux1-dev-fp8.safetensors"), known_model("flux1-schnell-Q4_K_S.gguf")
        ('dev', 'schnell')
        >>> known_model("flux1-fill-dev.safetensors") is None
        True
    """
    if len(name) > LONGEST_NAME:
        return None
    leaf = re.split(r"[/\\]", name.lower())[-1]
    parts = [part for part in re.split(r"[^a-z0-9]+", leaf) if part]
    models = [part for part in parts if part in ("schnell", "dev")]
    if len(models) != 1:
        return None
    others = [part for part in parts if part != models[0]]
    return models[0] if all(_PART.match(part) for part in others) else None


def has_fewer_bits(name: str) -> bool:
    """Whether the name of a file states that its weights are stored in fewer bits than 16."""
    return _LOSSY.search(name.lower()) is not None


def is_vae_of_flux1(name: str) -> bool:
    """Whether a file has one of the names that the VAE of FLUX.1 is distributed under."""
    return len(name) <= LONGEST_NAME and _VAE.search(name) is not None
