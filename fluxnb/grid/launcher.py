"""Launcher: starts one worker process for each GPU, follows what they report, and replaces those that were killed.

A worker is the same command as the launcher's with `--worker`. It is described by the environment variables of
`torchrun`, so that it takes its own GPU, and it shares the store with the others. It writes a line of JSON to its
standard output for the grid and for each cell, and ends as after Ctrl-C when its standard input is closed: also if the
launcher is killed.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from fluxnb.errors import RunError
from fluxnb.planning.processes import Processes
from fluxnb.records import Cell

__all__ = ["Launcher", "Outcome", "Reports"]

CHECK = 0.5  # seconds after which the display is updated at the latest
PATIENCE = 3  # deaths in a row of workers, without a finished cell in between, after which no more are replaced
GRACE = 60.0  # seconds that the workers have after an interrupt to store what they have sampled
INTERRUPTED = 130  # exit status of a process that was interrupted
LONGEST_MESSAGE = 4000  # bytes at the end of a worker's standard error that are read for its message


@dataclass(kw_only=True)
class Outcome:
    """What the workers have done so far.

    Arguments:
        total: cells of the grid; 0 until a worker has loaded the model.
        found: positions of the finished cells in the grid.
        made: positions of the cells that the workers have sampled, once for each time.
        evaluations: of the transformer, for these cells.
        working: workers that are running.
        killed: process IDs of the workers that ended by a signal.
        seconds: from the time at which the first worker had loaded the model to the last cell.
        interrupted: whether the grid was interrupted.
        status: exit status of the first worker that failed, 0 if none has.
        message: the end of what that worker wrote to its standard error.
    """

    total: int = 0
    found: set[int] = field(default_factory=set)
    made: list[int] = field(default_factory=list)
    evaluations: int = 0
    working: int = 0
    killed: list[int] = field(default_factory=list)
    seconds: float = 0.0
    interrupted: bool = False
    status: int = 0
    message: str = ""

    @property
    def finished(self) -> bool:
        """Whether every cell of the grid is in the store."""
        return self.total > 0 and len(self.found) == self.total

    def add(self, report: dict[str, Any]) -> None:
        """Add the report of a worker."""
        if "total" in report:
            self.total = report["total"]
            return
        self.found.add(report["cell"])
        if report["made"]:
            self.made.append(report["cell"])
            self.evaluations += report["evaluations"]


class Reports:
    """Reports of a worker to its launcher, by lines on its standard output; what else is printed goes to stderr.

    Example:
        >>> with Reports() as reports:                                              # doctest: +SKIP
        ...     reports.grid(recipes)
        ...     reports.cell(cell)
    """

    def __enter__(self) -> Reports:
        sys.stdout.flush()
        self._stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        # A shell ignores the signal in its background jobs, and the launcher's interrupt must arrive.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=_interrupt_at_end_of_input, name="fluxnb-launcher", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the launcher has ended
            self._stream.close()

    def grid(self, recipes: Sequence[Any]) -> None:
        """Report the cells of the grid by their recipes, in order."""
        self._positions = {recipe: position for position, recipe in enumerate(recipes)}
        self._write({"total": len(recipes)})

    def cell(self, cell: Cell) -> None:
        """Report a cell that was sampled or found in the store."""
        self._write({"cell": self._positions[cell.recipe], "made": cell.made, "evaluations": cell.evaluations})

    def _write(self, report: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the launcher has ended, and the interrupt is on its way
            self._stream.write(json.dumps(report) + "\n")
            self._stream.flush()


def _interrupt_at_end_of_input() -> None:
    # By descriptor: at its end, Python does not wait for a thread that holds the lock of a buffered stream.
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    _thread.interrupt_main()


@dataclass(kw_only=True)
class _Worker:
    """A running worker.

    Arguments:
        place: among the workers.
        process: of the operating system.
        stop: its standard input, which is closed to stop it.
        output: its standard output, with the reports.
        errors: its standard error, None if it writes to that of the launcher.
        reader: the thread that reads its output.
    """

    place: Processes
    process: subprocess.Popen[str]
    stop: Any
    output: Any
    errors: IO[bytes] | None
    reader: threading.Thread = field(init=False)

    def message(self) -> str:
        """The end of what it wrote to its standard error; empty if it went to the launcher's own."""
        if self.errors is None:
            return ""
        end = self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(0, end - LONGEST_MESSAGE))
        return self.errors.read().decode("utf-8", "replace").strip()


