"""Paths as users type them, bounded reads of regular files, atomic writes, and disk errors in three parts."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from fluxnb.arguments import entry_point
from fluxnb.errors import FluxnbError, InputError, StorageError, shorten
from fluxnb.units import byte_size

__all__ = ["atomic_write", "disk_errors", "open_regular", "read_bytes", "user_path", "without_folders"]

LONGEST_NAME = 255  # bytes of a file name on the usual file systems
_START = r"(?:~\w*|\.{1,2}|[A-Za-z]:)?[/\\]"
_QUOTED_PATH = re.compile(rf"""(?<=['"]){_START}(?:[^'"/\\]*[/\\])*([^'"/\\]*)(?=['"])""")
_PATH = re.compile(rf"""(?<![\w:/.\\~]){_START}(?:[^\s'"/\\]+[/\\])*(?=[^\s'"/\\])""")


@entry_point()
def user_path(path: str | os.PathLike[str]) -> Path:
    """A path given by a user, with a leading `~` or `~user` expanded.

    Raises:
        InputError: no path, characters that a path cannot hold, or a user without a home folder.

    Example:
        >>> user_path("~/fox.png") == Path.home() / "fox.png"
        True
    """
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise InputError(f"{shorten(path)} ({type(path).__name__}) as a path", "a path is text", 'try "fox.png"')
    try:
        if b"\0" in os.fsencode(path):
            raise InputError(f"{shorten(str(path))} as a path", "a path holds no null character", 'try "fox.png"')
        return Path(path).expanduser()
    except UnicodeEncodeError:
        raise InputError(
            f"{shorten(str(path))} as a path", "a lone surrogate is not a character", 'try "fox.png"'
        ) from None
    except RuntimeError as problem:
        raise InputError(f"{shorten(str(path))} as a path", str(problem), "write the whole path") from problem


def open_regular(path: str | Path, *, at_most: int | None = None) -> BinaryIO:
    """Open a regular file for reading, without waiting for a writer as a FIFO would.

    Links are followed. Folders, devices, FIFOs and sockets are refused, whatever leads to them.

    Arguments:
        path: of the file.
        at_most: bytes; a longer file is refused before anything is read.

    Raises:
        StorageError: no such file, not a regular one, a longer one, or one that is not readable.

    Example:
        >>> open_regular("/dev/zero")                                               # doctest: +SKIP
        Traceback (most recent call last):
        fluxnb.errors.StorageError: '/dev/zero' is a device: a regular file is needed. Check the path.
    """
    source = user_path(path)
    try:
        # O_NONBLOCK keeps open() from waiting at a FIFO. It has no effect on regular files.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(source, flags)
    except OSError as problem:
        error = StorageError(
            f"cannot read {str(source)!r} ({problem.strerror or problem})",
            "a readable file is needed",
            "check the path",
        )
        error.errno = problem.errno
        raise error from problem
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise StorageError(
                f"{str(source)!r} is {_kind(status.st_mode)}", "a regular file is needed", "check the path"
            )
        if at_most is not None and status.st_size > at_most:
            raise StorageError(
                f"{str(source)!r} is {byte_size(status.st_size)} long",
                f"at most {byte_size(at_most)} are read",
                "check that it is the file you mean",
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: str | Path, *, at_most: int) -> bytes:
    """The contents of a regular file of at most `at_most` bytes.

    Raises:
        StorageError: as `open_regular`, and for a file that grows while it is read.
    """
    with open_regular(path, at_most=at_most) as stream, disk_errors(Path(path), doing="read"):
        # Files of /proc have the size 0 and contents without end.
        data = stream.read(at_most + 1)
    if len(data) > at_most:
        raise StorageError(
            f"{str(path)!r} is longer than it states",
            f"at most {byte_size(at_most)} are read",
            "check that it is the file you mean",
        )
    return data


def _kind(mode: int) -> str:
    if stat.S_ISDIR(mode):
        return "a folder"
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "a device"
    return "a FIFO" if stat.S_ISFIFO(mode) else "no regular file"


def without_folders(message: str) -> str:
    """A message with its paths reduced to their last component, for what is shared, such as the state of a widget.

    Paths are recognized by their beginning: a separator, a drive, `~`, `.` or `..`. Addresses of the web stay whole.

    Example:
        >>> without_folders("cannot write '/data/alice/my store/fox.png', see https://huggingface.co/a/b")
        "cannot write 'fox.png', see https://huggingface.co/a/b"
    """
    return _PATH.sub("", _QUOTED_PATH.sub(r"\1", message))


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` when the block ends without an error.

    Missing folders are made. Readers see the old file or the new one, never a part of it. A link is followed and
    remains, and a file that is replaced passes its permissions on.

    Raises:
        StorageError: the folder or the file cannot be written, or the path is a folder, a device or a FIFO; the
            temporary file is removed.

    Example:
        >>> with atomic_write("notes.txt") as part:                                 # doctest: +SKIP
        ...     part.write_text("done")
    """
    given = user_path(path)
    with disk_errors(given):
        target = Path(os.path.realpath(given))
        mode = _replaceable(target)
        # A random name, since two threads of one process may write the same file.
        ending = f".{uuid.uuid4().hex[:12]}.part"
        part = target.with_name(_cut(target.name, LONGEST_NAME - len(ending)) + ending)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            yield part
            if mode is not None:
                part.chmod(mode)
            part.replace(target)
        finally:
            with contextlib.suppress(OSError):  # after a success it is gone already
                part.unlink()


def _replaceable(target: Path) -> int | None:
    """The permissions of the file at this path, None if there is none.

    Raises:
        StorageError: a folder, a device or a FIFO.
        OSError: links that lead in a circle, or a folder that cannot be entered.
    """
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(mode):
        raise StorageError(
            f"cannot write {str(target)!r}, which is {_kind(mode)}",
            "a new name or a regular file is needed",
            "choose another name",
        )
    return stat.S_IMODE(mode)


def _cut(name: str, longest: int) -> str:
    """The first characters of a file name, at most `longest` bytes."""
    return os.fsencode(name)[:longest].decode("utf-8", "ignore") if len(os.fsencode(name)) > longest else name


@contextmanager
def disk_errors(path: Path, *, doing: str = "write") -> Iterator[None]:
    """Convert an OSError inside the block into a StorageError about `path`; for a full disk, about its folder.

    Arguments:
        doing: "write" or "read", for the message.

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
                f"cannot {doing} {str(path)!r} ({problem.strerror or problem})",
                "a writable folder is needed" if doing == "write" else "a readable file is needed",
                "check the path and its permissions",
            )
        error.errno = problem.errno
        raise error from problem


def _free(path: Path) -> str:
    with contextlib.suppress(OSError):
        return f"{byte_size(shutil.disk_usage(path.parent).free)} free"
    return "free space unknown"
