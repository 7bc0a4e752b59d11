"""Moving pictures: a walk as an animated GIF or WebP, for where no script may run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from fluxnb.errors import InputError, cut, one_of
from fluxnb.export.files import whole
from fluxnb.frames import NAMES, Decode, reel
from fluxnb.records import Film, Sweep, Trajectory

__all__ = ["write", "write_axis"]

FORMATS = {".gif": "GIF", ".webp": "WEBP"}


def write(
    walk: Trajectory | Film,
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
    if isinstance(walk, Film):
        show = walk.what
    if show not in NAMES:
        raise one_of("show", show, tuple(NAMES))
    roll = reel(walk, shows=(show,), decode=decode)
    frames = list(roll.frames[show])
    if not frames and roll.final is None:
        raise InputError("a walk without frames", "there is nothing to show", "run again with keep=fnb.Keep()")
    pause = seconds / max(len(frames), 1)
    pauses = [pause] * len(frames)
    if roll.final is not None:
        frames, pauses = [*frames, roll.final], [*pauses, pause]
    pauses[-1] += hold
    return _animate(frames, pauses, path, (roll.width, roll.height), size)


def write_axis(
    sweep: Sweep, path: str | Path, *, axis: str, seconds: float = 0.7, size: int = 256, **fixed: object
) -> Path:
    """Write the pictures of a sweep along one of its axes, one after the other.

    Arguments:
        sweep: what `fnb.sweep` returned.
        path: where to, .gif or .webp.
        axis: the field that changes, for example "steps".
        seconds: per picture.
        size: longest side in pixels.
        fixed: values of the other axes, for example `seed=3`; the first of each where left out.

    Raises:
        InputError: no such axis, or no cell with these values.
    """
    for name in (axis, *fixed):
        if name not in sweep.axes:
            raise one_of("axis", name, tuple(sweep.axes))
    rest = {name: fixed.get(name, values[0]) for name, values in sweep.axes.items() if name != axis}
    cells = sweep.select(**rest)
    if not cells:
        raise InputError(f"no cell with {cut(rest)}", "the sweep does not reach it", "choose values of its axes")
    images = [cell.image for cell in cells]
    return _animate(images, [seconds] * len(images), path, images[0].size, size)


def _animate(
    frames: Sequence[Image.Image], pauses: Sequence[float], path: str | Path, shape: tuple[int, int], size: int
) -> Path:
    target = Path(path)
    kind = FORMATS.get(target.suffix.lower())
    if kind is None:
        raise one_of("ending", target.suffix, tuple(FORMATS))
    if any(not 0 < pause < 600 for pause in pauses):
        raise InputError(f"{min(pauses):g} to {max(pauses):g} seconds a frame", "above 0 is needed", "try seconds=3")
    scale = size / max(shape)
    box = (max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale)))
    pictures = [frame.convert("RGB").resize(box, Image.Resampling.BICUBIC) for frame in frames]
    pauses_ms = [round(1000 * pause) for pause in pauses]
    with whole(target) as part:
        pictures[0].save(part, kind, save_all=True, append_images=pictures[1:], loop=0, duration=pauses_ms)
    return target
