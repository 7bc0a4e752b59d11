"""Undoing set-up that a KeyboardInterrupt may leave half done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

__all__ = ["undoing"]


@contextlib.contextmanager
def undoing(undo: Callable[[], None]) -> Iterator[None]:
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
