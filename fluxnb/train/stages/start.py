"""Where a teacher goes on from: another run, or what has shipped."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, T5EncoderModel

from fluxnb.errors import InputError, StorageError
from fluxnb.train.config import Sizes
from fluxnb.train.networks.files import build_denoiser, find_autoencoder, load_denoiser
from fluxnb.train.stages.loop import Rank
from fluxnb.train.stages.objective import Denoiser

VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"


def open_start(sizes: Sizes, start: Path) -> Denoiser:
    """The denoiser of a run's folder, or of a shipped one's `base/`, in float32 and ready to train on."""
    if (start / "base" / "transformer").is_dir():
        return _shipped(sizes, start / "base").train()
    if (start / "transformer.safetensors").exists() and (start / "text.safetensors").exists():
        return load_denoiser(sizes, start).train()
    raise StorageError(
        f"no denoiser in {start}",
        "a run's folder holds transformer.safetensors and text.safetensors, a shipped one base/transformer",
        "type --start fluxnb/pocket, or leave --start out to begin from nothing",
    )


def bring(start: Path | None, out: Path, rank: Rank) -> None:
    """See to it that the run has the autoencoder that its teacher's latents are of, and the judge of the later stages.

    The start's are copied to a run without; its autoencoder has to be the run's, to half precision.
    """
    if rank.first and start is not None:
        vae = find_autoencoder(start)
        if vae is not None and (out / "vae").is_dir():
            _same_autoencoder(vae, out / "vae")
        elif vae is not None:
            shutil.copytree(vae, out / "vae.part", dirs_exist_ok=True)
            (out / "vae.part").rename(out / "vae")
        if (start / "judge.safetensors").exists() and not (out / "judge.safetensors").exists():
            shutil.copyfile(start / "judge.safetensors", out / "judge.safetensors")
    rank.share(0.0)  # the others wait for the copies
    if not (out / "vae").is_dir():
        raise StorageError(
            f"no autoencoder in {out}",
            "a teacher learns its latents: a run holds vae/, and --start brings the one it was trained with",
            f"train it: python -m fluxnb.train autoencoder --out {out}",
        )


def _same_autoencoder(one: Path, other: Path) -> None:
    first, second = load_file(one / VAE_WEIGHTS), load_file(other / VAE_WEIGHTS)
    if first.keys() != second.keys() or not all(torch.equal(first[k].half(), second[k].half()) for k in first):
        raise StorageError(
            f"two autoencoders, in {one} and in {other}",
            "a teacher goes on with the latents it was trained on",
            "type another --out",
        )


def _shipped(sizes: Sizes, base: Path) -> Denoiser:
    """Stored in half precision, in diffusers' layout."""
    found = Denoiser(
        CLIPTextModel.from_pretrained(base / "text_encoder"),
        T5EncoderModel.from_pretrained(base / "text_encoder_2"),
        FluxTransformer2DModel.from_pretrained(base / "transformer"),
    ).float()
    model = build_denoiser(sizes)  # the preset's own, as every later stage will build it
    if _shapes(model) != _shapes(found):
        raise InputError(
            f"weights of other sizes in {base}",
            "a training goes on with the sizes of its preset",
            "type the --preset that the weights were trained with, pocket for fluxnb/pocket",
        )
    model.load_state_dict(found.state_dict())
    return model


def _shapes(model: Denoiser) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
