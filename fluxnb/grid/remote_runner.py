"""The runner of grids at hosted endpoints: each cell is requested once, and stored by the thread that received it.

The threads do what must not be interrupted: claim a cell, request its picture, write it. Ctrl-C reaches the main thread
alone, which reads their results without locks of Python code, so that an interrupt cannot leave one locked.
"""

from __future__ import annotations

import _thread
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from queue import Empty, SimpleQueue

from fluxnb.errors import RunError, warn_caller
from fluxnb.grid.runner import Waiting
from fluxnb.grid.store import Store
from fluxnb.records import Cell
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.remote.handle import FLAGS, Drawing, Remote, RemoteWarning, Withheld

__all__ = ["REMOTE", "RemoteRunner"]

REMOTE = "remote"  # the numerics of a picture of an endpoint; what is flagged is added
CHECK = 0.2  # seconds after which a wait checks whether it should end


class RemoteRunner:
    """Requests the cells of one grid.

    Arguments:
        remote: the endpoint.
        store: where cells are read and written, None for nowhere.
        on_wait: as of GridRunner.
    """

    def __init__(
        self, remote: Remote, store: Store | None = None, *, on_wait: Callable[[str], None] | None = None
    ) -> None:
        self.remote, self.store, self.on_wait = remote, store, on_wait
        self.evaluations = self.encodes = 0

    def cells(self, recipes: Sequence[ResolvedRecipe]) -> Generator[Cell, None, None]:
        """Yield the cells of resolved recipes as they arrive, beginning with those in the store.

        Raises:
            KeyboardInterrupt: the run was stopped. What was requested before has arrived and has been yielded.
            RunError: an error of the endpoint, after what was requested before has been yielded.

        Warns:
            RemoteWarning: a picture was withheld, or is of one color, or a prompt is longer than the model reads.
        """
        missing: list[ResolvedRecipe] = []
        for recipe in recipes:
            if (found := self.stored(recipe)) is not None:
                yield found
                self.remote.undelivered.pop(recipe, None)
            else:
                missing.append(recipe)
        if missing:
            self.remote.require_token()
            for text in filter(None, dict.fromkeys(self.remote.length_warning(recipe.prompt) for recipe in missing)):
                warn_caller(text, RemoteWarning)
        waiting = Waiting(self)
        while missing:
            requests = _Requests(self, missing)
            yield from requests.cells()
            missing = requests.claimed_elsewhere
            waiting.pause(missing)

    def stored(self, recipe: ResolvedRecipe) -> Cell | None:
        """The cell of a recipe in the store, or one that an ended sweep left on the handle; None if there is none."""
        if (drawing := self.remote.undelivered.get(recipe)) is not None:
            return self.cell(recipe, drawing)
        if self.store is None:
            return None
        for numerics in map(_numerics, ("", *FLAGS)):
            if (found := self.store.get(self.key(recipe, numerics), recipe, numerics=numerics)) is not None:
                return found
        return None

    def holder(self, recipe: ResolvedRecipe) -> str:
        """A description of the process that requests a recipe, empty if there is none."""
        return "" if self.store is None else self.store.holder(self.key(recipe))

    def key(self, recipe: ResolvedRecipe, numerics: str = REMOTE) -> str:
        """The address of a cell in the store."""
        return recipe.key(self.remote.versions, numerics=numerics)

    def cell(self, recipe: ResolvedRecipe, drawing: Drawing) -> Cell:
        """A picture as a cell, written to the store if there is one.

        Raises:
            StorageError: it cannot be written. It stays on the handle.
        """
        numerics, path, seconds = _numerics(drawing.flagged), None, {"request": drawing.seconds}
        key = self.key(recipe, numerics)
        if self.store is not None:
            path = self.store.put(
                key, recipe, drawing.image, seconds=seconds, versions=self.remote.versions, numerics=numerics
            )
            self.remote.undelivered.pop(recipe, None)
        return Cell(recipe=recipe, key=key, path=path, numerics=numerics, seconds=seconds, picture=drawing.image)


def _numerics(flag: str) -> str:
    return f"{REMOTE}, {flag}" if flag else REMOTE


