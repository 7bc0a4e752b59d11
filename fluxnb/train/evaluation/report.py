"""The results of an evaluation: estimates, targets, a table and a figure, from the files of `evaluator`."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import torch

from fluxnb.train.config import Preset
from fluxnb.train.data.scenes import BACKDROPS
from fluxnb.train.evaluation.evaluator import RENDERS, SPLITS, TEACHER, Evaluator, Size, planted
from fluxnb.train.evaluation.figure import evaluation_figure
from fluxnb.train.evaluation.statistics import Estimate, bootstrap, ratio_of_shares, wilson
from fluxnb.train.metrics import entropy, frechet, median_distance, vendi
from fluxnb.train.networks.judge import ATTRIBUTES
from fluxnb.train.stages.loop import Rank

DISTANCE_DRAWS = 100  # of the bootstrap of Fréchet distances, each of which takes a tenth of a second


@dataclasses.dataclass(frozen=True)
class Row:
    """A target with its measurement.

    Attributes:
        setting: which model, with which number of steps.
        quantity: what is measured.
        captions: "seen" or "held out", or "open" for prompts that specify a noun alone.
        against: the setting that the measurement is divided by.
        value: with its interval.
        at_least, at_most: the target.
    """

    setting: str
    quantity: str
    captions: str
    against: str
    value: Estimate
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the value itself, not its interval, meets the target."""
        if self.at_most is not None:
            return self.value.value <= self.at_most
        return self.at_least is not None and self.value.value >= self.at_least


