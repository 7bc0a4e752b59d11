"""Denoisers in files: as a training saves them, and as they ship."""

from __future__ import annotations

import copy
from pathlib import Path

from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from fluxnb.train.config import Sizes
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.networks.build import build_text_encoder, build_text_encoder_2, build_transformer
from fluxnb.train.stages.loop import Rank
from fluxnb.train.stages.objective import Denoiser


def build_denoiser(sizes: Sizes) -> Denoiser:
    """An untrained teacher."""
    tokens = Tokens.of(sizes)
    return Denoiser(
        build_text_encoder(sizes, len(tokens.clip)),
        build_text_encoder_2(sizes, len(tokens.t5)),
        build_transformer(sizes),
    )


def find_autoencoder(place: Path) -> Path | None:
    """Where the autoencoder of a run's folder, or of a shipped one's, lies."""
    return next((each for each in (place / "base" / "vae", place / "vae") if each.is_dir()), None)


def save_denoiser(model: Denoiser, out: Path) -> None:
    """`transformer.safetensors` and `text.safetensors` under `out`, float16."""
    half = {name: tensor.detach().half().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for part, belongs in (("transformer", True), ("text", False)):
        named = {name: tensor for name, tensor in half.items() if name.startswith("transformer.") == belongs}
        save_file(named, out / f"{part}.part")
        (out / f"{part}.part").rename(out / f"{part}.safetensors")


def load_denoiser(sizes: Sizes, out: Path) -> Denoiser:
    """What `save_denoiser` saved, in float32, ready to evaluate or to train on."""
    model = build_denoiser(sizes)
    state = load_file(out / "transformer.safetensors") | load_file(out / "text.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    return model.eval()


def with_transformer(model: Denoiser, path: Path) -> Denoiser:
    """A copy of the denoiser whose transformer is the saved one; the text encoders are shared."""
    transformer = copy.deepcopy(model.transformer)
    transformer.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return Denoiser(model.text_encoder, model.text_encoder_2, transformer).eval()


def save_transformer(transformer: FluxTransformer2DModel, path: Path, rank: Rank) -> None:
    """One file in half precision, as it ships; whole or not at all."""
    if rank.first:
        path.parent.mkdir(parents=True, exist_ok=True)
        half = {name: t.detach().half().cpu().contiguous() for name, t in transformer.state_dict().items()}
        save_file(half, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
