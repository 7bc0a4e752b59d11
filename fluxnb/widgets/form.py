"""Texts of the lab's form to arguments of a sweep, and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypedDict

from fluxnb.errors import InputError, shorten
from fluxnb.records.recipe import Recipe

__all__ = [
    "FIELDS",
    "MAX_CELLS",
    "FormFields",
    "fields_of",
    "format_numbers",
    "format_value",
    "parse_form",
    "parse_numbers",
]

MAX_CELLS = 1024  # images that a browser displays at once without effort


class FormFields(TypedDict, total=False):
    """The fields of the form as keyword arguments: texts, as they are typed there, or values."""

    prompt: str
    seeds: str | int | Iterable[int]
    steps: str | int | Iterable[int]
    width: str | int
    height: str | int
    guidance: str | float
    negative: str


FIELDS = tuple(FormFields.__annotations__)


def parse_numbers(name: str, text: str, *, most: int = MAX_CELLS) -> list[int]:
    """Parse whole numbers and ranges.

    Arguments:
        name: of the field, for the message.
        text: the numbers, with commas or spaces between them.
        most: how many numbers are accepted; as many as a lab displays by default.

    Raises:
        InputError: anything else, or too many numbers.

    Example:
        >>> parse_numbers("seeds", "0-2, 7"), parse_numbers("seeds", "18446744073709551615")
        ([0, 1, 2, 7], [18446744073709551615])
    """
    remedy = f"try {name} 0-3, or 1, 5, 9"
    numbers: list[int] = []
    for part in re.split(r"[,;\s]+", re.sub(r"\s*(-|–|\.\.)\s*", "-", text.strip())):
        match = re.fullmatch(r"(\d{1,20})(?:-(\d{1,20}))?", part, re.ASCII)
        if match is None:
            raise InputError(f"{name}={shorten(text)}", "whole numbers and ranges are possible", remedy)
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first + len(numbers) >= most:
            reason = "a range runs upwards" if last < first else f"at most {most} numbers are accepted"
            raise InputError(f"{name}={shorten(text)}", reason, remedy)
        numbers += range(first, last + 1)
    return numbers


def parse_form(texts: Mapping[str, str]) -> dict[str, Any]:
    """Parse the texts of the form into the arguments of a sweep; `Recipe` validates the values.

    Raises:
        InputError: text in a field for numbers.

    Example:
        >>> parse_form({"prompt": "a fox", "seeds": "0-1", "steps": "4", "width": "128"})
        {'prompts': 'a fox', 'seeds': [0, 1], 'steps': [4], 'width': 128}
    """
    arguments: dict[str, Any] = {"prompts": texts.get("prompt", "")}
    for name in ("seeds", "steps"):
        arguments[name] = parse_numbers(name, texts[name])
    for name in ("height", "width"):
        if name in texts:
            arguments[name] = _parse_length(name, texts[name])
    if "guidance" in texts:
        try:
            arguments["guidance"] = float(texts["guidance"].strip().replace(",", "."))
        except ValueError:
            given = f"guidance={shorten(texts['guidance'])}"
            raise InputError(given, "it is a number from 0 to 100", "try guidance 2.5") from None
    if texts.get("negative"):
        arguments["negative"] = texts["negative"]
    return arguments


def _parse_length(name: str, text: str) -> int:
    if not re.fullmatch(r"\s*\d{1,9}\s*", text, re.ASCII):
        raise InputError(f"{name}={shorten(text)}", "it is a length in pixels", f"try {name} 128")
    return int(text)


def format_value(value: Any) -> str:
    """Format a value as a user would type it into the form.

    Example:
        >>> format_value(range(3)), format_value(seed for seed in (5, 7)), format_value(4)
        ('0, 1, 2', '5, 7', '4')
    """
    if isinstance(value, Iterable) and not isinstance(value, str):
        return ", ".join(str(each) for each in value)
    return str(value)


def format_numbers(numbers: Sequence[int]) -> str:
    """Format whole numbers as a user would type them, three and more in a row as a range.

    Example:
        >>> format_numbers([0, 1, 2, 3, 7, 9, 10])
        '0-3, 7, 9, 10'
    """
    parts: list[str] = []
    rest = list(numbers)
    while rest:
        length = 1
        while length < len(rest) and rest[length] == rest[0] + length:
            length += 1
        run, rest = (rest[:length], rest[length:]) if length > 2 else (rest[:1], rest[1:])
        parts.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return ", ".join(parts)


def fields_of(recipe: Recipe, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """The texts of the form for a recipe, and the names of those of its values that the form has no field for.

    Arguments:
        recipe: the recipe.
        names: the fields of the form.

    Example:
        >>> fields_of(Recipe(prompt="a fox", seed=3, sampler="renoise"), ("prompt", "seeds", "steps"))
        ({'prompt': 'a fox', 'seeds': '3', 'steps': '4'}, ['sampler'])
    """
    values = {
        "prompt": recipe.prompt,
        "seeds": recipe.seed,
        "steps": recipe.steps,
        "width": recipe.width,
        "height": recipe.height,
        "guidance": recipe.guidance,
        "negative": recipe.negative or "",  # none clears the field
    }
    known = {name: format_value(value) for name, value in values.items() if name in names and value is not None}
    defaults = {"sampler": "euler", "sigmas": None, "shift": None}
    others = [name for name in ("guidance", "negative") if name not in names and values[name]]
    others += [name for name, default in defaults.items() if getattr(recipe, name) != default]
    return known, others
