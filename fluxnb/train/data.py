"""Scenes by the million: drawn and laid out in worker processes, rendered on the device that trains.

Chunk `n` of a data set depends on the seed and on `n` alone, so the same data comes out whatever the
number of workers.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from torch import Tensor

from fluxnb.train.render import Layout, lay_out
from fluxnb.train.world import draw_captioned

CHUNK = 4096


def _chunk(seed: int, index: int, count: int, held_out: bool | None) -> tuple[Layout, list[str]]:
    torch.set_num_threads(1)
    rng = random.Random(f"{seed}/{index}")
    scenes, captions = zip(*draw_captioned(rng, count, held_out=held_out), strict=True)
    return lay_out(scenes, rng), list(captions)


def draw_captions(count: int, seed: int, *, held_out: bool | None = False) -> list[str]:
    """The captions of the same `count` scenes alone, without laying them out."""
    sizes = [(i, min(CHUNK, count - i * CHUNK)) for i in range(-(-count // CHUNK))]
    drawn = (draw_captioned(random.Random(f"{seed}/{i}"), size, held_out=held_out) for i, size in sizes)
    return [caption for chunk in drawn for _, caption in chunk]


def draw_layouts(count: int, seed: int, *, held_out: bool | None = False) -> tuple[Layout, list[str]]:
    """`count` scenes as one `Layout` and their captions."""
    chunks = [(seed, i, min(CHUNK, count - i * CHUNK), held_out) for i in range(-(-count // CHUNK))]
    if len(chunks) == 1:
        return _chunk(*chunks[0])
    torch.multiprocessing.set_sharing_strategy("file_system")  # thousands of tensors come back
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        parts = list(pool.map(_chunk, *zip(*chunks, strict=True)))
    return Layout.cat([layout for layout, _ in parts]), [c for _, captions in parts for c in captions]


def batches(count: int, size: int, generator: torch.Generator, device: torch.device) -> Iterator[Tensor]:
    """Row numbers for ever: each epoch a new order, the last odd rows left out."""
    while True:
        order = torch.randperm(count, generator=generator, device=device)
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]
