"""`python -m fluxnb.train STAGE`: atlas, autoencoder, judge, teacher, guidance, pairs, reflow, student, evaluate, ship.

On several GPUs by `torchrun`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxnb.train.config import OPTIMIZERS

if TYPE_CHECKING:  # a stage imports what it needs when it runs
    from fluxnb.train.config import Preset
    from fluxnb.train.stages.loop import Rank
    from fluxnb.train.stages.watch import Watch


def main(arguments: list[str] | None = None) -> None:
    """Run one stage; `--help` says which there are."""
    parser = argparse.ArgumentParser(prog="python -m fluxnb.train", description="Make pocket, stage by stage.")
    stages = parser.add_subparsers(dest="stage", required=True)
    atlas = stages.add_parser("atlas", help="pack the sprite atlas from the emoji package's folder of assets")
    atlas.add_argument("assets", type=Path)
    for name in ("autoencoder", "judge", "teacher"):
        stage = stages.add_parser(name, help=f"train the {name}")
        stage.add_argument("--preset", default="pocket")
        stage.add_argument("--out", type=Path, required=True, help="folder of the run; stages find each other there")
        stage.add_argument("--seconds", type=float, help="train for so long instead of what the preset says")
        stage.add_argument("--iterations", type=int, help="train for so many iterations instead")
        stage.add_argument("--batch", type=int, help="pictures per device and iteration")
        stage.add_argument("--scenes", type=int, help="distinct scenes per device")
        stage.add_argument("--rate", type=float, help="the learning rate")
        if name == "autoencoder":
            stage.add_argument("--like", type=Path, help="learn the latents of that run's, or of fluxnb/pocket's")
        if name == "teacher":
            stage.add_argument("--start", type=Path, help="go on from that run, or from fluxnb/pocket")
            stage.add_argument("--optimizer", choices=OPTIMIZERS, help="muon: for the matrices of the blocks")
            stage.add_argument("--muon-times", type=float, help="Muon's learning rate, in those of AdamW")
            stage.add_argument("--validation", type=int, help="scenes that the loss is measured on")
            stage.add_argument("--warmup", type=int, help="iterations in which the learning rate rises")
            stage.add_argument("--sizes", type=_size, nargs="+", metavar="NAME=N", help="other widths, as heads=8")
            stage.add_argument("--compile", default="reduce-overhead", help="torch.compile's mode")
    distil = ("the teacher's guided pictures", "the baseline of straight lines", "the adversarial student")
    for name, what in zip(("pairs", "reflow", "student"), distil, strict=True):
        stage = stages.add_parser(name, help=f"{'draw' if name == 'pairs' else 'train'} {what}")
        stage.add_argument("--preset", default="pocket")
        stage.add_argument("--out", type=Path, required=True, help="folder of the run, with its teacher")
        if name == "pairs":
            stage.add_argument("--count", type=int, help="how many")
            stage.add_argument("--guidance", type=float, help="how strongly the teacher is guided")
            continue
        stage.add_argument("--seconds", type=float, help="train for so long instead of what the preset says")
        stage.add_argument("--iterations", type=int, help="train for so many iterations instead")
        stage.add_argument("--batch", type=int, help="pictures per device and iteration")
        stage.add_argument("--rate", type=float, help="the learning rate")
        if name == "reflow":
            stage.add_argument("--warm", action="store_true", help="only LADD's start: short, saved as `warm`")
        else:
            stage.add_argument("--judge", type=Path, help="folder with a judge, to choose the best student by")
    check = stages.add_parser("evaluate", help="hold a student against its targets, beside its teacher and renders")
    check.add_argument(
        "--model", type=Path, default=Path(__file__).parents[1] / "pocket", help="a run, or what ship wrote"
    )
    check.add_argument("--student", type=Path, help="its transformer, file or folder; unsaid, the one beside the model")
    check.add_argument("--reflow", type=Path, help="the baseline's transformer; unsaid, the one beside the model")
    check.add_argument("--preset", default="pocket", help="the sizes of a run")
    check.add_argument("--save", type=Path, help="write the table here as JSON")
    check.add_argument("--figure", type=Path, help="draw it here, as PNG")
    check.add_argument("--keep", type=Path, help="keep what is read here; one that was cut off goes on from there")
    check.add_argument("--count", type=int, default=1700, help="scenes per sampling seed, seen and held out each")
    check.add_argument("--seeds", type=int, default=3)
    check.add_argument("--prompts", type=int, default=64, help="prompts asked again and again, for diversity")
    check.add_argument("--noises", type=int, default=64, help="pictures of each of those")
    check.add_argument("--guidance", type=float, help="of the teacher instead of its own; the student's is baked in")
    strengths = stages.add_parser("guidance", help="how near to renders and how right a teacher is, by its guidance")
    strengths.add_argument("--model", type=Path, default=Path(__file__).parents[1] / "pocket", help="as for evaluate")
    strengths.add_argument("--preset", default="pocket", help="the sizes of a run")
    strengths.add_argument("--strengths", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0, 2.5])
    strengths.add_argument("--steps", type=int, nargs="+", default=[28, 4])
    strengths.add_argument("--count", type=int, default=2048, help="scenes, the same for each")
    ship = stages.add_parser("ship", help="write a run as a diffusers folder with its card")
    ship.add_argument("--out", type=Path, required=True)
    ship.add_argument("--to", type=Path, required=True)
    ship.add_argument("--preset", default="pocket")
    options = parser.parse_args(arguments)
    distils = dict.fromkeys(("pairs", "reflow", "student"), _distil)
    ({"atlas": _atlas, "guidance": _guidance, "evaluate": _evaluate, "ship": _ship} | distils).get(
        options.stage, _train
    )(options)


def _atlas(options: argparse.Namespace) -> None:
    from fluxnb.train.data import sprites

    print(sprites.make_atlas(options.assets, Path(__file__).parent / "data" / sprites.ATLAS))


def _size(said: str) -> tuple[str, int]:
    from fluxnb.train.config import Sizes

    name, _, number = said.partition("=")
    numbers = [field.name for field in dataclasses.fields(Sizes) if field.type == "int"]
    if name not in numbers or not number.isdigit():
        raise argparse.ArgumentTypeError(f"{said!r}; NAME=N, with NAME one of {', '.join(numbers)}")
    return name, int(number)


def _length(options: argparse.Namespace) -> dict[str, object]:
    """How long a stage trains, and in which steps."""
    fields = {"seconds": "seconds", "iterations": "iterations", "batch": "batch", "learning_rate": "rate"}
    return {field: getattr(options, option) for field, option in fields.items()}


def _said(**options: object) -> dict[str, Any]:
    """Those that were given; a preset says the others."""
    return {name: value for name, value in options.items() if value is not None}


def _train(options: argparse.Namespace) -> None:
    from fluxnb.train.config import PRESETS
    from fluxnb.train.stages.loop import Rank

    preset = PRESETS[options.preset]
    said = _length(options) | {"scenes": options.scenes}
    if options.stage == "teacher":
        said |= {"optimizer": options.optimizer, "muon_times": options.muon_times, "validation": options.validation}
        said |= {"warmup": options.warmup, "rewarm": options.warmup}
        preset = dataclasses.replace(preset, sizes=dataclasses.replace(preset.sizes, **dict(options.sizes or ())))
    changed = dataclasses.replace(getattr(preset, options.stage), **_said(**said))
    preset = dataclasses.replace(preset, **{options.stage: changed})
    rank = Rank.join()
    if options.stage == "autoencoder":
        from fluxnb.train.stages.autoencoder import train_autoencoder

        train_autoencoder(preset, options.out, rank, options.like)
    elif options.stage == "judge":
        from fluxnb.train.evaluation.judge import train_judge

        train_judge(preset, options.out, rank)
    else:
        from fluxnb.train.stages.teacher import train_teacher

        train_teacher(preset, options.out, rank, options.start, options.compile)
    rank.leave()


def _distil(options: argparse.Namespace) -> None:
    from fluxnb.train.config import PRESETS
    from fluxnb.train.stages.loop import Rank

    preset, rank = PRESETS[options.preset], Rank.join()
    if options.stage == "pairs":
        from fluxnb.train.stages.pairs import draw_pairs

        draw_pairs(preset.distilled(**_said(pairs=options.count, guidance=options.guidance)), options.out, rank)
    else:
        from fluxnb.train.stages.reflow import train_reflow
        from fluxnb.train.stages.student import train_student

        warm = options.stage == "reflow" and options.warm
        which = "warm" if warm else options.stage
        schedule = dataclasses.replace(getattr(preset.distillation, which), **_said(**_length(options)))
        if which == "student":
            look = _look(options.judge, preset, options.out, rank) if options.judge else None
            train_student(preset.distilled(student=schedule), options.out, rank, look=look)
        else:
            train_reflow(preset, options.out, rank, which, schedule, start="" if warm else "warm")
    rank.leave()


def _guidance(options: argparse.Namespace) -> None:
    from fluxnb.train.config import PRESETS
    from fluxnb.train.data.render import Renderer
    from fluxnb.train.evaluation.gather import gather
    from fluxnb.train.stages.loop import Rank
    from fluxnb.train.stages.watch import Watch

    device = Rank.join().device
    networks = gather(options.model, PRESETS[options.preset].sizes, device)
    batch = 1024 if device.type == "cuda" else 64
    watch = Watch(networks.judge, Renderer(device), networks.vae, networks.tokens, count=options.count, batch=batch)
    for strength in options.strengths:
        found = watch(networks.denoiser, options.steps, strength)
        print(json.dumps({"guidance": strength, **found}), flush=True)


def _look(judge: Path, preset: Preset, out: Path, rank: Rank) -> Watch:
    from diffusers import AutoencoderKL

    from fluxnb.train.data.render import Renderer
    from fluxnb.train.data.tokens import Tokens
    from fluxnb.train.evaluation.judge import load_judge
    from fluxnb.train.stages.watch import Watch

    reads = load_judge(judge / "judge.safetensors", rank.device)
    vae = AutoencoderKL.from_pretrained(out / "vae").eval().to(rank.device)
    return Watch(reads, Renderer(rank.device), vae, Tokens.of(preset.sizes))


def _evaluate(options: argparse.Namespace) -> None:
    from fluxnb.train.config import PRESETS
    from fluxnb.train.data.render import Renderer
    from fluxnb.train.evaluation.acceptance import acceptance, as_json
    from fluxnb.train.evaluation.evaluate import evaluate, settings_of
    from fluxnb.train.evaluation.examiner import Asked, Examiner
    from fluxnb.train.evaluation.gather import another, gather, guidance_of, kept_of, student_beside
    from fluxnb.train.stages.autoencoder import check_autoencoder
    from fluxnb.train.stages.loop import Rank

    device, preset = Rank.join().device, PRESETS[options.preset]
    networks, renderer = gather(options.model, preset.sizes, device), Renderer(device)
    known = guidance_of(options.model, preset.distillation.guidance)
    guidance = known if options.guidance is None else options.guidance
    models = {"teacher": networks.denoiser}
    for name in ("student", "reflow"):
        place = getattr(options, name) or student_beside(options.model, name)
        if place is not None:
            models[name] = another(place, networks.denoiser)
    asked = Asked(options.count, options.seeds, options.prompts, options.noises)
    settings, main_ones = settings_of(models, networks.vae, networks.tokens, device, guidance)
    kept = kept_of(options.keep, networks, models, asked, guidance)
    table = evaluate(Examiner(networks.judge, renderer, networks.vae, asked), settings, main_ones, kept=kept)
    rows = acceptance(table)
    found = {
        "asked": {**dataclasses.asdict(asked), "guidance": guidance, "device": device.type},
        **as_json(table, rows),
        "autoencoder": check_autoencoder(networks.vae, renderer, min(2048, options.count)),
    }
    text = json.dumps(found, indent=1)
    if options.save is not None:
        options.save.write_text(text + "\n")
    if options.figure is not None:
        from fluxnb.train.evaluation.figure import figure_of  # it alone needs matplotlib

        figure_of(table, rows, note=asked.words()).savefig(options.figure, dpi=144)
    print(text)


def _ship(options: argparse.Namespace) -> None:
    from fluxnb.train.config import PRESETS
    from fluxnb.train.stages.ship import ship

    print(ship(options.out, options.to, PRESETS[options.preset].sizes))


if __name__ == "__main__":
    main()
