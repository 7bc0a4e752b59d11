"""What a lab is handed, the Job; and its Run: how far it has come, how long it takes yet, and the grid it gives."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxnb.records import Cell, Step, Sweep
from fluxnb.records.latents import LinearRGB
from fluxnb.records.recipe import ResolvedRecipe

__all__ = ["Generate", "Job", "Run", "Watch"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Pictures that are about to be made.

    Arguments:
        recipes: what was asked, resolved, in the order of the axes.
        cells: makes them; closing it stops the work.
        steps: evaluations along the paths that will be made and watched.
        axes: the field names and their values, in order.
        model: who draws.
        preview: from latents to colours, for the estimates on the way; None shows none.
        seconds: roughly, where it is known.
    """

    recipes: Sequence[ResolvedRecipe]
    cells: Iterator[Cell]
    steps: int
    axes: Mapping[str, tuple[Any, ...]]
    model: str = ""
    preview: LinearRGB | None = None
    seconds: float | None = None


Watch = Callable[[Step, ResolvedRecipe], Any]
Generate = Callable[[Mapping[str, Any], Watch], Job]


@dataclass(eq=False)
class Run:
    """One press of the button."""

    job: Job
    places: dict[ResolvedRecipe, int]
    stop: Any
    halt: threading.Event = field(default_factory=threading.Event)
    began: float = field(default_factory=time.monotonic)
    shown: float = 0.0
    steps: int = 0
    cells: list[Cell] = field(default_factory=list)

    @property
    def left(self) -> float | None:
        """Seconds that are left, as far as can be told."""
        spent = time.monotonic() - self.began
        # The first steps pay for what is made ready once, so a plan knows better until a cell is there.
        if not self.cells and self.job.seconds is not None:
            return max(0.0, self.job.seconds - spent)
        return spent * (1 / self.share - 1) if self.cells else None

    @property
    def share(self) -> float:
        """How much of the work is done, 0 to 1; a picture is decoded in about the time of a step."""
        return min(1.0, (self.steps + len(self.cells)) / (self.job.steps + len(self.job.recipes)))

    def place_of(self, cell: Cell, otherwise: int = 0) -> int:
        """The square that a picture belongs into."""
        return self.places.get(cell.recipe, otherwise)

    def sweep(self, *, finished: bool) -> Sweep:
        """The pictures that are there, in the order they were asked for."""
        cells = sorted(self.cells, key=self.place_of)
        return Sweep(
            cells=tuple(cells),
            axes=dict(self.job.axes),
            finished=finished,
            seconds=time.monotonic() - self.began,
            evaluations=sum(cell.evaluations for cell in cells),
            model=self.job.model,
        )
