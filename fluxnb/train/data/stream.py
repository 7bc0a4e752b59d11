"""Millions of scenes: worker processes sample, lay out and tokenize them; the training device renders them.

Chunk `n` of a dataset depends only on the seed, the shape and `n`, so the data are the same for any number of workers.
Chunks are yielded in order, each as soon as it is complete, so that rendering overlaps with sampling.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor

from fluxnb.planning.hardware import available_cores
from fluxnb.train.data import captions, scenes
from fluxnb.train.data.layouts import Layout, Shape, lay_out
from fluxnb.train.data.vocabulary import Tokenizers

CHUNK = 2048
_tokenizers = functools.cache(Tokenizers)  # created once per process


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Layouts of scenes of one shape, and the token ids of their captions as 16-bit integers, (N, length) each."""

    shape: Shape
    layout: Layout
    clip_ids: Tensor
    t5_ids: Tensor

    def __len__(self) -> int:
        return len(self.layout)


def draw_chunks(
    counts: Iterable[tuple[Shape, int]], seed: int, *, held_out: bool | None = False, workers: int = 0
) -> Iterator[Chunk]:
    """Sample scenes in chunks of at most `CHUNK`. The worker processes begin at once, before the first chunk is used.

    Arguments:
        counts: shapes with their number of scenes.
        seed: of the dataset.
        held_out: as in `scenes.partial_scene`.
        workers: number of processes; 0 is one for each core of this rank.
    """
    jobs = [
        (shape, seed, n, min(CHUNK, count - n * CHUNK), held_out)
        for shape, count in counts
        for n in range(-(-count // CHUNK))
    ]
    many = min(len(jobs), workers or cores_per_rank())
    if many <= 1 or sum(count for _, _, _, count, _ in jobs) <= CHUNK:  # starting processes takes longer
        return (_chunk(job[0], arrays) for job, arrays in zip(jobs, itertools.starmap(_work, jobs), strict=True))
    spawned = get_context("spawn")  # a fork of a process that has a GPU or threads is not safe
    pool = ProcessPoolExecutor(many, mp_context=spawned, initializer=_one_thread)
    results = pool.map(_work, *zip(*jobs, strict=True))
    pool.shutdown(wait=False)  # after the jobs that it has
    return (_chunk(job[0], arrays) for job, arrays in zip(jobs, results, strict=True))


def draw_pairs(
    shape: Shape, seed: int, number: int, count: int, held_out: bool | None = False
) -> tuple[list[scenes.Scene], list[scenes.Scene], Layout]:
    """Sample the partial scenes of chunk `number`, a completion of each, and the layout of the complete scenes."""
    rng = random.Random(f"{seed}/{shape.height}x{shape.width}/{number}")
    partial = [scenes.partial_scene(rng, held_out=held_out) for _ in range(count)]
    complete = [scenes.complete(scene, rng) for scene in partial]
    return partial, complete, lay_out(complete, rng, shape)


def cores_per_rank() -> int:
    """Number of cores that this process may use; the ranks of one machine share its cores equally."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _one_thread() -> None:
    """Use one thread: there is one worker process per core."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _work(
    shape: Shape, seed: int, number: int, count: int, held_out: bool | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A chunk as arrays, because torch passes each tensor between processes as a file of its own."""
    partial, _, layout = draw_pairs(shape, seed, number, count, held_out)
    rng = random.Random(f"{seed}/{number}/words")
    ids = _tokenizers()([captions.caption(scene, rng) for scene in partial])
    return layout.arrays(), [each.short().numpy() for each in ids]


def _chunk(shape: Shape, arrays: tuple[list[np.ndarray], list[np.ndarray]]) -> Chunk:
    layout, ids = arrays
    return Chunk(shape, Layout(*map(torch.from_numpy, layout)), *map(torch.from_numpy, ids))
