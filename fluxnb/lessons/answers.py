"""Exercises, verdicts, and the judges that compare an answer with what is right.

An exercise is data: a question and a judge. The functions below build judges. None of their messages states the right
answer; a wrong one is met with the idea that it lacks.
"""

from __future__ import annotations

import html
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fluxnb.errors import shorten, shorten_line

__all__ = ["Exercise", "Judge", "Verdict", "choice", "choices", "function", "number"]

Status = Literal["right", "nearly", "not yet", "open"]
Judge = Callable[[Any], tuple[Status, str]]

# Distinguishable with color-blind vision (Okabe and Ito 2008).
COLORS: Mapping[Status, str] = {"right": "#009E73", "nearly": "#E69F00", "not yet": "#D55E00", "open": "#0072B2"}
WORDS: Mapping[Status, str] = {"right": "Right.", "nearly": "Nearly.", "not yet": "Not yet.", "open": ""}
WIDTH = 100  # of the text form, in characters


@dataclass(frozen=True)
class Verdict:
    """What `fnb.check` returns: whether an answer is right, and what it lacks. True in a condition if it is right.

    Attributes:
        exercise: the name, such as "guidance-2".
        status: "right", "nearly", "not yet", or "open" without an answer.
        message: the reason, in a sentence or two; for "open" the question.
    """

    exercise: str
    status: Status
    message: str

    def __bool__(self) -> bool:
        return self.status == "right"

    def __repr__(self) -> str:
        return _wrapped(f"{self.exercise}: {WORDS[self.status]} {self.message}".replace("  ", " "))

    def _repr_html_(self) -> str:
        return _box(self.exercise, f"{WORDS[self.status]} {self.message}".strip(), COLORS[self.status])


@dataclass(frozen=True)
class Exercise:
    """One exercise of a notebook; `fnb.check(exercise.name, answer)` checks an answer to it.

    Attributes:
        name: such as "guidance-2".
        question: the text, with what form the answer has.
        judge: a function from an answer to a status and a message.
    """

    name: str
    question: str
    judge: Judge

    @property
    def notebook(self) -> str:
        """The notebook that the exercise belongs to, such as "guidance"."""
        return self.name.rpartition("-")[0]

    def check(self, answer: Any) -> Verdict:
        """Check an answer; None and `...` stand for an answer that is not given yet."""
        if answer is None or answer is ...:
            return Verdict(self.name, "open", self.question)
        return Verdict(self.name, *self.judge(answer))

    def __repr__(self) -> str:
        return _wrapped(f"{self.name}: {self.question}")

    def _repr_html_(self) -> str:
        return _box(self.name, self.question, COLORS["open"])


def number(
    right: float | int,
    *,
    because: str,
    wrong: Mapping[float | int, str],
    otherwise: str,
    tolerance: float = 1e-6,
    near: float | int = 0.0,
) -> Judge:
    """The judge of one number.

    Arguments:
        because: the reason, displayed after the right answer.
        wrong: known wrong answers and the idea that each lacks.
        otherwise: the message for any other number.
        tolerance: the largest distance of a right answer.
        near: the largest distance of an answer that is nearly right; 0 for none.
    """

    def judge(answer: Any) -> tuple[Status, str]:
        value = _number(answer)
        if value is None:
            return "not yet", f"This exercise takes one finite number, such as 0.5, and not {_kind(answer)}."
        if abs(value - right) <= tolerance:
            return "right", because
        known = [idea for other, idea in wrong.items() if abs(value - other) <= max(tolerance, 1e-6)]
        if known:
            return "not yet", known[0]
        if abs(value - right) <= near:
            return "nearly", "The number is close. Compute it with more digits."
        return "not yet", otherwise

    return judge


def choice(right: str, *, because: str, wrong: Mapping[str, str]) -> Judge:
    """The judge of one letter; `wrong` has the idea that is missing for each of the other letters."""
    letters = sorted([right, *wrong])

    def judge(answer: Any) -> tuple[Status, str]:
        given = _letters(answer)
        if given is None or len(given) != 1 or not given <= set(letters):
            return "not yet", f'This exercise takes one of the letters {", ".join(letters)}, such as "{letters[0]}".'
        letter = given.pop()
        return ("right", because) if letter == right else ("not yet", wrong[letter])

    return judge


def choices(right: str, *, because: str, ideas: Mapping[str, str]) -> Judge:
    """The judge of a set of letters, such as "ad"; `ideas` has the idea behind each letter, right or wrong."""
    correct = set(right)

    def judge(answer: Any) -> tuple[Status, str]:
        given = _letters(answer)
        if given is None or not given <= set(ideas):
            return "not yet", f'This exercise takes letters out of {", ".join(ideas)}, such as "{"".join(ideas)[:2]}".'
        differing = sorted(given ^ correct)
        if not differing:
            return "right", because
        return ("nearly" if len(differing) == 1 else "not yet"), ideas[differing[0]]

    return judge


