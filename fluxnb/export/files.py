"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fluxnb.errors import StorageError

__all__ = ["whole"]


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
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(target)
    except OSError as problem:
        raise StorageError(
            f"cannot write {str(path)!r} ({problem.strerror or problem})",
            "the folder must be writable and the disk have room",
            "choose another path",
        ) from problem
    finally:
        with contextlib.suppress(OSError):  # gone already where all went well
            part.unlink()
