"""Cost of a grid before it starts: cells, evaluations, seconds and disk space.

Seconds are estimated only from timings: those of this process, or those of cells in the store with the same size, model
and machine. Without any, the duration is unknown until `measure` times one evaluation and one image.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil
import statistics
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from fluxnb.flow import share_prefixes
from fluxnb.grid.runner import prompt_key, shared_prefixes
from fluxnb.grid.store import LONGEST_METADATA, Store
from fluxnb.io.files import read_bytes
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.state import state_of
from fluxnb.records import Cell, Keep
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.remote.handle import Remote
from fluxnb.sampling.sampler import sample
from fluxnb.units import byte_size, duration

__all__ = ["CostEstimate", "Timing", "estimate_cost", "measure", "record_timing", "recorded", "timing_of"]

PNG_BYTES_PER_PIXEL = 1.6  # of a photograph
MAX_STORED_TIMINGS = 64  # cells of a store that are read for their timings


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds for encoding a prompt, one evaluation and decoding an image, for one size on this machine."""

    encode: float
    evaluation: float
    decode: float


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What a sweep will cost.

    Arguments:
        cells: requested images.
        missing: requested images that are not in the store.
        evaluations: transformer evaluations, with sharing; a step under true CFG counts twice.
        unshared_evaluations: evaluations of all cells without sharing and without a store.
        saved_evaluations: evaluations that sharing saves among the missing cells.
        encodes: prompts to encode.
        seconds: estimated duration, None if nothing of this size has been timed on this machine.
        megabytes: estimated disk space of the missing cells, in 10^6 bytes.
        free_megabytes: free space on the disk of the store, None without a store.
        provider: of the endpoint to which each missing cell is a paid request, "" for a model on this machine.
    """

    cells: int
    missing: int
    evaluations: int
    unshared_evaluations: int
    saved_evaluations: int
    encodes: int
    seconds: float | None
    megabytes: float
    free_megabytes: float | None = None
    provider: str = ""

    def __str__(self) -> str:
        time_text = "unknown time (nothing timed yet; measure=True times one evaluation)"
        if self.seconds is not None:
            time_text = f"about {duration(self.seconds)}"
        computed = [
            f"{self.cells} cells, {self.missing} to sample",
            f"{self.evaluations} evaluations ({self.saved_evaluations} shared), {self.encodes} prompts to encode",
            time_text,
        ]
        requested = [f"{self.cells} cells, {self.missing} paid requests to {self.provider}"]
        parts = [
            *(requested if self.provider else computed),
            f"about {byte_size(self.megabytes * 1e6)}",
        ]
        if self.free_megabytes is not None and self.megabytes > self.free_megabytes:
            parts.append(f"MORE than the {byte_size(self.free_megabytes * 1e6)} that are free")
        return "; ".join(parts)


def estimate_cost(
    flux: Flux | Remote,
    recipes: Sequence[ResolvedRecipe],
    *,
    missing: Sequence[ResolvedRecipe],
    store: Store | None,
    keep: Keep | None,
) -> CostEstimate:
    """Estimate the cost of resolved recipes, of which some are missing in the store."""
    free = None if store is None else shutil.disk_usage(store.folder).free / 1e6
    if isinstance(flux, Remote):
        return CostEstimate(
            cells=len(recipes),
            missing=len(missing),
            evaluations=0,
            unshared_evaluations=0,
            saved_evaluations=0,
            encodes=0,
            seconds=None,
            megabytes=sum(PNG_BYTES_PER_PIXEL * each.height * each.width for each in missing) / 1e6,
            free_megabytes=free,
            provider=flux.provider,
        )
    evaluations, saved, seconds = 0, 0, 0.0
    timings: dict[tuple[Any, ...], Timing | None] = {}
    for group in shared_prefixes(missing):
        schedules = [flux.schedule(recipe) for recipe in group.recipes]
        first = group.recipes[0]
        counts = [count for _, count in share_prefixes(schedules)]
        exact = [flux.can_continue(recipe, count) for recipe, count in zip(group.recipes, counts, strict=True)]
        shared = flux.evaluations_of(first, sum(itertools.compress(counts, exact)))
        needed = sum(flux.evaluations_of(recipe) for recipe in group.recipes) - shared
        evaluations, saved = evaluations + needed, saved + shared
        if (key := _timing_key(first)) not in timings:
            timings[key] = timing_of(flux, first, store)
        timing = timings[key]
        seconds += math.nan if timing is None else needed * timing.evaluation + len(schedules) * timing.decode
    prompts = {prompt_key(each) for each in missing}
    seconds += len(prompts) * max((timing.encode for timing in timings.values() if timing is not None), default=0.0)
    return CostEstimate(
        cells=len(recipes),
        missing=len(missing),
        evaluations=evaluations,
        unshared_evaluations=sum(flux.evaluations_of(each) for each in recipes),
        saved_evaluations=saved,
        encodes=len(prompts),
        seconds=None if math.isnan(seconds) else seconds,
        megabytes=sum(_bytes(flux, each, keep) for each in missing) / 1e6,
        free_megabytes=free,
    )


# -------------------------------------------------------------------------------------------------------------- timings
def recorded(flux: Flux | Remote, cells: Generator[Cell, None, None]) -> Generator[Cell, None, None]:
    """Yield the same cells and record their timings. A stop ends the generator instead of raising."""
    try:
        for cell in cells:
            record_timing(flux, cell)
            yield cell
    except KeyboardInterrupt:
        return
    finally:
        cells.close()


def record_timing(flux: Flux | Remote, cell: Cell) -> None:
    """Record the timing of a cell for later estimates, if the cell has been sampled and not read from a store."""
    if isinstance(flux, Flux) and cell.made and (timing := _timing_from(flux, cell.recipe, cell.seconds)) is not None:
        state_of(flux.pipe).timings[_timing_key(cell.recipe)] = timing


def timing_of(flux: Flux, recipe: ResolvedRecipe, store: Store | None) -> Timing | None:
    """The timing for images of this size from this process, else from the store, else None."""
    known = state_of(flux.pipe).timings.get(_timing_key(recipe))
    return known if known is not None or store is None else _stored_timing(flux, recipe, store)


def measure(flux: Flux, recipe: ResolvedRecipe) -> Timing:
    """Time one prompt, one evaluation and one decoded image, and record the result."""
    one_step = dataclasses.replace(recipe, steps=1, sigmas=None)
    sample(flux, one_step, flux.encode(one_step), keep=Keep.nothing())  # warm-up
    started = time.perf_counter()
    encoded = flux.encode(one_step)
    encode_seconds = time.perf_counter() - started
    trajectory = sample(flux, one_step, encoded, keep=Keep.nothing())
    timing = Timing(
        encode=encode_seconds,
        evaluation=trajectory.seconds["denoise"] / flux.evaluations_of(one_step),
        decode=trajectory.seconds["decode"],
    )
    state_of(flux.pipe).timings[_timing_key(recipe)] = timing
    return timing


def _stored_timing(flux: Flux, recipe: ResolvedRecipe, store: Store) -> Timing | None:
    """The median timing of stored cells that are comparable."""
    found: list[Timing] = []
    for path in islice(store.folder.glob("*/*.json"), MAX_STORED_TIMINGS):
        try:
            metadata = json.loads(read_bytes(path, at_most=LONGEST_METADATA))
            stored = ResolvedRecipe.from_json(metadata["recipe"])
            comparable = metadata["versions"] == flux.versions and _timing_key(stored) == _timing_key(recipe)
            seconds = {name: float(value) for name, value in metadata["seconds"].items()}
            timing = _timing_from(flux, stored, seconds)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            continue  # incomplete or of another format
        if comparable and timing is not None:
            found.append(timing)
    if not found:
        return None
    return Timing(
        encode=statistics.median(timing.encode for timing in found),
        evaluation=statistics.median(timing.evaluation for timing in found),
        decode=statistics.median(timing.decode for timing in found),
    )


def _timing_from(flux: Flux, recipe: ResolvedRecipe, seconds: Mapping[str, float]) -> Timing | None:
    encode, denoise, decode = (seconds.get(name, 0.0) for name in ("encode", "denoise", "decode"))
    if not all(math.isfinite(value) and value >= 0 for value in (encode, denoise, decode)) or not denoise:
        return None
    return Timing(encode=encode, evaluation=denoise / flux.evaluations_of(recipe), decode=decode)


def _timing_key(recipe: ResolvedRecipe) -> tuple[Any, ...]:
    """The fields that determine the duration of an evaluation."""
    return (recipe.model, recipe.revision, recipe.dtype, recipe.height, recipe.width, recipe.max_sequence_length)


def _bytes(flux: Flux, recipe: ResolvedRecipe, keep: Keep | None) -> float:
    height, width = recipe.height, recipe.width
    png = PNG_BYTES_PER_PIXEL * height * width
    if keep is None:
        return png
    bytes_per_number = 4 if "float32" in (flux.dtype, flux.family.state_dtype) else 2
    return png + keep.nbytes(
        height, width, recipe.evaluations, bytes_per_number=bytes_per_number, geometry=flux.family.geometry
    )
