"""Figures made of pictures: film strip, comparison, contact sheet, latent channels.

Frames are placed in inches, so that a frame has the same size in a figure of two steps and in one of ten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten, unknown_choice
from fluxnb.plots.captions import common_subtitle, subtitle_of, sweep_subtitle, title_of, wrap
from fluxnb.plots.layout import (
    FRAME,
    GAP,
    HEAD,
    Box,
    add_axes,
    combinations,
    draw_cell,
    draw_frame,
    draw_text,
    evenly_spaced,
    frame_size,
    line,
    without_overlap,
)
from fluxnb.plots.style import (
    SMALL,
    SOFT,
    TEXT,
    draw_into,
    heading,
    new_figure,
    style_context,
    text_width,
    truncate,
)
from fluxnb.records import Film, Sweep, Trajectory
from fluxnb.visuals.frames import Decode, FrameSet, frame_sets, frames_of
from fluxnb.visuals.labels import NAMES, name_of, pair_note, value_labels

__all__ = ["compare", "contact_sheet", "filmstrip", "latent_channels"]

MEANING = {
    "x": "the model's input",
    "v": "the model's output:\nnoise minus picture",
    "clean": "the predicted\npicture: x − σ v",
    "noise": "the predicted\nnoise: x + (1 − σ) v",
    "x_next": "the next step's input",
}
LABELS = 1.3  # inches, the width of the labels beside the rows
TICKS = (1.0, 0.75, 0.5, 0.25, 0.0)  # sigmas marked below a comparison
TICK_NAMES = {1.0: "σ 1 · noise", 0.0: "σ 0 · the picture"}


@entry_point("trajectory", "shows", "decode", "ax", columns="columns=8")
def filmstrip(
    trajectory: Trajectory | Film,
    *,
    shows: Sequence[str] = ("x", "v", "clean", "noise"),
    decode: Decode | None = None,
    columns: int = 8,
    ax: Axes | None = None,
) -> Figure:
    """Show every step of one trajectory: one column a step, one row for x, velocity, clean and noise estimate.

    The last column is sigma 0, where x is the picture. If there are more steps than `columns`, evenly spaced ones are
    drawn, with the first and the last.

    Arguments:
        trajectory: a Trajectory, or a Film, which has one row.
        shows: the rows, of "x", "v", "clean", "noise".
        decode: from latents in space to pictures; None for the trajectory's own linear preview.
        columns: most steps drawn, at least 2.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: an unknown row, too few columns, or a trajectory without tensors.

    Example:
        >>> filmstrip(trajectory, shows=["x", "clean"]).savefig("strip.png")        # doctest: +SKIP
    """
    if columns < 2:
        raise InputError(
            f"columns={shorten(columns)}", "at least 2 are needed, the first and the last", "try columns=8"
        )
    frame_set = frames_of(trajectory, shows=shows, decode=decode)
    rows = [show for show in frame_set.frames if frame_set.frames[show]]
    chosen = evenly_spaced(len(frame_set.sigmas), columns)
    width, height = frame_size(frame_set)
    count = max(len(chosen) + (frame_set.final is not None), 1)
    tops = [HEAD + 0.2 + row * (height + GAP) for row in range(max(len(rows), 1))]
    lefts = [LABELS + column * (width + GAP) for column in range(count)]
    with style_context():
        figure = new_figure(LABELS + count * (width + GAP), tops[-1] + height + GAP + 0.24)
        heading(figure, truncate(title_of(trajectory), 28 + 9 * count), subtitle_of(trajectory))
        for left, index in zip(lefts, chosen, strict=False):
            draw_text(figure, left, HEAD, f"σ {frame_set.sigmas[index]:.2f}", size=SMALL + 0.5)
            for top, show in zip(tops, rows, strict=False):
                draw_frame(figure, Box(left, top, width, height), frame_set.frames[show][index])
        for top, show in zip(tops, rows, strict=False):
            draw_text(figure, 0.0, top + height / 2 - 0.17, name_of(show, [trajectory]), size=TEXT)
            draw_text(figure, 0.0, top + height / 2, MEANING[show], size=SMALL - 0.3, color=SOFT)
        if frame_set.final is not None:
            left, top = lefts[len(chosen)], tops[rows.index("x") if "x" in rows else 0]
            draw_text(figure, left, HEAD, "σ 0", size=SMALL + 0.5)
            draw_frame(figure, Box(left, top, width, height), frame_set.final, accent=True)
            draw_text(figure, left, top + height + 0.05, "the picture", size=SMALL, color=SOFT)
        note = f"frames by {frame_set.by}" if frame_set.by else ""
        if len(chosen) < len(frame_set.sigmas):
            note += f"; {len(chosen)} of {len(frame_set.sigmas)} steps shown"
        draw_text(figure, LABELS, tops[-1] + height + GAP + 0.05, note, size=SMALL - 0.5, color=SOFT)
    return draw_into(figure, ax)


@entry_point("trajectories", "show", "decode", "labels", "ax")
def compare(
    trajectories: Sequence[Trajectory | Film],
    *,
    show: str = "clean",
    decode: Decode | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Show several trajectories, one row each, with every frame at its sigma: 1 at the left, 0 at the right.

    Trajectories of different step counts have different noise levels, so frames are aligned by sigma and not by step
    index. Frames that would overlap are left out.

    Arguments:
        trajectories: Trajectories or Films, one row each.
        show: "clean", "x", "v" or "noise".
        decode: from latents in space to pictures; None for each trajectory's own linear preview.
        labels: one label a row; None for labels that name what differs.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: an unknown `show`, an empty list, labels that do not match, or Films of something else.

    Example:
        >>> compare([run(flux, "a fox", steps=n) for n in (1, 4)])                  # doctest: +SKIP
        <View size 1012x368 with 8 Axes>
    """
    if show not in NAMES:
        raise unknown_choice("show", show, tuple(NAMES))
    rows = frame_sets(trajectories, shows=(show,), decode=decode, labels=labels)
    rows = tuple(frame_set for frame_set in rows if show in frame_set.frames)
    if not rows:
        raise InputError(f"films without {show!r}", "each film shows one thing", f"decode them with what={show!r}")
    sizes = [frame_size(frame_set) for frame_set in rows]
    width, height = max(size[0] for size in sizes), max(size[1] for size in sizes)
    axis = max(7.0, 4 * (width + GAP)) + GAP  # inches from sigma 1 to sigma 0
    row_height = height + 0.14

    def x_of(sigma: float) -> float:
        return LABELS + (1.0 - sigma) * axis

    with style_context():
        below = 0.66 if pair_note(trajectories) else 0.5
        figure = new_figure(LABELS + axis + width + GAP, HEAD + len(rows) * row_height + below)
        heading(figure, f"The {name_of(show, trajectories)} at equal noise", common_subtitle(trajectories))
        left_out = 0
        for row, frame_set in enumerate(rows):
            box = Box(0.0, HEAD + row * row_height, width, height)
            left_out += _draw_comparison_row(figure, box, frame_set, show, x_of)
        _draw_sigma_axis(figure, HEAD + len(rows) * row_height + 0.02, width, x_of)
        by = " and ".join(sorted({frame_set.by for frame_set in rows if frame_set.by}))
        omission = f"; {left_out} frames that would overlap are left out" if left_out else ""
        notes = (f"a frame holds until the next; frames by {by}{omission}", pair_note(trajectories))
        for line_number, note in enumerate(filter(None, notes)):
            top = HEAD + len(rows) * row_height + 0.28 + 0.16 * line_number
            draw_text(figure, LABELS, top, note, size=SMALL - 0.5, color=SOFT)
    return draw_into(figure, ax)