def function(
    reference: Callable[..., Any],
    *,
    inputs: Sequence[tuple[Any, ...]],
    because: str,
    wrong: Sequence[tuple[Callable[..., Any], str]],
    otherwise: str,
    tolerance: float = 1e-6,
) -> Judge:
    """The judge of a function that the reader writes: it is called with several inputs.

    Arguments:
        reference: what it has to compute.
        inputs: the arguments of each call. A tuple of numbers among them is given as a tensor, or, where the function
            does not take one, as an array and as a list.
        wrong: functions that readers write by mistake, and the idea that each lacks.
        otherwise: the message for any other function.
        tolerance: of each number, absolute.
    """
    expected = [_numbers(reference(*arguments)) for arguments in inputs]

    def judge(answer: Any) -> tuple[Status, str]:
        if not callable(answer):
            return "not yet", f"This exercise takes a function, named without parentheses, and not {_kind(answer)}."
        results = []
        for arguments in inputs:
            try:
                results.append(_call(answer, arguments))
            except Exception as problem:
                text = f"{type(problem).__name__}: {shorten_line(str(problem), 120)}".rstrip(".: ")
                return "not yet", f"For {_call_text(reference, arguments)} the function raised {text}."
        numbers = [_numbers(result) for result in results]
        agreement = [_close(found, right, tolerance) for found, right in zip(numbers, expected, strict=True)]
        if all(agreement):
            return "right", because
        if all(result is None for result in results):
            return "not yet", "The function returned None. End it with a return statement."
        for mistake, idea in wrong:
            values = [_numbers(mistake(*arguments)) for arguments in inputs]
            if all(_close(found, value, tolerance) for found, value in zip(numbers, values, strict=True)):
                return "not yet", idea
        if any(agreement):
            missed = _call_text(reference, inputs[agreement.index(False)])
            return "nearly", f"It is right for {sum(agreement)} of {len(inputs)} inputs, and not for {missed}."
        return "not yet", otherwise

    return judge


# --------------------------------------------------------------------------------------------------------------- values
def _number(value: Any) -> float | None:
    """A finite number of any library as a float, else None."""
    if isinstance(value, bool | str | bytes) or callable(value):
        return None
    try:
        result = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def _numbers(value: Any) -> tuple[float, ...] | None:
    """A number, or numbers in lists, arrays and tensors, in one row; None for anything else."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple):
        single = _number(value)
        return None if single is None else (single,)
    rows = [_numbers(each) for each in value]
    return None if any(row is None for row in rows) else tuple(each for row in rows if row is not None for each in row)


def _close(one: tuple[float, ...] | None, other: tuple[float, ...] | None, tolerance: float) -> bool:
    if one is None or other is None or len(one) != len(other):
        return False
    return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


def _call(answer: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """The result for these arguments, with rows of numbers in the first form that the function takes."""
    if not any(isinstance(each, tuple) for each in arguments):
        return answer(*arguments)
    import numpy as np
    import torch

    first: Exception | None = None
    for form in (lambda row: torch.tensor(row, dtype=torch.float64), np.array, list):
        try:
            return answer(*(form(each) if isinstance(each, tuple) else each for each in arguments))
        except Exception as problem:
            first = first or problem
    raise first or TypeError("no form of the arguments was accepted")


def _call_text(reference: Callable[..., Any], arguments: tuple[Any, ...]) -> str:
    names = inspect.signature(reference).parameters
    return ", ".join(
        f"{name}={'a function' if callable(value) else shorten(value)}"
        for name, value in zip(names, arguments, strict=True)
    )


def _letters(answer: Any) -> set[str] | None:
    """The letters of an answer such as "b", "b)", "a, d" or ["a", "d"]; None for anything else."""
    if isinstance(answer, list | tuple | set | frozenset) and all(isinstance(each, str) for each in answer):
        answer = " ".join(answer)
    if not isinstance(answer, str) or len(answer) > 40:
        return None
    letters = re.sub(r"[\s,;.()]+|\band\b", "", answer.lower())
    return set(letters) if re.fullmatch(r"[a-h]+", letters) else None


def _kind(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


# ------------------------------------------------------------------------------------------------------------- displays
def _wrapped(text: str) -> str:
    lines = [textwrap.fill(line, WIDTH, subsequent_indent="    ") for line in text.split("\n")]
    return "\n".join(lines)


def _box(name: str, text: str, color: str) -> str:
    body = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False)).replace("\n", "<br>")
    return (
        f'<div style="border-left: 4px solid {color}; padding: 0.3em 0.9em; margin: 0.4em 0; max-width: 48em">'
        f"<b>{html.escape(name)}</b> {body}</div>"
    )