class Report:
    """The results of an evaluation, from the files of `Evaluator.run`."""

    def __init__(self, out: Path):
        complete = [path for path in sorted((out / "evaluation").glob("*.npz")) if ".part." not in path.name]
        self.files = {path.name.removesuffix(".npz"): path for path in complete}
        self.names = list(dict.fromkeys(name.split(".seen.")[0] for name in self.files if ".seen." in name))

    def correct(self, setting: str, split: str, attribute: str) -> np.ndarray:
        """The flags of `correctness` for all seeds, (N,), NaN where a caption does not specify the attribute."""
        prefix = f"{setting}.{split}."
        return np.concatenate(
            [np.load(path)[attribute] for name, path in self.files.items() if name.startswith(prefix)]
        )

    def share(self, setting: str, split: str, attribute: str) -> Estimate:
        """The share of correct pictures."""
        flags = self.correct(setting, split, attribute)
        flags = flags[~np.isnan(flags)]
        return wilson(int(flags.sum()), len(flags))

    def relative(self, setting: str, to: str, split: str, attribute: str) -> Estimate:
        """The share of correct pictures divided by that of another setting on the same captions."""
        pairs = np.stack([self.correct(each, split, attribute) for each in (setting, to)], 1)
        return ratio_of_shares(pairs[~np.isnan(pairs).any(1)])

    def distance(self, setting: str) -> float:
        """The Fréchet distance of the pictures of the seen captions to renders of the same captions."""
        return _frechet(self._features(setting), self._features(RENDERS, "others"))

    def relative_distance(self, setting: str, to: str) -> Estimate:
        """The Fréchet distance divided by that of another setting; the interval is a bootstrap over captions."""
        columns = [self._features(setting), self._features(to), self._features(RENDERS, "others")]

        def statistic(rows: np.ndarray) -> float:
            one, other, renders = np.split(rows, 3, axis=1)
            return _frechet(one, renders) / _frechet(other, renders)

        return bootstrap(statistic, np.concatenate(columns, 1), draws=DISTANCE_DRAWS)

    def _features(self, setting: str, field: str = "features") -> np.ndarray:
        prefix = f"{setting}.seen."
        return np.concatenate([np.load(path)[field] for name, path in self.files.items() if name.startswith(prefix)])

    def diversity(self, setting: str) -> dict[str, np.ndarray]:
        """By prompt: entropy of style and backdrop in nats, and the effective number of pictures (Vendi score)."""
        found, renders = (np.load(self.files[f"{who}.open"]) for who in (setting, RENDERS))
        codes = found["style"] * len(BACKDROPS) + found["backdrop"]
        widths = [median_distance(torch.from_numpy(rows)) for rows in renders["features"]]
        features = map(torch.from_numpy, found["features"])
        return {
            "entropy": np.array([entropy(torch.from_numpy(row)) for row in codes]),
            "vendi": np.array([vendi(rows, width) for rows, width in zip(features, widths, strict=True)]),
        }

    def relative_diversity(self, setting: str, to: str) -> Estimate:
        """The mean effective number of pictures within a prompt, divided by that of another setting."""
        pairs = np.stack([self.diversity(each)["vendi"] for each in (setting, to)], 1)
        return bootstrap(lambda rows: float(rows[:, 0].mean() / rows[:, 1].mean()), pairs)

    @functools.cached_property
    def rows(self) -> list[Row]:
        """The targets of teacher and student."""
        floors = {"object": 0.95, "style": 0.95, "color": 0.9, "count": 0.9, "place": 0.97, "sign": 0.95}
        rows = [self._share_row(TEACHER, each, "seen", RENDERS, floor) for each, floor in floors.items()]
        rows.append(self._share_row(TEACHER, "object", "held_out", RENDERS, 0.88))
        for setting, floor in (("student-4", 0.96), ("student-1", 0.88)):
            if setting in self.names:
                rows += [self._share_row(setting, each, "seen", TEACHER, floor) for each in floors]
                value = self.relative_distance(setting, TEACHER)
                rows.append(Row(setting, "Fréchet distance", "seen", TEACHER, value, at_most=1.25))
                value = self.relative_diversity(setting, TEACHER)
                rows.append(Row(setting, "diversity within a prompt", "open", TEACHER, value, at_least=0.9))
        return rows

    def _share_row(self, setting: str, attribute: str, split: str, against: str, floor: float) -> Row:
        value = self.relative(setting, against, split, attribute)
        return Row(setting, attribute, split.replace("_", " "), against, value, at_least=floor)

    def shares(self) -> dict[str, list[dict[str, object]]]:
        """Planted shares by setting, and the measured shares with their intervals."""
        found: dict[str, list[dict[str, object]]] = {}
        for name, path in self.files.items():
            if name.endswith(".planted"):
                counts = np.load(path)
                entries: list[dict[str, object]] = []
                for prompt, hits, n in zip(planted(), counts["hits"], counts["n"], strict=True):
                    share = wilson(int(hits), int(n))
                    bounds = {"low": share.low, "high": share.high}
                    entries.append({"name": prompt.name, "planted": prompt.share, "share": share.value, **bounds})
                found[name.removesuffix(".planted")] = entries
        return found

    def to_json(self) -> dict[str, object]:
        """Everything, as JSON values."""
        return {
            "shares": {
                setting: {
                    split: {each: dataclasses.asdict(self.share(setting, split, each)) for each in ATTRIBUTES}
                    for split in SPLITS
                }
                for setting in self.names
            },
            "frechet": {setting: self.distance(setting) for setting in self.names},
            "diversity": {
                setting: {name: float(values.mean()) for name, values in self.diversity(setting).items()}
                for setting in self.names
            },
            "planted": self.shares(),
            "targets": [{**dataclasses.asdict(row), "met": row.met} for row in self.rows],
        }

    def table(self) -> str:
        """The shares of correct pictures as a Markdown table, in percent, and the targets below it."""
        lines = ["| setting | captions | " + " | ".join(ATTRIBUTES) + " |", "| --- " * (len(ATTRIBUTES) + 2) + "|"]
        for setting in self.names:
            for split in SPLITS:
                cells = [f"{100 * self.share(setting, split, each).value:.1f}" for each in ATTRIBUTES]
                lines.append(f"| {setting} | {split.replace('_', ' ')} | " + " | ".join(cells) + " |")
        lines += ["", "| setting | quantity | captions | relative to | measured | required | met |", "| --- " * 7 + "|"]
        for row in self.rows:
            required = f"at most {row.at_most}" if row.at_most is not None else f"at least {row.at_least}"
            value = f"{row.value.value:.3f} ({row.value.low:.3f} to {row.value.high:.3f})"
            cells = [row.setting, row.quantity, row.captions, row.against, value, required, "yes" if row.met else "no"]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join(lines)


def _frechet(one: np.ndarray, other: np.ndarray) -> float:
    return frechet(torch.from_numpy(one), torch.from_numpy(other))


def evaluate(preset: Preset, out: Path, rank: Rank, size: Size) -> None:
    """Measure all settings of a run on all ranks; writes evaluation.json, evaluation.md and evaluation.png to `out`."""
    Evaluator(preset, out, size, rank.device).run(rank)
    if rank.first:
        report = Report(out)
        facts = report.to_json() | {"size": dataclasses.asdict(size)}
        (out / "evaluation.json").write_text(json.dumps(facts, indent=1))
        evaluation_figure(facts).savefig(out / "evaluation.png")
        (out / "evaluation.md").write_text(report.table() + "\n")
        print(report.table(), flush=True)
