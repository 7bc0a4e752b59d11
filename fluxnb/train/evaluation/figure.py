"""The acceptance table as a figure: each quantity with its target and whether it is met."""

from __future__ import annotations

import math

from matplotlib.figure import Figure

from fluxnb.plots.style import COLORS, FAINT, INK, MARKERS, SMALL, SOFT, TEXT, heading, new_figure, style_context
from fluxnb.train.evaluation.acceptance import Row, Verdict, summary
from fluxnb.train.evaluation.evaluate import RENDERS, Table
from fluxnb.train.evaluation.statistics import Estimate

MET, MISSED, UNKNOWN = "✓", "✗", "–"
_ROW, _HEAD, _FOOT = 0.25, 1.15, 2.75  # inches
_LEFT = 0.12
#: left edge of each column in inches, and its setting.
_COLUMNS = ((3.0, "4"), (6.1, "1"), (9.2, "teacher@28"), (10.4, "teacher@4"), (11.6, RENDERS))
_VERDICT = 1.36  # inches from a value to its verdict
_WIDTH = 12.6


def figure_of(table: Table, rows: list[Row], *, student: str = "student", note: str = "") -> Figure:
    """A table of all rows of `acceptance`, above a plot of the Fréchet distance against the number of steps.

    A check mark in blue is a target that is met, a cross in vermilion one that is missed; "?" follows if the interval
    crosses the limit.

    Args:
        table: the estimates of an evaluation.
        rows: their comparison with the targets.
        student: name of the student's settings.
        note: subtitle, for example `EvalConfig.describe()`.
    """
    with style_context():
        height = _HEAD + _ROW * len(rows) + _FOOT
        figure = new_figure(_WIDTH, height)
        counted = summary(rows)
        heading(figure, f"Student and targets: {counted['met']} of {counted['of']} met",
                note, left=_LEFT / _WIDTH, top=1 - 0.08 / height)  # fmt: skip
        _titles(figure, student)
        for index, row in enumerate(rows):
            top = _HEAD + _ROW * index
            if index % 2 == 0:
                _band(figure, top)
            _write(figure, _LEFT, top, row.target.title + (" *" if row.target.required else ""), INK)
            for left, label in _COLUMNS:
                name = f"{student}@{label}" if label in ("4", "1") else label
                if name in row.values:
                    _value(figure, left, top, row.values[name], row.target.unit, wide=label in ("4", "1"))
            for left, verdict in ((_COLUMNS[0][0], row.four), (_COLUMNS[1][0], row.one)):
                if verdict is not None:
                    is_ratio = row.target.limited != row.target.displayed
                    _verdict(figure, left + _VERDICT, top, verdict, row.target.unit, is_ratio=is_ratio)
        _distances(figure, table, _HEAD + _ROW * len(rows))
        return figure


def _titles(figure: Figure, student: str) -> None:
    titles = {
        "4": f"{student}, 4 steps",
        "1": f"{student}, 1 step",
        "teacher@28": "teacher, 28\nguided",
        "teacher@4": "teacher, 4\nguided",
        RENDERS: "renders,\nupper bound",
    }
    for left, label in _COLUMNS:
        _write(figure, left, 0.68, titles[label], INK, weight="bold")
        if label in ("4", "1"):
            _write(figure, left, 0.86, "value (95 %)", SOFT, size=SMALL)
            _write(figure, left + _VERDICT, 0.86, "met?  ratio, target", SOFT, size=SMALL)
    _write(figure, _LEFT, 0.86, "* required to ship", SOFT, size=SMALL)


def _value(figure: Figure, left: float, top: float, estimate: Estimate, unit: str, *, wide: bool) -> None:
    text = _number(estimate.value, unit)
    _write(figure, left, top, text, INK)
    if wide and not math.isnan(estimate.low):
        dash = " to " if estimate.low < 0 else "–"
        between = f"{_number(estimate.low, unit)}{dash}{_number(estimate.high, unit)}".replace(" %", "")
        _write(figure, left + 0.56, top + 0.015, f"({between})", SOFT, size=SMALL)


