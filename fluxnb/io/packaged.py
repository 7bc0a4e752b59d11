"""The folder of the models that are part of the package, and their defaults, which are read from its card alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["POCKET", "packaged_defaults"]

POCKET = Path(__file__).parents[1] / "pocket"


def packaged_defaults(name: str) -> Mapping[str, Any]:
    """Default size, steps, guidance and text length of "pocket" or "pocket-base".

    Returns:
        Nothing where the card is missing or damaged: a package with missing files can be imported, and loading the
        model raises.

    Example:
        >>> packaged_defaults("pocket")["steps"]
        4
    """
    try:
        defaults = json.loads((POCKET / "card.json").read_text(encoding="utf-8"))["defaults"][name]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return defaults if isinstance(defaults, Mapping) else {}
