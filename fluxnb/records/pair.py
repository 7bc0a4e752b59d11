"""Pair: a teacher and the student that was distilled from it, and what the distillation keeps."""

from __future__ import annotations

from dataclasses import dataclass

from fluxnb.errors import unknown_choice

__all__ = ["KINDS", "Pair"]

KINDS = ("trajectory", "distribution")
SENTENCES = {
    "trajectory": "keeps the teacher's map: the same seed leads both to nearly the same picture",
    "distribution": "matches the distribution only: the same seed promises a similar layout at best",
}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher and its student.

    Arguments:
        teacher, student: names of the models.
        kind: "trajectory" where the student is trained to end where its teacher's trajectory ends, as by reflow or a
            flow map; "distribution" where it is trained to draw pictures like the teacher's (DMD, adversarial and
            reward training), or where the method is not published.
        method: of the distillation, in a few words; "" where it is not published.

    Example:
        >>> print(Pair(teacher="pocket-base", student="pocket", kind="trajectory"))
        pocket keeps the teacher's map: the same seed leads both to nearly the same picture (teacher: pocket-base).
    """

    teacher: str
    student: str
    kind: str
    method: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_choice("kind", self.kind, KINDS)

    def __str__(self) -> str:
        return f"{self.student} {SENTENCES[self.kind]} (teacher: {self.teacher})."
