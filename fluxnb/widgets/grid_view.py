"""What the explorer and the lab have in common: the cells of a grid in the browser, stars, choices and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import traitlets

from fluxnb.arguments import entry_point
from fluxnb.errors import FluxnbError, InputError
from fluxnb.html import grid_page as pages
from fluxnb.html import page as html
from fluxnb.html.grid_page import GridEncoder
from fluxnb.io.files import without_folders
from fluxnb.io.png import encode_png
from fluxnb.records import Cell, Sweep
from fluxnb.widgets.view import View

__all__ = ["GridView", "Results"]


@dataclass(eq=False, kw_only=True)
class Results:
    """The cells of one grid as they arrive, and their JSON and WebP for the front end.

    Arguments:
        encoder: converts the cells.
        axes: field names and their values, in order.
        model: name of the model, for the repr of the Sweep.
        run: number of the run, for a view that has several.
        state: "empty", "running", "finished", "stopped" or "failed".
        message: the error that ended the sampling.
        received: the cells in the order of their arrival; `cells` and `frames` are their encoding.
        stars, choices: numbers of the starred cells, and of those that are chosen for a comparison.
        seconds: duration of the sampling.
    """

    encoder: GridEncoder
    axes: Mapping[str, Sequence[Any]]
    model: str
    run: int = 0
    state: str = "running"
    message: str = ""
    received: list[Cell] = field(default_factory=list)
    cells: list[dict[str, Any]] = field(default_factory=list)
    frames: list[bytes] = field(default_factory=list)
    stars: list[int] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def data(self) -> dict[str, Any]:
        """The `data` of the front end: axes and counts, state and error message."""
        return {**self.encoder.data, "state": self.state, "message": self.message, "run": self.run}

    @property
    def sweep(self) -> Sweep:
        """The cells as a Sweep in the order of the axes."""
        axes = {name: tuple(values) for name, values in self.axes.items()}

        def position(cell: Cell) -> tuple[int, ...]:
            found = ((values, getattr(cell.recipe, name)) for name, values in axes.items())
            return tuple(values.index(value) if value in values else len(values) for values, value in found)

        return Sweep(
            cells=tuple(sorted(self.received, key=position)),
            axes=axes,
            finished=self.state == "finished",
            seconds=self.seconds,
            evaluations=sum(cell.evaluations for cell in self.received),
            model=self.model,
        )

    def add(self, cell: Cell) -> tuple[dict[str, Any], list[bytes]]:
        """Encode and store a cell; returns its JSON and the frames that no earlier cell had."""
        described, fresh = self.encoder.add(cell)
        self.received.append(cell)
        self.frames.extend(fresh)
        self.cells.append(described)
        return described, fresh

    def select(self, numbers: Sequence[int]) -> tuple[Cell, ...]:
        """The cells of these numbers, in the given order; numbers without a cell are ignored."""
        known = [number for number in dict.fromkeys(numbers) if 0 <= number < len(self.received)]
        return tuple(self.received[number] for number in known)

    def numbers_of(self, cells: Sequence[Cell]) -> list[int]:
        """The numbers of these cells.

        Raises:
            InputError: a cell of another grid.
        """
        places = {id(cell): number for number, cell in enumerate(self.received)}
        keys = {cell.recipe: number for number, cell in enumerate(self.received)}
        numbers = []
        for cell in cells:
            number = places.get(id(cell), keys.get(getattr(cell, "recipe", None)))  # type: ignore[arg-type]
            if number is None:
                raise InputError(repr(cell), "cells of this grid are possible", "try widget.grid[:2]")
            numbers.append(number)
        return numbers


class GridView(View):
    """A grid of cells in the browser. Subclasses set `_results` and call `_display` when another grid is displayed.

    Attributes:
        starred: the cells with a star, in the order of their arrival; a trait that can be set and observed.
        chosen: the cells that are chosen for a comparison, in the order of the choice; a trait as well.
        sigma: the displayed noise level, from 1 to 0; moving the slider changes it.
        stars, choices: the numbers of these cells, as the front end has them.
    """

    data = traitlets.Dict().tag(sync=True)
    cells: Any = traitlets.List().tag(sync=True)
    frames = traitlets.List(traitlets.Bytes()).tag(sync=True)
    stars = traitlets.List(traitlets.Int()).tag(sync=True)
    choices = traitlets.List(traitlets.Int()).tag(sync=True)
    sigma = traitlets.Float(0.0, min=0.0, max=1.0).tag(sync=True)
    starred = traitlets.Tuple()
    chosen = traitlets.Tuple()

    def __init__(self, results: Results, folder: Path, **traits: Any) -> None:
        self._results, self._folder = results, folder
        super().__init__(data=self._describe(), **traits)
        self.on_msg(self._on_message)

    # ------------------------------------------------------------------------------------------------ stars and choices
    @traitlets.validate("starred", "chosen")
    def _validate_cells(self, proposal: Any) -> tuple[Cell, ...]:
        numbers = self._results.numbers_of(tuple(proposal["value"]))
        return self._results.select(sorted(numbers) if proposal["trait"].name == "starred" else numbers)

    @traitlets.observe("stars")
    def _stars_changed(self, change: Any) -> None:
        self._follow_numbers("stars", "starred", sorted(set(change["new"])))

    @traitlets.observe("choices")
    def _choices_changed(self, change: Any) -> None:
        self._follow_numbers("choices", "chosen", change["new"])

    def _follow_numbers(self, numbers_name: str, cells_name: str, numbers: Sequence[int]) -> None:
        setattr(self._results, numbers_name, list(numbers))
        setattr(self, cells_name, self._results.select(numbers))

    @traitlets.observe("starred")
    def _starred_changed(self, change: Any) -> None:
        self._follow_cells("stars", change["new"], sorted(set(self.stars)))

    @traitlets.observe("chosen")
    def _chosen_changed(self, change: Any) -> None:
        self._follow_cells("choices", change["new"], self.choices)

    def _follow_cells(self, name: str, cells: Sequence[Cell], current: Sequence[int]) -> None:
        numbers, count = self._results.numbers_of(cells), len(self._results.received)
        if numbers != [number for number in current if 0 <= number < count]:
            setattr(self, name, numbers)

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
        if not self._results.received:
            raise InputError("a grid without cells", "none has finished yet", "wait for the first with widget.wait()")
        data, frames = self._page_content()
        return html.save(pages.document(data, data["cells"], frames), path)

    def _page_content(self) -> tuple[dict[str, Any], list[bytes]]:
        # A page that is shared names no local folder.
        data = {**self._describe(), "folder": "", "cells": list(self._results.cells)}
        del data["run"]
        return data, list(self._results.frames)

    def _content(self) -> tuple[dict[str, Any], list[bytes]] | None:
        return self._page_content() if self._results.received else None

    def _stills(self, data: dict[str, Any]) -> list[html.Still]:
        return pages.stills_of(data["cells"])

    # -------------------------------------------------------------------------------------------------------- front end
    def _describe(self) -> dict[str, Any]:
        """The `data` trait; a notebook saves it, so it holds no folders."""
        data = self._results.data
        return {**data, "message": without_folders(data["message"]), "folder": self._folder.name}

    def _display(self, results: Results) -> None:
        """Display another grid."""
        self._results = results
        with self.hold_sync():
            self.cells, self.frames = list(results.cells), list(results.frames)
            self.data = self._describe()
            self.choices, self.stars = list(results.choices), list(results.stars)
            self.chosen, self.starred = results.select(results.choices), results.select(results.stars)

    def _receive_cell(self, results: Results, cell: Cell) -> None:
        """Store a cell of a grid and send it to the open views, if this grid is displayed."""
        first_frame = len(results.frames)
        described, fresh = results.add(cell)
        if results is not self._results:
            return
        self.frames.extend(fresh)  # before the cell: a view may be opened between these lines
        self.cells.append(described)
        if self._describe() != self.data:
            self.data = self._describe()
        # A front end that is still loading misses messages. All cells are therefore sent again whenever their number
        # has doubled: nothing stays missing for longer than the sampling has taken so far, and the total sent is at
        # most two grids.
        count = len(results.received)
        if count & (count - 1) == 0:
            self._resend()
        else:
            message = {"kind": "cell", "number": count - 1, "cell": described, "first_frame": first_frame}
            self.send({**message, "run": results.run}, buffers=fresh)

    def _resend(self) -> None:
        self.send_state(["cells", "frames"])

    def _original(self, content: dict[str, Any], _: Any) -> bytes:
        """The PNG of a cell with its original pixels and its recipe."""
        results, number = self._results, int(content.get("number", -1))
        if content.get("run") != results.run or number not in range(len(results.received)):
            raise InputError(f"cell {number}", "cells of the displayed grid are possible", "reload the view")
        cell = results.received[number]
        return encode_png(cell.image, cell.recipe, numerics=cell.numerics)

    def _on_message(self, _: object, content: dict[str, Any], buffers: Sequence[Any]) -> None:
        """Reply to a request of the front end; a request with an id always gets a reply."""
        action = self._actions().get(str(content.get("kind")))
        if action is None:
            return
        try:
            result = action(content, buffers)
        except Exception as problem:  # a message has no caller that would see it
            result = str(problem) if isinstance(problem, FluxnbError) else repr(problem)
        text, data = ("", [result]) if isinstance(result, bytes) else (result or "", [])
        self.send({"kind": "reply", "request": content.get("request"), "text": text}, buffers=data)

    def _actions(self) -> dict[str, Callable[[dict[str, Any], Sequence[Any]], str | bytes | None]]:
        """The requests of the front end by kind; each returns the text of its reply, or bytes."""
        return {"save": self._save, "original": self._original}

    def _save(self, _: dict[str, Any], __: Sequence[Any]) -> str:
        count = len(self.export())
        return f"{count} picture{'' if count == 1 else 's'} written to {self._folder}"
