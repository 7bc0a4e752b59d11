"""Write a trained run as a folder for `FluxPipeline.from_pretrained`, with a card that documents the training."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline
from safetensors.torch import load_file

from fluxnb.train.config import POCKET, Sizes
from fluxnb.train.networks.build import build_pipeline_parts, build_transformer
from fluxnb.train.networks.denoiser import load_denoiser
from fluxnb.train.stages.loop import read_log

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
STAGES = ("autoencoder", "judge", "teacher", "pairs", "warm", "student", "reflow")


def default_settings(guidance: float, size: int = 128) -> dict[str, dict[str, object]]:
    """Default size, steps and guidance of both models; the student's guidance is distilled, as in schnell."""
    guided = {"guidance_kind": "true_cfg", "guidance": guidance}
    return {
        "pocket": {"size": size, "steps": 4, "guidance_kind": "none", "max_sequence_length": 48},
        "pocket-base": {"size": size, "steps": 28, **guided, "max_sequence_length": 48},
    }


def teacher_guidance(folder: Path, default: float) -> float:
    """The guidance of a teacher, from the card of a shipped folder or from the log of a run's pairs."""
    card, pairs = folder / "card.json", folder / "pairs.jsonl"
    if card.exists():
        return float(json.loads(card.read_text()).get("defaults", {}).get("pocket-base", {}).get("guidance", default))
    logged = [float(str(line["guidance"])) for line in read_log(pairs) if "guidance" in line] if pairs.exists() else []
    return logged[-1] if logged else default


def assemble(run: Path, sizes: Sizes) -> FluxPipeline:
    """The teacher of a run as a pipeline in float32."""
    parts = build_pipeline_parts(sizes)
    denoiser = load_denoiser(sizes, run)
    parts |= {
        "vae": AutoencoderKL.from_pretrained(run / "vae"),
        "text_encoder": denoiser.text_encoder,
        "text_encoder_2": denoiser.text_encoder_2,
        "transformer": denoiser.transformer,
    }
    return FluxPipeline(**parts)


def ship(run: Path, to: Path, sizes: Sizes) -> Path:
    """Write the networks of a run: the teacher to `to/base`, the student to `to`, the judge and the card.

    A run that continues from shipped weights may hold only a student, or only an autoencoder for the same latents. The
    other files of `to` are then unchanged.
    """
    if (run / "vae").is_dir() and not (run / "transformer.safetensors").exists():
        vae = AutoencoderKL.from_pretrained(run / "vae").to(torch.float16)
        vae.save_pretrained(to / "base" / "vae", safe_serialization=True)
        remove_origin(to / "base" / "vae" / "config.json")
    elif (run / "vae").is_dir():
        ship_teacher(run, to, sizes)
        shutil.copyfile(run / "judge.safetensors", to / "judge.safetensors")
    if (run / "student.safetensors").exists():
        student = build_transformer(sizes)
        student.load_state_dict(load_file(run / "student.safetensors"))
        student.to(torch.float16).save_pretrained(to / "transformer", safe_serialization=True)
    complete_student(to)
    write_card(run, to)
    return to


def complete_student(to: Path) -> None:
    """Copy what the student shares with its teacher from `to/base`, so that diffusers loads either folder by itself."""
    if not (to / "base").is_dir() or not (to / "transformer").is_dir():
        return
    for path in (to / "base").iterdir():
        if path.is_file():
            shutil.copyfile(path, to / path.name)
        elif path.name != "transformer":
            shutil.rmtree(to / path.name, ignore_errors=True)
            shutil.copytree(path, to / path.name)


def ship_teacher(run: Path, to: Path, sizes: Sizes) -> None:
    """Save the teacher's pipeline in half precision to `to/base`."""
    pipe = assemble(run, sizes)
    for name in PARTS:
        pipe.components[name].to(torch.float16)
    if (to / "base").exists():
        shutil.rmtree(to / "base")
    pipe.save_pretrained(to / "base", safe_serialization=True)
    remove_origin(to / "base" / "vae" / "config.json")
    for name in ("text_encoder", "text_encoder_2"):
        load_in_float32(to / "base" / name / "config.json")


