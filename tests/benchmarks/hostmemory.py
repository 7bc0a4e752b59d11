"""The main memory of this process: limited as a small machine would limit it, and counted."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

GIB = 2**30


@contextlib.contextmanager
def limited_memory(most: int) -> Iterator[Path | None]:
    """A memory group of this many bytes with this process in it, the disk's cache counted; None without the right."""
    root = Path("/sys/fs/cgroup")
    first = (root / "cgroup.controllers").is_file()
    group = (root if first else root / "memory") / f"fluxnb-{os.getpid()}"
    try:
        if first:
            with contextlib.suppress(OSError):  # given to groups below already
                (root / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
        (group / ("memory.max" if first else "memory.limit_in_bytes")).write_text(str(most))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as problem:
        print(f"no limit: {problem}", file=sys.stderr)
        yield None
        return
    try:
        yield group
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def peak_of(group: Path | None) -> float | None:
    """The most that a memory group held, GiB, the disk's cache in it."""
    for name in ("memory.peak", "memory.max_usage_in_bytes"):
        if group is not None and (group / name).is_file():
            return int((group / name).read_text()) / GIB
    return None


def ram() -> dict[str, float]:
    """Main memory of this process that cannot be given back, GiB; files in the disk's cache are not in it."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return {"RAM GiB": sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024 / GIB}
    except (OSError, KeyError, ValueError):
        return {}
