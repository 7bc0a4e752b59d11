"""Claims of the notebooks as data: a sentence, the cases that were tried, those in which it holds, a threshold.

A notebook states its claims in one `Claims`, which displays as a table at its end. The table is part of the committed
outputs, from which `read_claims` reads it back. `FLUXNB_CLAIMS=long` in the environment tries the same claims on
prompts and seeds that are not those of the notebook; `make claims` does so.
"""

from __future__ import annotations

import html
import inspect
import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, StorageError, shorten, unknown_choice
from fluxnb.metrics import Count
from fluxnb.pipeline.flux import Flux
from fluxnb.progress import Progress

__all__ = ["LONG_PROMPTS", "LONG_SEEDS", "MIME", "Claim", "Claims", "read_claims"]

MIME = "application/vnd.fluxnb.claims+json"  # of the table as data, among the outputs of a cell
VARIABLE = "FLUXNB_CLAIMS"

_NOUNS = (
    "a penguin", "a turtle", "an elephant", "a parrot", "a rabbit", "a tractor",
    "a zebra", "a guitar", "a mushroom", "a sailboat", "a pumpkin", "a bear",
    "a panda", "a whale", "a drum", "a robot", "a lion", "a snail",
)  # fmt: skip
_PLACES = ("in the snow", "in a meadow", "on the beach", "at night", "at sunset", "under water")
_SIGNS = (
    "flux", "noise", "yes", "stop", "peace", "open", "tea", "hope", "magic", "sugar", "hero", "summer", "day", "moon",
    "wind", "red", "lucky", "sing",
)  # fmt: skip
#: Prompts of the long form by their kind, within the language of pocket. Twelve that a notebook does not use are taken.
LONG_PROMPTS: dict[str, tuple[str, ...]] = {
    "things": _NOUNS,  # the place is left open
    "places": tuple(f"{noun} {place}" for noun, place in zip(_NOUNS, 3 * _PLACES, strict=True)),
    "signs": tuple(f"{noun} holding a sign that says {word}" for noun, word in zip(_NOUNS, _SIGNS, strict=True)),
}
LONG_COUNT = 12
LONG_SEEDS = tuple(range(1000, 1008))
Case = Callable[..., Any]
STATUSES = ("pass", "fail", "differs", "not tried")


@dataclass(frozen=True)
class Claim:
    """One sentence, and in how many cases it holds.

    Attributes:
        sentence: what is claimed of each case.
        count: the cases in which it holds, of those that were tried.
        at_least, at_most: the smallest and the largest share that pass.
        model: the model that it was tried on.
        home: whether the claim was made about this model. On another one a failure is a difference.
        tried: on what, such as "12 prompts x 8 seeds".
    """

    sentence: str
    count: Count
    at_least: float
    at_most: float
    model: str
    home: bool
    tried: str

    @property
    def status(self) -> str:
        """Whether enough cases hold: "pass", "fail", "differs" for a failure on another model, or "not tried"."""
        if not self.count.trials:
            return "not tried"
        if self.at_least <= self.count.share <= self.at_most:
            return "pass"
        return "fail" if self.home else "differs"

    @property
    def required(self) -> str:
        """The share that is required, in words."""
        low, high = (f"{100 * end:.0f}" for end in (self.at_least, self.at_most))
        if self.at_most == 1:
            return f"at least {low} %"
        return f"at most {high} %" if self.at_least == 0 else f"{low} to {high} %"

    def __repr__(self) -> str:
        return f"{self.status}: {self.count}, {self.required}: {self.sentence}"

    def _row(self) -> tuple[str, str, str, str, str]:
        return self.status, repr(self.count), self.required, self.tried, self.sentence


