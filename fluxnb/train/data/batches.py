"""Scenes by the million: drawn, laid out and put into tokens in worker processes, rendered on the device that trains.

Chunk `n` of a data set depends on the seed and on `n` alone, so the same data comes out whatever the
number of workers. Chunks come in order as they are done, so that the device renders while the workers draw.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from fluxnb.planning.hardware import available_cores
from fluxnb.train.config import Sizes
from fluxnb.train.data.render import Layout, lay_out
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.data.world import draw_captioned

CHUNK = 4096
_tokens = functools.cache(Tokens.of)  # once in each process


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Scenes as they are rendered, and their captions as both text encoders take them, short integers (N, length)."""

    layout: Layout
    clip_ids: Tensor
    t5_ids: Tensor

    def __len__(self) -> int:
        return len(self.layout)


def draw_chunks(
    count: int, seed: int, sizes: Sizes, *, held_out: bool | None = False, workers: int | None = None
) -> Iterator[Chunk]:
    """`count` scenes with their captions in tokens, a chunk at a time; `workers` unsaid is one for each core."""
    for layout, ids in _spread(_worded, [(*job, held_out, sizes) for job in _split(count, seed)], workers):
        yield Chunk(_layout(layout), *map(torch.from_numpy, ids))


def draw_layouts(
    count: int, seed: int, *, held_out: bool | None = False, workers: int | None = None
) -> tuple[Layout, list[str]]:
    """`count` scenes as one `Layout` and their captions."""
    parts = list(_spread(_said, [(*job, held_out) for job in _split(count, seed)], workers))
    return Layout.cat([_layout(layout) for layout, _ in parts]), [c for _, captions in parts for c in captions]


def batches(count: int, size: int, generator: torch.Generator, device: torch.device) -> Iterator[Tensor]:
    """Row numbers for ever: each epoch a new order, the last odd rows left out."""
    while True:
        order = torch.randperm(count, generator=generator, device=device)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def workers_here() -> int:
    """As many as this process may use cores; several ranks of one machine share them."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _split(count: int, seed: int) -> list[tuple[int, int, int]]:
    """Seed, number and size of every chunk."""
    return [(seed, i, min(CHUNK, count - i * CHUNK)) for i in range(-(-count // CHUNK))]


def _spread(work: Callable[..., Any], jobs: list[tuple[Any, ...]], workers: int | None) -> Iterator[Any]:
    """`work(*job)` of every job, in order: here for one job or one worker, else in processes."""
    many = min(len(jobs), workers or workers_here())
    if many == 1:  # starting a process takes longer than a chunk
        yield from itertools.starmap(work, jobs)
        return
    spawned = get_context("spawn")  # a fork of a process that has a GPU or threads is not safe
    with ProcessPoolExecutor(many, mp_context=spawned, initializer=_one_thread) as pool:
        yield from pool.map(work, *zip(*jobs, strict=True))


def _one_thread() -> None:
    """A worker is one of as many as there are cores; threads of its own would only stand in the others' way."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _said(seed: int, index: int, count: int, held_out: bool | None) -> tuple[list[Any], list[str]]:
    """A chunk as arrays and captions. Arrays: tensors would cross between processes as files, one each."""
    rng = random.Random(f"{seed}/{index}")
    scenes, captions = zip(*draw_captioned(rng, count, held_out=held_out), strict=True)
    layout = lay_out(scenes, rng)
    return [getattr(layout, field.name).numpy() for field in dataclasses.fields(Layout)], list(captions)


def _worded(seed: int, index: int, count: int, held_out: bool | None, sizes: Sizes) -> tuple[list[Any], list[Any]]:
    """A chunk as arrays, its captions in tokens."""
    layout, captions = _said(seed, index, count, held_out)
    return layout, [ids.short().numpy() for ids in _tokens(sizes)(captions)]


def _layout(arrays: list[Any]) -> Layout:
    return Layout(*map(torch.from_numpy, arrays))