class Launcher:
    """Runs a command in several worker processes until its grid is complete.

    A worker that is killed by a signal is started again. If workers are killed again and again without a finished cell
    in between, as where memory is too small for all of them, the remaining ones continue alone.

    Arguments:
        command: program and arguments of a worker.
        processes: number of workers.
        on_report: called with the outcome so far whenever something may have changed.
        on_killed: called when a worker has been killed, to remove the locks of its claims. They are void already, but
            all other workers may be busy or loading the model.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        on_report: Callable[[Outcome], None],
        on_killed: Callable[[], Any],
    ) -> None:
        self._command, self._processes, self._on_report = list(command), processes, on_report
        self._on_killed = on_killed
        self._reports: SimpleQueue[tuple[_Worker, dict[str, Any] | None]] = SimpleQueue()
        self._workers: list[_Worker] = []
        self._deaths = 0  # since the last finished cell
        self._loaded: float | None = None  # when the first worker had loaded the model
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Start the workers and wait for all of them to end.

        Raises:
            RunError: all workers were killed.
        """
        with self._ending():
            for rank in range(self._processes):
                self._start(rank)
            while self._workers:
                self._wait()
                self._on_report(self.outcome)
        if not (self.outcome.finished or self.outcome.interrupted or self.outcome.status):
            raise RunError(
                f"{self._processes} processes, all of which were killed",
                "the system kills processes when memory runs out",
                f"try --processes {max(1, self._processes // 2)}; finished cells are in the store",
            )
        return self.outcome

    def _start(self, rank: int) -> None:
        place = Processes(rank=rank, count=self._processes, local_rank=rank, local_count=self._processes)
        errors = tempfile.TemporaryFile() if rank else None  # one of several equal outputs is enough
        # In a session of its own, Ctrl-C in the terminal reaches the launcher alone, which stops the worker once.
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, **place.environment, "PYTHONPATH": os.pathsep.join(_import_path())},
            start_new_session=True,
        )
        worker = _Worker(place=place, process=process, stop=process.stdin, output=process.stdout, errors=errors)
        self._workers.append(worker)
        self.outcome.working = len(self._workers)
        worker.reader = threading.Thread(target=self._read, args=(worker,), name="fluxnb-reports", daemon=True)
        worker.reader.start()

    def _read(self, worker: _Worker) -> None:
        """Queue the reports of a worker, and None at their end."""
        with worker.output:
            for line in worker.output:
                with contextlib.suppress(ValueError):  # the last line of one that was killed
                    self._reports.put((worker, json.loads(line)))
        worker.process.wait()
        self._reports.put((worker, None))

    def _wait(self) -> None:
        """Wait for a report, and deal with all that have arrived."""
        with contextlib.suppress(Empty):
            worker, report = self._reports.get(timeout=CHECK)
            while True:
                if report is None:
                    self._ended(worker)
                else:
                    self._add(report)
                worker, report = self._reports.get_nowait()

    def _add(self, report: dict[str, Any]) -> None:
        now, before = time.monotonic(), len(self.outcome.found)
        self._loaded = now if self._loaded is None else self._loaded
        self.outcome.add(report)
        if len(self.outcome.found) > before:
            self._deaths, self.outcome.seconds = 0, now - self._loaded

    def _ended(self, worker: _Worker) -> None:
        """Note how a worker has ended, and replace one that was killed."""
        self._workers.remove(worker)
        self.outcome.working = len(self._workers)
        status, replace = worker.process.returncode, False
        if status == INTERRUPTED:
            self.outcome.interrupted = True
        elif status < 0:
            self.outcome.killed.append(worker.process.pid)
            self._on_killed()
            self._deaths += 1
            ended = self.outcome.interrupted or self.outcome.finished
            replace = not ended and self._deaths < max(PATIENCE, self._processes)
        elif status and (not self.outcome.status or worker.errors is None):
            self.outcome.status, self.outcome.message = status, worker.message()
        _close(worker)
        if replace:
            self._start(worker.place.rank)

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        """Stop the workers at an interrupt and wait for them; at a second one, or after the grace period, kill them."""
        try:
            yield
        except KeyboardInterrupt:
            self.outcome.interrupted = True
            deadline = time.monotonic() + GRACE
            for worker in self._workers:
                _stop(worker)
            with contextlib.suppress(KeyboardInterrupt):
                while self._workers and time.monotonic() < deadline:
                    self._wait()
        finally:
            for worker in self._workers:
                worker.process.kill()
                worker.process.wait()
                worker.reader.join()
                _close(worker)


def _import_path() -> Iterator[str]:
    """PYTHONPATH of a worker, with the folder of this package first, so that a worker runs the same code."""
    yield str(Path(__file__).parents[2])
    if given := os.environ.get("PYTHONPATH"):
        yield given


def _stop(worker: _Worker) -> None:
    with contextlib.suppress(OSError):
        worker.stop.close()


def _close(worker: _Worker) -> None:
    _stop(worker)
    if worker.errors is not None:
        worker.errors.close()
