"""Write the pages of the gallery: `python docs/gallery.py FOLDER`.

Each is a page that the package exports, complete in one file, and runs without a kernel and without the network.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import fluxnb as fnb
from fluxnb.html import page

DOCS = Path(__file__).parent
PROMPT, SIGN = "a fox in the snow", "a cat holding a sign that says hello world"
GRID = {"prompts": [PROMPT, "a castle at sunset"], "seeds": range(4), "steps": [1, 4, 12]}


def main(folder: Path) -> None:
    """Sample with pocket and its teacher, and write every page."""
    folder.mkdir(parents=True, exist_ok=True)
    pair = fnb.load_pair("pocket")
    teacher, student = pair
    runs = [fnb.run(teacher, PROMPT, seed=3, steps=steps) for steps in (12,)]
    runs += [fnb.run(student, PROMPT, seed=3, steps=steps) for steps in (4, 1)]
    page.write(runs, folder / "teacher-and-student.html", decode=student.decode, shows=["clean", "x", "v"])
    fnb.run(student, SIGN, seed=3, steps=4, keep=fnb.Keep(attention="all")).to_html(
        folder / "words.html", decode=student.decode
    )
    grids = [fnb.sweep(flux, **GRID, keep=fnb.Keep()) for flux in pair]
    beside(grids).to_html(folder / "explorer.html", decode=student.decode, shows=["clean", "x"])


def beside(grids: Sequence[fnb.Sweep]) -> fnb.Sweep:
    """Grids of the same axes by several models, as one grid whose columns are the models."""
    axes = {"steps": grids[0].axes["steps"], **grids[0].axes, "model": tuple(grid.model for grid in grids)}
    cells = [cell for grid in grids for cell in grid]
    cells.sort(key=lambda cell: [values.index(getattr(cell.recipe, name)) for name, values in axes.items()])
    return fnb.Sweep(cells=tuple(cells), axes=axes)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "_build" / "gallery" / "gallery")
