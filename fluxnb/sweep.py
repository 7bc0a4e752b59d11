"""sweep(): a grid of pictures in which nothing is computed twice, and which survives being stopped.

Prompts are encoded once. Walks that start alike (same prompt, seed, size, guidance) share the evaluations that all of
them would make: for step counts that is the first, at sigma 1, so {1, 2, 3, 4} cost 7 evaluations and not 10. What a
store has is not made again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from fluxnb.axes import Axes
from fluxnb.errors import InputError, checks_itself, cut
from fluxnb.flow import share_prefixes
from fluxnb.pipeline import Encoded, Flux
from fluxnb.recipe import Recipe
from fluxnb.records import Cell, Keep, Sweep, Trajectory
from fluxnb.sampling import OnStep, take
from fluxnb.store import Store

__all__ = ["Stream", "Work", "plan_sweep", "stream", "sweep"]

PATIENCE = 0.05  # seconds between looks at a cell that another process is making


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a sweep will cost, before it starts.

    Arguments:
        cells: pictures asked for.
        missing: of those, not in the store.
        evaluations: of the transformer, with sharing; a guided step counts twice.
        alone: evaluations without sharing.
        encodes: prompts to encode.
        megabytes: of disk, roughly, for the missing pictures.
    """

    cells: int
    missing: int
    evaluations: int
    alone: int
    encodes: int
    megabytes: float


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


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Cells that start from the same noise and prompt, in order."""

    recipes: tuple[Recipe, ...]
    schedules: tuple[tuple[float, ...], ...]


@checks_itself
def sweep(
    flux: Flux,
    *,
    prompts: str | Iterable[str],
    seeds: int | Iterable[int] = 0,
    steps: int | Iterable[int] = 4,
    store: str | Path | Store | None = None,
    recipe: Recipe | None = None,
    keep: Keep | None = None,
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
        on_step: called with each Step that is computed; returning `fnb.STOP` ends the sweep.
        progress: show a bar.

    Example:
        >>> grid = sweep(flux, prompts=["a fox"], seeds=range(4), steps=[1, 2, 3, 4])   # doctest: +SKIP
        >>> len(grid), grid.evaluations                                                  # doctest: +SKIP
        (16, 28)
    """
    grid = _axes(flux, prompts, seeds, steps, recipe, axes)
    counted = _Counted()
    started, finished = time.perf_counter(), True
    made: dict[str, Cell] = {}
    bar = tqdm(total=len(grid), disable=not progress, unit="cell", leave=False)
    cells = _stream(flux, grid, _store(store), keep, on_step, counted)
    try:
        for cell in cells:
            made[cell.key] = cell
            bar.update()
    except KeyboardInterrupt:
        finished = False
    finally:
        cells.close()
        bar.close()
    keys = [_key(flux, each) for each in _resolved(flux, grid)]
    return Sweep(
        cells=tuple(made[key] for key in keys if key in made),
        axes=_shown(grid),
        finished=finished and all(key in made for key in keys),
        seconds=time.perf_counter() - started,
        evaluations=counted.evaluations,
        encodes=counted.encodes,
        model=flux.model,
    )


@checks_itself
def stream(
    flux: Flux,
    *,
    prompts: str | Iterable[str],
    seeds: int | Iterable[int] = 0,
    steps: int | Iterable[int] = 4,
    store: str | Path | Store | None = None,
    recipe: Recipe | None = None,
    keep: Keep | None = None,
    on_step: OnStep | None = None,
    **axes: Any,
) -> Stream:
    """The same grid as `sweep`, cell by cell as they finish; leaving the loop stops the work.

    Cells that the store has come first. `fnb.explore(fnb.stream(...))` shows the grid while it fills.
    """
    grid = _axes(flux, prompts, seeds, steps, recipe, axes)
    return Stream(_stream(flux, grid, _store(store), keep, on_step, _Counted()), _shown(grid), flux.model)


