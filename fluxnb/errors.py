"""The errors of fluxnb: what came, what is possible, what to type.

Every foreseeable failure is one of three kinds, and each is also the built-in error one would expect, so that
nobody has to learn ours: `InputError` is a ValueError (what was asked cannot be), `RunError` a RuntimeError (the run
went wrong), `StorageError` an OSError (a file, a folder, a disk or the hub).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

__all__ = [
    "FluxnbError",
    "InputError",
    "RunError",
    "StorageError",
    "UnavailableError",
    "shorten",
    "unknown_choice",
    "validates_own_input",
]

T = TypeVar("T")


class FluxnbError(Exception):
    """An error in three parts, kept apart as `.came`, `.possible` and `.remedy`.

    Example:
        >>> str(FluxnbError("steps=0", "at least 1 is needed", "try steps=4"))
        'steps=0: at least 1 is needed. Try steps=4.'
    """

    def __init__(self, given: str, possible: str = "", remedy: str = "") -> None:
        self.given, self.possible, self.remedy = given, possible, remedy
        text = f"{given}: {_sentence(possible)}" if possible else given
        super().__init__(f"{text} {_capital(_sentence(remedy))}" if remedy else text)


class InputError(FluxnbError, ValueError):
    """What was asked cannot be: a wrong value, a wrong type, an unknown name."""


class UnavailableError(InputError, AttributeError):
    """A property has no value on this object: it was not kept, not stored or not made yet.

    As an AttributeError it lets `hasattr`, tab completion and `inspect.getmembers` skip the property.
    """


class RunError(FluxnbError, RuntimeError):
    """The run itself went wrong: not a number, out of memory, a model that cannot do this."""


class StorageError(FluxnbError, OSError):
    """A file, a folder, a disk or the hub said no."""


def validates_own_input(door: T) -> T:
    """Mark a function or class that meets users and tells them of wrong types in our words.

    The tests check every annotation; at these doors that would come before the door's own answer.
    """
    door.__no_type_check__ = True  # type: ignore[attr-defined]
    return door


def unknown_choice(name: str, given: object, options: Iterable[str]) -> InputError:
    """The error for a value that is none of the known ones, with the nearest known one as the thing to type.

    Example:
        >>> str(one_of("sampler", "eular", ["euler", "renoise"]))
        "sampler='eular': known are 'euler' and 'renoise'. Try sampler='euler'."
    """
    known = list(options)
    near = difflib.get_close_matches(str(given), known, n=1, cutoff=0.0)
    listed = [repr(option) for option in known]
    text = " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
    return InputError(f"{name}={shorten(given)}", f"known are {text}", f"try {name}={near[0]!r}" if near else "")


def shorten(value: object, limit: int = 60) -> str:
    """The repr of a value, shorten so that a hostile or huge one cannot flood a message.

    Example:
        >>> cut("a" * 100, limit=12)
        "'aaaaaaaaaa…"
    """
    # Slicing first keeps the repr of a gigabyte of text from being built at all.
    text = repr(value[: limit + 1]) if isinstance(value, str | bytes) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else text + "."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
