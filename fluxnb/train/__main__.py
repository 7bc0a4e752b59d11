"""The commands of pocket's training: `python -m fluxnb.train COMMAND`, or `torchrun -m` for several GPUs."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxnb.train.config import OPTIMIZERS, PRESETS, Sizes

if TYPE_CHECKING:  # imported by the command that needs them, so that --help is fast
    from fluxnb.train.config import Preset
    from fluxnb.train.evaluation.monitor import Monitor
    from fluxnb.train.stages.loop import Rank

POCKET_FOLDER = Path(__file__).parents[1] / "pocket"


def main(arguments: list[str] | None = None) -> None:
    """Run one command; `--help` lists them."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = options.run
    run(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fluxnb.train",
        description="Train pocket, stage by stage: atlas, autoencoder, judge, teacher, pairs, reflow --warm, student, "
        "reflow, evaluate, ship. On several GPUs: torchrun --nproc-per-node N -m fluxnb.train COMMAND.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_atlas(commands)
    _add_training(commands)
    _add_distillation(commands)
    _add_evaluation(commands)
    _add_ship(commands)
    return parser


# ---------------------------------------------------------------------------------------------------------- options
def _add_atlas(commands: Any) -> None:
    atlas = commands.add_parser("atlas", help="build the sprite atlas from the emoji package")
    atlas.add_argument("assets", type=Path, help="folder `assets` of the npm package @lobehub/fluent-emoji-3d")
    atlas.set_defaults(run=_atlas)


def _add_training(commands: Any) -> None:
    for name in ("autoencoder", "judge", "teacher"):
        stage = commands.add_parser(name, help=f"train the {name}")
        _add_run_options(stage)
        _add_length_options(stage)
        stage.add_argument("--scenes", type=int, help="number of distinct scenes per device")
        stage.set_defaults(run=_train)
        if name == "autoencoder":
            stage.add_argument(
                "--like", type=Path, metavar="FOLDER", help="learn the latents of the autoencoder in this folder"
            )
        if name == "teacher":
            _add_teacher_options(stage)


def _add_teacher_options(stage: argparse.ArgumentParser) -> None:
    stage.add_argument(
        "--pretrained",
        "--start",  # the name in the commands of earlier cards, which torchrun reads as an option of its own
        type=Path,
        metavar="FOLDER",
        help="continue from the denoiser of a run or of fluxnb/pocket",
    )
    stage.add_argument("--optimizer", choices=OPTIMIZERS, help="muon applies to the matrices of the blocks")
    stage.add_argument("--muon-lr-ratio", type=float, help="learning rate of Muon relative to AdamW's")
    stage.add_argument("--validation", type=int, help="number of scenes for the validation loss")
    stage.add_argument("--warmup", type=int, help="iterations of learning-rate warm-up")
    stage.add_argument(
        "--sizes", type=_size, nargs="+", metavar="NAME=N", help="override sizes of the preset, for example heads=8"
    )
    stage.add_argument("--compile", default="reduce-overhead", metavar="MODE", help="mode of torch.compile")


def _add_distillation(commands: Any) -> None:
    pairs = commands.add_parser("pairs", help="sample the teacher with guidance, as training data of the student")
    _add_run_options(pairs)
    pairs.add_argument("--count", type=int, help="number of pairs")
    pairs.add_argument("--guidance", type=float, help="guidance of the teacher")
    pairs.set_defaults(run=_pairs)
    reflow = commands.add_parser("reflow", help="train a reflow student: the warm start of LADD, or the baseline")
    _add_run_options(reflow)
    _add_length_options(reflow)
    reflow.add_argument("--warm", action="store_true", help="train the short warm start of LADD, saved as `warm`")
    reflow.set_defaults(run=_reflow)
    student = commands.add_parser("student", help="train the adversarial student (LADD)")
    _add_run_options(student)
    _add_length_options(student)
    student.add_argument("--judge", type=Path, metavar="FOLDER", help="folder with a judge, to select the best student")
    student.set_defaults(run=_student)


def _add_evaluation(commands: Any) -> None:
    check = commands.add_parser("evaluate", help="evaluate a student against its targets")
    _add_model_options(check)
    check.add_argument(
        "--student", type=Path, metavar="PATH", help="transformer of the student (default: the one in --model)"
    )
    check.add_argument(
        "--reflow", type=Path, metavar="PATH", help="transformer of the baseline (default: the one in --model)"
    )
    check.add_argument("--save", type=Path, metavar="FILE", help="write the estimates as JSON")
    check.add_argument("--figure", type=Path, metavar="FILE", help="write the acceptance table as PNG")
    check.add_argument(
        "--cache", type=Path, metavar="FOLDER", help="store measurements here, to continue after an interruption"
    )
    check.add_argument("--count", type=int, default=1700, help="scenes per sampling seed and split (default 1700)")
    check.add_argument("--seeds", type=int, default=3, help="number of sampling seeds (default 3)")
    check.add_argument("--prompts", type=int, default=64, help="prompts of the diversity measurement (default 64)")
    check.add_argument("--noises", type=int, default=64, help="pictures per diversity prompt (default 64)")
    check.add_argument("--guidance", type=float, help="guidance of the teacher (default: that of its pairs)")
    check.set_defaults(run=_evaluate)
    strengths = commands.add_parser("guidance", help="measure FD and accuracy of a teacher by guidance")
    _add_model_options(strengths)
    strengths.add_argument("--strengths", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0, 2.5])
    strengths.add_argument("--steps", type=int, nargs="+", default=[28, 4])
    strengths.add_argument("--count", type=int, default=2048, help="number of scenes (default 2048)")
    strengths.set_defaults(run=_guidance)


