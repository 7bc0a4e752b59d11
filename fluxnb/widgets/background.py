"""Background worker of the widgets: consume an iterator in a thread, so that the kernel stays free for other cells."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Generic, TypeVar

__all__ = ["Worker", "outcome"]

T = TypeVar("T")


class Worker(Generic[T]):
    """A daemon thread that passes the items of an iterator to a callback.

    When the thread ends, for whatever reason, it closes the iterator, so that a generator releases its locks. A
    `KeyboardInterrupt` raised by the iterator counts as a stop; any other exception is stored in `problem` and raised
    by `wait`.

    Arguments:
        items: the iterator. Its `close` method is called at the end if it has one.
        on_item: called in the thread with each item.
        on_end: called in the thread once, after the iterator has been closed, with the exception that ended the work
            or None.
        name: name of the thread, for debuggers.

    Example:
        >>> received = []
        >>> worker = Worker(iter([1, 2]), on_item=received.append, on_end=lambda problem: None, name="example")
        >>> worker.start()
        >>> worker.wait()
        >>> received
        [1, 2]
    """

    def __init__(
        self,
        items: Iterator[T],
        *,
        on_item: Callable[[T], None],
        on_end: Callable[[Exception | None], None],
        name: str,
    ) -> None:
        self._items, self._on_item, self._on_end = items, on_item, on_end
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.problem: Exception | None = None

    @property
    def running(self) -> bool:
        """Whether the thread is alive."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether a stop was requested; long iterators check it between two items."""
        return self._stop.is_set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Request the end after the current item; returns at once."""
        self._stop.set()

    def join(self, timeout: int | float | None = None) -> None:
        """Wait for the end, at most `timeout` seconds."""
        self._thread.join(timeout)

    def wait(self, timeout: int | float | None = None) -> None:
        """Wait for the end, at most `timeout` seconds, and raise the exception that ended the work, if any."""
        self.join(timeout)
        if self.problem is not None:
            raise self.problem

    def _run(self) -> None:
        try:
            with ExitStack() as stack:
                if (close := getattr(self._items, "close", None)) is not None:
                    stack.callback(close)
                for item in self._items:
                    self._on_item(item)
                    if self.stopping:
                        break
        except KeyboardInterrupt:
            pass
        except Exception as problem:  # an exception would end the thread unseen
            self.problem = problem
        self._on_end(self.problem)


def outcome(problem: Exception | None, *, done: int, total: int) -> str:
    """State of a grid whose worker has ended: "failed", "finished" or "stopped"."""
    if problem is not None:
        return "failed"
    return "finished" if done >= total else "stopped"
