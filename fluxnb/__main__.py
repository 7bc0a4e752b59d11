"""Command line: `fluxnb demo`, `fluxnb plan` and `fluxnb sweep`; the same by `python -m fluxnb`."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fluxnb
from fluxnb.errors import FluxnbError, InputError, RunError

if TYPE_CHECKING:
    from fluxnb.grid.axes import Axes

PROMPT = "a cat in the snow"
FAILED, USAGE, INTERRUPTED = 1, 2, 130  # exit statuses
MOST_NUMBERS = 1_000_000  # seeds or step counts
MODELS = "pocket, pocket-base, schnell, dev, klein, klein-base, z-image, z-image-turbo, a folder or a hub id"

SEVERAL_GPUS = """\
several GPUs
  Without --processes, one process is started for each GPU. Each loads the model once and takes its
  own GPU. The processes share the work through the folder of --store: all step counts of a prompt
  and seed are sampled by one of them, so that no evaluation is made twice. Long ones come first.
  A process that is killed is replaced, and what it had not finished is sampled by another.
  `fluxnb plan MODEL --processes N` prints what each process holds.

  The pictures are those of one process, byte for byte. In Python, the grid is read from the store:
    flux = fnb.load("schnell")
    fnb.sweep(flux, prompts=["a fox"], seeds=range(64), steps=[1, 2, 3, 4], store="pictures")

  The same under a launcher of PyTorch or accelerate, also with a script of your own that calls
  fnb.load and fnb.sweep in place of `-m fluxnb sweep`:
    torchrun --nproc-per-node 8 -m fluxnb sweep "a fox" --seeds 0-63 --store pictures
    accelerate launch --multi_gpu --num_processes 8 -m fluxnb sweep "a fox" --store pictures

several machines
  Start the command on each machine, with a --store that all of them see, such as a folder of NFS.
  The machines need no connection to each other. A launcher for several machines works as well:
    accelerate launch --multi_gpu --num_processes 16 --num_machines 2 --machine_rank 0 \\
      --main_process_ip HOST --main_process_port 29500 \\
      -m fluxnb sweep "a fox" --seeds 0-63 --store /shared/pictures
  The cells of a machine that stops answering are sampled by the others after 30 seconds. GPUs of
  different kinds do not share pictures, since the last digits differ.

on a CPU
  The number of threads decides the last digits of a picture and is part of its address in the
  store. Set OMP_NUM_THREADS=1 for several processes, and for the Python that reads their pictures.

exit status
  0 if the grid is complete, 1 if a task failed, 2 for wrong arguments, 130 after an interrupt.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0 on success, 1 for a task that failed, 2 for wrong arguments, 130 after an interrupt.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    options = parser.parse_args(given)
    if options.command is None:
        parser.print_help()
        return 0
    options.arguments = given
    try:
        return int(options.command(options))
    except FluxnbError as problem:
        # The message has everything that is needed; a traceback would hide it.
        print(f"fluxnb: {problem}", file=sys.stderr)
        return USAGE if isinstance(problem, InputError) else FAILED
    except KeyboardInterrupt:
        print("fluxnb: interrupted", file=sys.stderr)
        return INTERRUPTED


def demo(options: argparse.Namespace) -> int:
    """Make a film strip, a grid of seeds and step counts, and a page for one prompt; prints the paths of the files."""
    import fluxnb as fnb
    from fluxnb.html import page as html
    from fluxnb.io.files import atomic_write, user_path
    from fluxnb.plots import contact_sheet, filmstrip

    out, prompt, seed, most = user_path(options.out).resolve(), options.prompt, options.seeds[0], max(options.steps)
    print(f"loading {options.model} …", flush=True)
    flux = fnb.load(options.model)
    print(f"sampling {prompt!r}, seed {seed}, {most} steps …", flush=True)
    trajectory = fnb.run(flux, prompt, seed=seed, steps=most)
    print(f"{len(options.seeds)} seeds × {len(options.steps)} step counts …", flush=True)
    grid = fnb.sweep(flux, prompts=[prompt], seeds=options.seeds, steps=options.steps)
    if not grid.finished:
        raise KeyboardInterrupt

    files = [out / "filmstrip.png", out / "grid.png", out / "trajectory.html"]
    figures = [filmstrip(trajectory, decode=flux.decode), contact_sheet(grid)]
    for figure, path in zip(figures, files, strict=False):
        with atomic_write(path) as part:
            figure.savefig(part, format="png", bbox_inches="tight", dpi=144)
    fewer = [fnb.run(flux, prompt, seed=seed, steps=count) for count in sorted(set(options.steps))[:-1]]
    html.write([*fewer, trajectory], files[2], decode=flux.decode)
    print("done; the pictures were sampled on this machine:")
    for path in files:
        print(path)
    return 0


def plan(options: argparse.Namespace) -> int:
    """Print which preset a model would use, its cost, and why the others were refused; downloads nothing."""
    import fluxnb as fnb

    given = {"preset": options.preset, "size": options.size, "processes": options.processes}
    print(fnb.plan(options.model, options.on, **given))
    return 0


