"""What people type into a form, read as the arguments of a sweep; numbers stay text until here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fluxnb.errors import InputError, shorten

__all__ = ["MOST_CELLS", "as_text", "numbers_in", "read_form"]

MOST_CELLS = 1024  # pictures that a browser shows at once without effort


def numbers_in(name: str, text: str) -> list[int]:
    """Whole numbers and ranges as people type them.

    Raises:
        InputError: anything else, or more than fits into a lab.

    Example:
        >>> numbers_in("seeds", "0-2, 7"), numbers_in("seeds", "18446744073709551615")
        ([0, 1, 2, 7], [18446744073709551615])
    """
    remedy = f"try {name} 0-3, or 1, 5, 9"
    found: list[int] = []
    for part in re.split(r"[,;\s]+", re.sub(r"\s*(-|–|\.\.)\s*", "-", text.strip())):
        match = re.fullmatch(r"(\d{1,20})(?:-(\d{1,20}))?", part, re.ASCII)
        if match is None:
            raise InputError(f"{name}={shorten(text)}", "whole numbers and ranges are possible", remedy)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first + len(found) >= MOST_CELLS:
            what = "a range runs upwards" if last < first else f"a lab shows at most {MOST_CELLS} pictures"
            raise InputError(f"{name}={shorten(text)}", what, remedy)
        found += range(first, last + 1)
    return found


def read_form(texts: Mapping[str, str]) -> dict[str, Any]:
    """What a form says, as the names and values of a sweep; a recipe checks the values themselves.

    Raises:
        InputError: text where a number belongs.

    Example:
        >>> read_form({"prompt": "a fox", "seeds": "0-1", "steps": "4", "width": "128"})
        {'prompts': 'a fox', 'seeds': [0, 1], 'steps': [4], 'width': 128}
    """
    asked: dict[str, Any] = {"prompts": texts.get("prompt", "")}
    for name in ("seeds", "steps"):
        asked[name] = numbers_in(name, texts[name])
    for name in ("height", "width"):
        if name in texts:
            asked[name] = _one(name, texts[name])
    if "guidance" in texts:
        try:
            asked["guidance"] = float(texts["guidance"].strip().replace(",", "."))
        except ValueError:
            given = f"guidance={shorten(texts['guidance'])}"
            raise InputError(given, "it is a number from 0 to 100", "try guidance 2.5") from None
    if texts.get("negative"):
        asked["negative"] = texts["negative"]
    return asked


def _one(name: str, text: str) -> int:
    if not re.fullmatch(r"\s*\d{1,9}\s*", text, re.ASCII):
        raise InputError(f"{name}={shorten(text)}", "it is a length in pixels", f"try {name} 128")
    return int(text)


def as_text(value: Any) -> str:
    """A value as it would be typed.

    Example:
        >>> as_text(range(3)), as_text(4)
        ('0, 1, 2', '4')
    """
    if isinstance(value, Sequence | range) and not isinstance(value, str):
        return ", ".join(str(each) for each in value)
    return str(value)
