"""Write the teacher or a student of a run as a folder for `FluxPipeline.from_pretrained`, in half precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxPipeline

from fluxnb.train.data.vocabulary import clip_tokenizer, t5_tokenizer
from fluxnb.train.networks.build import build_scheduler
from fluxnb.train.networks.denoiser import with_transformer
from fluxnb.train.pocket2.config import Sizes
from fluxnb.train.pocket2.networks import load_denoiser
from fluxnb.train.stages.ship import PARTS, load_in_float32, remove_origin


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