# --------------------------------------------------------------------------------------------------------------- sweep
def sweep(options: argparse.Namespace) -> int:
    """Sample a grid of prompts, seeds and step counts into a folder, on all GPUs of this machine."""
    from fluxnb.grid.axes import Axes
    from fluxnb.grid.handles import parallel_grid
    from fluxnb.grid.store import Store
    from fluxnb.planning.presets import PRESETS
    from fluxnb.planning.processes import launched

    axes = _axes(options)
    grid = Axes.of(**axes)  # raises for a grid that is not possible, before a model is loaded
    if options.preset in PRESETS and PRESETS[options.preset].parallel:
        raise parallel_grid()
    Store(options.store)  # raises for a folder that cannot be written
    if options.worker:
        return _work(options, axes)
    if launched().count > 1:
        return _sample(options, axes, displayed=launched().rank == 0)
    processes = _processes(options, grid)
    return _launch(options, processes) if processes > 1 else _sample(options, axes, displayed=True)


def _axes(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `fnb.sweep` for the grid, those that were given."""
    from fluxnb.widgets.form import parse_numbers

    axes: dict[str, Any] = {"prompts": options.prompts}
    for name in ("seeds", "steps"):
        if (texts := getattr(options, name)) is not None:
            axes[name] = parse_numbers(name, " ".join(texts), most=MOST_NUMBERS)
    for name in ("height", "width", "guidance", "negative", "sampler"):
        if (value := getattr(options, name)) is not None:
            axes[name] = value
    return axes


def _processes(options: argparse.Namespace, axes: Axes) -> int:
    """The number of processes: as requested, otherwise one for each GPU; no more than can work at the same time."""
    from fluxnb.planning.plan import check_processes
    from fluxnb.planning.plan import plan as planned
    from fluxnb.remote.endpoints import endpoint_of

    requested = options.processes
    if requested is None:
        import torch

        requested = 1 if endpoint_of(options.model) is not None else max(1, torch.cuda.device_count())
    check_processes(options.model, requested)
    # All schedules of a prompt and its noise are sampled by one process.
    groups = math.prod(len(values) for name, values in axes.values.items() if name not in ("steps", "sigmas", "shift"))
    processes = min(requested, groups)
    if processes > 1:
        try:
            print(planned(options.model, preset=options.preset, processes=processes).sharing, file=sys.stderr)
        except RunError as problem:
            raise RunError(
                f"{processes} processes with {options.model}", str(problem), f"try --processes {processes // 2}"
            ) from None
    return processes


def _sample(options: argparse.Namespace, axes: dict[str, Any], *, displayed: bool) -> int:
    """Sample the grid in this process, beside others if a launcher has started them; the first one reports."""
    import fluxnb as fnb
    from fluxnb.planning.processes import launched

    with _without_waiting_warnings():
        flux = _load(options)
        grid = fnb.sweep(flux, **axes, store=options.store, batch=options.batch, progress=displayed)
    if not grid.finished:
        raise KeyboardInterrupt
    if displayed:
        made = sum(cell.made for cell in grid)
        text = _summary(len(grid), made, grid.evaluations, grid.seconds, options.store)
        print(f"{text}, by this process" if launched().count > 1 else text)
    return 0


def _work(options: argparse.Namespace, axes: dict[str, Any]) -> int:
    """Sample the grid as one of several workers, and report each cell to the launcher."""
    from fluxnb.grid.launcher import Reports
    from fluxnb.grid.sweep import collect, request_of

    with Reports() as reports, _without_waiting_warnings():
        request = request_of(_load(options), **axes, store=options.store, batch=options.batch)
        reports.grid(request.recipes)
        grid = collect(request, on_cell=reports.cell)
    return 0 if grid.finished else INTERRUPTED


def _launch(options: argparse.Namespace, processes: int) -> int:
    """Sample the grid by several workers, with one progress line for all of them."""
    from tqdm.auto import tqdm

    from fluxnb.grid.launcher import Launcher, Outcome
    from fluxnb.grid.store import Store

    bar = tqdm(total=0, unit="cell", desc="loading", leave=False)

    def display(outcome: Outcome) -> None:
        if bar.total != outcome.total:
            bar.total = outcome.total
            bar.set_description_str("sampling")
        killed = f", {len(outcome.killed)} killed" if outcome.killed else ""
        text = f"{outcome.working} processes, {outcome.evaluations} evaluations{killed}"
        bar.set_postfix_str(text, refresh=False)
        bar.update(len(outcome.found) - bar.n)

    # After the name of the command, since "--" may stand before the prompts.
    command = [sys.executable, "-m", "fluxnb", "sweep", "--worker", *options.arguments[1:]]
    with contextlib.closing(bar):
        # Opening a store removes the locks of processes that have ended.
        outcome = Launcher(command, processes, on_report=display, on_killed=lambda: Store(options.store)).run()
    if outcome.message:
        print(outcome.message, file=sys.stderr)
    if not outcome.finished:
        if outcome.interrupted:
            raise KeyboardInterrupt
        return outcome.status
    text = _summary(outcome.total, len(outcome.made), outcome.evaluations, outcome.seconds, options.store)
    print(f"{text}, by {processes} processes")
    return 0


def _load(options: argparse.Namespace) -> Any:
    import fluxnb as fnb

    return fnb.load(options.model, options.preset, dtype=options.dtype, fast=options.fast)


@contextlib.contextmanager
def _without_waiting_warnings() -> Iterator[None]:
    """Leave out the warnings that a sweep waits for another process; the progress line states it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="waiting for .* claimed by")
        yield