@checks_itself
def plan_sweep(
    flux: Flux,
    *,
    prompts: str | Iterable[str],
    seeds: int | Iterable[int] = 0,
    steps: int | Iterable[int] = 4,
    store: str | Path | Store | None = None,
    recipe: Recipe | None = None,
    **axes: Any,
) -> Work:
    """What `sweep` with these arguments would cost; nothing is run."""
    recipes = _resolved(flux, _axes(flux, prompts, seeds, steps, recipe, axes))
    where = _store(store)
    missing = [each for each in recipes if where is None or where.get(_key(flux, each), each) is None]
    evaluations = 0
    for group in _groups(flux, missing):
        saved = sum(count for _, count in share_prefixes(group.schedules))
        per_step = 2 if flux._two_evaluations(group.recipes[0]) else 1
        evaluations += per_step * (sum(len(levels) - 1 for levels in group.schedules) - saved)
    alone = sum(each.steps * (2 if flux._two_evaluations(each) else 1) for each in recipes)
    pixels = sum((each.height or 0) * (each.width or 0) for each in missing)
    return Work(
        cells=len(recipes),
        missing=len(missing),
        evaluations=evaluations,
        alone=alone,
        encodes=len({_text_of(each) for each in missing}),
        megabytes=1.6 * pixels / 1e6,  # a photograph-like PNG has about 1.6 bytes a pixel
    )


@dataclass
class _Counted:
    evaluations: int = 0
    encodes: int = 0


def _stream(
    flux: Flux, grid: Axes, store: Store | None, keep: Keep | None, on_step: OnStep | None, counted: _Counted
) -> Generator[Cell, None, None]:
    recipes = _resolved(flux, grid)
    missing: list[Recipe] = []
    for recipe in recipes:
        key = _key(flux, recipe)
        found = store.get(key, recipe, trajectory=keep is not None) if store is not None else None
        if found is not None:
            yield found
        else:
            missing.append(recipe)
    later: list[Recipe] = []
    prompt: tuple[Any, ...] | None = None
    encoded: Encoded | None = None
    for group in _groups(flux, missing):
        wanted = _text_of(group.recipes[0])
        walks: list[Trajectory] = []
        for recipe, levels in zip(group.recipes, group.schedules, strict=True):
            key = _key(flux, recipe)
            if store is None:
                if prompt != wanted or encoded is None:
                    prompt, encoded = wanted, flux.encode(recipe)
                    counted.encodes += 1
                yield _make(flux, recipe, levels, encoded, walks, keep, on_step, counted)
                continue
            with store.claim(key) as mine:
                if not mine:
                    later.append(recipe)
                    continue
                # Between the first look and the claim another process may have finished it.
                cell = store.get(key, recipe, trajectory=keep is not None)
                if cell is None:
                    if prompt != wanted or encoded is None:
                        prompt, encoded = wanted, flux.encode(recipe)
                        counted.encodes += 1
                    cell = _make(flux, recipe, levels, encoded, walks, keep, on_step, counted, store)
            yield cell
    for recipe in later:  # made by other processes: wait, and take over from one that died
        yield _await(flux, recipe, store, keep, on_step, counted)


def _await(
    flux: Flux, recipe: Recipe, store: Store | None, keep: Keep | None, on_step: OnStep | None, counted: _Counted
) -> Cell:
    key, levels = _key(flux, recipe), flux.schedule(recipe)
    while True:
        if store is not None:
            if (found := store.get(key, recipe, trajectory=keep is not None)) is not None:
                return found
            with store.claim(key) as mine:
                if mine and store.get(key, recipe, trajectory=keep is not None) is None:
                    counted.encodes += 1
                    return _make(flux, recipe, levels, flux.encode(recipe), [], keep, on_step, counted, store)
        time.sleep(PATIENCE)


def _make(
    flux: Flux,
    recipe: Recipe,
    levels: tuple[float, ...],
    encoded: Encoded,
    walks: list[Trajectory],
    keep: Keep | None,
    on_step: OnStep | None,
    counted: _Counted,
    store: Store | None = None,
) -> Cell:
    """One cell, going on from the walk of the same group that has the longest beginning in common."""
    key = _key(flux, recipe)

    def alive(step: Any) -> Any:
        if store is not None:
            store.touch(key)
        return on_step(step) if on_step is not None else None

    shared = share_prefixes([walk.sigmas for walk in walks] + [levels])
    donor, count = shared[-1]
    known = walks[donor].steps[:count] if count else ()
    watched = alive if on_step is not None or (store is not None and _slow(recipe)) else None
    # Everything, since later cells may go on from here; what is not to be kept goes when the cell is made.
    whole = Keep() if keep is None else Keep(attention=keep.attention, heads=keep.heads)
    walk = take(flux, recipe, encoded, keep=whole, on_step=watched, known=known)
    counted.evaluations += (len(walk.steps) - count) * (2 if flux._two_evaluations(recipe) else 1)
    if not walk.finished:
        raise KeyboardInterrupt  # half a walk is no cell; the sweep ends here and says so
    walks.append(walk)
    kept = _thinned(walk, keep) if keep is not None else None
    seconds = {name: walk.seconds[name] for name in ("denoise", "decode")}
    path = None
    if store is not None and walk.image is not None:
        path = store.put(
            key, recipe, walk.image, seconds=seconds, versions=flux.versions, exact=recipe.exact, trajectory=kept
        )
    return Cell(
        recipe=recipe,
        key=key,
        path=path,
        exact=recipe.exact,
        evaluations=len(walk.steps) - count,
        seconds=seconds,
        trajectory=kept,
        picture=walk.image,
    )


