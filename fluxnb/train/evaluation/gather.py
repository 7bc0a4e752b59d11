"""The networks that an evaluation needs, from a run's folder or from what `ship` wrote."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel

from fluxnb.checkpoints.checksums import sampled_fingerprint
from fluxnb.errors import StorageError
from fluxnb.train.config import Sizes
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.evaluation.examiner import Asked
from fluxnb.train.evaluation.judge import Judge, load_judge
from fluxnb.train.evaluation.kept import Kept
from fluxnb.train.networks.files import load_denoiser, with_transformer
from fluxnb.train.stages.loop import read_log
from fluxnb.train.stages.objective import Denoiser


@dataclasses.dataclass(frozen=True)
class Networks:
    """A teacher with what decodes and judges its pictures, on one device in float32."""

    denoiser: Denoiser
    vae: AutoencoderKL
    judge: Judge
    tokens: Tokens


def gather(folder: Path, sizes: Sizes, device: torch.device) -> Networks:
    """From a shipped folder (`base/` and the judge) or a run (`transformer.safetensors`, `vae/` and the judge)."""
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


def another(place: Path, teacher: Denoiser) -> Denoiser:
    """A student: its own transformer, a file as trained or a folder as shipped, with the teacher's encoders."""
    if place.is_file():
        return with_transformer(teacher, place).to(next(teacher.parameters()).device)
    folder = place / "transformer" if (place / "transformer").is_dir() else place
    if not (folder / "config.json").exists():
        raise StorageError(
            f"no transformer in {place}",
            "a student is a file such as student.safetensors, or a folder in diffusers layout",
            "name what `python -m fluxnb.train student` wrote",
        )
    transformer = FluxTransformer2DModel.from_pretrained(folder, torch_dtype=torch.float32)
    device = next(teacher.parameters()).device
    return Denoiser(teacher.text_encoder, teacher.text_encoder_2, transformer.to(device)).eval()


def student_beside(folder: Path, name: str = "student") -> Path | None:
    """Where the student of that name lies in a run or, the only one, in a shipped folder; None without one."""
    places = [folder / f"{name}.safetensors", *([folder / "transformer"] if name == "student" else [])]
    return next((place for place in places if place.exists()), None)


def guidance_of(folder: Path, otherwise: float) -> float:
    """How strongly a teacher is guided: as its card says, or as the run's pairs were drawn, or else `otherwise`."""
    card, pairs = folder / "card.json", folder / "pairs.jsonl"
    if card.exists():
        return float(json.loads(card.read_text()).get("defaults", {}).get("pocket-base", {}).get("guidance", otherwise))
    drawn = [float(str(line["guidance"])) for line in read_log(pairs) if "guidance" in line] if pairs.exists() else []
    return drawn[-1] if drawn else otherwise


def kept_of(
    folder: Path | None, networks: Networks, models: dict[str, Denoiser], asked: Asked, guidance: float
) -> Kept:
    """The readings kept in a folder, held against what they depend on: weights, guidance and how much is asked."""
    who = {name: sampled_fingerprint(model) for name, model in models.items()} if folder else {}
    judged = sampled_fingerprint(networks.judge, networks.vae) if folder else ""

    def of(label: str) -> str:
        name = label.partition("@")[0].partition(",")[0]
        return f"{who.get(name, '')}/{guidance if name == 'teacher' else ''}"

    return Kept(folder, f"{judged}/{asked}", of)
