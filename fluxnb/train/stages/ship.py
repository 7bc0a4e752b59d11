"""Write a trained run as what `FluxPipeline.from_pretrained` takes, with a card that says how it was made."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline
from safetensors.torch import load_file

from fluxnb.train.config import POCKET, Sizes
from fluxnb.train.evaluation.gather import guidance_of
from fluxnb.train.networks.build import build_pipeline_parts, build_transformer
from fluxnb.train.networks.files import load_denoiser
from fluxnb.train.stages.loop import read_log

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
STAGES = ("autoencoder", "judge", "teacher", "pairs", "warm", "student", "reflow")


def profiles(guidance: float) -> dict[str, dict[str, object]]:
    """What each name is used with when nothing is said; guidance is baked into the student, as with schnell."""
    guided = {"guidance_kind": "true_cfg", "guidance": guidance}
    return {
        "pocket": {"size": 128, "steps": 4, "guidance_kind": "none", "max_sequence_length": 48},
        "pocket-base": {"size": 128, "steps": 28, **guided, "max_sequence_length": 48},
    }


def assemble(run: Path, sizes: Sizes) -> FluxPipeline:
    """The run's networks as one plain pipeline, in float32."""
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
    """Write what the run holds: the teacher as `to/base`, the judge, the student as `to/transformer`, and the card.

    A run that continued from shipped weights may hold the student alone, or an autoencoder of the same latents; then
    the rest of `to` stays as it is.
    """
    if (run / "vae").is_dir() and not (run / "transformer.safetensors").exists():
        vae = AutoencoderKL.from_pretrained(run / "vae").to(torch.float16)
        vae.save_pretrained(to / "base" / "vae", safe_serialization=True)
        _forget_where(to / "base" / "vae" / "config.json")
    elif (run / "vae").is_dir():
        ship_teacher(run, to, sizes)
        shutil.copyfile(run / "judge.safetensors", to / "judge.safetensors")
    if (run / "student.safetensors").exists():
        student = build_transformer(sizes)
        student.load_state_dict(load_file(run / "student.safetensors"))
        student.to(torch.float16).save_pretrained(to / "transformer", safe_serialization=True)
    write_card(run, to)
    return to


def ship_teacher(run: Path, to: Path, sizes: Sizes) -> None:
    """Save the teacher's pipeline in half precision under `to/base`."""
    pipe = assemble(run, sizes)
    for name in PARTS:
        pipe.components[name].to(torch.float16)
    if (to / "base").exists():
        shutil.rmtree(to / "base")
    pipe.save_pretrained(to / "base", safe_serialization=True)
    _forget_where(to / "base" / "vae" / "config.json")
    for name in ("text_encoder", "text_encoder_2"):
        _compute_in_float32(to / "base" / name / "config.json")


def _compute_in_float32(config: Path) -> None:
    """Stored in half, loaded in float32: transformers follows the config, and diffusers' parts are float32."""
    stated = json.loads(config.read_text())
    stated["dtype"] = "float32"
    config.write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n")


def _forget_where(config: Path) -> None:
    """The folder that the weights came from is of the machine that trained them."""
    stated = json.loads(config.read_text())
    stated.pop("_name_or_path", None)
    config.write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n")


def write_card(run: Path, to: Path) -> None:
    """What the run says of itself, over what an earlier card said, and the checksum of every file that ships."""
    card = json.loads((to / "card.json").read_text()) if (to / "card.json").exists() else {}
    notes, evaluation = run / "notes.json", run / "evaluation.json"
    stages = {stage: _story(read_log(path)) for stage in STAGES if (path := run / f"{stage}.jsonl").exists()}
    earlier = card.get("training", {})
    for stage, said in (("teacher", "start"), ("autoencoder", "like")):  # it goes on where the card's ended
        if said in stages.get(stage, {}) and stage in earlier:
            stages[stage] |= _before(stages[stage], earlier[stage])
    card |= {
        "name": "pocket",
        "license": "Apache-2.0; the pictures it learned from are Fluent 3D emoji, MIT",
        "data": "scenes of fluxnb.train.data, drawn in code; a tenth of the combinations held out",
        "parameters": {name: _parameters(to / "base" / name) for name in PARTS},
        "defaults": profiles(guidance_of(run, guidance_of(to, POCKET.distillation.guidance))),
        **(json.loads(notes.read_text()) if notes.exists() else {}),
        "training": earlier | stages,
    }
    if evaluation.exists():
        card["evaluation"] = json.loads(evaluation.read_text())
    card["files"] = {
        path.relative_to(to).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(to.rglob("*"))
        if path.is_file() and path.name != "card.json"
    }
    (to / "card.json").write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def _before(story: dict[str, object], known: dict[str, object]) -> dict[str, object]:
    """What a training went on from; a run that is shipped again did not go on from itself."""
    alone = {name: value for name, value in known.items() if name != "before"}
    if alone != json.loads(json.dumps(story)):
        return {"before": known}
    return {"before": known["before"]} if "before" in known else {}


def _story(log: list[dict[str, object]]) -> dict[str, object]:
    """The loss curve of a stage in at most sixty points, its looks at pictures, and what its last line says."""
    curve = [(line["iteration"], line["loss"]) for line in log if "loss" in line]
    looks = [line for line in log if "fd_4" in line and "chosen" not in line]
    checks = [(line["iteration"], line["validation"]) for line in log if "validation" in line]
    told = {"loss": curve[:: max(1, len(curve) // 60)]} | ({"looks": looks} if looks else {})
    told |= {"validation": checks[:: max(1, len(checks) // 60)]} if checks else {}
    starts = [line["start"] for line in log if "start" in line]  # the first line has it: a run may be cut short
    begun = {"start": starts[0]} if starts else {}
    return {"seconds": log[-1]["seconds"], **told, **begun, **_facts(log[-1])}


def _parameters(folder: Path) -> int:
    """How many numbers the weights in a folder hold."""
    sizes = (tensor.numel() for path in folder.glob("*.safetensors") for tensor in load_file(path).values())
    return sum(sizes)


def _facts(line: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in line.items() if name not in ("loss", "norm", "seconds", "validation")}
