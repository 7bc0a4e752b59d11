"""From finished walks to cells: decoded, encoded as PNG, written, and the claim let go.

None of this needs the transformer, so a sweep does it beside the walking: in threads that decode and write, on a GPU
in a queue of its own. Where the decoder needs the transformer's place, a thread only writes. Cells come out in the
order they went in.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image

from fluxnb.grid.store import Store
from fluxnb.pipeline.flux import Flux
from fluxnb.records import Cell, Keep, Trajectory
from fluxnb.records.latents import unpack
from fluxnb.records.recipe import ResolvedRecipe

__all__ = ["Finisher", "Sampled"]

AT_ONCE = 8  # walks that wait for the decoder where it takes turns with the transformer
FEW = 4  # small pictures that a CPU core decodes in one call, where sums may be in another order
SMALL = 256 * 256  # pixels; what a decoder holds of larger ones leaves the cache anyway
AHEAD = 2  # calls a lane may have waiting: enough to keep it busy, few enough to arrive soon


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled:
    """A walk to the end, without its picture.

    Arguments:
        recipe: what was asked.
        key: its address.
        walk: every step.
        evaluations: that it cost.
        release: lets go of the claim; called once the cell is whole.
    """

    recipe: ResolvedRecipe
    key: str
    trajectory: Trajectory
    evaluations: int
    release: Callable[[], None]


class Finisher:
    """Takes walks and gives cells.

    Arguments:
        flux: whose decoder it is.
        store: where cells are written, None for nowhere.
        keep: what stays of the walks, None for nothing.
        size: height and width of the pictures, or of the largest.
        beside: True works in threads; False at once, in the caller's.
        spread: True gives each CPU thread pictures of its own, a few at a time if they are small, instead of a share
            of every picture. Faster, and the sums are taken in another order.
    """

    def __init__(
        self, flux: Flux, store: Store | None, keep: Keep | None, *, size: tuple[int, int], beside: bool, spread: bool
    ) -> None:
        self._flux, self._store, self._keep = flux, store, keep
        on_cpu, threads = flux.device.type == "cpu", torch.get_num_threads()
        self._waiting: list[Sampled] = []
        self._running: deque[Future[Cell]] = deque()
        # On a CPU with one thread there is nothing to be had.
        decoders = (threads if spread else 1) * (threads > 1) if on_cpu else flux.decoders_beside(*size)
        self._decodes = beside and decoders > 0
        self._together = on_cpu and spread and self._decodes and math.prod(size) <= SMALL
        self._at_once = AT_ONCE if flux.decoder_displaces_transformer else FEW if self._together else 1
        # Where the decoder needs the transformer's place, a thread writes all the same.
        self._lanes = decoders if self._decodes else int(beside and not on_cpu)
        self._pool: ThreadPoolExecutor | None = None
        if self._lanes:
            self._pool = ThreadPoolExecutor(
                self._lanes, thread_name_prefix="fluxnb-finish", initializer=_own_queue, initargs=(flux.device,)
            )
        if self._pool is not None and on_cpu and self._lanes > 1:
            _one_thread_each(self._pool, self._lanes, threads)

    def add(self, sampled: Sampled) -> None:
        """Take a walk."""
        self._waiting.append(sampled)
        if len(self._waiting) >= self._at_once:
            self._start()

    def ready(self, *, all: bool = False) -> Iterator[Cell]:
        """The cells that are done, in order; with `all` those that are not yet, too.

        Raises:
            StorageError: a cell could not be written.
        """
        if all:
            self._start()
        ahead = AHEAD * self._lanes * self._at_once
        while self._running and (all or self._running[0].done() or len(self._running) > ahead):
            yield self._running.popleft().result()

    def close(self) -> None:
        """Finish what was taken, so that no walk is lost that a store could keep, and end the threads."""
        if self._store is not None:
            self._start()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=self._store is None)

    def _start(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        pictures = None if self._decodes else self._decode(waiting)
        cells: list[Future[Cell]] = [Future() for _ in waiting]
        if self._pool is not None:
            self._pool.submit(self._finish, waiting, pictures, cells)
        else:
            self._finish(waiting, pictures, cells)
        self._running += cells  # not before: whoever waits for these must not wait for ever

    def _decode(self, several: Sequence[Sampled]) -> list[tuple[Image.Image, float]]:
        """Pictures and the seconds that each took; those of one size in one call."""
        pictures: list[tuple[Image.Image, float]] = []
        for _, alike in itertools.groupby(several, key=lambda each: (each.trajectory.height, each.trajectory.width)):
            latents, started = torch.cat([_latents(each.trajectory) for each in alike]), time.perf_counter()
            images = self._flux.decode(latents, lock=not self._decodes, batched=self._together)
            spent = (time.perf_counter() - started) / len(images)
            pictures += [(image, spent) for image in images]
        return pictures

    def _finish(
        self,
        several: Sequence[Sampled],
        pictures: list[tuple[Image.Image, float]] | None,
        cells: Sequence[Future[Cell]],
    ) -> None:
        """Each for itself: one that cannot be written keeps no other from being a cell."""
        try:
            pictures = self._decode(several) if pictures is None else pictures
        except BaseException as problem:
            for cell in cells:
                cell.set_exception(problem)
            return
        for sampled, (image, spent), cell in zip(several, pictures, cells, strict=True):
            try:
                cell.set_result(self._cell(sampled, image, spent))
            except BaseException as problem:
                cell.set_exception(problem)

    def _cell(self, sampled: Sampled, image: Image.Image, spent: float) -> Cell:
        recipe, seconds = sampled.recipe, {**sampled.trajectory.seconds, "decode": spent}
        kept, path = None, None
        if self._keep is not None:
            steps = tuple(step.reduced(self._keep, len(sampled.trajectory.steps)) for step in sampled.trajectory.steps)
            kept = dataclasses.replace(sampled.trajectory, recipe=recipe, steps=steps, image=image, seconds=seconds)
        if self._store is not None:
            path = self._store.put(
                sampled.key,
                recipe,
                image,
                seconds=seconds,
                versions=self._flux.versions,
                numerics=sampled.trajectory.numerics,
                trajectory=kept,
            )
        sampled.release()
        return Cell(
            recipe=recipe,
            key=sampled.key,
            path=path,
            numerics=sampled.trajectory.numerics,
            evaluations=sampled.evaluations,
            seconds=seconds,
            trajectory=kept,
            picture=image,
        )


def _latents(trajectory: Trajectory) -> torch.Tensor:
    return unpack(trajectory.final[None], trajectory.height, trajectory.width)


def _own_queue(device: torch.device) -> None:
    """Give this thread a queue of its own on a GPU, or its kernels would wait behind the transformer's."""
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))


def _one_thread_each(pool: ThreadPoolExecutor, lanes: int, threads: int) -> None:
    """Let every thread of the pool compute alone; the number is the thread's own, but the default is everybody's."""
    gate = threading.Barrier(lanes + 1)

    def alone() -> None:
        torch.set_num_threads(1)
        gate.wait()

    for _ in range(lanes):
        pool.submit(alone)
    gate.wait()
    torch.set_num_threads(threads)
