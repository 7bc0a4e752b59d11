"""Cell and Sweep: a grid of recipes with their images, times and evaluation counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from PIL import Image

from fluxnb.arguments import entry_point
from fluxnb.display import figure, read_picture, write_page, write_picture
from fluxnb.errors import UnavailableError
from fluxnb.records.frozen_dict import FrozenDict
from fluxnb.records.latents import Decode
from fluxnb.records.recipe import RecipeFields, ResolvedRecipe
from fluxnb.records.trajectory import Trajectory, png_bytes

__all__ = ["Cell", "Sweep"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """One cell of a grid: a recipe and its image.

    Arguments:
        recipe: the resolved recipe.
        key: the address in a store, `recipe.key(versions, numerics=numerics)`.
        path: the PNG in the store, None without a store.
        numerics: "exact", or why the image may differ from the plain diffusers call: a lossy preset, "batch" or both;
            "remote" for a hosted endpoint, with what is unusual about the image, such as "remote, one color".
        made: True if this sweep computed it, False if it came from the store.
        evaluations: of the transformer for this cell; shared evaluations count where they were made.
        seconds: spent on "encode", "denoise" and "decode", or on the "request" to an endpoint.
        trajectory: the trajectory, if the sweep kept it.
        picture: the image in memory, None if it is only on disk; read `.image`.
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
    def drawn_by(self) -> str:
        """The provider of the endpoint that drew the image; "" for a model on this machine."""
        return self.recipe.model.rpartition("@")[2] if self.numerics.startswith("remote") else ""

    @property
    def image(self) -> Image.Image:
        """The image, read from disk if it is not in memory.

        Raises:
            UnavailableError: the image is neither in memory nor in a store.
            StorageError: its file is missing, damaged, or of another size than the recipe's.
        """
        if self.picture is not None:
            return self.picture
        if self.path is None:
            raise UnavailableError(
                "a cell without an image", "it was neither kept in memory nor stored", "run the sweep again"
            )
        image: Image.Image = read_picture(self.path, (self.recipe.width, self.recipe.height))
        return image

    @entry_point(path='path="fox.png"')
    def save_png(self, path: str | Path) -> Path:
        """Write the image as PNG with its recipe, which `image.save` leaves out; see `Trajectory.save_png`.

        Raises:
            UnavailableError: the image is neither in memory nor in a store.
            StorageError: the image cannot be read, or the file cannot be written.
        """
        return write_picture(self, path)

    def _repr_png_(self) -> bytes:
        return png_bytes(self.image)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """A grid of cells in the order of its axes.

    Arguments:
        cells: in the order of the axes, the last axis fastest; incomplete if the sweep was stopped.
        axes: the field names and their values, in order.
        finished: False if it was stopped.
        seconds: wall time.
        evaluations: of the transformer by this sweep.
        encodes: prompts encoded by this sweep.
        model: name of the model.

    Example:
        >>> grid = fnb.sweep(flux, prompts="a fox", seeds=range(4), steps=[1, 4])   # doctest: +SKIP
        >>> len(grid), len(grid.select(steps=4))                                    # doctest: +SKIP
        (8, 4)
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

    @entry_point(accepts=RecipeFields)
    def select(self, **values: Unpack[RecipeFields]) -> tuple[Cell, ...]:
        """The cells whose recipes have the given values, such as `grid.select(seed=3, steps=4)`.

        Raises:
            InputError: a name that is no field of a recipe.
        """
        chosen = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return tuple(
            cell for cell in self.cells if all(getattr(cell.recipe, name) == value for name, value in chosen.items())
        )

    @property
    def note(self) -> str:
        """Who drew the pictures, if a hosted endpoint did; "" for a model on this machine."""
        providers = " and ".join(dict.fromkeys(cell.drawn_by for cell in self.cells if cell.drawn_by))
        return f"drawn by {providers}; seeds there are not the seeds here" if providers else ""

    @property
    def caption(self) -> str:
        """Axes, model, number of cells and who drew them, in one line of plain text, not escaped."""
        sizes = " x ".join(f"{len(values)} {name}" for name, values in self.axes.items())
        missing = "" if self.finished else ", unfinished"
        return ", ".join(part for part in (sizes, self.model, f"{len(self.cells)} cells{missing}", self.note) if part)

    @entry_point("path")
    def to_html(
        self,
        path: str | Path,
        *,
        shows: Sequence[str] | None = None,
        decode: Decode | None = None,
        size: int | None = None,
    ) -> Path:
        """Write a self-contained page for exploring the grid and return its path.

        Arguments:
            path: the file to write.
            shows: the quantities that the slider can display, of "clean", "x", "v", "noise"; all by default.
            decode: from latents in space to pictures, such as `flux.decode`; by default each trajectory's
                own linear preview.
            size: longest side of a picture in pixels; 512 by default.
        """
        return write_page(self, path, shows=shows, decode=decode, size=size)

    def __repr__(self) -> str:
        return f"Sweep({self.caption!r})"

    def _repr_png_(self) -> bytes | None:
        return figure(self)
