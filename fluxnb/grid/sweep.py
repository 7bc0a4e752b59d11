"""sweep(): a grid of pictures in which nothing is computed twice, and which survives being stopped.

Prompts are encoded once. Walks that start alike (same prompt, seed, size, guidance) share the evaluations that all of
them would make: for step counts that is the first, at sigma 1, so {1, 2, 3, 4} cost 7 evaluations and not 10. What a
store has is not made again.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from fluxnb.errors import InputError, shorten, validates_own_input
from fluxnb.grid.axes import Axes
from fluxnb.grid.cost_estimate import Work, measure, remember, work_of
from fluxnb.grid.runner import Making
from fluxnb.grid.store import Store
from fluxnb.io.files import user_path
from fluxnb.pipeline.flux import Flux
from fluxnb.records import Cell, Keep, Step, Sweep
from fluxnb.records.recipe import Recipe, ResolvedRecipe
from fluxnb.sampling.run import OnStep
from fluxnb.sampling.sampler import StepCallback

__all__ = ["Stream", "Work", "plan_sweep", "stream", "sweep"]

LARGEST_BATCH = 256
Door = TypeVar("Door", bound=Callable[..., Any])


class Stream(Iterator[Cell]):
    """Cells as they finish, and the grid that they will fill; leaving the loop or `close()` stops the work.

    Arguments:
        cells: makes them.
        axes: the field names and their values, in order.
        model: who draws.
    """

    def __init__(self, cells: Generator[Cell, None, None], axes: dict[str, tuple[Any, ...]], model: str) -> None:
        self._cells, self.axes, self.model = cells, axes, model

    def __next__(self) -> Cell:
        return next(self._cells)

    def close(self) -> None:
        """Stop; what is finished stays."""
        self._cells.close()


@dataclass(kw_only=True)
class _Asked:
    """What the three doors take, read and checked."""

    flux: Flux
    grid: Axes
    store: Store | None
    keep: Keep | None
    batch: int
    watcher: StepCallback | None

    @property
    def recipes(self) -> list[ResolvedRecipe]:
        """The recipes as this model takes them, each once; two that the defaults make equal are one."""
        return list(dict.fromkeys(self.flux.resolve(recipe) for recipe in self.grid))

    def making(self, *, beside: bool) -> Making:
        return Making(
            flux=self.flux, store=self.store, keep=self.keep, batch=self.batch, watcher=self.watcher, beside=beside
        )


@validates_own_input
def sweep(
    flux: Flux,
    *,
    prompts: str | Iterable[str],
    seeds: int | Iterable[int] = 0,
    steps: int | Iterable[int] = 4,
    store: str | Path | Store | None = None,
    recipe: Recipe | None = None,
    keep: Keep | None = None,
    batch: int = 1,
    on_step: OnStep | None = None,
    progress: bool = False,
    **axes: Any,
) -> Sweep:
    """Make a grid of pictures, prompts x seeds x steps and any further field of a recipe.

    Ctrl-C returns what is finished, marked unfinished; with a store the same call later makes only the rest.

    Main arguments:
        flux: from `fnb.load`.
        prompts, seeds, steps: one value or several.
        store: a folder for the cells; None keeps them in memory alone.
        axes: further recipe fields, one value or a list: `guidance=[1, 2.5]`, `sampler=["euler", "renoise"]`.

    Other arguments:
        recipe: the base from which the axes differ.
        keep: what to keep of each walk; None keeps none, and cells have no `.trajectory`.
        batch: how many pictures are walked side by side. At 1 every picture has the bytes of the plain diffusers
            call. More is faster where pictures are small or weights are offloaded; a sum in another order may then
            change the last digit, and such cells say `exact=False`.
        on_step: called with each Step that is computed; returning `fnb.STOP` ends the sweep.
        progress: show a bar.

    Raises:
        InputError: a grid that cannot be; told before anything runs.
        StorageError: the disk is full or not writable; finished cells are whole.

    Example:
        >>> grid = sweep(flux, prompts=["a fox"], seeds=range(4), steps=[1, 2, 3, 4])   # doctest: +SKIP
        >>> len(grid), grid.evaluations                                                  # doctest: +SKIP
        (16, 28)
    """
    asked = _read(
        flux,
        prompts=prompts,
        seeds=seeds,
        steps=steps,
        store=store,
        recipe=recipe,
        keep=keep,
        batch=batch,
        on_step=on_step,
        **axes,
    )
    recipes, making = asked.recipes, asked.making(beside=True)
    started, finished = time.perf_counter(), True
    made: dict[ResolvedRecipe, Cell] = {}
    bar = tqdm(total=len(recipes), disable=not progress, unit="cell", leave=False)
    cells = making.cells(recipes)
    try:
        for cell in cells:
            remember(flux, cell)
            made[cell.recipe] = cell
            bar.update()
    except KeyboardInterrupt:
        finished = False
    finally:
        cells.close()
        bar.close()
    return Sweep(
        cells=tuple(made[recipe] for recipe in recipes if recipe in made),
        axes=asked.grid.shown,
        finished=finished and len(made) == len(recipes),
        seconds=time.perf_counter() - started,
        evaluations=making.evaluations,
        encodes=making.encodes,
        model=flux.model,
    )


def _takes_what_a_sweep_takes(*, but: tuple[str, ...] = (), also: str = "") -> Callable[[Door], Door]:
    """Show the arguments of `sweep` where they are only handed on."""

    def marked(door: Door) -> Door:
        asked = inspect.signature(sweep)
        own = inspect.signature(door)
        shown = [each for name, each in asked.parameters.items() if name not in but]
        shown[-1:-1] = [own.parameters[also]] if also else []
        door.__signature__ = own.replace(parameters=shown)  # type: ignore[attr-defined]
        return door

    return marked


@validates_own_input
@_takes_what_a_sweep_takes(but=("progress",))
def stream(flux: Flux, **asked: Any) -> Stream:
    """The same grid as `sweep`, cell by cell as they finish; leaving the loop stops the work.

    Takes what `sweep` takes, but `progress`. Cells that the store has come first. `fnb.explore(fnb.stream(...))`
    shows the grid while it fills.

    Example:
        >>> for cell in stream(flux, prompts=["a fox"], seeds=range(4)):            # doctest: +SKIP
        ...     cell.image.show()
    """
    read = _read(flux, **asked)
    return Stream(_told(flux, read.making(beside=False).cells(read.recipes)), read.grid.shown, flux.model)


@validates_own_input
@_takes_what_a_sweep_takes(but=("progress", "on_step", "batch"), also="measure")
def plan_sweep(flux: Flux, *, measure: bool = False, **asked: Any) -> Work:
    """What `sweep` with these arguments would cost; nothing is run.

    Takes what `sweep` takes. Seconds come from cells of the same size that this process or the store has timed on
    this machine; where there are none they are None.

    Arguments:
        measure: True makes one evaluation and one picture where nothing was timed yet.

    Example:
        >>> print(plan_sweep(flux, prompts=["a fox"], seeds=range(4), steps=[1, 2, 3, 4]))   # doctest: +SKIP
        16 cells, 16 to make; 28 evaluations (12 shared), 1 prompts to encode; about 2.1 s; about 409.2 KiB
    """
    read = _read(flux, **asked)
    recipes, making = read.recipes, read.making(beside=False)
    missing = [recipe for recipe in recipes if making.stored(recipe) is None]
    work = work_of(flux, recipes, missing, read.store, read.keep)
    if measure and work.seconds is None:
        _measure(flux, missing)
        work = work_of(flux, recipes, missing, read.store, read.keep)
    return work


def _measure(flux: Flux, missing: list[ResolvedRecipe]) -> None:
    for recipe in {(each.height, each.width): each for each in missing}.values():
        measure(flux, recipe)


def _told(flux: Flux, cells: Generator[Cell, None, None]) -> Generator[Cell, None, None]:
    """The same cells; what they took is remembered, and a stop is the end and no exception."""
    try:
        for cell in cells:
            remember(flux, cell)
            yield cell
    except KeyboardInterrupt:
        return
    finally:
        cells.close()


@validates_own_input
def _read(
    flux: Flux,
    *,
    store: str | Path | Store | None = None,
    recipe: Recipe | None = None,
    keep: Keep | None = None,
    batch: int = 1,
    on_step: OnStep | None = None,
    **axes: Any,
) -> _Asked:
    if not isinstance(flux, Flux):
        raise InputError(
            f"sweep({shorten(type(flux).__name__)})", "a loaded model comes first", 'try flux = fnb.load("pocket")'
        )
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= LARGEST_BATCH:
        raise InputError(f"batch={shorten(batch)}", f"1 to {LARGEST_BATCH} pictures side by side", "try batch=16")

    def watcher(step: Step, recipe: ResolvedRecipe) -> Any:
        return on_step(step) if on_step is not None else None

    return _Asked(
        flux=flux,
        grid=Axes.of(recipe, **axes),
        store=store if store is None or isinstance(store, Store) else Store(user_path(store)),
        keep=keep,
        batch=batch,
        watcher=None if on_step is None else watcher,
    )