def _draw_comparison_row(
    figure: Figure, box: Box, frame_set: FrameSet, show: str, x_of: Callable[[float], float]
) -> int:
    """Draw the label, the line and the frames of one trajectory; the left of `box` is replaced by `x_of(sigma)`.

    Returns:
        The number of frames that are left out because they would overlap.
    """
    figure_width, figure_height = figure.get_size_inches()
    draw_text(figure, 0.0, box.top + box.height / 2 - 0.08, wrap(frame_set.label, 20), size=TEXT)
    y = 1 - (box.top + box.height / 2) / figure_height
    first = frame_set.sigmas[0] if frame_set.sigmas else 1.0
    figure.add_artist(line(x_of(first) / figure_width, x_of(0.0) / figure_width, y))
    gap = (box.width + GAP) / (x_of(0.0) - x_of(1.0))
    chosen = without_overlap(frame_set.sigmas, gap, final=frame_set.final is not None)
    for index in chosen:
        draw_frame(figure, box._replace(left=x_of(frame_set.sigmas[index])), frame_set.frames[show][index])
    if frame_set.final is not None:
        draw_frame(figure, box._replace(left=x_of(0.0)), frame_set.final, accent=True)
    return len(frame_set.sigmas) - len(chosen)


def _draw_sigma_axis(figure: Figure, top: float, width: float, x_of: Callable[[float], float]) -> None:
    figure_width, figure_height = figure.get_size_inches()
    y = 1 - top / figure_height
    figure.add_artist(line(x_of(1.0) / figure_width, (x_of(0.0) + width) / figure_width, y))
    for sigma in TICKS:
        x = x_of(sigma) / figure_width
        figure.add_artist(line(x, x, y, drop=0.05 / figure_height))
        draw_text(figure, x_of(sigma), top + 0.08, TICK_NAMES.get(sigma, f"{sigma:g}"), size=SMALL, color=SOFT)


