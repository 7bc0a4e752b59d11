"""explore(): browse a grid of images while it is sampled and afterwards.

The front end is in `front-end/src`; `fluxnb.html.grid_page` builds self-contained pages from the same files.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fluxnb.arguments import entry_point
from fluxnb.errors import FluxnbError, InputError
from fluxnb.html.front_end import script, style
from fluxnb.html.grid_page import SHOWS, GridEncoder
from fluxnb.io.files import user_path
from fluxnb.progress import Progress
from fluxnb.records import Cell, Sweep
from fluxnb.visuals.frames import Decode
from fluxnb.widgets.background import Worker, current_cell, outcome, stop_earlier
from fluxnb.widgets.fallback import fallback_of_cells
from fluxnb.widgets.grid_view import GridView, Results

__all__ = ["Explorer", "explore"]

FIELDS = ("prompt", "seed", "steps", "negative", "guidance", "sampler", "sigmas", "shift", "height", "width", "model")
VIEW_TIMEOUT = 5.0  # seconds; an output that is drawn anew has no view for a moment
ALWAYS_AXES = ("prompt", "seed", "steps")  # displayed even with a single value


class Explorer(GridView):
    """A grid whose rows, columns and pages are chosen among its axes; created by `explore`.

    Keys: arrows move, enter opens the viewer or compares the chosen cells, space chooses, s stars, comma and full
    stop move all cells along the noise levels, a question mark lists all keys. In the viewer 1 to 4 select the
    comparison: side by side, slider, flicker, difference; + - 0 zoom and dragging pans all images together.

    Arguments:
        results: the cells and their encoding.
        folder: where starred cells are saved.
    """

    _view = "explore"
    _esm = script("explore")
    _css = style("explore")

    def __init__(self, results: Results, folder: Path) -> None:
        self._worker: Worker[Cell] | None = None
        self._views: dict[str, int] = {}  # number of views by browser window
        super().__init__(results, folder)

    # ---------------------------------------------------------------------------------------------------------- reading
    def __repr__(self) -> str:
        state = self.data["state"]
        count = f"{len(self._results.received)} of {self.data['total']} cells"
        return f"Explorer({count}{'' if state == 'finished' else ', ' + state})"

    @property
    def grid(self) -> Sweep:
        """The cells received so far, as a Sweep in the order of the axes."""
        return self._results.sweep

    # --------------------------------------------------------------------------------------------------- while sampling
    @entry_point("timeout")
    def wait(self, timeout: float | None = None) -> Explorer:
        """Wait until no more cells arrive, at most `timeout` seconds, and raise the error that ended the sampling."""
        if self._worker is not None:
            self._worker.join(timeout)
            self._complete()  # once more from this thread: a converter ignores updates of a cell that has ended
            self._worker.wait(0)
        return self

    def stop(self) -> None:
        """Stop after the current cell."""
        if self._worker is not None:
            self._worker.stop()

    def close(self) -> None:
        """Stop and close the connection to the front end."""
        self.stop()
        super().close()

    def _follow(self, cells: Iterator[Cell]) -> None:
        """Receive the cells of an iterator in a background thread."""
        self.data = self._describe()
        if hasattr(cells, "on_wait"):  # a stream
            cells.on_wait = self._show_waiting
        on_item = partial(self._receive_cell, self._results)
        owner, cell = getattr(cells, "owner", None), current_cell()
        stop_earlier(owner, cell)
        self._worker = Worker(cells, on_item=on_item, on_end=self._end, name="fluxnb-explore", owner=owner, cell=cell)
        self._worker.start()

    def _show_waiting(self, sentence: str) -> None:
        self._results.message = sentence or "sampling goes on"
        self.data = self._describe()

    def _end(self, problem: Exception | None) -> None:
        results = self._results
        results.state = outcome(problem, done=len(results.received), total=self.data["total"])
        results.message = "" if problem is None else str(problem) if isinstance(problem, FluxnbError) else repr(problem)
        self._resend()
        self.data = self._describe()
        self._complete()

    @property
    def _is_complete(self) -> bool:
        return self._worker is None or not self._worker.running

    def _show(self, cells: Sequence[Cell], *, finished: bool) -> None:
        """Display cells that exist already."""
        results = self._results
        results.state = "finished" if finished else "stopped"
        with Progress(len(cells), unit="pictures") as progress:
            for cell in cells:
                results.add(cell)
                progress.update()
        self._display(results)
        self._fallback = fallback_of_cells(cells, results.axes)

    def _actions(self) -> Any:
        return {**super()._actions(), "stop": lambda *_: self.stop(), "views": self._count_views}

    def _count_views(self, content: dict[str, Any], _: Any) -> None:
        """Stop when the last view is gone for some seconds: its cell was deleted, or its output was cleared."""
        self._views[str(content.get("window"))] = int(content.get("count", 0))
        if not any(self._views.values()):
            timer = threading.Timer(VIEW_TIMEOUT, self._stop_without_views)
            timer.daemon = True
            timer.start()

    def _stop_without_views(self) -> None:
        if not any(self._views.values()):
            self.stop()


@entry_point("shows", "decode", "size", folder='folder="starred"')
def explore(
    grid: Sweep | Sequence[Cell] | Iterator[Cell],
    *,
    shows: Sequence[str] = SHOWS,
    decode: Decode | None = None,
    size: int = 1024,
    folder: str | Path = "starred",
) -> Explorer:
    """Browse a grid: choose rows, columns and pages, compare cells, star them, move all of them to one sigma.

    Arguments:
        grid: a Sweep, a list of cells, or a running `fnb.stream(...)`, whose cells appear as they finish while the
            kernel stays free.
        shows: the quantities that can be displayed, of "clean", "x", "v", "noise". Moving along sigma requires cells
            with trajectories, from `keep=fnb.Keep()`.
        decode: maps latents in space to images; None uses each trajectory's linear preview.
        size: longest side of a displayed image in pixels; larger images are downscaled.
        folder: where starred cells are saved.

    Returns:
        The Explorer, a widget that displays itself as the last line of a cell.

    Raises:
        InputError: no cells, or an unknown quantity in `shows`.

    Example:
        >>> explore(fnb.stream(flux, prompts=["a fox"], seeds=range(4)))            # doctest: +SKIP
        Explorer(0 of 4 cells, running)
    """
    cells, axes, model = _cells_and_axes(grid)
    encoder = GridEncoder(axes, model=model, shows=shows, decode=decode, size=size)
    widget = Explorer(Results(encoder=encoder, axes=axes, model=model), user_path(folder))
    if isinstance(cells, Iterator):
        widget._follow(cells)
    else:
        widget._show(cells, finished=not isinstance(grid, Sweep) or grid.finished)
    return widget


def _cells_and_axes(grid: Any) -> tuple[Sequence[Cell] | Iterator[Cell], dict[str, Sequence[Any]], str]:
    """The cells, existing or future, the axes they fill, and the model's name."""
    axes, model = getattr(grid, "axes", None), str(getattr(grid, "model", ""))
    if isinstance(grid, Iterator) and isinstance(axes, Mapping):
        return grid, dict(axes), model
    if isinstance(grid, Sweep):
        cells: Sequence[Cell] = grid.cells
        axes = dict(grid.axes)
    elif isinstance(grid, Sequence) and not isinstance(grid, str) and all(isinstance(cell, Cell) for cell in grid):
        cells, axes = grid, _axes_of(grid)
    else:
        raise InputError(
            f"explore({type(grid).__name__})",
            "a Sweep, a running fnb.stream(...) or a list of cells can be explored",
            "give what fnb.sweep or fnb.stream returned",
        )
    if not len(cells):
        raise InputError("a grid without cells", "at least one cell is needed", "run it again, or show what it stored")
    return cells, axes, model


def _axes_of(cells: Sequence[Cell]) -> dict[str, Sequence[Any]]:
    """The recipe fields in which cells differ, and their values."""
    values: dict[str, Sequence[Any]] = {
        name: list(dict.fromkeys(getattr(cell.recipe, name) for cell in cells)) for name in FIELDS
    }
    return {name: found for name, found in values.items() if len(found) > 1 or name in ALWAYS_AXES}
