"""Draw the first picture of the README: `python docs/hero.py` writes docs/hero.png."""

from __future__ import annotations

import sys
from pathlib import Path

import fluxnb as fnb


def main(prompt: str = "a cat holding a sign that says hello world", seed: int = 0, steps: int = 4) -> None:
    """Sample one trajectory and draw its steps as a filmstrip."""
    flux = fnb.load("pocket-base")  # the teacher: its early clean estimates are blurred, so its steps differ visibly
    trajectory = fnb.run(flux, prompt, seed=seed, steps=steps)
    figure = fnb.filmstrip(trajectory, decode=flux.decode)
    figure.savefig(Path(__file__).with_name("hero.png"), bbox_inches="tight", pad_inches=0.15, dpi=144)


if __name__ == "__main__":
    main(*sys.argv[1:2])
