"""Paths as users type them, atomic writes, and disk errors in three parts."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fluxnb.errors import FluxnbError, InputError, StorageError, shorten, validates_own_input
from fluxnb.units import byte_size

__all__ = ["atomic_write", "disk_errors", "user_path"]


@validates_own_input
def user_path(path: str | os.PathLike[str]) -> Path:
    """A path given by a user, with a leading `~` or `~user` expanded.

    Raises:
        InputError: no path, or a user without a home folder.

    Example:
        >>> user_path("~/fox.png") == Path.home() / "fox.png"
        True
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise InputError(f"{shorten(path)} ({type(path).__name__}) as a path", "a path is text", 'try "fox.png"')
    try:
        return Path(path).expanduser()
    except RuntimeError as problem:
        raise InputError(f"{shorten(str(path))} as a path", str(problem), "write the whole path") from problem


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` when the block ends without an error.

    Missing folders are made. Readers see the old file or the new one, never a part of it.

    Raises:
        StorageError: the folder or the file cannot be written; the temporary file is removed.

    Example:
        >>> with atomic_write("notes.txt") as part:                                 # doctest: +SKIP
        ...     part.write_text("done")
    """
    target = user_path(path)
    # A random name, since two threads of one process may write the same file.
    part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}.part")
    with disk_errors(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield part
            part.replace(target)
        finally:
            with contextlib.suppress(OSError):  # after a success it is gone already
                part.unlink()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Convert an OSError inside the block into a StorageError about `path`; for a full disk, about its folder.

    Raises:
        StorageError: for any OSError; `errno` is the original's.
    """
    try:
        yield
    except FluxnbError:
        raise
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            error = StorageError(
                f"the disk of {path.parent} is full ({_free(path)})",
                "files that were finished before are complete",
                "free some space or choose another disk, and run again: cells in a store are not made twice",
            )
        else:
            error = StorageError(
                f"cannot write {str(path)!r} ({problem.strerror or problem})",
                "a writable folder is needed",
                "check the path and its permissions",
            )
        error.errno = problem.errno
        raise error from problem


def _free(path: Path) -> str:
    with contextlib.suppress(OSError):
        return f"{byte_size(shutil.disk_usage(path.parent).free)} free"
    return "free space unknown"
