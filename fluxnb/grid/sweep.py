"""sweep(), stream() and plan_sweep(): grids of images in which nothing is computed twice.

Each prompt is encoded once. Trajectories with the same prompt, seed, size and guidance share the evaluations at their
common noise levels. For different step counts that is the first one, at sigma 1, so that {1, 2, 3, 4} steps cost 7
evaluations instead of 10. Cells in the store are not sampled again.

Several processes that sweep the same grid with the same store divide it among themselves: notebooks, the processes of
`torchrun` and `accelerate launch`, and those that `fluxnb sweep` starts. Each receives the complete grid.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from fluxnb.arguments import entry_point
from fluxnb.cleanup import progress_lock, release_progress_lock
from fluxnb.errors import InputError, RunError, shorten, warn_caller
from fluxnb.grid.axes import Axes, FurtherAxes
from fluxnb.grid.cost_estimate import CostEstimate, estimate_cost, measure, record_timing, recorded
from fluxnb.grid.handles import Handle, is_paid, prepare, runner_of
from fluxnb.grid.runner import Runner
from fluxnb.grid.store import Store, StoreWarning
from fluxnb.io.files import user_path
from fluxnb.pipeline.flux import Flux
from fluxnb.planning.processes import launched
from fluxnb.progress import Progress
from fluxnb.records import Cell, Keep, Step, Sweep
from fluxnb.records.recipe import Recipe, ResolvedRecipe
from fluxnb.remote.handle import Remote, RemoteWarning
from fluxnb.sampling.run import OnStep
from fluxnb.sampling.sampler import StepCallback

__all__ = ["CostEstimate", "Request", "Stream", "collect", "plan_sweep", "request_of", "stream", "sweep"]

MAX_BATCH = 256


class Stream(Iterator[Cell]):
    """An iterator of cells as they finish. Leaving the loop or `close()` stops the sampling.

    Arguments:
        cells: samples them.
        axes: field names and their values, in order.
        model: name of the model.
        runner: the runner of these cells.
        owner: the model or endpoint that samples them, to be compared by identity.
    """

    def __init__(
        self,
        cells: Generator[Cell, None, None],
        axes: dict[str, tuple[Any, ...]],
        model: str,
        runner: Runner,
        *,
        owner: object = None,
    ) -> None:
        self._cells, self.axes, self.model = cells, axes, model
        self._runner, self.owner = runner, owner

    @property
    def on_wait(self) -> Callable[[str], None] | None:
        """Called with a sentence while the stream waits for cells of another process, and with "" afterwards."""
        return self._runner.on_wait

    @on_wait.setter
    def on_wait(self, function: Callable[[str], None] | None) -> None:
        self._runner.on_wait = function

    def __next__(self) -> Cell:
        return next(self._cells)

    def close(self) -> None:
        """Stop the sampling; finished cells remain."""
        self._cells.close()


@dataclass(kw_only=True)
class Request:
    """The validated arguments of the entry points of this module; made by `request_of`."""

    flux: Handle
    axes: Axes
    store: Store | None
    keep: Keep | None
    batch: int
    on_step: StepCallback | None

    @functools.cached_property
    def recipes(self) -> list[ResolvedRecipe]:
        """The recipes with the model's defaults; recipes that become equal are listed once."""
        return list(dict.fromkeys(self.flux.resolve(recipe) for recipe in self.axes))

    def runner(self, *, background: bool) -> Runner:
        """A runner for the recipes; with `background` it decodes and writes in threads."""
        return runner_of(
            self.flux, self.store, keep=self.keep, batch=self.batch, on_step=self.on_step, background=background
        )


CHECKED = ("flux", "prompts", "seeds", "steps", "store", "recipe", "keep")


