"""Cell and Sweep: a grid of recipes and their pictures, and what it cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fluxnb.display import figure, write_page
from fluxnb.errors import UnavailableError
from fluxnb.records.frozen_dict import FrozenDict
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.records.trajectory import Trajectory, png_bytes

__all__ = ["Cell", "Sweep"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One square of a grid: a recipe and its picture.

    Arguments:
        recipe: what was asked, fully resolved.
        path: the PNG in the store, None without a store.
        key: the address in the store.
        numerics: "exact", or what changes the numbers against the plain diffusers call: a lossy preset, "batch"
            or both.
        made: True if this sweep computed it, False if the store had it.
        evaluations: of the transformer that this cell cost, shared ones counted where they were first made.
        seconds: of "denoise" and "decode".
        trajectory: the walk, where it was asked for.
        picture: the image itself, None where it rests on disk; read `.image`.
    """

    recipe: ResolvedRecipe
    key: str = field(repr=False)
    path: Path | None = None
    numerics: str = "exact"
    made: bool = True
    evaluations: int = field(default=0, repr=False)
    seconds: Mapping[str, float] = field(default_factory=dict, repr=False)
    trajectory: Trajectory | None = field(default=None, repr=False)
    picture: Image.Image | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", FrozenDict(self.seconds))

    @property
    def exact(self) -> bool:
        """Whether the picture has the bytes of the plain diffusers call."""
        return self.numerics == "exact"

    @property
    def image(self) -> Image.Image:
        """The picture, read from disk where it is not held."""
        if self.picture is not None:
            return self.picture
        if self.path is None:
            raise UnavailableError("a cell without a picture", "it was neither held nor stored", "run the sweep again")
        with Image.open(self.path) as opened:
            return opened.convert("RGB")

    def _repr_png_(self) -> bytes:
        return png_bytes(self.image)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """The finished grid: its cells in the order of the axes, and what it cost.

    Arguments:
        cells: in the order of the axes, the last axis fastest; fewer than asked for if the sweep was stopped.
        axes: the field names and their values, in order.
        finished: False if it was stopped.
        seconds: wall time.
        evaluations: of the transformer, made by this sweep.
        encodes: of prompts, made by this sweep.
    """

    cells: tuple[Cell, ...] = field(repr=False)
    axes: Mapping[str, tuple[Any, ...]]
    finished: bool = True
    seconds: float = 0.0
    evaluations: int = 0
    encodes: int = 0
    model: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", FrozenDict(self.axes))

    def __len__(self) -> int:
        return len(self.cells)

    def __iter__(self) -> Iterator[Cell]:
        return iter(self.cells)

    def __getitem__(self, index: int) -> Cell:
        return self.cells[index]

    def select(self, **fields: Any) -> tuple[Cell, ...]:
        """The cells whose recipes have these values, for example `grid.select(seed=3, steps=4)`."""
        return tuple(
            cell for cell in self.cells if all(getattr(cell.recipe, name) == value for name, value in fields.items())
        )

    @property
    def caption(self) -> str:
        """One line that says what this is; plain text, not escaped."""
        sizes = " x ".join(f"{len(values)} {name}" for name, values in self.axes.items())
        missing = "" if self.finished else ", unfinished"
        return ", ".join(part for part in (sizes, self.model, f"{len(self.cells)} cells") if part) + missing

    def to_html(self, path: str | Path, **options: Any) -> Path:
        """Write a self-contained page that explores the grid; options are those of `fluxnb.html.grid_page.write`."""
        return write_page(self, path, **options)

    def __repr__(self) -> str:
        return f"Sweep({self.caption!r})"

    def _repr_png_(self) -> bytes | None:
        return figure(self)
