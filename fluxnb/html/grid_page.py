"""Self-contained HTML page of a sweep: choice of rows, columns and pages, comparison, stars, a slider over sigma.

`GridEncoder` encodes a grid cell by cell as JSON and WebP, for the explorer widget while a grid is sampled and for the
page afterwards.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, unknown_choice
from fluxnb.html import page as html
from fluxnb.io.files import user_path
from fluxnb.io.png import write_png
from fluxnb.progress import Progress
from fluxnb.records import Cell, Sweep
from fluxnb.records.recipe import Recipe
from fluxnb.visuals.frames import Decode, frames_of, webp
from fluxnb.visuals.labels import NAMES, value_label, value_labels

__all__ = ["SHOWS", "GridEncoder", "document", "page", "save_cells", "stills_of", "write"]

SHOWS = ("clean", "x")
NO_SLIDER = "no slider over sigma: these cells have no steps; sample the grid with keep=fnb.Keep()"
NO_STEPS = "no slider over sigma: an endpoint gives the finished picture alone"
MANY = {"prompt": "prompts", "seed": "seeds", "steps": "step counts", "model": "models"}
EXACT_SIDE = 256  # pixels up to which final pictures are stored without loss
CACHED_PICTURES = 32  # enough for one seed and its step counts
# Fields displayed for a cell, in this order.
FACTS = ("prompt", "negative", "seed", "steps", "size", "guidance", "sampler", "sigmas", "shift", "model", "dtype")


class GridEncoder:
    """Encode a grid as the JSON and WebP that the explorer displays.

    Arguments:
        axes: field names and their values, in order; values of added cells that are missing are appended.
        model: for the title.
        shows: the quantities the slider can display, of "clean", "x", "v", "noise".
        decode: from latents in space to pictures; None for each trajectory's own linear preview.
        size: longest side of a picture in pixels, at least 16; larger pictures are reduced.

    Raises:
        InputError: an unknown name in `shows`, or an invalid size.

    Example:
        >>> encoder = GridEncoder({"seed": (1, 2)})
        >>> encoder.data["total"], encoder.data["axes"][0]["values"]
        (2, ['seed 1', 'seed 2'])
    """

    @entry_point("shows", "decode")
    def __init__(
        self,
        axes: Mapping[str, Sequence[Any]],
        *,
        model: str = "",
        shows: Sequence[str] = SHOWS,
        decode: Decode | None = None,
        size: int = 1024,
    ) -> None:
        for show in shows:
            if show not in NAMES:
                raise unknown_choice("shows", show, tuple(NAMES))
        if isinstance(size, bool) or not isinstance(size, int) or size < 16:
            raise InputError(f"size={size!r}", "a number of pixels is needed, at least 16", "try size=512")
        self._values = {name: list(values) for name, values in axes.items()}
        self._model, self._shows, self._size = model, tuple(shows), size
        self._decode = None if decode is None else _cached(decode)
        self._numbers: dict[bytes, int] = {}
        self._by: set[str] = set()
        self._providers: set[str] = set()

    @property
    def data(self) -> dict[str, Any]:
        """The grid without its cells: title, axes as text, quantities, number of cells when complete."""
        total = 1
        for values in self._values.values():
            total *= max(len(values), 1)
        sizes = " × ".join(
            f"{len(values)} {MANY.get(name, 'values of ' + name)}"
            for name, values in self._values.items()
            if len(values) > 1
        )
        return {
            "title": ", ".join(part for part in (sizes, self._model) if part) or "a grid",
            "axes": [
                {
                    "name": name,
                    "values": value_labels(name, values),
                    "full": [value_label(name, value) for value in values],
                }
                for name, values in self._values.items()
            ],
            "shows": [{"key": show, "name": NAMES[show]} for show in self._shows],
            "total": total,
            "note": "; ".join(self._notes()),
            "scrub_note": NO_STEPS if self._providers else NO_SLIDER,
            "state": "finished",
            "message": "",
            "folder": "",
        }

    def _notes(self) -> Iterator[str]:
        if self._by:
            yield f"frames by {' and '.join(sorted(self._by))}"
        if self._providers:
            yield f"drawn by {' and '.join(sorted(self._providers))}, whose seeds are not the seeds here"

    def add(self, cell: Cell) -> tuple[dict[str, Any], list[bytes]]:
        """Add a cell; returns its JSON and the WebP frames that no earlier cell had, numbered in order of arrival."""
        fresh: list[bytes] = []

        def number(image: Image.Image, *, exact: bool) -> int:
            data = _encoded(image, self._size, exact=exact)
            if data not in self._numbers:
                self._numbers[data] = len(self._numbers)
                fresh.append(data)
            return self._numbers[data]

        picture, trajectory = cell.image, cell.trajectory
        preview = preview_side(picture.size, self._size)
        self._providers |= {cell.drawn_by} - {""}
        frames: dict[str, list[int]] = {show: [] for show in self._shows}
        sigmas: tuple[float, ...] = ()
        if trajectory is not None and any(step.kept for step in trajectory.steps):
            frame_set = frames_of(trajectory, shows=self._shows, decode=self._decode)
            sigmas = frame_set.sigmas
            frames = {show: [number(image, exact=False) for image in frame_set.frames[show]] for show in self._shows}
            self._by.add(frame_set.by)
        return {
            "position": self.position(cell.recipe),
            "name": _stem(cell),
            "caption": _caption(cell),
            "facts": [*_facts(cell), *([preview_fact(preview)] if preview else [])],
            "recipe": cell.recipe.to_json(),
            "code": _code(cell),
            "sigmas": list(sigmas),
            "frames": frames,
            "final": number(picture, exact=True),
            "preview": preview,
            "width": picture.width,
            "height": picture.height,
        }, fresh

    def position(self, recipe: Recipe) -> list[int]:
        """The position of a recipe on each axis."""
        return [self._place(name, getattr(recipe, name)) for name in self._values]

    def _place(self, name: str, value: Any) -> int:
        values = self._values[name]
        if value not in values and None in values:
            return values.index(None)  # None requests the default of the model; the cell has its value
        if value not in values:
            values.append(value)
        return values.index(value)


def page(sweep: Sweep, *, shows: Sequence[str] = SHOWS, decode: Decode | None = None, size: int = 512) -> str:
    """The HTML text of the page; the arguments are those of `write`."""
    if not len(sweep):
        raise InputError(
            "a sweep without cells", "at least one picture is needed", "run it again, or pass the sweep of its store"
        )
    encoder = GridEncoder(sweep.axes, model=sweep.model, shows=shows, decode=decode, size=size)
    cells, frames = [], []
    with Progress(len(sweep), unit="pictures") as progress:
        for cell in sweep:
            encoded, fresh = encoder.add(cell)
            cells.append(encoded)
            frames.extend(fresh)
            progress.update()
    return document(encoder.data, cells, frames)


@entry_point("sweep", "path", "shows", "decode", "size")
def write(
    sweep: Sweep,
    path: str | Path,
    *,
    shows: Sequence[str] = SHOWS,
    decode: Decode | None = None,
    size: int = 512,
) -> Path:
    """Write the page to a file, atomically; missing folders are created.

    Arguments:
        sweep: the result of `fnb.sweep`; with `keep=fnb.Keep()` the page has a slider over sigma.
        path: the file to write.
        shows: the quantities the slider can display, of "clean", "x", "v", "noise".
        decode: from latents in space to pictures; None for each trajectory's own linear preview.
        size: longest side of a picture in pixels; 64 photographs of 512 pixels are about 4 MB.

    Returns:
        The path written.

    Raises:
        InputError: a sweep without cells, an unknown name in `shows`, or an invalid size.
        StorageError: the file cannot be written.

    Example:
        >>> write(grid, "grid.html")                                                # doctest: +SKIP
        PosixPath('grid.html')
    """
    return html.save(page(sweep, shows=shows, decode=decode, size=size), path)


def document(data: dict[str, Any], cells: Sequence[dict[str, Any]], frames: Sequence[bytes]) -> str:
    """The HTML text of the page of a grid, from the output of a GridEncoder."""
    prompts = {dict(cell["facts"])["prompt"] for cell in cells}
    title = prompts.pop() if len(prompts) == 1 else str(data["title"])
    return html.document("explore", title, {**data, "cells": list(cells)}, frames, stills_of(cells))


def stills_of(cells: Sequence[dict[str, Any]]) -> list[html.Still]:
    """The pictures of the cells, for the sheet that is printed."""
    return [html.Still(cell["final"], cell["caption"]) for cell in cells]


def save_cells(cells: Iterable[Cell], folder: str | Path) -> list[Path]:
    """Write pictures into a folder as PNG files with their recipes, and return their paths.

    A file name contains prompt, seed, steps and the first characters of the cell's key, so that saving again writes
    the same files.

    Raises:
        StorageError: the folder cannot be written; files written so far remain.
    """
    paths = []
    for cell in cells:
        path = user_path(folder) / f"{_stem(cell)}.png"
        paths.append(write_png(cell.image, path, cell.recipe, numerics=cell.numerics))
    return paths


def _cached(decode: Decode) -> Decode:
    """Decode equal latents once: trajectories of one seed share their first estimate."""
    known: dict[bytes, Image.Image] = {}

    def draw(latents: Tensor) -> list[Image.Image]:
        keys = [hashlib.sha256(latent.contiguous().numpy().tobytes()).digest() for latent in latents]
        fresh = {key: place for place, key in enumerate(keys) if key not in known}
        if fresh:
            known.update(zip(fresh, decode(latents[list(fresh.values())]), strict=True))
        pictures = [known[key] for key in keys]
        for key in list(known)[:-CACHED_PICTURES]:
            del known[key]
        return pictures

    return draw


def preview_side(size: tuple[int, int], limit: int) -> int:
    """The longest side of a final picture as it is stored, or 0 where it is stored with its original pixels."""
    return 0 if max(size) <= min(limit, EXACT_SIDE) else min(max(size), limit)


def preview_fact(side: int) -> tuple[str, str]:
    """The fact that names a stored picture as a preview."""
    return ("pixels", f"preview, {side} px")


def _encoded(image: Image.Image, size: int, *, exact: bool) -> bytes:
    if max(image.size) > size:
        image = image.convert("RGB")
        image.thumbnail((size, size), Image.Resampling.LANCZOS)
    if exact and max(image.size) <= EXACT_SIDE:
        return webp(image, lossless=True)
    # Final pictures and linear previews, which have few pixels, are encoded as well as `webp` does by default. Decoded
    # frames are noisy: at that quality they would take ten times the bytes of the picture.
    return webp(image) if exact or max(image.size) <= 64 else webp(image, quality=82, lossless=False)


def _facts(cell: Cell) -> list[tuple[str, str]]:
    """Field and value as text; JavaScript would round a large seed given as a number."""
    recipe = cell.recipe
    values = {name: getattr(recipe, name, None) for name in FACTS}
    values["size"] = f"{recipe.width} × {recipe.height}"
    values["guidance"] = None if recipe.guidance is None else f"{recipe.guidance:g}"
    values["sigmas"] = None if recipe.sigmas is None else ", ".join(f"{sigma:g}" for sigma in recipe.sigmas)
    facts = [(name, str(value)) for name, value in values.items() if value not in (None, "")]
    if cell.drawn_by:
        flag = cell.numerics.partition(", ")[2]
        by = f"{cell.drawn_by}, whose seeds are not the seeds here"
        return [fact for fact in facts if fact[0] != "dtype"] + [("drawn by", by), *[("flagged", flag)] * bool(flag)]
    return [*facts, ("numbers", "exact" if cell.exact else f"lossy: {cell.numerics}")]


def _code(cell: Cell) -> str:
    """The call that samples this cell again."""
    recipe = cell.recipe
    seed = "seeds" if cell.drawn_by else "seed"
    values: dict[str, Any] = {seed: recipe.seed, "steps": recipe.steps, "height": recipe.height}
    values |= {"width": recipe.width, "guidance": recipe.guidance, "negative": recipe.negative or None}
    values |= {"sampler": None if recipe.sampler == "euler" else recipe.sampler, "sigmas": recipe.sigmas}
    values["shift"] = recipe.shift
    arguments = [f"{name}={value!r}" for name, value in values.items() if value is not None]
    if cell.drawn_by:
        name = f"{recipe.model}:{recipe.revision}"
        return f"fnb.sweep(fnb.load({name!r}), {', '.join([f'prompts={recipe.prompt!r}', *arguments])})"
    return f"fnb.run(flux, {', '.join([repr(recipe.prompt), *arguments])})"


def _caption(cell: Cell) -> str:
    return ", ".join(
        (cell.recipe.prompt, *(value_label(name, getattr(cell.recipe, name)) for name in ("seed", "steps")))
    )


def _stem(cell: Cell) -> str:
    """A file name of letters, digits and hyphens, valid on every system."""
    recipe = cell.recipe
    words = re.sub(r"[^a-z0-9]+", "-", recipe.prompt[:200].lower()).strip("-")[:48].strip("-") or "picture"
    return f"{words}-seed-{recipe.seed}-steps-{recipe.steps}-{cell.key[:8]}"
