"""`python -m fluxnb.train.second STAGE`: compile, autoencoder, teacher, wall. On several GPUs by `torchrun`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from fluxnb.train.second.config import PRESETS
from fluxnb.train.stages.loop import Rank


def main(arguments: list[str] | None = None) -> None:
    """Run one stage; `--help` lists them."""
    parser = argparse.ArgumentParser(prog="python -m fluxnb.train.second", description="Make the second pocket.")
    stages = parser.add_subparsers(dest="stage", required=True)
    helps = {
        "compile": "compile the teacher's steps and time them",
        "autoencoder": "train the autoencoder",
        "teacher": "train the teacher",
        "wall": "draw what the teacher knows",
    }
    for name, what in helps.items():
        stage = stages.add_parser(name, help=what)
        stage.add_argument("--preset", choices=PRESETS, default="pocket")
        stage.add_argument("--out", type=Path, required=True, help="folder of the run; stages find each other there")
        if name in ("compile", "teacher"):
            stage.add_argument("--tokens", type=int, help="tokens in a batch of one device")
            stage.add_argument("--compile", choices=("dynamic", "static", "none"), default="dynamic")
        if name == "compile":
            continue
        if name == "wall":
            stage.add_argument(
                "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of each picture, in pixels"
            )
            stage.add_argument("--steps", type=int, default=28)
            stage.add_argument("--guidance", type=float, default=1.5)
            continue
        stage.add_argument("--seconds", type=float, help="train for so long instead of what the preset says")
        stage.add_argument("--iterations", type=int, help="train for so many iterations instead")
        stage.add_argument("--rate", type=float, help="the learning rate")
        stage.add_argument("--scenes", type=int, help="distinct scenes per device")
        if name == "teacher":
            stage.add_argument("--start", type=Path, help="go on from this teacher.safetensors")
            stage.add_argument("--warmup", type=int, help="iterations in which the learning rate rises")
            stage.add_argument("--cooldown", type=float, help="last share of the training in which the rate falls")
    options = parser.parse_args(arguments)
    preset, rank = PRESETS[options.preset], Rank.join()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.stage == "wall":
        from fluxnb.train.second.wall import draw_wall

        side = preset.sizes.default_size
        size = tuple(options.size or (side, side))
        print(
            draw_wall(preset.sizes, options.out, rank.device, size=size, steps=options.steps, guidance=options.guidance)
        )
        return
    preset = dataclasses.replace(preset, **_given(options, {"tokens": "tokens"}))
    if options.stage == "compile":
        from fluxnb.train.second.teacher import warm

        warm(preset, rank, options.compile)
        return
    names = {"learning_rate": "rate"} | {n: n for n in ("seconds", "iterations", "warmup", "cooldown", "scenes")}
    schedule = dataclasses.replace(getattr(preset, options.stage), **_given(options, names))
    preset = dataclasses.replace(preset, **{options.stage: schedule})
    if options.stage == "autoencoder":
        from fluxnb.train.second.autoencoder import train_autoencoder

        train_autoencoder(preset, options.out, rank)
    else:
        from fluxnb.train.second.teacher import train_teacher

        train_teacher(preset, options.out, rank, options.start, options.compile)
    rank.leave()


def _given(options: argparse.Namespace, names: dict[str, str]) -> dict[str, object]:
    """Fields that the command line sets."""
    values = {field: getattr(options, option, None) for option, field in names.items()}
    return {field: value for field, value in values.items() if value is not None}


if __name__ == "__main__":
    main()
