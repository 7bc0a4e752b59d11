"""Write a trained run as what `FluxPipeline.from_pretrained` takes, with a card that says how it was made."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline

from fluxnb.train.build import build_pipeline_parts, count
from fluxnb.train.config import Sizes
from fluxnb.train.loop import read_log
from fluxnb.train.teacher import load_denoiser

#: what each name is used with when nothing is said; `pocket` is the teacher until there is a student.
PROFILE = {"size": 128, "steps": 28, "guidance_kind": "true_cfg", "guidance": 2.5, "max_sequence_length": 48}
PROFILES = {"pocket": PROFILE, "pocket-base": PROFILE}


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
    """Save the pipeline in half precision under `to/base`, the judge beside it, and `to/card.json`."""
    pipe = assemble(run, sizes)
    networks = {name: pipe.components[name] for name in ("transformer", "vae", "text_encoder", "text_encoder_2")}
    counts = {name: count(network) for name, network in networks.items()}
    for network in networks.values():
        network.to(torch.float16)
    if (to / "base").exists():
        shutil.rmtree(to / "base")
    pipe.save_pretrained(to / "base", safe_serialization=True)
    for name in ("text_encoder", "text_encoder_2"):
        _compute_in_float32(to / "base" / name / "config.json")
    shutil.copyfile(run / "judge.safetensors", to / "judge.safetensors")
    write_card(run, to, counts)
    return to


def _compute_in_float32(config: Path) -> None:
    """Stored in half, loaded in float32: transformers follows the config, and diffusers' parts are float32."""
    stated = json.loads(config.read_text())
    stated["dtype"] = "float32"
    config.write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n")


def write_card(run: Path, to: Path, counts: dict[str, int]) -> None:
    """What the run says of itself, and the checksum of every file that ships."""
    stages = {}
    for stage in ("autoencoder", "judge", "teacher"):
        log = read_log(run / f"{stage}.jsonl")
        curve = [(line["iteration"], line["loss"]) for line in log if "loss" in line]
        stages[stage] = {"seconds": log[-1]["seconds"], "loss": curve[:: max(1, len(curve) // 60)], **_facts(log[-1])}
    evaluation = run / "evaluation.json"
    notes = run / "notes.json"
    card = {
        "name": "pocket-base",
        "license": "Apache-2.0; the pictures it learned from are Fluent 3D emoji, MIT",
        "data": "scenes of fluxnb.train.world, drawn by fluxnb.train.render; a tenth of the combinations held out",
        "parameters": counts,
        "profile": PROFILES,
        **(json.loads(notes.read_text()) if notes.exists() else {}),
        "training": stages,
        "evaluation": json.loads(evaluation.read_text()) if evaluation.exists() else {},
        "files": {
            path.relative_to(to).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(to.rglob("*"))
            if path.is_file() and path.name != "card.json"
        },
    }
    (to / "card.json").write_text(json.dumps(card, indent=1) + "\n")


def _facts(line: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in line.items() if name not in ("loss", "norm", "seconds")}
