"""Imported: a recipe that was read from another program's file, and what the file holds that a recipe cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fluxnb.errors import InputError, shorten
from fluxnb.records.recipe import Recipe

__all__ = ["Imported", "imported", "quoted", "refusal"]

MOST_DIFFERENCES = 20


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A recipe from another program's file.

    Arguments:
        recipe: what can be repeated.
        source: the program: "fluxnb", "comfyui", "a1111", "forge", "swarmui", "invokeai", "mflux" or "bfl".
        same: the fields of the recipe that the file states.
        differs: one sentence for each reason why the picture of the recipe differs from that of the file; empty where
            none is known.

    Example:
        >>> read = import_recipe({"fluxnb_recipe": 2, "prompt": "a fox"})            # doctest: +SKIP
        >>> read.source, read.differs                                               # doctest: +SKIP
        ('fluxnb', ())
    """

    recipe: Recipe
    source: str
    same: tuple[str, ...]
    differs: tuple[str, ...] = ()


def imported(source: str, fields: Mapping[str, Any], differs: Iterable[str] = ()) -> Imported:
    """An Imported from the fields that a file states; those that are None are not stated.

    Raises:
        InputError: a value that a recipe cannot have.
    """
    stated = {name: value for name, value in fields.items() if value is not None}
    try:
        recipe = Recipe(**stated)
    except InputError as problem:
        raise InputError(
            f"a picture of {source} with {problem.given}", problem.possible, "make a picture with another value"
        ) from problem
    sentences = list(dict.fromkeys(shorten_text(each) for each in differs))
    if len(sentences) > MOST_DIFFERENCES:
        left = len(sentences) - MOST_DIFFERENCES
        sentences = [*sentences[:MOST_DIFFERENCES], f"There are {left} further differences."]
    return Imported(recipe=recipe, source=source, same=tuple(stated), differs=tuple(sentences))


def shorten_text(text: str, limit: int = 300) -> str:
    """A sentence cut to `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def refusal(given: str, why: str, remedy: str = "import a picture that was made without it") -> InputError:
    """The error for something that a recipe cannot repeat."""
    return InputError(shorten_text(given, 120), why, remedy)


def quoted(value: object) -> str:
    """A value of a file in a message, short."""
    return shorten(value, 60)