def _add_ship(commands: Any) -> None:
    shipping = commands.add_parser("ship", help="write a run as a diffusers folder with its card")
    _add_run_options(shipping)
    shipping.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="folder to write")
    shipping.set_defaults(run=_ship)


def _add_preset(command: argparse.ArgumentParser) -> None:
    command.add_argument("--preset", default="pocket", choices=PRESETS, help="sizes and schedules (default pocket)")


def _add_run_options(command: argparse.ArgumentParser) -> None:
    _add_preset(command)
    command.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the run")


def _add_length_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--seconds", type=float, help="duration of the training")
    command.add_argument("--iterations", type=int, help="number of iterations, instead of a duration")
    command.add_argument("--batch", type=int, help="batch size per device")
    command.add_argument("--learning-rate", type=float, help="peak learning rate")


def _add_model_options(command: argparse.ArgumentParser) -> None:
    _add_preset(command)
    command.add_argument(
        "--model", type=Path, default=POCKET_FOLDER, metavar="FOLDER", help="a run or a shipped folder (default pocket)"
    )


def _size(text: str) -> tuple[str, int]:
    """Parse NAME=N of `--sizes`."""
    name, _, number = text.partition("=")
    names = [field.name for field in dataclasses.fields(Sizes) if field.type == "int"]
    if name not in names or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=N with NAME one of {', '.join(names)}")
    return name, int(number)


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; the preset has the values of the others."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


LENGTH = ("seconds", "iterations", "batch", "learning_rate")


# --------------------------------------------------------------------------------------------------------- commands
def _atlas(options: argparse.Namespace) -> None:
    from fluxnb.train.data import sprites

    print(sprites.make_atlas(options.assets, Path(__file__).parent / "data" / sprites.ATLAS))


def _train(options: argparse.Namespace) -> None:
    from fluxnb.train.stages.loop import Rank

    preset = PRESETS[options.preset]
    changes = _given(options, *LENGTH, "scenes")
    if options.command == "teacher":
        changes |= _given(options, "optimizer", "muon_lr_ratio", "validation", "warmup")
        if options.warmup is not None:
            changes["resume_warmup"] = options.warmup
        preset = dataclasses.replace(preset, sizes=dataclasses.replace(preset.sizes, **dict(options.sizes or ())))
    schedule = dataclasses.replace(getattr(preset, options.command), **changes)
    preset = dataclasses.replace(preset, **{options.command: schedule})
    rank = Rank.join()
    if options.command == "autoencoder":
        from fluxnb.train.stages.autoencoder import train_autoencoder

        train_autoencoder(preset, options.out, rank, options.like)
    elif options.command == "judge":
        from fluxnb.train.stages.judge import train_judge

        train_judge(preset, options.out, rank)
    else:
        from fluxnb.train.stages.teacher import train_teacher

        train_teacher(preset, options.out, rank, options.pretrained, options.compile)
    rank.leave()


def _pairs(options: argparse.Namespace) -> None:
    from fluxnb.train.stages.loop import Rank
    from fluxnb.train.stages.pairs import draw_pairs

    preset, rank = PRESETS[options.preset], Rank.join()
    changes = _given(options, "guidance") | ({} if options.count is None else {"pairs": options.count})
    draw_pairs(preset.with_distillation(**changes), options.out, rank)
    rank.leave()


