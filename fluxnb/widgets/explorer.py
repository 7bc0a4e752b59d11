"""explore(): browse a grid of images while it is sampled and afterwards.

The front end is in `static/`; `fluxnb.html.grid_page` builds self-contained pages from the same files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import traitlets

from fluxnb.arguments import entry_point
from fluxnb.errors import FluxnbError, InputError
from fluxnb.html import grid_page as pages
from fluxnb.html import page as html
from fluxnb.html.front_end import script, style
from fluxnb.html.grid_page import SHOWS, GridEncoder
from fluxnb.io.files import user_path, without_folders
from fluxnb.records import Cell, Sweep
from fluxnb.visuals.frames import Decode
from fluxnb.widgets.background import Worker, outcome
from fluxnb.widgets.view import View, fallback_png

__all__ = ["Explorer", "explore"]

FIELDS = ("prompt", "seed", "steps", "negative", "guidance", "sampler", "sigmas", "shift", "height", "width", "model")
ALWAYS_AXES = ("prompt", "seed", "steps")  # displayed even with a single value


class Explorer(View):
    """A grid whose rows, columns and pages are chosen among its axes; created by `explore`.

    Keys: arrows move, enter opens the viewer or compares the selected cells, space selects, s stars, comma and full
    stop move all cells along the noise levels. In the viewer 1 to 4 choose the comparison: side by side, slider,
    flicker, difference; + - 0 zoom and dragging pans all images together.

    Arguments:
        encoder: converts cells to the JSON and WebP of the front end.
        axes: field names and their values, in order.
        model: name of the model, for the repr of `grid`.
        folder: where starred cells are saved.
    """

    _esm = script("explore")
    _css = style("explore")

    data = traitlets.Dict().tag(sync=True)
    cells: Any = traitlets.List().tag(sync=True)
    frames = traitlets.List(traitlets.Bytes()).tag(sync=True)
    stars = traitlets.List(traitlets.Int()).tag(sync=True)
    sigma = traitlets.Float(0.0, min=0.0, max=1.0).tag(sync=True)

    def __init__(self, encoder: GridEncoder, axes: Mapping[str, Sequence[Any]], *, model: str, folder: Path) -> None:
        self._encoder, self._axes, self._model, self._folder = encoder, dict(axes), model, folder
        self._received: list[Cell] = []
        self._worker: Worker[Cell] | None = None
        super().__init__(data=self._describe("finished"))
        self.on_msg(self._on_message)

    # ---------------------------------------------------------------------------------------------------------- reading
    def __repr__(self) -> str:
        state = self.data["state"]
        count = f"{len(self._received)} of {self.data['total']} cells"
        return f"Explorer({count}{'' if state == 'finished' else ', ' + state})"

    @property
    def grid(self) -> Sweep:
        """The cells received so far, as a Sweep in the order of the axes."""
        axes = {name: tuple(values) for name, values in self._axes.items()}

        def position(cell: Cell) -> tuple[int, ...]:
            found = ((values, getattr(cell.recipe, name)) for name, values in axes.items())
            return tuple(values.index(value) if value in values else len(values) for values, value in found)

        cells = tuple(sorted(self._received, key=position))
        return Sweep(cells=cells, axes=axes, model=self._model, finished=self.data["state"] == "finished")

    @property
    def starred(self) -> tuple[Cell, ...]:
        """The cells with a star, in the order in which they were received."""
        count = len(self._received)
        return tuple(self._received[number] for number in sorted(set(self.stars)) if 0 <= number < count)

    # ----------------------------------------------------------------------------------------------------------- saving
    @entry_point("folder")
    def export(self, folder: str | Path | None = None) -> list[Path]:
        """Write the starred cells as PNG files with embedded recipes; returns their paths.

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

    @entry_point("path")
    def to_html(self, path: str | Path) -> Path:
        """Write the cells received so far as one HTML page that needs no kernel and no network; returns the path."""
        if not self._received:
            raise InputError("a grid without cells", "none has finished yet", "wait for the first with widget.wait()")
        data = {**self._describe(self.data["state"]), "folder": ""}  # a page that is shared names no local folder
        return html.save(pages.document(data, self.cells, self.frames), path)

    # --------------------------------------------------------------------------------------------------- while sampling
    @entry_point("timeout")
    def wait(self, timeout: float | None = None) -> Explorer:
        """Wait until no more cells arrive, at most `timeout` seconds, and raise the error that ended the sampling."""
        if self._worker is not None:
            self._worker.wait(timeout)
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
        self.data = self._describe("running")
        self._worker = Worker(cells, on_item=self._receive, on_end=self._end, name="fluxnb-explore")
        self._worker.start()

    def _end(self, problem: Exception | None) -> None:
        state = outcome(problem, done=len(self._received), total=self.data["total"])
        message = "" if problem is None else str(problem) if isinstance(problem, FluxnbError) else repr(problem)
        self._resend()
        self.data = self._describe(state, without_folders(message))

    def _show(self, cells: Sequence[Cell], *, finished: bool) -> None:
        """Display cells that exist already."""
        for cell in cells:
            self._store(cell)
        self._resend()
        self.data = self._describe("finished" if finished else "stopped")
        columns = len(self.data["axes"][-1]["values"]) if self.data["axes"] else 8
        images = [cell.image for cell in cells[:24]]
        self._fallback = fallback_png(images, columns=min(max(columns, 4), 8), side=80, limit=24)

    def _store(self, cell: Cell) -> tuple[dict[str, Any], list[bytes]]:
        """Append a cell to the traits, without sending them, for views that are opened later."""
        described, new_frames = self._encoder.add(cell)
        self._received.append(cell)
        self.frames.extend(new_frames)  # before the cell: a view may be opened between these lines
        self.cells.append(described)
        return described, new_frames

    def _receive(self, cell: Cell) -> None:
        """Store a cell and send it to the views that are open."""
        first_frame = len(self.frames)
        described, new_frames = self._store(cell)
        if self._describe("running") != self.data:
            self.data = self._describe("running")
        # A front end that is still loading misses messages. All cells are therefore sent again whenever their number
        # has doubled: nothing stays missing for longer than the sampling has taken so far, and the total sent is at
        # most two grids.
        count = len(self._received)
        if count & (count - 1) == 0:
            self._resend()
        else:
            message = {"kind": "cell", "number": count - 1, "cell": described, "first_frame": first_frame}
            self.send(message, buffers=new_frames)

    def _resend(self) -> None:
        self.send_state(["cells", "frames"])

    def _describe(self, state: str, message: str = "") -> dict[str, Any]:
        """The `data` trait: axes and counts, state and error message; a notebook saves it, so it holds no folders."""
        return {**self._encoder.data, "state": state, "message": message, "folder": self._folder.name}

    def _on_message(self, _: object, content: dict[str, Any], buffers: object) -> None:
        if content.get("kind") == "stop":
            self.stop()
        elif content.get("kind") == "save":
            try:
                count = len(self.export())
                text = f"{count} picture{'' if count == 1 else 's'} written to {self._folder}"
            except FluxnbError as problem:
                text = str(problem)
            self.send({"kind": "message", "text": text})


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
        decode: maps latents (n, 16, h/8, w/8) to images; None uses each trajectory's linear preview.
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
    widget = Explorer(encoder, axes, model=model, folder=user_path(folder))
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
