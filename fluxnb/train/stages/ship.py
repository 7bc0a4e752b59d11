"""Write teacher and student of a run as folders for `FluxPipeline.from_pretrained`, in half precision, with a card."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline
from safetensors.torch import load_file

from fluxnb.train.config import Preset, Sizes
from fluxnb.train.data.vocabulary import CAPTION_TOKENS, clip_tokenizer, t5_tokenizer
from fluxnb.train.networks.build import build_scheduler
from fluxnb.train.networks.denoiser import Denoiser, load_denoiser, save_denoiser, with_transformer
from fluxnb.train.stages.loop import read_log

PARTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
STAGES = ("autoencoder", "text", "judge", "teacher", "student", "ladd")
LICENSE = (
    "Apache-2.0. The training pictures are rendered from the emoji Fluent 3D and Fluent flat (MIT), Noto (Apache-2.0) "
    "and Twemoji (graphics CC-BY 4.0, see NOTICE)."
)
DATA = (
    "Scenes of fluxnb.train.data, rendered by code. What a caption leaves open is drawn from the distributions of "
    "fluxnb.train.data.chances. A tenth of the combinations is held out."
)
CURVE = 60  # points of a loss curve in the card


def assemble(run: Path, sizes: Sizes, transformer: str | None = None) -> FluxPipeline:
    """The teacher of a run, or one of its students, as a pipeline in float32.

    Arguments:
        run: folder with `teacher.safetensors` and `vae`.
        transformer: name of a student's file; None for the teacher.
    """
    model = load_denoiser(sizes, run / "teacher.safetensors")
    if transformer is not None:
        model = with_transformer(model, run / f"{transformer}.safetensors")
    return FluxPipeline(
        scheduler=build_scheduler(),
        vae=AutoencoderKL.from_pretrained(run / "vae"),
        text_encoder=model.text_encoder,
        tokenizer=clip_tokenizer(),
        text_encoder_2=model.text_encoder_2,
        tokenizer_2=t5_tokenizer(),
        transformer=model.transformer,
    )


def ship(run: Path, to: Path, sizes: Sizes, transformer: str | None = None) -> Path:
    """Save a pipeline of a run to the folder `to`, which is replaced."""
    pipe = assemble(run, sizes, transformer)
    for name in PARTS:
        pipe.components[name].to(torch.float16)
    if to.exists():
        shutil.rmtree(to)
    pipe.save_pretrained(to, safe_serialization=True)
    remove_origin(to / "vae" / "config.json")
    for name in ("text_encoder", "text_encoder_2"):
        load_in_float32(to / name / "config.json")
    return to


def ship_pair(run: Path, to: Path, preset: Preset) -> Path:
    """Save teacher, student and judge with a card: the student to the folder `to`, which is replaced, and the teacher
    to `to`/base.

    Either folder is complete, so that diffusers loads it by itself.
    """
    ship(run, to, preset.sizes, "student")
    ship(run, to / "base", preset.sizes)
    shutil.copyfile(run / "judge.safetensors", to / "judge.safetensors")
    save_card(card(run, to, preset), to)
    return to


def resume(pair: Path, run: Path) -> None:
    """Begin a run with the networks of a folder of `ship_pair`, from which the stages continue.

    Writes `run`/vae, `run`/judge-before.safetensors and, last, `run`/before.safetensors, which is the teacher.
    """
    parts = FluxPipeline.from_pretrained(pair / "base")
    parts.vae.to(torch.float16).save_pretrained(run / "vae")
    remove_origin(run / "vae" / "config.json")
    shutil.copyfile(pair / "judge.safetensors", run / "judge-before.safetensors")
    save_denoiser(Denoiser(parts.text_encoder, parts.text_encoder_2, parts.transformer), run, "before")


def card(run: Path, to: Path, preset: Preset) -> dict[str, object]:
    """The facts of a run: sizes, default settings, training and evaluation, and what `run`/notes.json adds."""
    notes, evaluation = run / "notes.json", run / "evaluation.json"
    facts: dict[str, object] = {
        "name": "pocket",
        "license": LICENSE,
        "data": DATA,
        "parameters": {name: count_stored_parameters(to / "base" / name) for name in PARTS},
        "defaults": default_settings(preset.distillation.guidance, preset.sizes.default_size),
    }
    facts |= json.loads(notes.read_text()) if notes.exists() else {}
    logs = {stage: run / f"{stage}.jsonl" for stage in STAGES}
    facts["training"] = {stage: summarize(read_log(log)) for stage, log in logs.items() if log.exists()}
    if evaluation.exists():
        facts["evaluation"] = json.loads(evaluation.read_text())
    return facts


def summarize(log: list[dict[str, object]]) -> dict[str, object]:
    """The trainings that a log holds, one after another; each ends with a line that has "iterations".

    Returns:
        `seconds` of all trainings together, with the student's pairs and its reflow; `runs`, their last lines; `loss`,
        at most `CURVE` pairs of iteration, counted over all trainings, and loss; `validation`, the same for each shape;
        `monitored`, the measurements of students on the way.
    """
    curves: dict[str, list[tuple[int, object]]] = {}
    runs: list[dict[str, object]] = []
    earlier = 0  # iterations of the trainings before
    for line in log:
        if "iteration" in line:
            at = earlier + int(str(line["iteration"]))
            for name, value in line.items():
                if name == "loss" or name.startswith("validation"):
                    curves.setdefault(name, []).append((at, value))
        if "iterations" in line:
            runs.append(line)
            earlier += int(str(line["iterations"]))
    thinned = {name: points[:: -(-len(points) // CURVE)] for name, points in curves.items()}
    # The student's log also has the durations of its pairs and of the reflow.
    parts = [line for line in log if {"iterations", "reflow_iterations", "pairs"} & line.keys()]
    seconds = sum(float(str(part["seconds"])) for part in parts)
    monitored = [line for line in log if "fd_4" in line and "iteration" in line]
    return {
        "seconds": seconds,
        "runs": runs,
        "loss": thinned.pop("loss", []),
        "validation": thinned,
        "monitored": monitored,
    }


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


def default_settings(guidance: float, size: int) -> dict[str, dict[str, object]]:
    """Default size, steps and guidance of both models; the student's guidance is distilled, as in schnell."""
    guided = {"guidance_kind": "true_cfg", "guidance": guidance}
    return {
        "pocket": {"size": size, "steps": 4, "guidance_kind": "none", "max_sequence_length": CAPTION_TOKENS},
        "pocket-base": {"size": size, "steps": 28, **guided, "max_sequence_length": CAPTION_TOKENS},
    }


def save_card(card: dict[str, object], to: Path) -> None:
    """Write `to/card.json` with the checksums of all other files of the folder."""
    files = [path for path in sorted(to.rglob("*")) if path.is_file() and path.name != "card.json"]
    checksums = {path.relative_to(to).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (to / "card.json").write_text(json.dumps(card | {"files": checksums}, indent=1, ensure_ascii=False) + "\n")


def count_stored_parameters(folder: Path) -> int:
    """The number of parameters in the weight files of a folder."""
    sizes = (tensor.numel() for path in folder.glob("*.safetensors") for tensor in load_file(path).values())
    return sum(sizes)
