"""Scenes by the million: drawn, laid out and put into tokens in worker processes, rendered on the device that trains.

Chunk `n` of a data set depends on its seed, its shape and `n` alone, so the same data comes out whatever the number of
workers. Chunks come in order as they are done, so that the device renders while the workers draw.
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
from fluxnb.train.data.layouts import Layout, lay_out
from fluxnb.train.data.vocabulary import Tokens
from fluxnb.train.second.config import Shape, Sizes

CHUNK = 2048
_tokens = functools.cache(Tokens.of)  # once in each process


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Scenes of one shape as they are rendered, and their captions as both text encoders take them, short integers."""

    shape: Shape
    layout: Layout
    clip_ids: Tensor
    t5_ids: Tensor

    def __len__(self) -> int:
        return len(self.layout)


def draw_chunks(
    counts: Iterable[tuple[Shape, int]], seed: int, sizes: Sizes, *, held_out: bool | None = False, workers: int = 0
) -> Iterator[Chunk]:
    """So many scenes of each shape, a chunk at a time; `workers` 0 is one for each core of this rank."""
    jobs = [
        (shape, seed, n, min(CHUNK, count - n * CHUNK), sizes, held_out)
        for shape, count in counts
        for n in range(-(-count // CHUNK))
    ]
    many = min(len(jobs), workers or workers_here())
    if many <= 1 or sum(count for _, _, _, count, _, _ in jobs) <= CHUNK:  # starting processes takes longer
        yield from (_chunk(job[0], arrays) for job, arrays in zip(jobs, itertools.starmap(_work, jobs), strict=True))
        return
    spawned = get_context("spawn")  # a fork of a process that has a GPU or threads is not safe
    with ProcessPoolExecutor(many, mp_context=spawned, initializer=_one_thread) as pool:
        for job, arrays in zip(jobs, pool.map(_work, *zip(*jobs, strict=True)), strict=True):
            yield _chunk(job[0], arrays)


def draw_pairs(
    shape: Shape, seed: int, number: int, count: int, held_out: bool | None = False
) -> tuple[list[scenes.Scene], list[scenes.Scene], Layout]:
    """Questions, the complete scenes that answer them, and where everything in those stands."""
    rng = random.Random(f"{seed}/{shape.height}x{shape.width}/{number}")
    questions = [scenes.question(rng, held_out=held_out) for _ in range(count)]
    answers = [scenes.complete(question, rng) for question in questions]
    return questions, answers, lay_out(answers, rng, *shape.units)


def workers_here() -> int:
    """As many as this process may use cores; several ranks of one machine share them."""
    return max(1, available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def _one_thread() -> None:
    """A worker is one of as many as there are cores, so threads of its own gain nothing."""
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _work(
    shape: Shape, seed: int, number: int, count: int, sizes: Sizes, held_out: bool | None
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """A chunk as arrays: tensors would cross between processes as files, one each."""
    questions, _, layout = draw_pairs(shape, seed, number, count, held_out)
    rng = random.Random(f"{seed}/{number}/words")
    ids = _tokens(sizes)([captions.caption(question, rng) for question in questions])
    return layout.arrays(), [each.short().numpy() for each in ids]


def _chunk(shape: Shape, arrays: tuple[list[np.ndarray], list[np.ndarray]]) -> Chunk:
    layout, ids = arrays
    return Chunk(shape, Layout(*map(torch.from_numpy, layout)), *map(torch.from_numpy, ids))
