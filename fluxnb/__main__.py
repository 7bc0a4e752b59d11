"""The shell's door: `python -m fluxnb demo` goes from a prompt to pictures of every step, and says where they are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fluxnb.errors import FluxnbError

PROMPT = "a cat in the snow"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 0 when it went well and 2 for a question that cannot be answered."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    try:
        return int(asked.command(asked))
    except FluxnbError as problem:
        # The error says what came, what is possible and what to type; a traceback would bury it.
        print(f"fluxnb: {problem}", file=sys.stderr)
        return 2


def demo(asked: argparse.Namespace) -> int:
    """From a prompt to a film strip, a grid of seeds and step counts, and one page; prints the paths it wrote."""
    import fluxnb as fnb
    from fluxnb.html import page as html
    from fluxnb.io.files import atomic_write, user_path
    from fluxnb.plots import contact_sheet, filmstrip

    out = user_path(asked.out).resolve()
    print(f"loading {asked.model} …", flush=True)
    flux = fnb.load(asked.model)
    print(f"walking from noise to {asked.prompt!r}, seed {asked.seeds[0]}, {max(asked.steps)} steps …", flush=True)
    trajectory = fnb.run(flux, asked.prompt, seed=asked.seeds[0], steps=max(asked.steps))
    print(f"{len(asked.seeds)} seeds × {len(asked.steps)} step counts …", flush=True)
    grid = fnb.sweep(flux, prompts=[asked.prompt], seeds=asked.seeds, steps=asked.steps)

    wrote = [out / "filmstrip.png", out / "grid.png", out / "walk.html"]
    figures = [filmstrip(trajectory, decode=flux.decode), contact_sheet(grid)]
    for drawn, path in zip(figures, wrote, strict=False):
        with atomic_write(path) as part:
            drawn.savefig(part, format="png", bbox_inches="tight", dpi=144)
    others = [fnb.run(flux, asked.prompt, seed=asked.seeds[0], steps=count) for count in sorted(set(asked.steps))[:-1]]
    html.write([*others, trajectory], wrote[2], decode=flux.decode)
    print("done; every picture was made on this machine just now:")
    for path in wrote:
        print(path)
    return 0


def plan(asked: argparse.Namespace) -> int:
    """Which preset a model would get, what it would cost and why not the others; nothing is downloaded."""
    import fluxnb as fnb

    print(fnb.plan(asked.model, asked.on, preset=asked.preset, size=asked.size))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fluxnb", description="Watch noise become a picture, step by step.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    show = commands.add_parser(
        "demo", help="from a prompt to a film strip, a grid and a page", description=demo.__doc__
    )
    show.add_argument("prompt", nargs="?", default=PROMPT, help=f"what to draw (default: {PROMPT!r})")
    show.add_argument("--model", default="pocket", help="pocket, pocket-base, schnell, dev, a folder or a hub id")
    show.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3], metavar="N", help="default: 0 1 2 3")
    show.add_argument("--steps", nargs="+", type=int, default=[1, 2, 3, 4], metavar="N", help="default: 1 2 3 4")
    show.add_argument("--out", default="demo", help="folder to write to (default: demo)")
    show.set_defaults(command=demo)
    look = commands.add_parser("plan", help="what a model needs, and how it would be held", description=plan.__doc__)
    look.add_argument("model", nargs="?", default="schnell", help="schnell, dev, pocket, a folder or a hub id")
    look.add_argument("--on", metavar="MACHINE", help="colab-t4, rtx-3060-12gb, 12gb/32gb, ... (default: this machine)")
    look.add_argument("--preset", default="auto", help="one preset, to have it or the reason why not")
    look.add_argument("--size", type=int, help="height and width in pixels (default: the model's own)")
    look.set_defaults(command=plan)
    return parser


if __name__ == "__main__":
    sys.exit(main())
