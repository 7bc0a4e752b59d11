"""Targets that a student has to meet to ship, and the comparison of an evaluation with them."""

from __future__ import annotations

import dataclasses
import math

from fluxnb.train.evaluation.evaluate import Table
from fluxnb.train.evaluation.statistics import Estimate

Limits = tuple[float, float]
OPEN = math.inf


@dataclasses.dataclass(frozen=True)
class Target:
    """One row of the acceptance table.

    Attributes:
        title: description of the row.
        displayed: the quantity whose value each column displays.
        limited: the quantity that the limits apply to, often the ratio of `displayed` to the teacher's value.
        four, one: lowest and highest accepted value at four steps and at one; None for a row without a limit.
        unit: "share" is displayed in percent, "number" unchanged.
        required: whether a student that misses this target cannot ship.
    """

    title: str
    displayed: str
    limited: str
    four: Limits | None = None
    one: Limits | None = None
    unit: str = "number"
    required: bool = False


def _accuracy(
    name: str,
    title: str,
    split: str,
    *,
    four: Limits | None = None,
    one: Limits | None = None,
    required: bool = False,
) -> Target:
    """A row with the share of correct pictures, whose limits apply to the ratio to the teacher."""
    share = f"{name}/{split}"
    title = f"{title}, {split.replace('_', ' ')}"
    return Target(title, share, f"{share} : teacher", four, one, "share", required)


#: Ratios are relative to the teacher at 28 steps with guidance, on the same scenes and noise.
TARGETS: tuple[Target, ...] = (
    _accuracy("object", "objects correct", "seen", four=(0.95, OPEN), one=(0.85, OPEN), required=True),
    _accuracy("object", "objects correct", "held_out"),
    _accuracy("everything", "everything correct", "seen", four=(0.90, OPEN), one=(0.70, OPEN)),
    Target(
        "everything correct, held out (÷ seen)",
        "everything/held_out",
        "everything/held_out : seen",
        (0.85, OPEN),
        (0.85, OPEN),
        "share",
    ),
    _accuracy("relation", "relation correct", "seen"),
    _accuracy("background", "background correct", "seen"),
    _accuracy("letters", "letters correct", "seen"),
    _accuracy("letters", "letters correct", "held_out"),
    _accuracy("sign", "whole sign correct", "seen"),
    _accuracy("sign", "whole sign correct", "held_out"),
    Target("“hello world” legible, of 16 seeds", "hello_world", "hello_world", (9 / 16, 1.0), None, "share"),
    Target("FD to renders", "fd", "fd : teacher", (0.0, 1.3), (0.0, 2.0), required=True),
    Target("FD ÷ teacher's at equal steps", "fd : same steps", "fd : same steps", (0.0, 0.5)),
    Target("FD ÷ own FD at one step", "fd : one step", "fd : one step", (0.0, 1.0)),
    Target("FD to renders, random features", "fd_untrained", "fd_untrained : teacher"),
    Target("pairs of settings ordered alike by both FDs", "fd_order", "fd_order", (1.0, 1.0), None, "share"),
    Target("attribute entropy per prompt, median", "entropy", "entropy : teacher",
           (0.80, OPEN), (0.75, OPEN), required=True),
    Target("the same, worst decile", "entropy, worst decile : teacher", "entropy, worst decile : teacher",
           (0.5, OPEN), (0.5, OPEN)),
    Target("Vendi score per prompt, median", "vendi", "vendi : teacher", (0.80, OPEN), (0.75, OPEN)),
    Target("the same, worst decile", "vendi, worst decile : teacher", "vendi, worst decile : teacher",
           (0.5, OPEN), (0.5, OPEN)),
    Target("sharpness ÷ renders", "sharpness", "sharpness", (0.9, 1.15), (0.85, 1.2)),
    Target("sharpness ÷ reconstructions", "sharpness : reconstructions", "sharpness : reconstructions"),
    Target("worst latent channel, shift of mean in σ", "channel_mean", "channel_mean", (0.0, 0.1), (0.0, 0.1)),
    Target("worst latent channel, change of σ", "channel_std", "channel_std", (0.0, 0.1), (0.0, 0.1)),
    Target("alignment, mean over prompts", "align", "align : teacher"),
    Target("alignment above 0, share of prompts", "align, above 0", "align, above 0", None, (1.0, 1.0), "share"),
    Target("noise estimate before the last step, RMS", "noise_rms", "noise_rms", (0.85, 1.15)),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a setting meets a target: `met` by the estimate, and `certain` if its whole interval agrees.

    `met` is None if the quantity could not be measured.
    """

    limits: Limits
    estimate: Estimate | None
    met: bool | None
    certain: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """A target, the value of each setting, and the verdicts at four steps and at one."""

    target: Target
    values: dict[str, Estimate]
    four: Verdict | None
    one: Verdict | None


def check_limits(limits: Limits | None, estimate: Estimate | None) -> Verdict | None:
    """Compare an estimate with limits; None without limits."""
    if limits is None:
        return None
    if estimate is None or math.isnan(estimate.value):
        return Verdict(limits, estimate, None, False)
    low, high = limits
    met = low <= estimate.value <= high
    ends = (low <= estimate.low, estimate.high <= high)
    certain = all(ends) if met else estimate.high < low or estimate.low > high
    return Verdict(limits, estimate, met, certain)


def acceptance(table: Table, student: str = "student") -> list[Row]:
    """Compare an evaluation with all targets."""
    four, one = table.get(f"{student}@4", {}), table.get(f"{student}@1", {})
    return [
        Row(
            target,
            {label: row[target.displayed] for label, row in table.items() if target.displayed in row},
            check_limits(target.four, four.get(target.limited)),
            check_limits(target.one, one.get(target.limited)),
        )
        for target in TARGETS
    ]


def summary(rows: list[Row]) -> dict[str, int | bool]:
    """The number of limits that are met, the number of limits, and whether all required ones are met."""
    verdicts = [(row, verdict) for row in rows for verdict in (row.four, row.one) if verdict is not None]
    return {
        "met": sum(verdict.met is True for _, verdict in verdicts),
        "of": len(verdicts),
        "required_met": all(verdict.met is True for row, verdict in verdicts if row.target.required),
    }


def as_json(table: Table, rows: list[Row]) -> dict[str, object]:
    """Table and verdicts as JSON values; open limits and values that could not be measured are null."""
    verdicts = [
        {
            "target": row.target.title,
            "quantity": row.target.limited,
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