def load_in_float32(config: Path) -> None:
    """Set the dtype of a text encoder's config: transformers loads in that dtype, and diffusers in float32."""
    content = json.loads(config.read_text())
    content["dtype"] = "float32"
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def remove_origin(config: Path) -> None:
    """Remove the path on the training machine that the weights were loaded from."""
    content = json.loads(config.read_text())
    content.pop("_name_or_path", None)
    config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def write_card(run: Path, to: Path) -> None:
    """Write `to/card.json`: the facts of the run, merged into an earlier card, and the checksums of all files."""
    card = json.loads((to / "card.json").read_text()) if (to / "card.json").exists() else {}
    notes, evaluation = run / "notes.json", run / "evaluation.json"
    stages = {stage: _summary(read_log(path)) for stage in STAGES if (path := run / f"{stage}.jsonl").exists()}
    earlier = card.get("training", {})
    for stage, key in (("teacher", "start"), ("autoencoder", "like")):  # the run continues the card's training
        if key in stages.get(stage, {}) and stage in earlier:
            stages[stage] |= _previous(stages[stage], earlier[stage])
    card |= {
        "name": "pocket",
        "license": "Apache-2.0. The training pictures are rendered from Fluent 3D emoji (MIT).",
        "data": "Scenes of fluxnb.train.data, rendered by code. A tenth of the combinations is held out.",
        "parameters": {name: count_stored_parameters(to / "base" / name) for name in PARTS},
        "defaults": default_settings(teacher_guidance(run, teacher_guidance(to, POCKET.distillation.guidance))),
        **(json.loads(notes.read_text()) if notes.exists() else {}),
        "training": earlier | stages,
    }
    if evaluation.exists():
        card["evaluation"] = json.loads(evaluation.read_text())
    save_card(card, to)


def save_card(card: dict[str, object], to: Path) -> None:
    """Write `to/card.json` with the checksums of all other files of the folder."""
    files = [path for path in sorted(to.rglob("*")) if path.is_file() and path.name != "card.json"]
    checksums = {path.relative_to(to).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (to / "card.json").write_text(json.dumps(card | {"files": checksums}, indent=1, ensure_ascii=False) + "\n")


def _previous(summary: dict[str, object], known: dict[str, object]) -> dict[str, object]:
    """The training that a stage continued from. Shipping the same run again does not add it as its own predecessor."""
    alone = {name: value for name, value in known.items() if name != "previous"}
    if alone != json.loads(json.dumps(summary)):
        return {"previous": known}
    return {"previous": known["previous"]} if "previous" in known else {}


def _summary(log: list[dict[str, object]]) -> dict[str, object]:
    """The log of a stage: at most sixty points of each loss curve, the monitored figures and the last line."""
    losses = [(line["iteration"], line["loss"]) for line in log if "loss" in line]
    monitored = [line for line in log if "fd_4" in line and "chosen" not in line]
    checks = [(line["iteration"], line["validation"]) for line in log if "validation" in line]
    curves: dict[str, object] = {"loss": losses[:: max(1, len(losses) // 60)]}
    curves |= {"monitored": monitored} if monitored else {}
    curves |= {"validation": checks[:: max(1, len(checks) // 60)]} if checks else {}
    starts = [line["start"] for line in log if "start" in line]  # from the first line: an interrupted run has no last
    start = {"start": starts[0]} if starts else {}
    return {"seconds": log[-1]["seconds"], **curves, **start, **_facts(log[-1])}


def count_stored_parameters(folder: Path) -> int:
    """The number of parameters in the weight files of a folder."""
    sizes = (tensor.numel() for path in folder.glob("*.safetensors") for tensor in load_file(path).values())
    return sum(sizes)


def _facts(line: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in line.items() if name not in ("loss", "norm", "seconds", "validation")}
