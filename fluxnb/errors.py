"""Exceptions in three parts: what was given, what is possible, what to type.

Each kind is also the built-in exception that fits, so callers need not import ours: `InputError` is a ValueError,
`UnavailableError` an AttributeError too, `RunError` a RuntimeError, `StorageError` an OSError.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterable

__all__ = [
    "ArgumentError",
    "FluxnbError",
    "InputError",
    "RunError",
    "StorageError",
    "UnavailableError",
    "shorten",
    "unknown_choice",
    "warn_caller",
]


class FluxnbError(Exception):
    """Base of all exceptions of fluxnb: one message in three parts.

    Arguments:
        given: what was given, such as "steps=0".
        possible: what is possible instead.
        remedy: what to type.

    Example:
        >>> str(FluxnbError("steps=0", "at least 1 is needed", "try steps=4"))
        'steps=0: at least 1 is needed. Try steps=4.'
    """

    def __init__(self, given: str, possible: str = "", remedy: str = "") -> None:
        self.given, self.possible, self.remedy = given, possible, remedy
        text = f"{given}: {_sentence(possible)}" if possible else given
        super().__init__(f"{text} {_capital(_sentence(remedy))}" if remedy else text)

    def _render_traceback_(self) -> list[str]:
        """What IPython displays instead of a traceback: the caller's line and the parts of the message.

        `traceback.print_last()` prints the full traceback, and `%debug` opens it; `FLUXNB_TRACEBACK=1` in the
        environment displays it at once.
        """
        if os.environ.get("FLUXNB_TRACEBACK", "") not in ("", "0"):
            return traceback.format_exception(self)
        frames = traceback.extract_tb(self.__traceback__)
        own = [frame for frame in frames if frame.line and not _is_internal(frame.filename)]
        where = [f"{_place(frame)}: {frame.line}" for frame in own[-1:]]
        first = f"{type(self).__name__}: {self.given}"
        parts = [self.possible and _capital(_sentence(self.possible)), self.remedy and _capital(_sentence(self.remedy))]
        cause = self.__cause__
        caused = [] if cause is None else [f"Caused by {type(cause).__name__}: {shorten_line(str(cause))}"]
        return [*where, first, *[f"  {part}" for part in parts if part], *caused, "(traceback.print_last() prints all)"]


class InputError(FluxnbError, ValueError):
    """An argument has a wrong value, a wrong type or an unknown name."""


class ArgumentError(InputError, TypeError):
    """A function was called with an unknown keyword, without a needed argument, or with a value of a wrong type."""


class UnavailableError(InputError, AttributeError):
    """A property has no value on this object: it was not retained, not stored or not computed yet.

    As an AttributeError it lets `hasattr`, tab completion and `inspect.getmembers` skip the property.
    """


class RunError(FluxnbError, RuntimeError):
    """Sampling failed: values that are not finite, too little memory, or a model that does not support the request."""


class StorageError(FluxnbError, OSError):
    """A file, a folder, a disk or the model hub cannot be read or written."""


def unknown_choice(name: str, given: object, options: Iterable[str]) -> InputError:
    """The error for a value that is not among `options`; the remedy names the most similar option.

    Example:
        >>> str(unknown_choice("sampler", "eular", ["euler", "renoise"]))
        "sampler='eular': known are 'euler' and 'renoise'. Try sampler='euler'."
    """
    known = list(options)
    near = difflib.get_close_matches(str(given), known, n=1, cutoff=0.0)
    listed = [repr(option) for option in known]
    text = " and ".join([", ".join(listed[:-1]), listed[-1]] if len(listed) > 1 else listed)
    return InputError(f"{name}={shorten(given)}", f"known are {text}", f"try {name}={near[0]!r}" if near else "")


def shorten(value: object, limit: int = 60) -> str:
    """The repr of a value, cut to `limit` characters so that a huge value does not flood a message.

    Example:
        >>> shorten("a" * 100, limit=12)
        "'aaaaaaaaaa…"
    """
    # The text is cut first, so that the repr of a very long text is never built.
    text = repr(value[: limit + 1]) if isinstance(value, str | bytes) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else text + "."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def shorten_line(text: str, limit: int = 200) -> str:
    """The first line of a text, cut to `limit` characters."""
    line = next(iter(text.strip().splitlines()), "")
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _is_internal(filename: str) -> bool:
    """Whether a frame is one of this package, an installed one or the standard library, not the caller's own code."""
    folders = (os.path.dirname(os.path.abspath(__file__)), sysconfig.get_path("stdlib"))
    installed = {"site-packages", "dist-packages"} & set(re.split(r"[/\\]", filename))
    return bool(installed) or any(filename.startswith(folder + os.sep) for folder in folders)


def _place(frame: traceback.FrameSummary) -> str:
    """Where a frame is: the line of a cell, which IPython names after a temporary file, or file and line."""
    is_cell = re.search(r"ipykernel_\d+|^<ipython-input|^Cell In\[", frame.filename)
    return f"line {frame.lineno}" if is_cell else f"{frame.filename}, line {frame.lineno}"


def warn_caller(message: str, category: type[Warning]) -> None:
    """Warn at the line of the first caller outside this package, so that the warning points at the user's own code."""
    internal = ("fluxnb", "torch", "jaxtyping", "beartype", "contextlib")  # and what wraps it: no_grad, shape checks
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] in internal:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
