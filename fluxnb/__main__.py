"""Command line: `python -m fluxnb demo` makes pictures of every step and prints their paths; `plan` prints a plan."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fluxnb.errors import FluxnbError

PROMPT = "a cat in the snow"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0 on success, 2 for an error of fluxnb."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except FluxnbError as problem:
        # The message has everything that is needed; a traceback would hide it.
        print(f"fluxnb: {problem}", file=sys.stderr)
        return 2


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

    print(fnb.plan(options.model, options.on, preset=options.preset, size=options.size))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fluxnb", description="Watch noise become a picture, step by step.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
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
    look.set_defaults(command=plan)
    return parser


if __name__ == "__main__":
    sys.exit(main())
