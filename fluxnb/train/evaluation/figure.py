"""An evaluation as a figure: every target with its measurement, and the planted shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fluxnb.plots.style import COLORS, FAINT, INK, MARKERS, SMALL, SOFT, heading, new_figure, style_context

MET, MISSED = "✓", "✗"
LEAST, MOST = 0.4, 1.4  # of the axis of ratios; measurements outside it are at its ends
_ROW, _HEAD, _FOOT, _GAP = 0.24, 1.0, 0.75, 0.12  # inches
_WIDTH, _LEFT, _RATIOS, _VALUES = 13.7, 2.65, 2.5, 1.75
_SHARES_LEFT, _SHARES = 9.4, 4.1
_GROUP = {"teacher-28": "teacher, 28 steps", "student-4": "student, 4 steps", "student-1": "student, 1 step"}
_AGAINST = {"renders": "of renders", "teacher-28": "of the teacher"}


def evaluation_figure(evaluation: Mapping[str, Any]) -> Figure:
    """The targets of an evaluation with their intervals, beside the planted shares that were measured.

    A check mark in blue is a target that is met, and a cross in vermilion one that is missed.

    Arguments:
        evaluation: of `Report.to_json`.
    """
    targets, planted = evaluation["targets"], evaluation["planted"]
    groups = list(dict.fromkeys(target["setting"] for target in targets))
    prompts = [entry["name"] for entry in next(iter(planted.values()), [])]
    height = _HEAD + _FOOT + max(_ROW * (len(targets) + len(groups)), _ROW * len(prompts))
    met = sum(target["met"] for target in targets)
    with style_context():
        figure = new_figure(_WIDTH, height)
        heading(figure, f"Teacher and student: {met} of {len(targets)} targets met",
                "dots with 95 % intervals; a vertical line is the target", left=_GAP / _WIDTH,
                top=1 - _GAP / height)  # fmt: skip
        _targets(figure, targets, groups)
        if prompts:
            _planted(figure, planted, prompts)
        return figure


def _measured(target: Mapping[str, Any]) -> str:
    held_out = ", held out" if target["captions"] == "held out" else ""
    return f"{target['quantity']}{held_out}, {_AGAINST.get(target['against'], target['against'])}"


def _axes(figure: Figure, left: float, width: float, rows: int) -> Axes:
    """Axes with one unit of height for each row, from the top down."""
    total_width, total_height = figure.get_size_inches()
    bottom = (total_height - _HEAD - _ROW * rows) / total_height
    axes = figure.add_axes((left / total_width, bottom, width / total_width, _ROW * rows / total_height))
    axes.set_ylim(rows - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return axes


def _targets(figure: Figure, targets: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> None:
    axes, row, names = _axes(figure, _LEFT, _RATIOS, len(targets) + len(groups)), 0, []
    right = axes.get_yaxis_transform()
    for group in groups:
        members = [target for target in targets if target["setting"] == group]
        axes.text(-1, row, _GROUP.get(group, group), transform=right, color=INK, weight="bold", va="center")
        names.append("")
        for target in members:
            row += 1
            names.append(_measured(target))
            _target(axes, row, target)
        row += 1
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_xlim(LEAST, MOST)
    axes.axvline(1, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_xlabel("ratio")


def _target(axes: Axes, row: int, target: Mapping[str, Any]) -> None:
    estimate, color = target["value"], COLORS[0] if target["met"] else COLORS[1]
    value, low, high = (np.clip(estimate[name], LEAST, MOST) for name in ("value", "low", "high"))
    upper = target["at_most"] is not None
    limit = target["at_most"] if upper else target["at_least"]
    axes.plot([low, high], [row, row], color=color, linewidth=1.6)
    axes.plot([value], [row], marker="o", color=color, clip_on=False)
    axes.plot([limit, limit], [row - 0.38, row + 0.38], color=SOFT, linewidth=1.2)
    text = f"{estimate['value']:.3f} ({estimate['low']:.3f} to {estimate['high']:.3f})".replace("nan to nan", "-")
    where = axes.get_yaxis_transform()
    axes.text(1.03, row, text, transform=where, va="center", size=SMALL + 0.5, color=INK)
    sign = f"{MET if target['met'] else MISSED}  {'≤' if upper else '≥'} {limit:g}"
    at = 1.03 + _VALUES / _RATIOS
    axes.text(at, row, sign, transform=where, va="center", size=SMALL + 0.5, color=color)


def _planted(figure: Figure, planted: Mapping[str, Any], prompts: Sequence[str]) -> None:
    axes = _axes(figure, _SHARES_LEFT, _SHARES, len(prompts))
    guided = sorted(name for name in planted if " at " in name)
    compared = [name for name in ("renders", *guided, "student-4", "student-1") if name in planted]
    for row, entry in enumerate(planted[compared[0]] if compared else []):
        axes.plot([entry["planted"]] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=1.6,
                  label="planted" if row == 0 else None)  # fmt: skip
    for index, name in enumerate(compared):
        offset = (index - (len(compared) - 1) / 2) * 0.6 / max(1, len(compared) - 1)
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        label = name.replace("teacher-28 at ", "teacher, guidance ")
        label = label.replace("-1", ", 1 step").replace("-4", ", 4 steps")
        for row, entry in enumerate(planted[name]):
            axes.plot([entry["low"], entry["high"]], [row + offset] * 2, color=color, linewidth=0.6, alpha=0.6)
            axes.plot([entry["share"]], [row + offset], marker=marker, color=color, markersize=3.2, linestyle="none",
                      label=label if row == 0 else None)  # fmt: skip
    axes.set_yticks(range(len(prompts)), prompts, color=INK)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("share of the pictures")
    axes.set_title("What a prompt leaves open: the planted share and the share of the pictures", loc="left", x=-0.4)
    below = -2.2 / len(prompts)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.02, below), ncols=2, columnspacing=1.0, handletextpad=0.4)