@entry_point(*CHECKED, "on_step", accepts=FurtherAxes, progress="progress=True")
def sweep(
    flux: Flux | Remote,
    *,
    prompts: str | Iterable[str],
    seeds: int | Iterable[int] | None = None,
    steps: int | Iterable[int] | None = None,
    store: str | Path | Store | None = None,
    recipe: Recipe | None = None,
    keep: Keep | None = None,
    batch: int = 1,
    on_step: OnStep | None = None,
    progress: bool | None = None,
    **axes: Unpack[FurtherAxes],
) -> Sweep:
    """Sample a grid of images: prompts x seeds x steps and any further field of a recipe.

    Ctrl-C returns the finished cells in an unfinished Sweep; with a store, the same call later samples only the rest.

    Processes that call this with the same grid and store divide the work: no evaluation is made twice, and each of them
    returns the complete grid. `fluxnb sweep --help` describes several GPUs and several machines.

    Main arguments:
        flux: from `fnb.load`, a model or an endpoint. An endpoint draws one paid picture a cell; what it does not honor
            is refused before the first request.
        prompts, seeds, steps: one value or several. Seeds and steps that are left out are those of `recipe`; without
            one, the seed is 0 and the steps are the model's default.
        store: a folder for the cells; None keeps them in memory only.
        axes: further recipe fields, one value or a list: `guidance=[1, 2.5]`, `sampler=["euler", "renoise"]`.

    Other arguments:
        recipe: the base recipe, whose fields the axes replace.
        keep: which tensors each trajectory retains; None retains no trajectory.
        batch: number of images per transformer call. At 1 every image has the bytes of the plain diffusers call. A
            larger batch is faster for small images or offloaded weights; sums are then taken in another order, which
            may change the last digit, and such cells have `exact=False`.
        on_step: called with each computed Step; returning `fnb.STOP` ends the sweep.
        progress: True shows a progress bar, False none; by default one appears if the rest is predicted to take more
            than 3 seconds.

    Raises:
        InputError: a grid that is not possible; raised before anything is computed or requested.
        RunError: the model or the endpoint failed. Once an endpoint has drawn a cell, it is a RemoteWarning instead,
            and the finished cells are returned in an unfinished Sweep.
        StorageError: the disk is full or not writable; finished cells are complete.

    Example:
        >>> grid = sweep(flux, prompts=["a fox"], seeds=range(4), steps=[1, 2, 3, 4])   # doctest: +SKIP
        >>> len(grid), grid.evaluations                                                  # doctest: +SKIP
        (16, 28)
    """
    request = request_of(
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
    if request.store is None and (count := launched().count) > 1:
        warn_caller(
            f"{count} processes were launched, and each samples this whole grid: without a store they share nothing; "
            'give store="pictures" in all of them',
            StoreWarning,
        )
    with progress_lock(), Progress(len(request.recipes), unit="cells", displayed=progress) as bar:
        return collect(request, on_cell=lambda cell: bar.update(), on_wait=bar.note)


def collect(request: Request, *, on_cell: Callable[[Cell], Any], on_wait: Callable[[str], None] | None = None) -> Sweep:
    """Sample the cells of a request, with a call of `on_cell` for each as it arrives, and return the grid."""
    flux, recipes, runner = request.flux, request.recipes, request.runner(background=True)
    started, finished = time.perf_counter(), True
    found: dict[ResolvedRecipe, Cell] = {}
    runner.on_wait = on_wait
    cells = runner.cells(recipes)
    try:
        for cell in cells:
            record_timing(flux, cell)
            found[cell.recipe] = cell
            on_cell(cell)
    except KeyboardInterrupt:
        release_progress_lock()  # `on_cell` may display a progress bar
        finished = False
    except RunError as problem:
        if not (found and is_paid(flux)):
            raise
        finished = False
        warn_caller(f"the sweep ended with an error, and returns the finished cells: {problem}", RemoteWarning)
    finally:
        cells.close()
    return Sweep(
        cells=tuple(found[recipe] for recipe in recipes if recipe in found),
        axes=request.axes.displayed,
        finished=finished and len(found) == len(recipes),
        seconds=time.perf_counter() - started,
        evaluations=runner.evaluations,
        encodes=runner.encodes,
        model=flux.model,
    )


@entry_point(*CHECKED, "on_step", accepts=FurtherAxes)
def stream(
    flux: Flux | Remote,
    *,
    prompts: str | Iterable[str],
    seeds: int | Iterable[int] | None = None,
    steps: int | Iterable[int] | None = None,
    store: str | Path | Store | None = None,
    recipe: Recipe | None = None,
    keep: Keep | None = None,
    batch: int = 1,
    on_step: OnStep | None = None,
    **axes: Unpack[FurtherAxes],
) -> Stream:
    """Sample the same grid as `sweep`, but yield each cell as it finishes.

    Takes the arguments of `sweep` except `progress`. Cells in the store are yielded first. Leaving the loop stops the
    sampling. `fnb.explore(fnb.stream(...))` displays the grid while it is sampled.

    Example:
        >>> for cell in stream(flux, prompts=["a fox"], seeds=range(4)):            # doctest: +SKIP
        ...     cell.image.show()
    """
    request = request_of(
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
    runner = request.runner(background=False)
    cells = recorded(flux, runner.cells(request.recipes))
    return Stream(cells, request.axes.displayed, flux.model, runner, owner=flux)


@entry_point(*CHECKED, "on_step", accepts=FurtherAxes, measure="measure=True")
def plan_sweep(
    flux: Flux | Remote,
    *,
    prompts: str | Iterable[str],
    seeds: int | Iterable[int] | None = None,
    steps: int | Iterable[int] | None = None,
    store: str | Path | Store | None = None,
    recipe: Recipe | None = None,
    keep: Keep | None = None,
    batch: int = 1,
    on_step: OnStep | None = None,
    measure: bool = False,
    **axes: Unpack[FurtherAxes],
) -> CostEstimate:
    """Estimate the cost of `sweep` with these arguments without sampling.

    Takes the arguments of `sweep`. Seconds are estimated from cells of the same size that this process or the store
    has timed on this machine, and are None without any.

    Arguments:
        on_step: accepted, so that the arguments of a sweep can be passed as they are, and not called.
        measure: True times one evaluation and one image if nothing has been timed yet.

    Example:
        >>> print(plan_sweep(flux, prompts=["a fox"], seeds=range(4), steps=[1, 2, 3, 4]))   # doctest: +SKIP
        16 cells, 16 to sample; 28 evaluations (12 shared), 1 prompts to encode; about 2.1 s; about 409.2 KiB
    """
    request = request_of(
        flux,
        prompts=prompts,
        seeds=seeds,
        steps=steps,
        store=store,
        recipe=recipe,
        keep=keep,
        batch=batch,
        on_step=on_step,
        measure=measure,
        **axes,
    )
    recipes, runner = request.recipes, request.runner(background=False)
    missing = [recipe for recipe in recipes if runner.stored(recipe) is None]
    cost = estimate_cost(flux, recipes, missing=missing, store=request.store, keep=request.keep)
    if measure and cost.seconds is None and isinstance(flux, Flux):
        _measure_sizes(flux, missing)
        cost = estimate_cost(flux, recipes, missing=missing, store=request.store, keep=request.keep)
    return cost


def _measure_sizes(flux: Flux, recipes: list[ResolvedRecipe]) -> None:
    for recipe in {(each.height, each.width): each for each in recipes}.values():
        measure(flux, recipe)


def request_of(
    flux: Handle,
    *,
    store: str | Path | Store | None = None,
    recipe: Recipe | None = None,
    keep: Keep | None = None,
    batch: Any = 1,
    on_step: OnStep | None = None,
    measure: bool = False,
    steps: Any = None,
    **axes: Any,
) -> Request:
    """The request of a grid from the arguments of `sweep`.

    Raises:
        InputError: a grid that is not possible.
    """
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MAX_BATCH:
        raise InputError(f"batch={shorten(batch)}", f"1 to {MAX_BATCH} images per call are possible", "try batch=16")

    unidentified = prepare(flux, keep=keep, batch=batch, on_step=on_step, measure=measure)
    if unidentified and store is not None:
        warn_caller(
            f"{unidentified[0]}: no key identifies its pictures, so they are computed and not stored", StoreWarning
        )
        store = None
    axes["steps"] = flux.defaults.steps if steps is None and recipe is None else steps

    def step_callback(step: Step, recipe: ResolvedRecipe) -> Any:
        return on_step(step) if on_step is not None else None

    return Request(
        flux=flux,
        axes=Axes.of(recipe, **axes),
        store=store if store is None or isinstance(store, Store) else Store(user_path(store)),
        keep=keep,
        batch=batch,
        on_step=None if on_step is None else step_callback,
    )