class _Requests:
    """The threads that request some recipes, and what they have received."""

    def __init__(self, runner: RemoteRunner, recipes: Sequence[ResolvedRecipe]) -> None:
        self.claimed_elsewhere: list[ResolvedRecipe] = []
        self._runner, self._remote = runner, runner.remote
        self._recipes = deque(recipes)
        self._arrived: dict[ResolvedRecipe, Cell] = {}
        self._notes: SimpleQueue[str] = SimpleQueue()
        self._problem: Exception | None = None
        self._started = self._stopped = False
        self._news: SimpleQueue[None] = SimpleQueue()
        # As many requests as there may be pictures that the caller has not received: leaving a stream costs no more.
        self._permits: SimpleQueue[None] = SimpleQueue()
        count = min(self._remote.concurrent, len(recipes))
        self._threads = [threading.Thread(target=self._work, name="fluxnb-remote") for _ in range(count)]
        for _ in range(count):
            self._permits.put(None)

    def cells(self) -> Iterator[Cell]:
        """Yield the cells as they arrive; whatever ends this, each thread finishes its request first."""
        try:
            _thread.start_new_thread(self._start, ())
            yield from self._arriving()
        except KeyboardInterrupt:
            self._stopped = True
            yield from self._arriving()
            raise
        finally:
            self._stopped = True
            for thread in self._threads:
                if thread.is_alive():
                    thread.join()
        if self._problem is not None:
            raise self._problem

    def _start(self) -> None:
        """Start the threads; in a thread of its own, since an interrupt of `Thread.start` may raise a RuntimeError."""
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as problem:
            self._problem = RunError(
                f"concurrent={len(self._threads)}",
                f"the system starts no more threads ({problem})",
                f'try fnb.Remote("{self._remote.model}", concurrent=1), or end other programs',
            )
            self._stopped = True
        self._started = True

    def _arriving(self) -> Iterator[Cell]:
        while True:
            # Read before what they have received. Threads that start after a stop request nothing.
            starting = not (self._started or self._stopped)
            # A list: Python drops an interrupt that arrives while it closes the generator of an expression.
            working = starting or any([thread.is_alive() for thread in self._threads])
            for recipe in list(self._arrived):
                yield self._arrived[recipe]
                # The caller has it: it requested the next one.
                self._arrived.pop(recipe, None)
                self._remote.undelivered.pop(recipe, None)
                self._permits.put(None)
            self._warn()
            if not working:
                return
            with suppress(Empty):
                self._news.get(timeout=CHECK)

    def _warn(self) -> None:
        while not self._notes.empty():
            warn_caller(self._notes.get(), RemoteWarning)

    # --------------------------------------------------------------------------------------------------- in the threads
    def _work(self) -> None:
        try:
            while (recipe := self._next()) is not None:
                if not self._obtain(recipe):
                    self._permits.put(None)
                self._news.put(None)
        except Exception as problem:
            self._problem = self._problem or problem
            self._stopped = True
        self._news.put(None)

    def _next(self) -> ResolvedRecipe | None:
        """The next recipe to request, None at the end; waits until the caller has received earlier pictures."""
        while not self._stopped and self._recipes:
            with suppress(Empty):
                self._permits.get(timeout=CHECK)
                with suppress(IndexError):
                    return self._recipes.popleft()
        return None

    def _obtain(self, recipe: ResolvedRecipe) -> bool:
        """Receive the picture of a recipe; whether the caller will receive one."""
        runner = self._runner
        with ExitStack() as claim:
            if runner.store is not None:
                if not claim.enter_context(runner.store.claim(runner.key(recipe))):
                    self.claimed_elsewhere.append(recipe)
                    return False
                if (found := runner.stored(recipe)) is not None:
                    self._arrived[recipe] = found
                    return True
            try:
                drawing = self._remote.draw(recipe, stopped=lambda: self._stopped)
            except Withheld as problem:
                self._notes.put(str(problem))
                return False
            self._remote.undelivered[drawing.recipe] = drawing
            cell = runner.cell(drawing.recipe, drawing)
            if drawing.recipe != recipe:
                raise _of_another_size(recipe, drawing)
            if drawing.flagged:
                self._notes.put(f"{cell.recipe.model}, seed {recipe.seed}: the picture is flagged: {drawing.flagged}.")
            self._arrived[recipe] = cell
            return True


def _of_another_size(recipe: ResolvedRecipe, drawing: Drawing) -> RunError:
    width, height = drawing.recipe.width, drawing.recipe.height
    return RunError(
        f"{recipe.model}, seed {recipe.seed}",
        f"the picture has {width} x {height} pixels instead of {recipe.width} x {recipe.height}. It is stored as such",
        f"type width={width}, height={height}, for which it is not requested again",
    )
