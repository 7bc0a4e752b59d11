"""The networks of the second pocket, of the same classes as FLUX.1, and their files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from fluxnb.train.data.vocabulary import CLIP_TOKENS, clip_tokenizer, t5_tokenizer
from fluxnb.train.networks import build
from fluxnb.train.networks.denoiser import Denoiser
from fluxnb.train.pocket2.config import Sizes


def build_autoencoder(sizes: Sizes) -> AutoencoderKL:
    """An untrained autoencoder with 16 latent channels and a downsampling by 8."""
    vae = build.build_autoencoder(sizes)
    vae.register_to_config(sample_size=sizes.default_size)
    return vae


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
