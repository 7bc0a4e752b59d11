"""Moving pictures: a walk, or a grid along one of its axes, as GIF or WebP for where no script may run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fluxnb.errors import InputError, shorten, unknown_choice, validates_own_input
from fluxnb.io.files import whole
from fluxnb.records import Cell, Film, Sweep, Trajectory
from fluxnb.visuals.frames import Decode, frames_of
from fluxnb.visuals.labels import NAMES, values_of

__all__ = ["write", "write_axis"]

FORMATS = {".gif": "GIF", ".webp": "WEBP"}


def write(
    trajectory: Trajectory | Film,
    path: str | Path,
    *,
    show: str = "clean",
    decode: Decode | None = None,
    seconds: float = 3.0,
    hold: float = 1.5,
    size: int = 256,
) -> Path:
    """Write one walk as a looping animation; the name's ending, .gif or .webp, decides the format.

    Arguments:
        walk: a Trajectory or a Film.
        path: where to; folders are made.
        show: "clean", "x", "v" or "noise"; a Film has only its own.
        decode: from latents (n, 16, h/8, w/8) to pictures; None for the walk's own linear preview.
        seconds: for the steps together, above 0.
        hold: seconds that the final picture stays, 0 or more.
        size: longest side in pixels.

    Returns:
        The path written.

    Raises:
        InputError: an unknown ending or show, or a walk without frames.
        StorageError: the file cannot be written.

    Example:
        >>> write(walk, "walk.gif", show="x")                                       # doctest: +SKIP
        PosixPath('walk.gif')
    """
    if isinstance(trajectory, Film):
        show = trajectory.what
    if show not in NAMES:
        raise unknown_choice("show", show, tuple(NAMES))
    roll = frames_of(trajectory, shows=(show,), decode=decode)
    frames = list(roll.frames[show])
    if not frames and roll.final is None:
        raise InputError("a walk without frames", "there is nothing to show", "run again with keep=fnb.Keep()")
    pause = seconds / max(len(frames), 1)
    pauses = [pause] * len(frames)
    if roll.final is not None:
        frames, pauses = [*frames, roll.final], [*pauses, pause]
    pauses[-1] += hold
    return _animate(frames, pauses, path, (roll.width, roll.height), size)


@validates_own_input
def write_axis(
    sweep: Sweep,
    path: str | Path,
    *,
    axis: str,
    seconds: float = 0.7,
    size: int = 256,
    captions: bool = True,
    **fixed: object,
) -> Path:
    """Write a sweep along one of its axes: a frame for each value, in it the pictures of all other axes that are left.

    Arguments:
        sweep: what `fnb.sweep` returned; cells it never reached stay empty.
        path: where to, .gif or .webp.
        axis: the field that changes, for example "steps".
        seconds: per frame.
        size: longest side of one picture in pixels.
        captions: False for frames without the value written below them.
        fixed: values of other axes, for example `seed=3`; with all of them fixed a frame is one picture.

    Raises:
        InputError: no such axis, or no cell with these values.
        StorageError: the file cannot be written.

    Example:
        >>> write_axis(grid, "steps.gif", axis="steps", seed=3)                     # doctest: +SKIP
        PosixPath('steps.gif')
    """
    for name in (axis, *fixed):
        if name not in sweep.axes:
            raise unknown_choice("axis", name, tuple(sweep.axes))
    cells = sweep.select(**fixed)
    if not cells:
        raise InputError(f"no cell with {shorten(fixed)}", "the sweep does not reach it", "choose values of its axes")
    free = [name for name in sweep.axes if name != axis and name not in fixed and len(sweep.axes[name]) > 1]
    across = sweep.axes[free[-1]] if free else (None,)
    down = list(itertools.product(*(sweep.axes[name] for name in free[:-1])))
    box = _shape(cells[0].image.size, size)
    frames = []
    for value, words in zip(sweep.axes[axis], values_of(axis, sweep.axes[axis]), strict=True):
        below = max(18, box[1] // 9) if captions else 0
        sheet = Image.new("RGB", (len(across) * (box[0] + 2) - 2, len(down) * (box[1] + 2) - 2 + below), "white")
        for row, column in itertools.product(range(len(down)), range(len(across))):
            there = dict(zip(free, (*down[row], across[column]), strict=True)) if free else {}
            found = [cell for cell in cells if _is(cell, {axis: value, **there})]
            picture = _small(found[0].image, box) if found else Image.new("RGB", box, "#e4e4e4")
            sheet.paste(picture, (column * (box[0] + 2), row * (box[1] + 2)))
        if captions:
            _caption(sheet, words, below)
        frames.append(sheet)
    return _animate(frames, [seconds] * len(frames), path, frames[0].size, max(frames[0].size))


def _is(cell: Cell, wanted: dict[str, Any]) -> bool:
    return all(getattr(cell.recipe, name) == value for name, value in wanted.items())


def _caption(sheet: Image.Image, words: str, high: int) -> None:
    """Words below a picture, cut where they would run out of it; in the font that every figure has."""
    from matplotlib import get_data_path

    font = ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", high * 0.62)
    line = " ".join(words[:500].split())
    while line and font.getlength(line) > sheet.width - 4:
        line = line[:-2].rstrip() + "…" if len(line) > 2 else ""
    ImageDraw.Draw(sheet).text((2, sheet.height - high / 2), line, fill="#222222", font=font, anchor="lm")


def _shape(shape: tuple[int, int], size: int) -> tuple[int, int]:
    scale = size / max(shape)
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _small(image: Image.Image, box: tuple[int, int]) -> Image.Image:
    return image.convert("RGB").resize(box, Image.Resampling.BICUBIC)


def _animate(
    frames: Sequence[Image.Image], pauses: Sequence[float], path: str | Path, shape: tuple[int, int], size: int
) -> Path:
    target = Path(path)
    kind = FORMATS.get(target.suffix.lower())
    if kind is None:
        raise unknown_choice("ending", target.suffix, tuple(FORMATS))
    if any(not 0 < pause < 600 for pause in pauses):
        raise InputError(f"{min(pauses):g} to {max(pauses):g} seconds a frame", "above 0 is needed", "try seconds=3")
    pictures = [_small(frame, _shape(shape, size)) for frame in frames]
    pauses_ms = [round(1000 * pause) for pause in pauses]
    with whole(target) as part:
        pictures[0].save(part, kind, save_all=True, append_images=pictures[1:], loop=0, duration=pauses_ms)
    return target