def _verdict(figure: Figure, left: float, top: float, verdict: Verdict, unit: str, *, is_ratio: bool) -> None:
    sign = {True: MET, False: MISSED, None: UNKNOWN}[verdict.met]
    color = {True: COLORS[0], False: COLORS[1], None: SOFT}[verdict.met]
    doubt = "" if verdict.certain or verdict.met is None else "?"
    _write(figure, left, top, f"{sign}{doubt}", color, weight="bold")
    form = (lambda value: f"{value:.2f}") if is_ratio or unit == "number" else (lambda value: _number(value, unit))
    limits = _limits(*(form(value) if math.isfinite(value) else "" for value in verdict.limits))
    if is_ratio and verdict.estimate is not None and not math.isnan(verdict.estimate.value):
        limits = f"{verdict.estimate.value:.2f},  {limits}"
    _write(figure, left + 0.26, top, limits, color)


def _limits(low: str, high: str) -> str:
    if high in ("", "100.0 %"):
        return f"≥ {low}"
    return f"≤ {high}" if low in ("0.00", "0.0 %") else f"{low} to {high}"


def _number(value: float, unit: str) -> str:
    if math.isnan(value):
        return "–"
    if unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def _distances(figure: Figure, table: Table, top: float) -> None:
    """The Fréchet distance by number of steps, one line per model."""
    width, height = figure.get_size_inches()
    axes = figure.add_axes((0.6 / width, 0.45 / height, 5.2 / width, (height - top - 1.05) / height))
    models: dict[str, list[tuple[int, Estimate]]] = {}
    for label, found in table.items():
        model, _, steps = label.rpartition("@")
        if model and "fd" in found:
            models.setdefault(model, []).append((int(steps), found["fd"]))
    for index, (model, points) in enumerate(models.items()):
        points.sort(key=lambda point: point[0])
        counts, values = [step for step, _ in points], [one.value for _, one in points]
        axes.plot(counts, values, marker=MARKERS[index], color=COLORS[index], label=model)
        if not any(math.isnan(one.low) for _, one in points):
            lows, highs = [max(one.low, 1e-4) for _, one in points], [one.high for _, one in points]
            axes.fill_between(counts, lows, highs, color=COLORS[index], alpha=0.15, linewidth=0)
    floor = table[RENDERS]["fd"].value
    axes.axhline(floor, color=SOFT, linewidth=0.8, linestyle=(0, (4, 3)), label="renders against renders")
    # The limits follow the values: intervals over few pictures may be very wide.
    values = [floor, *(one.value for points in models.values() for _, one in points)]
    axes.set_ylim(min(values) / 1.6, max(values) * 1.6)
    axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="FD to renders")
    ticks = sorted({step for points in models.values() for step, _ in points})
    axes.set_xticks(*_ticks(ticks))
    low, high = axes.get_ylim()
    marks = [digit * 10.0**power for power in range(-4, 3) for digit in (1, 2, 5)]
    axes.set_yticks(*_ticks([mark for mark in marks if low <= mark <= high]))
    axes.minorticks_off()
    axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0))
    _write(figure, 7.6, top + 0.72, f"{MET} met    {MISSED} missed    {UNKNOWN} not measured", INK)
    _write(
        figure,
        7.6,
        top + 0.95,
        "? the interval crosses the limit\nratios are to the guided teacher at 28 steps",
        SOFT,
    )
    axes.set_title("Distance to renders by number of steps", fontsize=TEXT, loc="left")


def _ticks(values: list[int] | list[float]) -> tuple[list[int] | list[float], list[str]]:
    return values, [f"{value:g}" for value in values]


def _band(figure: Figure, top: float) -> None:
    width, height = figure.get_size_inches()
    axes = figure.add_axes((_LEFT / 2 / width, 1 - (top + _ROW - 0.05) / height, 1 - _LEFT / width, _ROW / height))
    axes.set_axis_off()
    axes.set_zorder(-2)
    axes.patch.set_visible(False)
    axes.axhspan(0, 1, color=FAINT, alpha=0.28, linewidth=0)
    axes.set_ylim(0, 1)


def _write(
    figure: Figure,
    left: float,
    top: float,
    text: str,
    color: str,
    *,
    size: float = SMALL + 0.8,
    weight: str = "normal",
) -> None:
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, fontsize=size, color=color, va="top", ha="left",
                fontweight=weight, linespacing=1.15)  # fmt: skip
