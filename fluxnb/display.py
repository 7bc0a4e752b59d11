"""How records display, write and read themselves.

Records come first in the import order and cannot import the views that draw them. The package root connects the views
here; each is imported when a record is first displayed, written or read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fluxnb.errors import FluxnbError

__all__ = ["connect", "figure", "ipython_shell", "read_picture", "write_page", "write_picture", "write_trajectory"]

_VIEWS: dict[str, Callable[..., Any]] = {}


def connect(**views: Callable[..., Any]) -> None:
    """Register the functions behind `figure`, `read_picture` and those that write a record, by their names."""
    _VIEWS.update(views)


def ipython_shell() -> Any:
    """The IPython shell of this process, None outside of IPython; that of a notebook has a `kernel`."""
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def figure(record: object) -> bytes | None:
    """A record as a figure in PNG bytes, or None where it holds nothing to draw or matplotlib is missing."""
    try:
        return bytes(_VIEWS["figure"](record))
    except (ImportError, AttributeError, FluxnbError):
        return None


def read_picture(path: str | Path, size: tuple[int, int]) -> Any:
    """The picture of a PNG file, which has to have this width and height."""
    return _VIEWS["read_picture"](path, size)


def write_page(record: object, path: str | Path, **options: Any) -> Path:
    """Write a record as a self-contained HTML page and return the path; options that are None are left out."""
    given = {name: value for name, value in options.items() if value is not None}
    return Path(_VIEWS["write_page"](record, path, **given))


def write_picture(record: object, path: str | Path) -> Path:
    """Write the picture of a record as PNG with its recipe and return the path."""
    return Path(_VIEWS["write_picture"](record, path))


def write_trajectory(record: object, path: str | Path) -> Path:
    """Write a trajectory to one safetensors file and return the path."""
    return Path(_VIEWS["write_trajectory"](record, path))
