"""Undoing set-up that a KeyboardInterrupt may leave half done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["progress_lock", "release_progress_lock", "undoing"]


@contextlib.contextmanager
def undoing(undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo` when the block ends; what it undoes is set up inside the block.

    An interrupt may arrive anywhere, also inside `undo`. It is therefore called twice: the second call completes what
    the first one was interrupted in. It must have no effect where nothing is left to undo.

    Example:
        >>> items = []
        >>> with undoing(items.clear):
        ...     items.append(1)
        >>> items
        []
    """
    try:
        try:
            yield
        finally:
            undo()
    finally:
        undo()


@contextlib.contextmanager
def progress_lock() -> Iterator[None]:
    """Release the lock of tqdm after an interrupt in the block, which displays a progress bar.

    An interrupt inside tqdm leaves its lock with the thread. Every other thread that makes a progress bar, displayed or
    not, then waits for it.
    """
    try:
        yield
    except KeyboardInterrupt:
        release_progress_lock()
        raise


def release_progress_lock() -> None:
    """Release the lock of tqdm where this thread holds it."""
    from tqdm.std import TqdmDefaultWriteLock, tqdm

    lock = tqdm.get_lock()
    for each in lock.locks if isinstance(lock, TqdmDefaultWriteLock) else ():
        with contextlib.suppress(RuntimeError, AssertionError):  # this thread does not hold it, or no longer
            while True:
                each.release()
