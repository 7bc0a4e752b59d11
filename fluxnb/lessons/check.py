"""`check` and `exercises`: the exercises of the notebooks by name."""

from __future__ import annotations

import difflib
from typing import Any

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten
from fluxnb.lessons.answers import Exercise, Verdict
from fluxnb.lessons.exercises import distillation, models, sampling, trajectories

__all__ = ["EXERCISES", "Exercises", "check", "exercises"]

#: In the order of the notebooks.
EXERCISES: dict[str, Exercise] = {
    each.name: each for part in (trajectories, distillation, sampling, models) for each in part.EXERCISES
}


class Exercises(tuple[Exercise, ...]):
    """Exercises in their order; displays as a list of their questions."""

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, self))

    def _repr_html_(self) -> str:
        return "".join(each._repr_html_() for each in self)


@entry_point(exercise='exercise="guidance-2"')
def check(exercise: str, answer: Any = None) -> Verdict:
    """Check an answer to an exercise of a notebook, without giving the right one away.

    Arguments:
        exercise: its name, such as "guidance-2"; `fnb.exercises()` lists them.
        answer: a number, letters, a function or records, as the question states. Without an answer, and for `...`, the
            question is displayed.

    Returns:
        A Verdict: "right", "nearly", or "not yet" with the idea that is missing. It displays in a notebook.

    Raises:
        InputError: an unknown name.

    Example:
        >>> check("guidance-2", 56).status
        'not yet'
    """
    if exercise not in EXERCISES:
        raise _unknown(exercise)
    return EXERCISES[exercise].check(answer)


@entry_point(notebook='notebook="guidance"')
def exercises(notebook: str | None = None) -> Exercises:
    """The exercises of a notebook, or of all of them, with their questions.

    Arguments:
        notebook: a subject, such as "guidance", or one exercise, such as "guidance-2".

    Raises:
        InputError: an unknown name.

    Example:
        >>> [each.name for each in exercises("guidance")]
        ['guidance-1', 'guidance-2', 'guidance-3']
    """
    found = [each for each in EXERCISES.values() if notebook in (None, each.notebook, each.name)]
    if not found:
        raise _unknown(notebook or "")
    return Exercises(found)


def _unknown(name: str) -> InputError:
    notebooks = list(dict.fromkeys(each.notebook for each in EXERCISES.values()))
    subject, _, index = name.rpartition("-")
    subject = (subject if index.isdigit() else name).lower().replace("_", "-").replace(" ", "-")
    near = difflib.get_close_matches(subject, notebooks, n=1, cutoff=0.5)
    known = ", ".join(f"{near[0]}-{i}" for i in (1, 2, 3)) if near else f"the subjects are {', '.join(notebooks)}"
    number = index if index in ("1", "2", "3") else "1"
    return InputError(
        f"the exercise {shorten(name)}",
        f"known are {known}" if near else f"each has the exercises 1, 2 and 3; {known}",
        f'type fnb.check("{near[0]}-{number}", answer)' if near else "type fnb.exercises() for their questions",
    )