@entry_point("prompts", "seeds", notebook='notebook="seeds"', model="model=flux", about='about=["pocket"]')
class Claims:
    """The claims of a notebook, which display as one table at its end.

    Each line has a status: "pass", "fail", "differs" for a failure on a model that the claims are not about, or "not
    tried". No line is left out.

    Arguments:
        notebook: its subject, such as "seeds".
        model: a loaded model, or a name where there is none.
        prompts, seeds: on which functions are tried. The environment variable FLUXNB_CLAIMS=long replaces them with
            twelve other prompts of `LONG_PROMPTS`, and with `LONG_SEEDS`.
        about: the models that the claims are about.

    Raises:
        InputError: a share out of range, an unknown kind, or a function with other parameters than prompt and seed.

    Example:
        >>> claims = Claims("seeds", "pocket", prompts=["a fox", "a cat"], seeds=range(2))
        >>> claims.add("A seed is a whole number.", lambda seed: isinstance(seed, int))
        pass: 2 of 2 (34 to 100 %), at least 90 %: A seed is a whole number.
    """

    def __init__(
        self,
        notebook: str,
        model: Flux | str = "pocket",
        *,
        prompts: Sequence[str] = (),
        seeds: Iterable[int] = (),
        about: Sequence[str] = ("pocket", "pocket-base"),
    ) -> None:
        self.notebook, self.model = notebook, model if isinstance(model, str) else model.model
        self.long = os.environ.get(VARIABLE, "") == "long"
        self.claims: list[Claim] = []
        self._prompts, self._seeds, self._about = tuple(prompts), tuple(seeds), tuple(about)

    @entry_point(sentence='sentence="Pictures of one seed agree in place."', kind='kind="things"')
    def add(
        self,
        sentence: str,
        cases: Case | Iterable[object] | Count | bool,
        *,
        at_least: float | None = None,
        at_most: float | None = None,
        kind: str = "places",
    ) -> Claim:
        """Try a claim and add it to the table.

        Arguments:
            sentence: what is claimed of each case.
            cases: a function of `prompt` and `seed`, or of one of them, which returns whether the sentence holds; it
                is called with all of them. Or the outcomes of cases that are computed already, or their Count; the
                long form then repeats those.
            at_least: the smallest share of the cases that passes; 0.9 where neither it nor `at_most` is given.
            at_most: the largest share that passes, for a claim about something rare, or with `at_least` a range.
            kind: of the prompts of the long form: "things" (the place is left open), "places" or "signs".
        """
        low, high = _range(at_least, at_most)
        if kind not in LONG_PROMPTS:
            raise unknown_choice("kind", kind, LONG_PROMPTS)
        count, tried = self._count(cases, kind) if callable(cases) else _counted(cases)
        claim = Claim(sentence, count, low, high, self.model, self.model in self._about, tried)
        self.claims.append(claim)
        return claim

    def _count(self, case: Case, kind: str) -> tuple[Count, str]:
        parameters = list(inspect.signature(case).parameters)
        if not parameters or not set(parameters) <= {"prompt", "seed"}:
            raise InputError(
                f"a function of {', '.join(parameters) or 'nothing'}",
                "it is called with prompt and seed, or with one of them",
                "type lambda prompt, seed: ...",
            )
        prompts, seeds = self._prompts, self._seeds
        if self.long:
            others = [prompt for prompt in LONG_PROMPTS[kind] if prompt not in prompts]
            prompts, seeds = tuple(others[:LONG_COUNT]), LONG_SEEDS
        values = {"prompt": prompts, "seed": seeds}
        tries = list(itertools.product(*(values[name] for name in parameters)))
        outcomes = []
        with Progress(len(tries), unit="cases") as bar:
            for each in tries:
                outcomes.append(bool(case(**dict(zip(parameters, each, strict=True)))))
                bar.update()
        names = [f"{len(values[name])} {name}{'s' * (len(values[name]) != 1)}" for name in parameters]
        return Count.of(outcomes), " x ".join(names)

    def __iter__(self) -> Any:
        return iter(self.claims)

    def __len__(self) -> int:
        return len(self.claims)

    def _title(self) -> str:
        return f"Claims of {self.notebook} on {self.model}, {'long' if self.long else 'short'} form"

    def to_json(self) -> dict[str, Any]:
        """The table as data, as it is stored in a notebook's output."""
        rows = [
            {
                "sentence": each.sentence,
                "holds": each.count.hits,
                "of": each.count.trials,
                "required": each.required,
                "tried": each.tried,
                "status": each.status,
            }
            for each in self.claims
        ]
        return {"notebook": self.notebook, "model": self.model, "long": self.long, "claims": rows}

    def __repr__(self) -> str:
        rows = [each._row() for each in self.claims]
        widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]] if rows else []
        lines = [
            "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]) for row in rows
        ]
        return "\n".join([self._title(), *lines])

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": _page(self._title(), self.claims), MIME: self.to_json()}


