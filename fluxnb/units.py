"""Durations and sizes in bytes as text."""

from __future__ import annotations

__all__ = ["byte_size", "duration"]


def duration(seconds: float | int) -> str:
    """Seconds as text with the precision that a reader needs.

    Example:
        >>> [duration(seconds) for seconds in (0.346, 2.14, 45.2, 600, 9000)]
        ['0.35 s', '2.1 s', '45 s', '10 min', '2.5 h']
    """
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def byte_size(count: float | int) -> str:
    """A number of bytes as text, in binary units.

    Example:
        >>> [byte_size(count) for count in (512, 32 * 2**10, 4.5 * 2**20, 31.42 * 2**30)]
        ['512 B', '32.0 KiB', '4.5 MiB', '31.4 GiB']
    """
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
