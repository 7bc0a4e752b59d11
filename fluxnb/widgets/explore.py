"""explore(): a grid to walk about in, while it is made and after.

The front end stands as files in `static/`; `fluxnb.html.grid_page` builds its page from the same files.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import traitlets

from fluxnb.errors import FluxnbError, InputError, validates_own_input
from fluxnb.html import grid_page as pages
from fluxnb.html import page as html
from fluxnb.html.front_end import script, style
from fluxnb.html.grid_page import SHOWS, Board
from fluxnb.records import Cell, Sweep
from fluxnb.visuals.frames import Decode
from fluxnb.widgets.view import View, still

__all__ = ["Explorer", "explore"]


class Explorer(View):
    """A grid whose rows, columns and pages are chosen among its axes; see `explore`, which makes one.

    Keys: arrows move, enter looks closer or compares the chosen cells, space chooses, s stars, comma and full stop
    move all cells along the noise levels. In the viewer 1 to 4 choose how to compare: side by side, with a slider, by
    flicking, as a difference; + - 0 zoom, drag moves, for all pictures together.

    Arguments:
        board: tells the cells to the front end.
        folder: where the starred are saved to.
    """

    _esm = script("explore")
    _css = style("explore")

    data = traitlets.Dict().tag(sync=True)
    cells: Any = traitlets.List().tag(sync=True)
    frames = traitlets.List(traitlets.Bytes()).tag(sync=True)
    stars = traitlets.List(traitlets.Int()).tag(sync=True)
    sigma = traitlets.Float(0.0, min=0.0, max=1.0).tag(sync=True)

    def __init__(self, board: Board, axes: Mapping[str, Sequence[Any]], *, model: str, folder: Path) -> None:
        self._board, self._axes, self._model, self._folder = board, dict(axes), model, folder
        self._made: list[Cell] = []
        self._thread: threading.Thread | None = None
        self._halt = threading.Event()
        self._problem: BaseException | None = None
        super().__init__(data=self._told("finished"))
        self.on_msg(self._hear)

    # ------------------------------------------------------------------------------------------------------ reading
    def __repr__(self) -> str:
        state = self.data["state"]
        done = f"{len(self._made)} of {self.data['total']} cells"
        return f"Explorer({done}{'' if state == 'finished' else ', ' + state})"

    @property
    def grid(self) -> Sweep:
        """The cells so far, as a Sweep."""
        order = {name: list(values) for name, values in self._axes.items()}

        def place(cell: Cell) -> tuple[int, ...]:
            found = ((values, getattr(cell.recipe, name)) for name, values in order.items())
            return tuple(values.index(value) if value in values else len(values) for values, value in found)

        cells = tuple(sorted(self._made, key=place))
        axes = {name: tuple(values) for name, values in self._axes.items()}
        return Sweep(cells=cells, axes=axes, model=self._model, finished=self.data["state"] == "finished")

    @property
    def starred(self) -> tuple[Cell, ...]:
        """The cells that have a star, in the order in which they were made."""
        return tuple(self._made[number] for number in sorted(set(self.stars)) if 0 <= number < len(self._made))

    # ------------------------------------------------------------------------------------------------------- saving
    @validates_own_input
    def export(self, folder: str | Path | None = None) -> list[Path]:
        """Write the starred cells as PNG files that carry their recipes; returns their paths.

        Raises:
            InputError: no cell has a star.
            StorageError: the folder cannot be written.

        Example:
            >>> widget.export("best")                                               # doctest: +SKIP
            [PosixPath('best/a-fox-in-the-snow-seed-3-steps-4-0a1b2c3d.png')]
        """
        if not self.starred:
            raise InputError("no starred cell", "a star is set with s or a click", "star one, or set widget.stars=[0]")
        return pages.save_cells(self.starred, self._folder if folder is None else folder)

    @validates_own_input
    def to_html(self, path: str | Path) -> Path:
        """Write what is there so far as one page that needs no kernel and no network; returns its path."""
        if not self._made:
            raise InputError("a grid without cells", "none is made yet", "wait for the first with widget.wait()")
        return html.save(pages.document(self._told(self.data["state"], page=True), self.cells, self.frames), path)

    # ---------------------------------------------------------------------------------------------- while it is made
    @validates_own_input
    def wait(self, timeout: float | None = None) -> Explorer:
        """Wait until no more cells come, at most so many seconds; raises what stopped the making, if anything did."""
        if self._thread is not None:
            self._thread.join(timeout)
        if self._problem is not None:
            raise self._problem
        return self

    def stop(self) -> None:
        """Make no more cells after the one that is being made."""
        self._halt.set()

    def close(self) -> None:
        """Stop, and let the front end go."""
        self.stop()
        super().close()

    def _follow(self, cells: Iterator[Cell]) -> None:
        """Take cells from an iterator in a thread, so that the kernel stays free."""
        self.data = self._told("running")
        self._thread = threading.Thread(target=self._take_all, args=(cells,), name="fluxnb-explore", daemon=True)
        self._thread.start()

    def _take_all(self, cells: Iterator[Cell]) -> None:
        state, said = "finished", ""
        try:
            for cell in cells:
                self._take(cell)
                if self._halt.is_set():
                    break
            if len(self._made) < self.data["total"]:
                state = "stopped"
        except KeyboardInterrupt:  # a step that said STOP
            state = "stopped"
        except Exception as problem:  # it would end a thread unseen; here it is shown, and raised again by wait()
            self._problem = problem
            state, said = "failed", str(problem) if isinstance(problem, FluxnbError) else repr(problem)
        finally:
            if (shut := getattr(cells, "close", None)) is not None:
                shut()
        self._resend()
        self.data = self._told(state, said)

    def _take(self, cell: Cell, *, quietly: bool = False) -> None:
        told, fresh = self._board.add(cell)
        first = len(self.frames)
        # The traits hold everything, for a view that is opened later; what travels is the new cell. Frames go first: a
        # view may be opened between these lines.
        self._made.append(cell)
        self.frames.extend(fresh)
        self.cells.append(told)
        count = len(self._made)
        if quietly:
            return
        if self._told("running") != self.data:
            self.data = self._told("running")
        # A front end that is still loading misses messages. Whenever the cells have doubled all of them are sent, so
        # that nothing stays missing for longer than the making has taken, and all sendings together are two grids.
        if count & (count - 1) == 0:
            self._resend()
        else:
            self.send({"kind": "cell", "number": count - 1, "cell": told, "first": first}, buffers=fresh)

    def _resend(self) -> None:
        self.send_state(["cells", "frames"])

    def _told(self, state: str, said: str = "", *, page: bool = False) -> dict[str, Any]:
        return {**self._board.data, "state": state, "said": said, "folder": "" if page else str(self._folder)}

    def _hear(self, _: object, content: dict[str, Any], buffers: object) -> None:
        if content.get("kind") == "stop":
            self.stop()
        elif content.get("kind") == "save":
            try:
                paths = self.export()
                text = f"{len(paths)} picture{'' if len(paths) == 1 else 's'} written to {self._folder}"
            except FluxnbError as problem:
                text = str(problem)
            self.send({"kind": "said", "text": text})


@validates_own_input
def explore(
    grid: Sweep | Sequence[Cell] | Iterator[Cell],
    *,
    shows: Sequence[str] = SHOWS,
    decode: Decode | None = None,
    size: int = 1024,
    folder: str | Path = "starred",
) -> Explorer:
    """A grid to walk about in: rows, columns and pages of one's choice, comparing, stars, one sigma for all cells.

    Arguments:
        grid: what `fnb.sweep` returned, or `fnb.stream(...)`, whose cells then fill in as they finish while the kernel
            stays free; or a list of cells.
        shows: what a scrub can show, of "clean", "x", "v", "noise"; cells have steps to scrub through where the grid
            was made with `keep=fnb.Keep()`.
        decode: from latents (n, 16, h/8, w/8) to pictures; None for each walk's own linear preview.
        size: the longest side of a picture in pixels; larger ones are made smaller.
        folder: where the starred are saved to.

    Returns:
        The Explorer, a widget; as the last line of a cell it shows itself.

    Raises:
        InputError: nothing to show, or an unknown word in `shows`.

    Example:
        >>> explore(fnb.stream(flux, prompts=["a fox"], seeds=range(4)))            # doctest: +SKIP
        Explorer(0 of 4 cells, running)
    """
    given, axes, model = _read(grid)
    board = Board(axes, model=model, shows=shows, decode=decode, size=size)
    widget = Explorer(board, axes, model=model, folder=Path(folder))
    if isinstance(given, Iterator):
        widget._follow(given)
        return widget
    for cell in given:
        widget._take(cell, quietly=True)
    widget._resend()
    finished = not isinstance(grid, Sweep) or grid.finished
    widget.data = widget._told("finished" if finished else "stopped")
    across = len(widget.data["axes"][-1]["values"]) if widget.data["axes"] else 8
    widget._still = still([cell.image for cell in given[:24]], columns=min(max(across, 4), 8), side=80, most=24)
    return widget


def _read(grid: Any) -> tuple[Sequence[Cell] | Iterator[Cell], dict[str, Sequence[Any]], str]:
    """The cells, there or to come, the axes they fill, and the model's name."""
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
        raise InputError("a grid without cells", "there is nothing to show", "run it again, or show what it stored")
    return cells, axes, model


def _axes_of(cells: Sequence[Cell]) -> dict[str, Sequence[Any]]:
    """The fields in which cells differ, and the values they have."""
    names = (
        "prompt",
        "seed",
        "steps",
        "negative",
        "guidance",
        "sampler",
        "sigmas",
        "shift",
        "height",
        "width",
        "model",
    )
    axes: dict[str, Sequence[Any]] = {
        name: list(dict.fromkeys(getattr(cell.recipe, name) for cell in cells)) for name in names
    }
    return {name: values for name, values in axes.items() if len(values) > 1 or name in ("prompt", "seed", "steps")}
