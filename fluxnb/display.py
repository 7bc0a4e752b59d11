"""How records display and write themselves.

Records come first in the import order and cannot import the views that draw them. The package root connects the views
here; each is imported when a record is first displayed or written.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fluxnb.errors import FluxnbError

__all__ = ["connect", "figure", "write_page", "write_trajectory"]

_VIEWS: dict[str, Callable[..., Any]] = {}


def connect(**views: Callable[..., Any]) -> None:
    """Register the functions behind `figure`, `write_page` and `write_trajectory`, by these names."""
    _VIEWS.update(views)


def figure(record: object) -> bytes | None:
    """A record as a figure in PNG bytes, or None where it holds nothing to draw or matplotlib is missing."""
    try:
        return bytes(_VIEWS["figure"](record))
    except (ImportError, AttributeError, FluxnbError):
        return None


def write_page(record: object, path: str | Path, **options: Any) -> Path:
    """Write a record as a self-contained HTML page and return the path."""
    return Path(_VIEWS["write_page"](record, path, **options))


def write_trajectory(record: object, path: str | Path) -> Path:
    """Write a trajectory to one safetensors file and return the path."""
    return Path(_VIEWS["write_trajectory"](record, path))
