"""`python -m fluxnb.train STAGE`; `--help` lists the stages. On several GPUs with `torchrun`."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fluxnb.train.config import PRESETS, Preset
from fluxnb.train.data.layouts import Shape
from fluxnb.train.stages.loop import Rank

SCHEDULE = ("seconds", "iterations", "learning_rate", "scenes")
#: options of the evaluation and their defaults, the fields of `evaluator.Size`.
EVALUATION = {"count": 1700, "seeds": 3, "prompts": 32, "noises": 64, "shares": 64}


def main(arguments: list[str] | None = None) -> None:
    """Run one stage; `--help` lists them."""
    options = _parser().parse_args(arguments)
    preset, rank = PRESETS[options.preset], Rank.join()
    options.out.mkdir(parents=True, exist_ok=True)
    _, run = STAGES[options.stage]
    run(options, preset, rank)
    rank.leave()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fluxnb.train", description="Train pocket, stage by stage.")
    commands = parser.add_subparsers(dest="stage", required=True)
    for name, (text, _) in STAGES.items():
        stage = commands.add_parser(name, help=text)
        stage.add_argument("--preset", choices=PRESETS, default="pocket")
        stage.add_argument("--out", type=Path, required=True, help="folder of the run, shared by all stages")
        if name in ("compile", "teacher"):
            stage.add_argument("--tokens", type=int, help="tokens in a batch per device")
            stage.add_argument("--compile", choices=("dynamic", "static", "none"), default="dynamic")
        if name in ("autoencoder", "text", "teacher", "judge"):
            stage.add_argument("--seconds", type=float, help="duration of the training")
            stage.add_argument("--iterations", type=int, help="number of iterations, instead of a duration")
            stage.add_argument("--rate", type=float, dest="learning_rate", help="learning rate")
            stage.add_argument("--scenes", type=int, help="distinct scenes per device")
        if name in ("autoencoder", "text", "judge"):
            stage.add_argument("--batch", type=int, help="pictures or captions in a batch per device")
        if name == "autoencoder":
            stage.add_argument(
                "--pretrained", type=Path, help="folder of an autoencoder whose decoder is trained further"
            )
        if name in ("text", "teacher", "judge"):
            stage.add_argument("--pretrained", type=Path, help="file of pretrained weights")
        if name == "resume":
            stage.add_argument("--pretrained", type=Path, required=True, help="folder of a shipped pair")
        if name == "teacher":
            stage.add_argument("--seed", type=int, default=3000, help="of the scenes; another continues with new ones")
            stage.add_argument("--warmup", type=int, help="iterations in which the learning rate rises")
            stage.add_argument("--cooldown", type=float, help="last share of the iterations, in which the rate falls")
        if name == "student":
            stage.add_argument("--ladd-only", action="store_true", help="without reflow and regression")
            stage.add_argument("--pairs", type=int, help="pairs of the teacher, on all devices together")
            stage.add_argument("--guidance", type=float, help="of the teacher's samples")
            stage.add_argument("--tokens", type=int, help="tokens in a batch per device")
            stage.add_argument("--warm-seconds", type=float, help="duration of the reflow")
            stage.add_argument("--seconds", type=float, help="duration of LADD")
            stage.add_argument("--compile", choices=("dynamic", "none"), default="dynamic")
        if name == "evaluate":
            for option, default in EVALUATION.items():
                stage.add_argument(f"--{option}", type=int, default=default)
        if name == "ship":
            stage.add_argument("--to", type=Path, required=True, help="folder to write, which is replaced")
            stage.add_argument("--pair", action="store_true", help="student, teacher (in base), judge and card")
        if name in ("samples", "ship"):
            stage.add_argument("--transformer", help="name of a student's file, instead of the teacher's")
        if name == "samples":
            stage.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="of a picture, in pixels")
            stage.add_argument("--steps", type=int, default=28)
            stage.add_argument("--guidance", type=float, help="default: that of the distillation, none for a student")
    return parser


def _resume(options: argparse.Namespace, preset: Preset, rank: Rank) -> None:
    from fluxnb.train.stages.ship import resume

    if rank.first:
        resume(options.pretrained, options.out)


def _compile(options: argparse.Namespace, preset: Preset, rank: Rank) -> None:
    from fluxnb.train.stages.teacher import compile_steps

    compile_steps(dataclasses.replace(preset, **_given(options, "tokens")), rank, options.compile)


def _autoencoder(options: argparse.Namespace, preset: Preset, rank: Rank) -> None:
    from fluxnb.train.stages.autoencoder import train_autoencoder

    changes = _given(options, *SCHEDULE, "batch")
    schedule = dataclasses.replace(preset.autoencoder, **changes)
    train_autoencoder(dataclasses.replace(preset, autoencoder=schedule), options.out, rank, options.pretrained)


def _text(options: argparse.Namespace, preset: Preset, rank: Rank) -> None:
    from fluxnb.train.stages.text import train_text

    schedule = dataclasses.replace(preset.text, **_given(options, *SCHEDULE, "batch"))
    train_text(dataclasses.replace(preset, text=schedule), options.out, rank, options.pretrained)


def _teacher(options: argparse.Namespace, preset: Preset, rank: Rank) -> None:
    from fluxnb.train.stages.teacher import train_teacher

    changes = _given(options, *SCHEDULE, "warmup", "cooldown")
    schedule = dataclasses.replace(preset.teacher, **changes)
    preset = dataclasses.replace(preset, teacher=schedule, **_given(options, "tokens"))
    train_teacher(preset, options.out, rank, options.pretrained, options.compile, seed=options.seed)


def _student(options: argparse.Namespace, preset: Preset, rank: Rank) -> None:
    from fluxnb.train.evaluation.evaluator import Evaluator, Size
    from fluxnb.train.stages.student import distill

    settings = dataclasses.replace(preset.distillation, **_given(options, "pairs", "guidance", "tokens"))
    warm, student = settings.warm, dataclasses.replace(settings.student, **_given(options, "seconds"))
    if options.warm_seconds is not None:
        warm = dataclasses.replace(warm, seconds=options.warm_seconds)
    preset = dataclasses.replace(preset, distillation=dataclasses.replace(settings, warm=warm, student=student))
    monitor = None
    if (options.out / "judge.safetensors").exists() and rank.first:
        monitor = Evaluator(preset, options.out, Size(), rank.device).monitor
    distill(preset, options.out, rank, alone=options.ladd_only, compiled=options.compile != "none", monitor=monitor)


def _judge(options: argparse.Namespace, preset: Preset, rank: Rank) -> None:
    from fluxnb.train.stages.judge import train_judge

    schedule = dataclasses.replace(preset.judge, **_given(options, *SCHEDULE, "batch"))
    train_judge(dataclasses.replace(preset, judge=schedule), options.out, rank, options.pretrained)


def _evaluate(options: argparse.Namespace, preset: Preset, rank: Rank) -> None:
    from fluxnb.train.evaluation.evaluator import Size
    from fluxnb.train.evaluation.report import evaluate

    evaluate(preset, options.out, rank, Size(**_given(options, *EVALUATION)))


def _ship(options: argparse.Namespace, preset: Preset, rank: Rank) -> None:
    from fluxnb.train.stages.ship import ship, ship_pair

    if not rank.first:
        return
    if options.pair:
        print(ship_pair(options.out, options.to, preset))
    else:
        print(ship(options.out, options.to, preset.sizes, options.transformer))


def _samples(options: argparse.Namespace, preset: Preset, rank: Rank) -> None:
    from fluxnb.train.evaluation.samples import save_sheet

    side = preset.sizes.default_size
    shape = Shape(*(options.size or (side, side)))
    usual = 1.0 if options.transformer else preset.distillation.guidance
    guidance = usual if options.guidance is None else options.guidance
    settings = {"steps": options.steps, "guidance": guidance, "transformer": options.transformer}
    print(save_sheet(preset.sizes, options.out, shape, rank.device, **settings))


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that the command line sets."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


#: name of each stage, with its help and its function, in the order of a training.
STAGES: dict[str, tuple[str, Callable[[argparse.Namespace, Preset, Rank], None]]] = {
    "resume": ("begin a run with the networks of a shipped pair", _resume),
    "compile": ("compile the teacher's training steps and time them", _compile),
    "autoencoder": ("train the autoencoder", _autoencoder),
    "text": ("teach the T5 encoder to read captions", _text),
    "teacher": ("train the teacher", _teacher),
    "judge": ("train the judge on renders", _judge),
    "student": ("sample the teacher's pairs and distill it", _student),
    "evaluate": ("measure teacher and students by the judge", _evaluate),
    "ship": ("write a folder for FluxPipeline.from_pretrained", _ship),
    "samples": ("draw a contact sheet of the teacher's pictures", _samples),
}


if __name__ == "__main__":
    main()
