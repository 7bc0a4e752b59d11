"""What a student has to reach to ship: the targets, stated once, and how far an evaluation meets them."""

from __future__ import annotations

import dataclasses
import math

from fluxnb.train.evaluation.evaluate import Table
from fluxnb.train.evaluation.measure import Estimate

Limits = tuple[float, float]
OPEN = math.inf


@dataclasses.dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        words: what the row is about.
        shown: the quantity whose value every column shows.
        judged: the quantity that the limits hold for, often the ratio of the first to the teacher's.
        four, one: lowest and highest allowed at four steps and at one; None for a row that only reports.
        unit: "share" is shown in per cent, "number" as it is.
        must: without this row nothing ships.
    """

    words: str
    shown: str
    judged: str
    four: Limits | None = None
    one: Limits | None = None
    unit: str = "number"
    must: bool = False


def _asked(name: str, words: str, part: str, four: Limits | None = None, one: Limits | None = None, must: bool = False):
    shown = f"{name}/{part}"
    return Target(f"{words}, {part.replace('_', ' ')}", shown, f"{shown} : teacher", four, one, "share", must)


#: Ratios are to the teacher at 28 steps with guidance, on the same scenes and noise.
TARGETS: tuple[Target, ...] = (
    _asked("object", "objects right", "seen", (0.95, OPEN), (0.85, OPEN), must=True),
    _asked("object", "objects right", "held_out"),
    _asked("everything", "everything right", "seen", (0.90, OPEN), (0.70, OPEN)),
    Target(
        "everything right, held out (÷ seen)",
        "everything/held_out",
        "everything/held_out : seen",
        (0.85, OPEN),
        (0.85, OPEN),
        "share",
    ),
    _asked("relation", "relation right", "seen"),
    _asked("background", "background right", "seen"),
    _asked("letters", "letters right", "seen"),
    _asked("letters", "letters right", "held_out"),
    _asked("sign", "whole sign right", "seen"),
    _asked("sign", "whole sign right", "held_out"),
    Target("“hello world” read, of 16 seeds", "hello_world", "hello_world", (9 / 16, 1.0), None, "share"),
    Target("FD to renders", "fd", "fd : teacher", (0.0, 1.3), (0.0, 2.0), must=True),
    Target("FD ÷ the teacher's at as many steps", "fd : same steps", "fd : same steps", (0.0, 0.5)),
    Target("FD ÷ its own at one step", "fd : one step", "fd : one step", (0.0, 1.0)),
    Target("FD to renders, untrained features", "fd_untrained", "fd_untrained : teacher"),
    Target("pairs of settings that both FDs order alike", "fd_order", "fd_order", (1.0, 1.0), None, "share"),
    Target("attribute entropy per prompt, median", "entropy", "entropy : teacher",
           (0.80, OPEN), (0.75, OPEN), must=True),
    Target("the same, worst decile", "entropy, worst decile : teacher", "entropy, worst decile : teacher",
           (0.5, OPEN), (0.5, OPEN)),
    Target("Vendi score per prompt, median", "vendi", "vendi : teacher", (0.80, OPEN), (0.75, OPEN)),
    Target("the same, worst decile", "vendi, worst decile : teacher", "vendi, worst decile : teacher",
           (0.5, OPEN), (0.5, OPEN)),
    Target("sharpness ÷ renders", "sharpness", "sharpness", (0.9, 1.15), (0.85, 1.2)),
    Target("sharpness ÷ reconstructions", "sharpness : reconstructions", "sharpness : reconstructions"),
    Target("worst latent channel, mean off by σ", "channel_mean", "channel_mean", (0.0, 0.1), (0.0, 0.1)),
    Target("worst latent channel, spread off by", "channel_std", "channel_std", (0.0, 0.1), (0.0, 0.1)),
    Target("align, mean over prompts", "align", "align : teacher"),
    Target("align above 0, of the prompts", "align, above 0", "align, above 0", None, (1.0, 1.0), "share"),
    Target("noise believed before the last step, rms", "noise_rms", "noise_rms", (0.85, 1.15)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a setting meets a target: `met` by the estimate itself, `sure` when its whole interval says the same."""

    limits: Limits
    estimate: Estimate | None
    met: bool | None
    sure: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """A target with what each setting has, and the verdicts at four steps and at one."""

    target: Target
    shown: dict[str, Estimate]
    four: Verdict | None
    one: Verdict | None


def judge_target(limits: Limits | None, estimate: Estimate | None) -> Verdict | None:
    """A verdict; None where nothing is asked, `met` None where nothing could be measured."""
    if limits is None:
        return None
    if estimate is None or math.isnan(estimate.value):
        return Verdict(limits, estimate, None, False)
    low, high = limits
    met = low <= estimate.value <= high
    ends = (low <= estimate.low, estimate.high <= high)
    sure = all(ends) if met else estimate.high < low or estimate.low > high
    return Verdict(limits, estimate, met, sure)


def acceptance(table: Table, student: str = "student") -> list[Row]:
    """Every target against an evaluation's table."""
    four, one = table.get(f"{student}@4", {}), table.get(f"{student}@1", {})
    return [
        Row(
            target,
            {label: found[target.shown] for label, found in table.items() if target.shown in found},
            judge_target(target.four, four.get(target.judged)),
            judge_target(target.one, one.get(target.judged)),
        )
        for target in TARGETS
    ]


def summary(rows: list[Row]) -> dict[str, int | bool]:
    """How many verdicts are met, of how many, and whether all that must be met are."""
    verdicts = [(row, verdict) for row in rows for verdict in (row.four, row.one) if verdict is not None]
    return {
        "met": sum(verdict.met is True for _, verdict in verdicts),
        "of": len(verdicts),
        "musts_met": all(verdict.met is True for row, verdict in verdicts if row.target.must),
    }


def as_json(table: Table, rows: list[Row]) -> dict[str, object]:
    """Table and verdicts as plain values; what could not be measured and open limits are null."""
    verdicts = [
        {
            "row": row.target.words,
            "judged": row.target.judged,
            **{f"at_{name}": _plain(verdict) for name, verdict in (("4", row.four), ("1", row.one)) if verdict},
        }
        for row in rows
        if row.four or row.one
    ]
    return {"summary": summary(rows), "verdicts": verdicts, "settings": _plain(table)}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value
