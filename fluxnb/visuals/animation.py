"""GIF and WebP animations of a trajectory, or of a sweep along one of its axes, for readers that run no script."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

from PIL import Image, ImageDraw, ImageFont

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten, unknown_choice
from fluxnb.io.files import atomic_write, user_path
from fluxnb.records import Cell, Film, Sweep, Trajectory
from fluxnb.records.recipe import RecipeFields
from fluxnb.visuals.fonts import font_for, shortened
from fluxnb.visuals.frames import Decode, frames_of
from fluxnb.visuals.labels import NAMES, value_labels

__all__ = ["write", "write_axis"]

FORMATS = {".gif": "GIF", ".webp": "WEBP"}
EMPTY = "#e4e4e4"  # the square of a cell that was not sampled
GIF = 'path="fox.gif"'  # what to type for a path
GAP = 2  # pixels between the pictures of a frame


@entry_point("trajectory", "show", "decode", "seconds", "size", path=GIF, hold="hold=1.5")
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
    """Write one trajectory as a looping animation.

    Arguments:
        trajectory: a Trajectory or a Film.
        path: a name that ends in .gif or .webp; missing folders are created.
        show: "clean", "x", "v" or "noise"; a Film has one only.
        decode: from latents in space to pictures; None for the trajectory's own linear preview.
        seconds: for all steps together, above 0.
        hold: further seconds for the final picture, 0 or more.
        size: longest side in pixels.

    Returns:
        The path written.

    Raises:
        InputError: an unknown ending or `show`, a duration that is not positive, or a trajectory without frames.
        StorageError: the file cannot be written.

    Example:
        >>> write(trajectory, "fox.gif", show="x")                                  # doctest: +SKIP
        PosixPath('fox.gif')
    """
    if isinstance(trajectory, Film):
        show = trajectory.what
    if show not in NAMES:
        raise unknown_choice("show", show, tuple(NAMES))
    frame_set = frames_of(trajectory, shows=(show,), decode=decode)
    frames = list(frame_set.frames[show])
    if not frames and frame_set.final is None:
        raise InputError("a trajectory without frames", "x and v are needed", "run again with keep=fnb.Keep()")
    duration = seconds / max(len(frames), 1)
    if frame_set.final is not None:
        frames.append(frame_set.final)
    durations = [duration] * len(frames)
    durations[-1] += hold
    return _save(frames, durations, path, _fit((frame_set.width, frame_set.height), size))


@entry_point("sweep", "seconds", "size", path=GIF, axis='axis="steps"', captions="captions=True", accepts=RecipeFields)
def write_axis(
    sweep: Sweep,
    path: str | Path,
    *,
    axis: str,
    seconds: float = 0.7,
    size: int = 256,
    captions: bool = True,
    **fixed: Unpack[RecipeFields],
) -> Path:
    """Write a sweep as an animation along one axis: one frame for each value, with the pictures of the other axes.

    Arguments:
        sweep: the result of `fnb.sweep`; cells that were not sampled stay empty.
        path: a name that ends in .gif or .webp; missing folders are created.
        axis: the axis that changes, for example "steps".
        seconds: for each frame.
        size: longest side of one picture in pixels.
        captions: whether the value is written below each frame.
        fixed: values of other axes, for example `seed=3`; if all are fixed, a frame is one picture.

    Returns:
        The path written.

    Raises:
        InputError: no such axis, no cell with these values, an unknown ending, or a duration that is not positive.
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
        raise InputError(
            f"no cell with {shorten(fixed)}", "the values must be those of the sweep's axes", "see sweep.axes"
        )
    free = [name for name in sweep.axes if name != axis and name not in fixed and len(sweep.axes[name]) > 1]
    picture_size = _fit(cells[0].image.size, size)
    frames = []
    for value, text in zip(sweep.axes[axis], value_labels(axis, sweep.axes[axis]), strict=True):
        matching = [cell for cell in cells if getattr(cell.recipe, axis) == value]
        sheet = _sheet(matching, {name: sweep.axes[name] for name in free}, picture_size)
        frames.append(_with_caption(sheet, text, max(18, picture_size[1] // 9)) if captions else sheet)
    return _save(frames, [seconds] * len(frames), path, frames[0].size)


def _sheet(cells: Sequence[Cell], axes: dict[str, tuple[Any, ...]], size: tuple[int, int]) -> Image.Image:
    """The pictures of cells in a grid: the last axis across, all others down."""
    *outer, across = list(axes.values()) or [(None,)]
    rows = list(itertools.product(*outer))
    width, height = size
    sheet = Image.new("RGB", (len(across) * (width + GAP) - GAP, len(rows) * (height + GAP) - GAP), "white")
    for (row, outer_values), (column, value) in itertools.product(enumerate(rows), enumerate(across)):
        fields = dict(zip(axes, (*outer_values, value), strict=False))
        found = next((cell for cell in cells if _matches(cell, fields)), None)
        picture = Image.new("RGB", size, EMPTY) if found is None else _resize(found.image, size)
        sheet.paste(picture, (column * (width + GAP), row * (height + GAP)))
    return sheet


def _matches(cell: Cell, fields: dict[str, Any]) -> bool:
    return all(getattr(cell.recipe, name) == value for name, value in fields.items())


def _with_caption(sheet: Image.Image, text: str, height: int) -> Image.Image:
    """Add a line of text below a picture, cut to its width, in the font of the figures."""
    captioned = Image.new("RGB", (sheet.width, sheet.height + height), "white")
    captioned.paste(sheet)
    path, line = font_for(" ".join(text[:500].split()))
    font = ImageFont.truetype(path, height * 0.62)
    line = shortened(line, font, sheet.width - 4)
    place = (2, captioned.height - height / 2)
    ImageDraw.Draw(captioned).text(place, line, fill="#222222", font=font, anchor="lm")
    return captioned


def _fit(shape: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height scaled so that the longer one is `size`."""
    scale = size / max(shape)
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)


def _save(frames: Sequence[Image.Image], durations: Sequence[float], path: str | Path, size: tuple[int, int]) -> Path:
    target = user_path(path)
    file_format = FORMATS.get(target.suffix.lower())
    if file_format is None:
        raise unknown_choice("ending", target.suffix, tuple(FORMATS))
    if any(not 0 < duration < 600 for duration in durations):
        raise InputError(
            f"{min(durations):g} to {max(durations):g} seconds a frame", "above 0 and below 600 is possible",
            "try seconds=3",
        )  # fmt: skip
    pictures = [_resize(frame, size) for frame in frames]
    milliseconds = [round(1000 * duration) for duration in durations]
    with atomic_write(target) as part:
        pictures[0].save(
            part, file_format, save_all=True, append_images=pictures[1:], loop=0, duration=milliseconds
        )  # fmt: skip
    return target