def read_claims(notebook: str | Path) -> dict[str, Any] | None:
    """The table of claims in the outputs of an executed notebook, as `Claims.to_json` writes it; None without one.

    Raises:
        StorageError: no notebook, or a table of another form.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        bundles = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
        tables = [bundle[MIME] for bundle in bundles if MIME in bundle]
        for table in tables[-1:]:
            _check_table(table)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise StorageError(
            f"the claims of {shorten(str(notebook))}", "it is a notebook with its outputs", "run make notebooks"
        ) from problem
    return tables[-1] if tables else None


def _check_table(table: Any) -> None:
    if not isinstance(table["notebook"], str) or not isinstance(table["model"], str):
        raise ValueError("names are text")
    for row in table["claims"]:
        Count(row["holds"], row["of"])
        if row["status"] not in STATUSES or not all(isinstance(row[name], str) for name in ("sentence", "required")):
            raise ValueError("a row of another form")


def _range(at_least: Any, at_most: Any) -> tuple[float, float]:
    """The smallest and the largest share that pass."""
    given = {name: share for name, share in (("at_least", at_least), ("at_most", at_most)) if share is not None}
    for name, share in given.items():
        if not isinstance(share, int | float) or isinstance(share, bool) or not 0 <= share <= 1:
            raise InputError(f"{name}={shorten(share)}", "it is a share, 0 to 1", f"try {name}=0.9")
    low, high = float(given.get("at_least", 0.0 if given else 0.9)), float(given.get("at_most", 1.0))
    if low > high:
        raise InputError(f"at_least={low} with at_most={high}", "at_least is the smaller one", "exchange them")
    return low, high


def _counted(cases: Any) -> tuple[Count, str]:
    if isinstance(cases, bool):
        cases = [cases]
    if not isinstance(cases, Count):
        if isinstance(cases, str | bytes) or not isinstance(cases, Iterable):
            raise InputError(
                f"cases={shorten(cases)}", "it is a function, or a list of True and False", "type [a > b, c > d]"
            )
        cases = Count.of(cases)
    return cases, f"{cases.trials} case{'s' * (cases.trials != 1)}"


#: Distinguishable with color-blind vision (Okabe and Ito 2008); the word stands beside the color.
COLORS = {"pass": "#009E73", "fail": "#D55E00", "differs": "#E69F00", "not tried": "#0072B2"}


def _page(title: str, claims: Sequence[Claim]) -> str:
    rows = []
    for each in claims:
        status, *cells, sentence = map(html.escape, each._row())
        mark = f'<td style="border-left: 4px solid {COLORS[each.status]}; text-align: left"><b>{status}</b></td>'
        body = "".join(f'<td style="text-align: left">{cell}</td>' for cell in (sentence, *cells))
        rows.append(f"<tr>{mark}{body}</tr>")
    names = ("", "claim", "holds in", "required", "tried on")
    head = "".join(f'<th style="text-align: left">{name}</th>' for name in names)
    return (
        f'<table><caption style="text-align: left">{html.escape(title)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )
