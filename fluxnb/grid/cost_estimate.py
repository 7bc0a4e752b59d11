"""What a grid will cost before it starts: cells, evaluations, seconds and disk.

Seconds are only said where they have been seen: in this process, or in the store's own cells of the same size, model
and machine. Otherwise they are unknown, and `measure` makes one evaluation and one picture to know.
"""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import statistics
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fluxnb.flow import share_prefixes
from fluxnb.grid.runner import starts, text_of
from fluxnb.grid.store import Store
from fluxnb.pipeline.flux import Flux
from fluxnb.records import Cell, Keep
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.sampling.sampler import sample
from fluxnb.units import byte_size, duration

__all__ = ["Pace", "Work", "measure", "pace_of", "remember", "work_of"]

BYTES_A_PIXEL = 1.6  # of a photograph-like PNG at the level it is written with
LOOKED_AT = 64  # cells of a store that are read for their timings


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds for a prompt, an evaluation and a picture of one size on this machine."""

    encode: float
    evaluation: float
    decode: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a sweep will cost, before it starts.

    Arguments:
        cells: pictures asked for.
        missing: of those, not in the store.
        evaluations: of the transformer, with sharing; a guided step counts twice.
        alone: evaluations of all cells without sharing and without a store.
        shared: evaluations that sharing saves among the missing cells.
        encodes: prompts to encode.
        seconds: roughly, None where nothing of this size has been timed on this machine yet.
        megabytes: of disk, roughly, for the missing cells.
        free_megabytes: that the store's disk has, None without a store.
    """

    cells: int
    missing: int
    evaluations: int
    alone: int
    shared: int
    encodes: int
    seconds: float | None
    megabytes: float
    free_megabytes: float | None = None

    def __str__(self) -> str:
        took = "unknown time (nothing timed yet; measure=True times one evaluation)"
        if self.seconds is not None:
            took = f"about {duration(self.seconds)}"
        parts = [
            f"{self.cells} cells, {self.missing} to make",
            f"{self.evaluations} evaluations ({self.shared} shared), {self.encodes} prompts to encode",
            took,
            f"about {byte_size(self.megabytes * 1e6)}",
        ]
        if self.free_megabytes is not None and self.megabytes > self.free_megabytes:
            parts.append(f"MORE than the {byte_size(self.free_megabytes * 1e6)} that are free")
        return "; ".join(parts)


def work_of(
    flux: Flux,
    recipes: Sequence[ResolvedRecipe],
    missing: Sequence[ResolvedRecipe],
    store: Store | None,
    keep: Keep | None,
) -> Work:
    """The cost of resolved recipes, of which some are missing."""
    evaluations, saved, seconds = 0, 0, 0.0
    paces: dict[tuple[Any, ...], Pace | None] = {}
    for start in starts(missing):
        schedules = [flux.schedule(recipe) for recipe in start.recipes]
        first = start.recipes[0]
        shared = flux.evaluations_of(first, sum(count for _, count in share_prefixes(schedules)))
        needed = sum(flux.evaluations_of(recipe) for recipe in start.recipes) - shared
        evaluations, saved = evaluations + needed, saved + shared
        if (kind := _kind(first)) not in paces:
            paces[kind] = pace_of(flux, first, store)
        pace = paces[kind]
        seconds += math.nan if pace is None else needed * pace.evaluation + len(schedules) * pace.decode
    texts = {text_of(each) for each in missing}
    prompt = max((pace.encode for pace in paces.values() if pace is not None), default=0.0)
    seconds += len(texts) * prompt
    return Work(
        cells=len(recipes),
        missing=len(missing),
        evaluations=evaluations,
        alone=sum(flux.evaluations_of(each) for each in recipes),
        shared=saved,
        encodes=len(texts),
        seconds=None if math.isnan(seconds) else seconds,
        megabytes=sum(_bytes(flux, each, keep) for each in missing) / 1e6,
        free_megabytes=None if store is None else shutil.disk_usage(store.folder).free / 1e6,
    )


# ------------------------------------------------------------------------------------------------------------- pace
_SEEN: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], Pace]] = weakref.WeakKeyDictionary()


def remember(flux: Flux, cell: Cell) -> None:
    """Learn from a cell that was made."""
    if cell.made and (pace := _read(flux, cell.recipe, cell.seconds)) is not None:
        _SEEN.setdefault(flux.pipe, {})[_kind(cell.recipe)] = pace


def pace_of(flux: Flux, recipe: ResolvedRecipe, store: Store | None) -> Pace | None:
    """What this process has seen for pictures of this size, else what the store tells, else None."""
    seen = _SEEN.get(flux.pipe, {}).get(_kind(recipe))
    return seen if seen is not None or store is None else _told(flux, recipe, store)


def measure(flux: Flux, recipe: ResolvedRecipe) -> Pace:
    """Encode once, make one evaluation and decode one picture, each timed; remembered from then on."""
    once = dataclasses.replace(recipe, steps=1, sigmas=None)
    sample(flux, once, flux.encode(once), keep=Keep.nothing())  # the first makes ready what is made ready once
    started = time.perf_counter()
    encoded = flux.encode(once)
    spent = time.perf_counter() - started
    trajectory = sample(flux, once, encoded, keep=Keep.nothing())
    pace = Pace(
        encode=spent,
        evaluation=trajectory.seconds["denoise"] / flux.evaluations_of(once),
        decode=trajectory.seconds["decode"],
    )
    _SEEN.setdefault(flux.pipe, {})[_kind(recipe)] = pace
    return pace


def _told(flux: Flux, recipe: ResolvedRecipe, store: Store) -> Pace | None:
    found: list[Pace] = []
    for path in islice(store.folder.glob("*/*.json"), LOOKED_AT):
        try:
            facts = json.loads(path.read_bytes())
            other = ResolvedRecipe.from_json(facts["recipe"])
            same = facts["versions"] == flux.versions and _kind(other) == _kind(recipe)
            pace = _read(flux, other, {name: float(value) for name, value in facts["seconds"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not whole, or not ours
        if same and pace is not None:
            found.append(pace)
    if not found:
        return None
    return Pace(
        encode=statistics.median(pace.encode for pace in found),
        evaluation=statistics.median(pace.evaluation for pace in found),
        decode=statistics.median(pace.decode for pace in found),
    )


def _read(flux: Flux, recipe: ResolvedRecipe, seconds: Any) -> Pace | None:
    spent = [seconds.get(name, 0.0) for name in ("encode", "denoise", "decode")]
    if not all(math.isfinite(value) and value >= 0 for value in spent) or not spent[1]:
        return None
    return Pace(encode=spent[0], evaluation=spent[1] / flux.evaluations_of(recipe), decode=spent[2])


def _kind(recipe: ResolvedRecipe) -> tuple[Any, ...]:
    """What decides how long an evaluation takes."""
    return (recipe.model, recipe.revision, recipe.dtype, recipe.height, recipe.width, recipe.max_sequence_length)


def _bytes(flux: Flux, recipe: ResolvedRecipe, keep: Keep | None) -> float:
    height, width = recipe.height, recipe.width
    wide = 4 if flux.dtype == "float32" else 2
    return BYTES_A_PIXEL * height * width + (
        0 if keep is None else keep.nbytes(height, width, recipe.steps, bytes_per_number=wide)
    )