def _summary(cells: int, made: int, evaluations: int, seconds: float, store: str) -> str:
    from fluxnb.units import duration

    folder = Path(store).expanduser().resolve()
    return f"{cells} cells in {folder}: {made} sampled with {evaluations} evaluations in {duration(seconds)}"


# ----------------------------------------------------------------------------------------------------------- arguments
def _parser() -> argparse.ArgumentParser:
    program = "python -m fluxnb" if Path(sys.argv[0]).name == "__main__.py" else "fluxnb"
    parser = argparse.ArgumentParser(prog=program, description="Watch noise become a picture, step by step.")
    parser.add_argument("--version", action="version", version=f"fluxnb {fluxnb.__version__}")
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    show = commands.add_parser("demo", help="a film strip, a grid and a page for one prompt", description=demo.__doc__)
    show.add_argument("prompt", nargs="?", default=PROMPT, help=f"what to draw (default: {PROMPT!r})")
    show.add_argument("--model", default="pocket", help="pocket, pocket-base, schnell, dev, a folder or a hub id")
    show.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3], metavar="N", help="default: 0 1 2 3")
    show.add_argument("--steps", nargs="+", type=int, default=[1, 2, 3, 4], metavar="N", help="default: 1 2 3 4")
    show.add_argument("--out", default="demo", help="folder for the files (default: demo)")
    show.set_defaults(command=demo)
    look = commands.add_parser("plan", help="what a model needs, and which preset fits", description=plan.__doc__)
    look.add_argument("model", nargs="?", default="schnell", help="schnell, dev, pocket, a folder or a hub id")
    look.add_argument("--on", metavar="MACHINE", help="colab-t4, rtx-3060-12gb, 12gb/32gb, ... (default: this machine)")
    look.add_argument("--preset", default="auto", help="one preset, to plan with it or to print why it is refused")
    look.add_argument("--size", type=int, help="height and width in pixels (default: the model's own)")
    look.add_argument("--processes", type=int, default=1, metavar="N", help="that share the machine (default: 1)")
    look.set_defaults(command=plan)
    _add_sweep(commands)
    return parser


def _add_sweep(commands: Any) -> None:
    many = commands.add_parser(
        "sweep",
        help="a grid of prompts, seeds and step counts, on several GPUs",
        description=sweep.__doc__,
        epilog=SEVERAL_GPUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    many.add_argument("prompts", nargs="+", metavar="PROMPT", help="one or several prompts, each in quotes")
    many.add_argument("--seeds", nargs="+", metavar="N", help="numbers and ranges such as 0-63 or 0-3 7 (default: 0)")
    many.add_argument("--steps", nargs="+", metavar="N", help="step counts such as 1 2 3 4 (default: the model's own)")
    many.add_argument(
        "--store", required=True, metavar="DIR", help="folder for the pictures; those in it are not sampled again"
    )
    many.add_argument("--model", default="pocket", help=f"{MODELS} (default: pocket)")
    many.add_argument("--preset", default="auto", help="how to hold the model in memory, see `plan` (default: auto)")
    many.add_argument("--dtype", default="auto", help="float32, bfloat16 or float16 (default: auto)")
    many.add_argument("--fast", action="store_const", const=True, default=False, help="compile, see fnb.load")
    many.add_argument("--fast-fp8", dest="fast", action="store_const", const="fp8", help="and compute in 8 bits")
    many.add_argument("--processes", type=int, metavar="N", help="default: one for each GPU, 1 without a GPU")
    many.add_argument(
        "--batch", type=int, default=1, metavar="N", help="pictures per call; above 1 inexact (default: 1)"
    )
    many.add_argument("--height", type=int, metavar="PIXELS", help="default: the model's own")
    many.add_argument("--width", type=int, metavar="PIXELS", help="default: the model's own")
    many.add_argument("--guidance", nargs="+", type=float, metavar="G", help="for models that take one")
    many.add_argument("--negative", metavar="PROMPT", help="what not to draw, for models that take it")
    many.add_argument("--sampler", help="euler, renoise, heun or midpoint (default: euler)")
    many.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    many.set_defaults(command=sweep)


if __name__ == "__main__":
    sys.exit(main())