def _thinned(walk: Trajectory, keep: Keep) -> Trajectory:
    return dataclasses.replace(walk, steps=tuple(step.thinned(keep, len(walk.steps)) for step in walk.steps))


def _slow(recipe: Recipe) -> bool:
    return (recipe.height or 0) * (recipe.width or 0) * recipe.steps > 10 * 256 * 256


@checks_itself
def _axes(
    flux: Flux,
    prompts: str | Iterable[str],
    seeds: int | Iterable[int],
    steps: int | Iterable[int],
    recipe: Recipe | None,
    further: dict[str, Any],
) -> Axes:
    if not isinstance(flux, Flux):
        raise InputError(
            f"sweep({cut(type(flux).__name__)})", "a loaded model comes first", 'try flux = fnb.load("pocket")'
        )
    words = [prompts] if isinstance(prompts, str) else list(prompts)
    if not words:
        raise InputError("prompts=[]", "at least one prompt is needed", 'try prompts=["a fox in the snow"]')
    values: dict[str, list[Any]] = {"prompt": words, "seed": _several(seeds), "steps": _several(steps)}
    for name, given in further.items():
        if name in ("prompt", "seed"):
            raise InputError(f"{name}={cut(given)}", f"the axis is called {name}s", f"say {name}s=...")
        # Own sigmas are a list already, so an axis of them is a list of lists.
        one = given is not None and name == "sigmas" and all(isinstance(level, int | float) for level in given)
        values[name] = [tuple(given)] if one else _several(given)
    if "sigmas" in values:
        values.pop("steps")  # each list of sigmas has its own count
    return Axes(recipe or Recipe(prompt=words[0]), **values)


def _shown(grid: Axes) -> dict[str, tuple[Any, ...]]:
    """The axes as records and views have them: the three that every grid has, and those with several values."""
    return {n: values for n, values in grid.values.items() if n in ("prompt", "seed", "steps") or len(values) > 1}


def _several(given: Any) -> list[Any]:
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        return list(given)
    return [given]


def _store(store: str | Path | Store | None) -> Store | None:
    return store if store is None or isinstance(store, Store) else Store(Path(store))


def _resolved(flux: Flux, grid: Axes) -> list[Recipe]:
    """The recipes as this model takes them, each once; two that the defaults make equal are one."""
    return list(dict.fromkeys(flux.resolve(recipe) for recipe in grid))


def _key(flux: Flux, recipe: Recipe) -> str:
    return recipe.key(flux.versions)


def _text_of(recipe: Recipe) -> tuple[Any, ...]:
    """What decides the encoded prompt; guidance decides whether there is a negative one."""
    guided = recipe.guidance is not None and recipe.guidance > 1.0
    return (recipe.prompt, recipe.negative if guided else None, recipe.max_sequence_length, guided)


def _groups(flux: Flux, recipes: Sequence[Recipe]) -> list[_Group]:
    """Recipes that differ in nothing but the way they go, together; prompts stay together too."""
    groups: dict[Recipe, list[Recipe]] = {}
    order = {text: place for place, text in enumerate(dict.fromkeys(_text_of(each) for each in recipes))}
    for recipe in sorted(recipes, key=lambda each: order[_text_of(each)]):
        start = dataclasses.replace(recipe, steps=4, sigmas=None, shift=None)
        groups.setdefault(start, []).append(recipe)
    return [
        _Group(recipes=tuple(each), schedules=tuple(flux.schedule(recipe) for recipe in each))
        for each in groups.values()
    ]
