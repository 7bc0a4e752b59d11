"""Decode workers: turn sampled trajectories into cells by decoding, PNG encoding and writing them.

None of this needs the transformer, so a sweep does it in worker threads while it samples the next cells. On a GPU each
worker has a CUDA stream of its own. If the decoder displaces the transformer in GPU memory, the worker only writes.
Cells are returned in the order of their trajectories.
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
from fluxnb.records.recipe import ResolvedRecipe

__all__ = ["DecodeWorkers", "Sampled"]

SWAP_BATCH = 8  # trajectories that are decoded at once where the decoder displaces the transformer
SMALL_BATCH = 4  # small images that a CPU core decodes in one call, where the order of summation may differ
SMALL_PIXELS = 256 * 256  # above it the decoder's activations exceed the CPU cache, and batching gains nothing
QUEUE_DEPTH = 2  # calls that may wait per worker: enough to keep it busy, few enough for cells to arrive soon


@dataclass(frozen=True, kw_only=True, eq=False)
class Sampled:
    """A complete trajectory without its image.

    Arguments:
        recipe: its recipe.
        key: address of the cell in the store.
        trajectory: every step.
        evaluations: transformer evaluations that it took.
        release: releases the claim; called once the cell is complete.
    """

    recipe: ResolvedRecipe
    key: str
    trajectory: Trajectory
    evaluations: int
    release: Callable[[], None]


class DecodeWorkers:
    """A pool of threads that turns trajectories into cells.

    Arguments:
        flux: provides the decoder.
        store: where cells are written, None for nowhere.
        keep: which tensors a cell's trajectory retains, None for no trajectory.
        size: height and width of the images, or of the largest one.
        background: True works in threads, False in the calling thread.
        batched: True lets each CPU thread decode images of its own, small ones several at a time, instead of all
            threads working on one image. Faster, but sums are taken in another order; images whose trajectories were
            sampled one by one are therefore decoded in the calling thread.
    """

    def __init__(
        self,
        flux: Flux,
        store: Store | None,
        keep: Keep | None,
        *,
        size: tuple[int, int],
        background: bool,
        batched: bool,
    ) -> None:
        self._flux, self._store, self._keep = flux, store, keep
        on_cpu, threads = flux.device.type == "cpu", torch.get_num_threads()
        self._waiting: list[Sampled] = []
        self._running: deque[Future[Cell]] = deque()
        # On a CPU with a single thread a decoding worker gains nothing.
        decoders = (threads if batched else 1) * (threads > 1) if on_cpu else flux.decoders_beside(*size)
        self._decodes = background and decoders > 0
        self._reorders_sums = on_cpu and batched and self._decodes
        self._batched = self._reorders_sums and math.prod(size) <= SMALL_PIXELS
        self._batch_size = SWAP_BATCH if flux.decoder_displaces_transformer else SMALL_BATCH if self._batched else 1
        # Where the decoder displaces the transformer, a worker still writes.
        self._workers = decoders if self._decodes else int(background and not on_cpu)
        self._pool: ThreadPoolExecutor | None = None
        if self._workers:
            self._pool = ThreadPoolExecutor(
                self._workers,
                thread_name_prefix="fluxnb-decode",
                initializer=_prepare_worker,
                initargs=(flux.device, threads),
            )
        if self._pool is not None and on_cpu and self._workers > 1:
            _use_one_thread_per_worker(self._pool, self._workers, threads)

    def add(self, sampled: Sampled) -> None:
        """Queue a trajectory."""
        if self._reorders_sums and sampled.trajectory.numerics == self._flux.numerics():
            self._submit()  # the cells before it come first
            self._waiting.append(sampled)
            self._submit(in_this_thread=True)
            return
        self._waiting.append(sampled)
        if len(self._waiting) >= self._batch_size:
            self._submit()

    def finished(self, *, wait: bool = False) -> Iterator[Cell]:
        """Yield the finished cells in order; with `wait` all cells.

        Raises:
            StorageError: a cell could not be written.
        """
        if wait:
            self._submit()
        limit = QUEUE_DEPTH * self._workers * self._batch_size
        while self._running and (wait or self._running[0].done() or len(self._running) > limit):
            yield self._running.popleft().result()

    def close(self) -> None:
        """End the threads. With a store, the queued trajectories are written first."""
        if self._store is not None:
            self._submit()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=self._store is None)

    def _submit(self, *, in_this_thread: bool = False) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        images = None if self._decodes and not in_this_thread else self._decode(waiting, batched=False)
        cells: list[Future[Cell]] = [Future() for _ in waiting]
        if self._pool is not None:
            self._pool.submit(self._finish, waiting, images, cells)
        else:
            self._finish(waiting, images, cells)
        self._running += cells  # only now: a failed submit must not leave futures that never complete

    def _decode(self, several: Sequence[Sampled], *, batched: bool) -> list[tuple[Image.Image, float]]:
        """Images and the seconds that each took; equal sizes are decoded in one call."""
        decoded: list[tuple[Image.Image, float]] = []
        for _, group in itertools.groupby(several, key=lambda each: (each.trajectory.height, each.trajectory.width)):
            latents, started = torch.cat([_latents(each.trajectory) for each in group]), time.perf_counter()
            images = self._flux.decode(latents, lock=not self._decodes, batched=batched)
            seconds = (time.perf_counter() - started) / len(images)
            decoded += [(image, seconds) for image in images]
        return decoded

    def _finish(
        self,
        several: Sequence[Sampled],
        images: list[tuple[Image.Image, float]] | None,
        cells: Sequence[Future[Cell]],
    ) -> None:
        """Complete cells one by one, so that one that cannot be written does not affect the others."""
        try:
            images = self._decode(several, batched=self._batched) if images is None else images
        except BaseException as problem:
            for cell in cells:
                cell.set_exception(problem)
            return
        for sampled, (image, seconds), cell in zip(several, images, cells, strict=True):
            try:
                result = self._cell(sampled, image, seconds)
            except BaseException as problem:
                cell.set_exception(problem)
            else:  # an interrupt inside `set_result` belongs to the caller, since the cell is complete
                cell.set_result(result)

    def _cell(self, sampled: Sampled, image: Image.Image, decode_seconds: float) -> Cell:
        recipe, trajectory = sampled.recipe, sampled.trajectory
        seconds = {**trajectory.seconds, "decode": decode_seconds}
        retained, path = None, None
        if self._keep is not None:
            steps = tuple(step.reduced(self._keep, len(trajectory.steps)) for step in trajectory.steps)
            retained = dataclasses.replace(trajectory, recipe=recipe, steps=steps, image=image, seconds=seconds)
        if self._store is not None:
            path = self._store.put(
                sampled.key,
                recipe,
                image,
                seconds=seconds,
                versions=trajectory.versions,  # not `flux.versions`: it would name the threads of this worker
                numerics=trajectory.numerics,
                trajectory=retained,
            )
        sampled.release()
        return Cell(
            recipe=recipe,
            key=sampled.key,
            path=path,
            numerics=trajectory.numerics,
            evaluations=sampled.evaluations,
            seconds=seconds,
            trajectory=retained,
            picture=image,
        )


def _latents(trajectory: Trajectory) -> torch.Tensor:
    return trajectory.geometry.latents(trajectory.final[None], trajectory.height, trajectory.width)


def _prepare_worker(device: torch.device, threads: int) -> None:
    """Give this thread a CUDA stream of its own, or the number of CPU threads that its caller computes with.

    On its own stream its kernels do not queue behind the transformer's. The decoder's sums depend on the number of
    threads, and a new thread starts with the number that was set last anywhere in the process.
    """
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))
    elif device.type == "cpu" and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _use_one_thread_per_worker(pool: ThreadPoolExecutor, workers: int, threads: int) -> None:
    """Let every worker compute with one thread.

    `torch.set_num_threads` also sets the default of threads that are started later, so it is restored at the end.
    """
    barrier = threading.Barrier(workers + 1)

    def use_one_thread() -> None:
        torch.set_num_threads(1)
        barrier.wait()

    for _ in range(workers):
        pool.submit(use_one_thread)
    barrier.wait()
    torch.set_num_threads(threads)