def _reflow(options: argparse.Namespace) -> None:
    from fluxnb.train.stages.loop import Rank
    from fluxnb.train.stages.reflow import train_reflow

    preset, rank = PRESETS[options.preset], Rank.join()
    name, start = ("warm", "") if options.warm else ("reflow", "warm")
    schedule = dataclasses.replace(getattr(preset.distillation, name), **_given(options, *LENGTH))
    train_reflow(preset, options.out, rank, name=name, schedule=schedule, start=start)
    rank.leave()


def _student(options: argparse.Namespace) -> None:
    from fluxnb.train.stages.loop import Rank
    from fluxnb.train.stages.student import train_student

    preset, rank = PRESETS[options.preset], Rank.join()
    schedule = dataclasses.replace(preset.distillation.student, **_given(options, *LENGTH))
    monitor = _monitor(options.judge, preset, options.out, rank) if options.judge else None
    train_student(preset.with_distillation(student=schedule), options.out, rank, monitor=monitor)
    rank.leave()


def _monitor(judge_folder: Path, preset: Preset, out: Path, rank: Rank) -> Monitor:
    from diffusers import AutoencoderKL

    from fluxnb.train.data.render import Renderer
    from fluxnb.train.data.tokens import Tokens
    from fluxnb.train.evaluation.monitor import Monitor
    from fluxnb.train.networks.judge import load_judge

    judge = load_judge(judge_folder / "judge.safetensors", rank.device)
    vae = AutoencoderKL.from_pretrained(out / "vae").eval().to(rank.device)
    return Monitor(judge, Renderer(rank.device), vae, Tokens.of(preset.sizes))


def _guidance(options: argparse.Namespace) -> None:
    from fluxnb.train.data.render import Renderer
    from fluxnb.train.evaluation.loading import load_networks
    from fluxnb.train.evaluation.monitor import Monitor
    from fluxnb.train.stages.loop import Rank

    device = Rank.join().device
    networks = load_networks(options.model, PRESETS[options.preset].sizes, device)
    batch = 1024 if device.type == "cuda" else 64
    monitor = Monitor(networks.judge, Renderer(device), networks.vae, networks.tokens, count=options.count, batch=batch)
    for strength in options.strengths:
        facts = monitor(networks.denoiser, options.steps, strength)
        print(json.dumps({"guidance": strength, **facts}), flush=True)


def _evaluate(options: argparse.Namespace) -> None:
    from fluxnb.train.data.render import Renderer
    from fluxnb.train.evaluation.acceptance import acceptance, as_json
    from fluxnb.train.evaluation.evaluate import evaluate, make_settings
    from fluxnb.train.evaluation.evaluator import EvalConfig, Evaluator
    from fluxnb.train.evaluation.loading import find_student, load_networks, load_student, open_cache
    from fluxnb.train.stages.autoencoder import check_autoencoder
    from fluxnb.train.stages.loop import Rank
    from fluxnb.train.stages.ship import teacher_guidance

    device, preset = Rank.join().device, PRESETS[options.preset]
    networks, renderer = load_networks(options.model, preset.sizes, device), Renderer(device)
    default = teacher_guidance(options.model, preset.distillation.guidance)
    guidance = default if options.guidance is None else options.guidance
    models = {"teacher": networks.denoiser}
    for name in ("student", "reflow"):
        path = getattr(options, name) or find_student(options.model, name)
        if path is not None:
            models[name] = load_student(path, networks.denoiser)
    config = EvalConfig(options.count, options.seeds, options.prompts, options.noises)
    settings, full = make_settings(models, networks.vae, networks.tokens, device, guidance)
    cache = open_cache(options.cache, networks, models, config, guidance)
    table = evaluate(Evaluator(networks.judge, renderer, networks.vae, config), settings, full, cache=cache)
    rows = acceptance(table)
    result = {
        "config": {**dataclasses.asdict(config), "guidance": guidance, "device": device.type},
        **as_json(table, rows),
        "autoencoder": check_autoencoder(networks.vae, renderer, min(2048, options.count)),
    }
    text = json.dumps(result, indent=1)
    if options.save is not None:
        options.save.write_text(text + "\n")
    if options.figure is not None:
        from fluxnb.train.evaluation.figure import figure_of  # only this needs matplotlib

        figure_of(table, rows, note=config.describe()).savefig(options.figure, dpi=144)
    print(text)


def _ship(options: argparse.Namespace) -> None:
    from fluxnb.train.stages.ship import ship

    print(ship(options.out, options.to, PRESETS[options.preset].sizes))


if __name__ == "__main__":
    main()
