"""Load the networks of an evaluation from a run's folder or from a shipped folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

from fluxnb.checkpoints.checksums import sampled_fingerprint
from fluxnb.errors import StorageError
from fluxnb.train.config import Sizes
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.evaluation.cache import MeasurementCache
from fluxnb.train.evaluation.evaluator import EvalConfig
from fluxnb.train.networks.denoiser import Denoiser, load_denoiser, with_transformer
from fluxnb.train.networks.judge import Judge, load_judge


@dataclasses.dataclass(frozen=True)
class Networks:
    """A teacher, its autoencoder and tokenizers, and the judge, on one device in float32."""

    denoiser: Denoiser
    vae: AutoencoderKL
    judge: Judge
    tokens: Tokens


def load_networks(folder: Path, sizes: Sizes, device: torch.device) -> Networks:
    """Load from a shipped folder (`base/` and the judge) or a run (`transformer.safetensors`, `vae/` and the judge)."""
    judge = folder / "judge.safetensors"
    if not judge.exists():
        raise StorageError(
            f"no judge in {folder}",
            "a run's folder and a shipped one hold judge.safetensors",
            f"train it: python -m fluxnb.train judge --out {folder}",
        )
    if (folder / "base").is_dir():
        pipe = FluxPipeline.from_pretrained(folder / "base")
        denoiser = Denoiser(pipe.text_encoder, pipe.text_encoder_2, pipe.transformer)
        vae, tokens = pipe.vae, Tokens(pipe.tokenizer, pipe.tokenizer_2)
    else:
        denoiser, tokens = load_denoiser(sizes, folder), Tokens.of(sizes)
        vae = AutoencoderKL.from_pretrained(folder / "vae")
    return Networks(denoiser.eval().to(device), vae.eval().to(device), load_judge(judge, device), tokens)


def load_student(path: Path, teacher: Denoiser) -> Denoiser:
    """A student with the teacher's text encoders; `path` is a trained file or a folder in diffusers' layout."""
    if path.is_file():
        return with_transformer(teacher, path).to(next(teacher.parameters()).device)
    folder = path / "transformer" if (path / "transformer").is_dir() else path
    if not (folder / "config.json").exists():
        raise StorageError(
            f"no transformer in {path}",
            "a student is a file such as student.safetensors, or a folder in diffusers layout",
            "type the path of what `python -m fluxnb.train student` wrote",
        )
    transformer = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    device = next(teacher.parameters()).device
    return Denoiser(teacher.text_encoder, teacher.text_encoder_2, transformer.to(device)).eval()


def find_student(folder: Path, name: str = "student") -> Path | None:
    """The path of a student in a run, or in a shipped folder, which has only `student`; None if there is none."""
    places = [folder / f"{name}.safetensors", *([folder / "transformer"] if name == "student" else [])]
    return next((place for place in places if place.exists()), None)


def open_cache(
    folder: Path | None, networks: Networks, models: dict[str, Denoiser], config: EvalConfig, guidance: float
) -> MeasurementCache:
    """The measurement cache in a folder, with keys of the weights, the guidance and the size of the evaluation."""
    fingerprints = {name: sampled_fingerprint(model) for name, model in models.items()} if folder else {}
    common = sampled_fingerprint(networks.judge, networks.vae) if folder else ""

    def key_of(label: str) -> str:
        name = label.partition("@")[0].partition(",")[0]
        return f"{fingerprints.get(name, '')}/{guidance if name == 'teacher' else ''}"

    return MeasurementCache(folder, f"{common}/{config}", key_of)
