"""Writing a file whole or not at all, and what to say when the disk refuses."""

from __future__ import annotations

import contextlib
import errno
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fluxnb.errors import FluxnbError, StorageError

__all__ = ["told", "whole"]


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to, which takes its place when the block ends well; folders are made.

    Raises:
        StorageError: the folder or the file cannot be written; nothing half-written remains.

    Example:
        >>> with whole("walk.txt") as part:                                         # doctest: +SKIP
        ...     part.write_text("done")
    """
    target = Path(path)
    # Two threads may write the same name, so the process's number would not tell their parts from each other.
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.part")
    with told(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield part
            part.replace(target)
        finally:
            with contextlib.suppress(OSError):  # gone already where all went well
                part.unlink()


@contextmanager
def told(place: Path) -> Iterator[None]:
    """Tell a refusal of the disk in our words; a full disk by its folder.

    Raises:
        StorageError: for any OSError inside the block; `errno` is the original's.
    """
    try:
        yield
    except FluxnbError:
        raise
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            words = StorageError(
                f"the disk of {place.parent} is full ({_free(place)})",
                "what was finished before is whole",
                "make room or choose another disk, and run again: what a store has is not made twice",
            )
        else:
            words = StorageError(
                f"cannot write {str(place)!r} ({problem.strerror or problem})",
                "a writable folder is needed",
                "check the path and its rights",
            )
        words.errno = problem.errno
        raise words from problem


def _free(place: Path) -> str:
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(place.parent).free / 2**20:.0f} MiB free"
    return "it does not say how much is free"