@entry_point("sweep", "ax", rows='rows="prompt"', columns='columns="seed"')
def contact_sheet(
    sweep: Sweep, *, rows: str | None = None, columns: str | None = None, ax: Axes | None = None
) -> Figure:
    """Show the pictures of a sweep as a labeled grid whose rows and columns are axes of the sweep.

    Each combination of values of the remaining axes is a further block of rows.

    Arguments:
        sweep: the result of `fnb.sweep`; cells that were not sampled stay empty.
        rows, columns: axis names; by default the columns are the last axis with several values and the rows the one
            before it.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: a sweep without cells, or a name that is not one of its axes.

    Example:
        >>> contact_sheet(grid, rows="prompt", columns="seed")                      # doctest: +SKIP
        <View size 594x862 with 12 Axes>
    """
    grid = _sheet(sweep, rows, columns)
    with style_context():
        figure = new_figure(max(grid.width, 3.6), grid.top + len(grid.blocks) * grid.block_height + 0.05)
        prompts = {cell.recipe.prompt for cell in sweep}
        title = prompts.pop() if len(prompts) == 1 else f"{len(prompts)} prompts"
        heading(figure, truncate(title, int(9 * max(grid.width, 3.6))), sweep_subtitle(sweep, grid.axes))
        for left, text in zip(grid.lefts, grid.column_labels, strict=True):
            draw_text(figure, left, HEAD, text, size=SMALL + 0.5)
        for number, block in enumerate(grid.blocks):
            top = grid.top + number * grid.block_height
            if grid.block_head:
                draw_text(figure, grid.label_width, top + 0.08, grid.block_labels[number], size=TEXT)
            _draw_block(figure, sweep, grid, block, top + grid.block_head)
    return draw_into(figure, ax)


@dataclass(frozen=True, kw_only=True)
class _Sheet:
    """The layout of a contact sheet: which axis is where, the labels, and lengths in inches."""

    axes: dict[str, tuple[Any, ...]]
    across: str
    down: str | None
    blocks: list[dict[str, Any]]  # values of the remaining axes
    row_labels: list[str]
    column_labels: list[str]
    block_labels: list[str]
    frame: tuple[float, float]
    label_width: float
    top: float
    block_head: float
    block_height: float

    @property
    def row_values(self) -> tuple[Any, ...]:
        return (None,) if self.down is None or self.down == self.across else self.axes[self.down]

    @property
    def lefts(self) -> list[float]:
        return [self.label_width + column * (self.frame[0] + GAP) for column in range(len(self.axes[self.across]))]

    @property
    def width(self) -> float:
        return self.label_width + len(self.axes[self.across]) * (self.frame[0] + GAP)


def _sheet(sweep: Sweep, rows: str | None, columns: str | None) -> _Sheet:
    if not len(sweep):
        raise InputError(
            "a sweep without cells", "at least one picture is needed", "run it again, or pass the sweep of its store"
        )
    axes = {name: tuple(values) for name, values in sweep.axes.items()} or {"seed": (sweep[0].recipe.seed,)}
    across, down = _choose_axes(axes, rows, columns)
    others = [name for name in axes if name not in (across, down)]
    labels = {name: dict(zip(values, value_labels(name, values), strict=True)) for name, values in axes.items()}
    blocks = combinations(axes, others)
    row_labels = [labels[down][value] for value in axes[down]] if down is not None and down != across else []
    picture_width, picture_height = sweep[0].image.size
    width = FRAME * 1.15 * min(1.0, picture_width / picture_height)
    height = FRAME * 1.15 * min(1.0, picture_height / picture_width)
    widest = max((text_width(text) for text in row_labels), default=0)
    label_width = 0.0 if down is None else min(0.25 + 0.075 * min(widest, 20), 1.6)
    block_columns = int(12 * len(axes[across]) * (width + GAP))
    block_labels = [wrap(", ".join(labels[name][value] for name, value in block.items()), block_columns)
                    for block in blocks]  # fmt: skip
    column_labels = [wrap(labels[across][value], int(14 * width)) for value in axes[across]]
    head_lines = max(text.count("\n") + 1 for text in block_labels)
    block_head = 0.12 + 0.18 * head_lines if len(blocks) > 1 else 0.0
    row_count = max(len(row_labels), 1)
    return _Sheet(
        axes=axes, across=across, down=down, blocks=blocks, row_labels=row_labels, column_labels=column_labels,
        block_labels=block_labels, frame=(width, height), label_width=label_width,
        top=HEAD + 0.2 + 0.14 * max(text.count("\n") for text in column_labels),
        block_head=block_head,
        block_height=block_head + row_count * (height + GAP) + (0.12 if len(blocks) > 1 else 0),
    )  # fmt: skip


