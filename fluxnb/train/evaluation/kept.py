"""What was read of each setting, kept in a folder: an evaluation that was cut off goes on where it was."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fluxnb.train.evaluation.examiner import Freedom, Marks
from fluxnb.train.evaluation.measure import Estimate


@dataclass(frozen=True)
class Reading:
    """All that is read of one setting.

    Attributes:
        marks: for each part, those of every sampling seed.
        freedom, hello: of the settings that are asked for everything.
    """

    marks: dict[str, list[Marks]]
    freedom: Freedom | None = None
    hello: Estimate | None = None


class Kept:
    """Readings by label, in one JSON file each; one of other weights or another question is read anew.

    The code is not asked after: where the world, the judge's questions or the arithmetic change, take another folder.
    A reading that cannot be written is told on stderr and not kept; the evaluation goes on.

    Arguments:
        folder: where they are kept; None for nowhere.
        common: what all readings depend on: the judge, how much was asked.
        of: what the readings of a label depend on besides, its model's fingerprint and guidance for instance.

    Example:
        >>> Kept(None).reading("teacher@28", lambda: Reading({})).freedom is None
        True
    """

    def __init__(self, folder: Path | None, common: str = "", of: Callable[[str], str] = lambda label: "") -> None:
        self._folder, self._common, self._of = folder, common, of

    def reading(self, label: str, read: Callable[[], Reading]) -> Reading:
        """The one that is kept, or what `read` gives, which is kept from then on."""
        if self._folder is None:
            return read()
        key = hashlib.sha256(f"{self._common}/{label}/{self._of(label)}".encode()).hexdigest()[:16]
        file = self._folder / f"{label.replace(', ', '-')}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads(file.read_text(encoding="utf-8"))
            if told["key"] == key:
                return _from_json(told)
        reading, part = read(), file.with_suffix(".part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"key": key, **_as_json(reading)}), encoding="utf-8")
            part.replace(file)
        except OSError as problem:
            print(f"{label} is not kept: {problem}", file=sys.stderr, flush=True)
        return reading


def _as_json(reading: Reading) -> dict[str, Any]:
    return {
        "marks": {part: [_marks_as_json(each) for each in runs] for part, runs in reading.marks.items()},
        "freedom": reading.freedom and {name: _listed(value) for name, value in vars(reading.freedom).items()},
        "hello": reading.hello and dataclasses.asdict(reading.hello),
    }


def _marks_as_json(marks: Marks) -> dict[str, Any]:
    hits = {name: "".join("01"[bool(flag)] for flag in found) for name, found in marks.hits.items()}
    return {"hits": hits, "numbers": marks.numbers, "mean": _listed(marks.mean), "std": _listed(marks.std)}


def _from_json(told: dict[str, Any]) -> Reading:
    marks = {part: [_marks(each) for each in runs] for part, runs in told["marks"].items()}
    freedom, hello = told["freedom"], told["hello"]
    return Reading(
        marks,
        None if freedom is None else Freedom(**{name: _array(values) for name, values in freedom.items()}),
        None if hello is None else Estimate(**hello),
    )


def _marks(told: dict[str, Any]) -> Marks:
    hits = {name: np.array([flag == "1" for flag in flags], dtype=bool) for name, flags in told["hits"].items()}
    return Marks(hits, told["numbers"], _array(told["mean"]), _array(told["std"]))


def _listed(values: np.ndarray | None) -> dict[str, Any] | None:
    return None if values is None else {"dtype": str(values.dtype), "values": values.tolist()}


def _array(told: dict[str, Any] | None) -> Any:
    return None if told is None else np.array(told["values"], dtype=told["dtype"])
