"""Background worker of the widgets: consume an iterator in a thread, so that the kernel stays free for other cells."""

from __future__ import annotations

import atexit
import contextlib
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Generic, TypeVar

from fluxnb.display import ipython_shell

__all__ = ["Worker", "current_cell", "outcome", "stop_earlier"]

EXIT_TIMEOUT = 30.0  # seconds that leaving Python waits for the steps under way

T = TypeVar("T")
_workers: weakref.WeakSet[Worker[Any]] = weakref.WeakSet()


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
        owner: the model that is at work, compared by identity; None if unknown.
        cell: the notebook cell that started the work, from `current_cell`.

    Leaving Python requests the end of all workers and waits for it: a daemon thread that is killed inside of a library
    would abort the process. An interrupt of an idle kernel stops them as well.

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
        owner: object = None,
        cell: str | None = None,
    ) -> None:
        self.owner, self.cell = owner, cell
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
        _workers.add(self)
        _stop_on_interrupt()
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


def _kernel() -> Any:
    """The IPython kernel of this process, None outside of a notebook."""
    return getattr(ipython_shell(), "kernel", None)


def current_cell() -> str | None:
    """The id of the notebook cell that is being executed, None where the host sends none."""
    kernel = _kernel()
    parent = getattr(kernel, "get_parent", lambda _: None)("shell") or {}
    metadata = parent.get("metadata") or {}
    cell = metadata.get("cellId") or (metadata.get("colab") or {}).get("cell_id")
    return None if cell is None else str(cell)


def stop_earlier(owner: object, cell: str | None) -> None:
    """Stop work on a model that a cell started when it was run before.

    Where the host does not name its cells, all earlier work on the model is stopped. Work of other cells goes on.
    """
    for worker in list(_workers):
        same = None in (cell, worker.cell) or cell == worker.cell
        if owner is not None and worker.owner is owner and same and worker.running:
            worker.stop()


def _stop_all() -> None:
    running = [worker for worker in list(_workers) if worker.running]
    for worker in running:
        worker.stop()


def _stop_and_wait() -> None:
    running = [worker for worker in list(_workers) if worker.running]
    _stop_all()
    for worker in running:
        worker.join(EXIT_TIMEOUT)


atexit.register(_stop_and_wait)


def _stop_on_interrupt() -> None:
    """Let an interrupt that arrives while the kernel is idle stop the workers.

    A kernel ignores SIGINT between two cells. When a cell ends it restores the handler that it saved before, so that
    replacing the saved one is enough. An interrupt of a cell raises KeyboardInterrupt there and stops nothing else.
    """
    kernel = _kernel()
    if getattr(kernel, "saved_sigint_handler", None) is not signal.SIG_IGN:
        return

    def stop(*_: Any) -> None:
        _stop_all()

    with contextlib.suppress(AttributeError):
        kernel.saved_sigint_handler = stop