def _choose_axes(axes: dict[str, tuple[Any, ...]], rows: str | None, columns: str | None) -> tuple[str, str | None]:
    """The axis across and the axis down: those requested, else the last ones with several values."""
    for role, name in (("rows", rows), ("columns", columns)):
        if name is not None and name not in axes:
            raise unknown_choice(role, name, tuple(axes))
    if rows is not None and rows == columns:
        raise InputError(
            f"rows={rows!r} and columns={columns!r}", "they are two different axes", "leave one out to choose it"
        )
    free = [name for name in axes if name not in (rows, columns)]
    candidates = [name for name in free if len(axes[name]) <= 1] + [name for name in free if len(axes[name]) > 1]
    across = columns or (candidates.pop() if candidates else next(iter(axes)))
    return across, rows or (candidates.pop() if candidates else None)


def _draw_block(figure: Figure, sweep: Sweep, grid: _Sheet, block: dict[str, Any], top: float) -> None:
    width, height = grid.frame
    for row, row_value in enumerate(grid.row_values):
        y = top + row * (height + GAP)
        if grid.row_labels:
            draw_text(figure, 0.0, y + height / 2 - 0.09, wrap(grid.row_labels[row], 20), size=SMALL + 0.5)
        for left, value in zip(grid.lefts, grid.axes[grid.across], strict=True):
            fields = {**block, grid.across: value} | ({grid.down: row_value} if grid.down and grid.row_labels else {})
            found = sweep.select(**fields)
            draw_cell(figure, Box(left, y, width, height), found[0] if found else None)


@entry_point("trajectory", "show", "ax", step="step=-1")
def latent_channels(trajectory: Trajectory, step: int = -1, *, show: str = "clean", ax: Axes | None = None) -> Figure:
    """Show the latent channels of one step as maps: purple below zero, orange above.

    All channels share one scale, so a pale channel has small values. One pixel of a map is one latent cell.

    Arguments:
        trajectory: a Trajectory.
        step: an index; -1 for the last.
        show: "x", "v", "clean" or "noise".
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: no such step, or a step without the tensor.

    Example:
        >>> latent_channels(trajectory, 0, show="v")                                # doctest: +SKIP
        <View size 878x318 with 17 Axes>
    """
    if not -len(trajectory) <= step < len(trajectory):
        raise InputError(
            f"step={shorten(step)}", f"this trajectory has steps 0 to {len(trajectory) - 1}", "try step=-1, the last"
        )
    chosen = trajectory[step]
    maps = chosen.latents(show).double().numpy()  # in which the colors of float32's largest numbers do not overflow
    finite = np.abs(maps[np.isfinite(maps)])
    limit = (float(np.quantile(finite, 0.995)) if finite.size else 0.0) or 1.0
    per_row, width = 8, 0.85
    rows = -(-len(maps) // per_row)
    height = width * maps.shape[1] / maps.shape[2]
    with style_context():
        figure = new_figure(per_row * (width + GAP) + 0.62, HEAD + 0.05 + rows * (height + 0.22))
        heading(figure, f"The {len(maps)} latent channels of the {NAMES[show]} at σ {chosen.sigma:.2f}",
                truncate(trajectory.caption, 110))  # fmt: skip
        image = None
        for channel, values in enumerate(maps):
            left, top = channel % per_row * (width + GAP), HEAD + 0.18 + channel // per_row * (height + 0.22)
            draw_text(figure, left, top - 0.15, str(channel), size=SMALL - 0.5, color=SOFT)
            axes = add_axes(figure, Box(left, top, width, height))
            image = axes.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest")
        bar = add_axes(figure, Box(per_row * (width + GAP) + 0.08, HEAD + 0.18, 0.09, rows * (height + 0.22) - 0.22))
        if image is not None:
            figure.colorbar(image, cax=bar, ticks=[-limit, 0, limit]).outline.set_visible(False)
            bar.set_yticklabels([f"−{limit:.1f}", "0", f"{limit:.1f}"])
            bar.tick_params(length=0, labelsize=SMALL - 0.5)
    return draw_into(figure, ax)
