"""Datasets of random scenes, prepared in worker processes and rendered on the training device.

Chunk `n` of a dataset depends only on the seed and on `n`, so the data are the same for any number of workers. Chunks
are yielded in order while the workers prepare the next ones.
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

CHUNK = 4096  # scenes
_tokens = functools.cache(Tokens.of)  # once per process


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Layouts of scenes, and the token ids of their captions for both text encoders, int16 (N, length)."""

    layout: Layout
    clip_ids: Tensor
    t5_ids: Tensor

    def __len__(self) -> int:
        return len(self.layout)


def draw_chunks(
    count: int, seed: int, sizes: Sizes, *, held_out: bool | None = False, workers: int | None = None
) -> Iterator[Chunk]:
    """Yield `count` random scenes with tokenized captions in chunks.

    Args:
        count: number of scenes.
        seed: of the dataset.
        sizes: for the length of the tokenized captions.
        held_out: which combinations are allowed: False excludes held-out ones, True requires one, None allows all.
        workers: number of processes; None is one per core.
    """
    for layout, ids in _map(_tokenized_chunk, [(*job, held_out, sizes) for job in _jobs(count, seed)], workers):
        yield Chunk(_as_layout(layout), *map(torch.from_numpy, ids))


def draw_layouts(
    count: int, seed: int, *, held_out: bool | None = False, workers: int | None = None
) -> tuple[Layout, list[str]]:
    """`count` random scenes as one `Layout`, and their captions; arguments as in `draw_chunks`."""
    parts = list(_map(_chunk, [(*job, held_out) for job in _jobs(count, seed)], workers))
    return Layout.cat([_as_layout(layout) for layout, _ in parts]), [c for _, captions in parts for c in captions]


def batches(count: int, size: int, generator: torch.Generator, device: torch.device) -> Iterator[Tensor]:
    """Endless batches of row indices (size,); each epoch is a new permutation without its last partial batch."""
    while True:
        order = torch.randperm(count, generator=generator, device=device)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def default_workers() -> int:
    """One worker per available core; the ranks of a machine share its cores."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _jobs(count: int, seed: int) -> list[tuple[int, int, int]]:
    """Seed, index and size of each chunk."""
    return [(seed, i, min(CHUNK, count - i * CHUNK)) for i in range(-(-count // CHUNK))]


def _map(work: Callable[..., Any], jobs: list[tuple[Any, ...]], workers: int | None) -> Iterator[Any]:
    """Yield `work(*job)` for each job in order; in this process for one job or one worker."""
    processes = min(len(jobs), workers or default_workers())
    if processes == 1:  # starting a process takes longer than a chunk
        yield from itertools.starmap(work, jobs)
        return
    spawn = get_context("spawn")  # forking a process with a GPU context or threads is unsafe
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_use_one_thread) as pool:
        yield from pool.map(work, *zip(*jobs, strict=True))


def _use_one_thread() -> None:
    """Disable threads in a worker: there is already one worker per core."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _chunk(seed: int, index: int, count: int, held_out: bool | None) -> tuple[list[Any], list[str]]:
    """A chunk's layout as arrays, and its captions. Tensors would be passed between processes as one file each."""
    rng = random.Random(f"{seed}/{index}")
    scenes, captions = zip(*draw_captioned(rng, count, held_out=held_out), strict=True)
    layout = lay_out(scenes, rng)
    return [getattr(layout, field.name).numpy() for field in dataclasses.fields(Layout)], list(captions)


def _tokenized_chunk(
    seed: int, index: int, count: int, held_out: bool | None, sizes: Sizes
) -> tuple[list[Any], list[Any]]:
    """A chunk's layout and its tokenized captions, as arrays."""
    layout, captions = _chunk(seed, index, count, held_out)
    return layout, [ids.short().numpy() for ids in _tokens(sizes)(captions)]


def _as_layout(arrays: list[Any]) -> Layout:
    return Layout(*map(torch.from_numpy, arrays))
