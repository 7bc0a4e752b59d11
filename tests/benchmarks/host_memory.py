"""Limit and measure the main memory of this process."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

GIB = 2**30


@contextlib.contextmanager
def limited_memory(limit: int) -> Iterator[Path | None]:
    """Put this process into a cgroup with a memory limit in bytes, page cache included; None without the permission."""
    root = Path("/sys/fs/cgroup")
    unified = (root / "cgroup.controllers").is_file()
    group = (root if unified else root / "memory") / f"fluxnb-{os.getpid()}"
    try:
        if unified:
            with contextlib.suppress(OSError):  # already enabled for child groups
                (root / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
        (group / ("memory.max" if unified else "memory.limit_in_bytes")).write_text(str(limit))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as problem:
        print(f"memory is not limited: {problem}", file=sys.stderr)
        yield None
        return
    try:
        yield group
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def peak_of(group: Path | None) -> float | None:
    """Peak memory of a cgroup in GiB, page cache included."""
    for name in ("memory.peak", "memory.max_usage_in_bytes"):
        if group is not None and (group / name).is_file():
            return int((group / name).read_text()) / GIB
    return None


def ram() -> dict[str, float]:
    """Anonymous and shared memory of this process in GiB, without the page cache."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return {"RAM GiB": sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024 / GIB}
    except (OSError, KeyError, ValueError):
        return {}
