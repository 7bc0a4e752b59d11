"""A cache of measurements on disk, so that an interrupted evaluation continues where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fluxnb.train.evaluation.evaluator import Diversity, Scores
from fluxnb.train.evaluation.statistics import Estimate


@dataclasses.dataclass(frozen=True)
class Measurement:
    """All measurements of one setting.

    Attributes:
        scores: for each split, those of all sampling seeds.
        diversity, hello_world: of settings that are measured in full; None for the others.
    """

    scores: dict[str, list[Scores]]
    diversity: Diversity | None = None
    hello_world: Estimate | None = None


class MeasurementCache:
    """Measurements by setting, one JSON file each. An entry with other weights or another configuration is replaced.

    The key does not cover the code: use another folder after changes to the dataset, the judge or the metrics. If a
    measurement cannot be written, a line on stderr reports it and the evaluation continues.

    Args:
        folder: where the files are; None disables the cache.
        common: identifies what all measurements depend on: the judge and the size of the evaluation.
        key_of: identifies what a setting's measurement depends on besides: the weights and the guidance.

    Example:
        >>> MeasurementCache(None).get("teacher@28", lambda: Measurement({})).diversity is None
        True
    """

    def __init__(self, folder: Path | None, common: str = "", key_of: Callable[[str], str] = lambda label: "") -> None:
        self._folder, self._common, self._key_of = folder, common, key_of

    def get(self, label: str, measure: Callable[[], Measurement]) -> Measurement:
        """The cached measurement of a setting; otherwise the result of `measure`, which is then cached."""
        if self._folder is None:
            return measure()
        key = hashlib.sha256(f"{self._common}/{label}/{self._key_of(label)}".encode()).hexdigest()[:16]
        file = self._folder / f"{label.replace(', ', '-')}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(file.read_text(encoding="utf-8"))
            if content["key"] == key:
                return _from_json(content)
        measurement, part = measure(), file.with_suffix(".part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps({"key": key, **_as_json(measurement)}), encoding="utf-8")
            part.replace(file)
        except OSError as problem:
            print(f"{label} is not cached: {problem}", file=sys.stderr, flush=True)
        return measurement


def _as_json(measurement: Measurement) -> dict[str, Any]:
    diversity, hello = measurement.diversity, measurement.hello_world
    return {
        "scores": {split: [_scores_as_json(each) for each in runs] for split, runs in measurement.scores.items()},
        "diversity": diversity and {name: _as_list(value) for name, value in vars(diversity).items()},
        "hello_world": hello and dataclasses.asdict(hello),
    }


def _scores_as_json(scores: Scores) -> dict[str, Any]:
    correct = {name: "".join("01"[bool(flag)] for flag in flags) for name, flags in scores.correct.items()}
    return {
        "correct": correct,
        "numbers": scores.numbers,
        "mean": _as_list(scores.mean),
        "std": _as_list(scores.std),
    }


def _from_json(content: dict[str, Any]) -> Measurement:
    scores = {split: [_scores_from_json(each) for each in runs] for split, runs in content["scores"].items()}
    diversity, hello = content["diversity"], content["hello_world"]
    return Measurement(
        scores,
        None if diversity is None else Diversity(**{name: _as_array(values) for name, values in diversity.items()}),
        None if hello is None else Estimate(**hello),
    )


def _scores_from_json(content: dict[str, Any]) -> Scores:
    correct = {
        name: np.array([flag == "1" for flag in flags], dtype=bool) for name, flags in content["correct"].items()
    }
    return Scores(correct, content["numbers"], _as_array(content["mean"]), _as_array(content["std"]))


def _as_list(values: np.ndarray | None) -> dict[str, Any] | None:
    return None if values is None else {"dtype": str(values.dtype), "values": values.tolist()}


def _as_array(content: dict[str, Any] | None) -> Any:
    return None if content is None else np.array(content["values"], dtype=content["dtype"])
