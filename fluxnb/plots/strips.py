"""Figures made of pictures: the film strip, several walks side by side, the grid, the latent channels.

Frames are placed in inches, so that a frame has the same size in a strip of two steps and in one of ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fluxnb.errors import InputError, shorten, unknown_choice
from fluxnb.plots.captions import common, facts_of, subtitle_of, title_of, values_of, wrap
from fluxnb.plots.layout import FRAME, GAP, HEAD, blocks_of, box, evenly, frame, rule, spaced, spot, square, write
from fluxnb.plots.style import INK, SMALL, SOFT, TEXT, breadth, clip, heading, new, placed, styled
from fluxnb.records import Film, Sweep, Trajectory
from fluxnb.visuals.frames import NAMES, Decode, frame_sets, frames_of

__all__ = ["compare", "contact_sheet", "filmstrip", "latent_channels"]

MEANING = {
    "x": "what the model sees",
    "v": "what it answers:\nnoise minus picture",
    "clean": "the picture it\nhas in mind: x − σ v",
    "noise": "the noise it\nsees: x + (1 − σ) v",
    "x_next": "where the step led",
}


def filmstrip(
    trajectory: Trajectory | Film,
    *,
    shows: Sequence[str] = ("x", "v", "clean", "noise"),
    decode: Decode | None = None,
    columns: int = 8,
    ax: Axes | None = None,
) -> Figure:
    """Every step of one walk from noise to picture: a column per step, a row for each thing the step holds.

    The last column is sigma 0, where x is the picture. A walk of more steps than `columns` shows evenly chosen ones,
    the first and the last always.

    Arguments:
        walk: a Trajectory, or a Film, which has one row.
        shows: the rows, of "x", "v", "clean", "noise".
        decode: from latents (n, 16, h/8, w/8) to pictures; None for the walk's own linear preview.
        columns: most steps shown, at least 2.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: an unknown row, or a walk whose run kept no tensors.

    Example:
        >>> filmstrip(walk, shows=["x", "clean"]).savefig("strip.png")              # doctest: +SKIP
    """
    if columns < 2:
        raise InputError(
            f"columns={shorten(columns)}", "at least 2 are needed, the first and the last", "try columns=8"
        )
    roll = frames_of(trajectory, shows=shows, decode=decode)
    rows = [show for show in roll.frames if roll.frames[show]]
    chosen = evenly(len(roll.sigmas), columns)
    ends = roll.final is not None
    wide, high = box(roll)
    side = 1.3
    count = max(len(chosen) + ends, 1)
    with styled():
        figure = new(side + count * (wide + GAP), HEAD + 0.2 + max(len(rows), 1) * (high + GAP) + 0.24)
        heading(figure, clip(title_of(trajectory), 28 + 9 * count), subtitle_of(trajectory))
        for place, index in enumerate(chosen):
            left = side + place * (wide + GAP)
            write(figure, left, HEAD, f"σ {roll.sigmas[index]:.2f}", SMALL + 0.5, INK)
            for row, show in enumerate(rows):
                frame(figure, left, HEAD + 0.2 + row * (high + GAP), wide, high, roll.frames[show][index])
        for row, show in enumerate(rows):
            top = HEAD + 0.2 + row * (high + GAP)
            write(figure, 0.0, top + high / 2 - 0.17, NAMES[show], TEXT, INK)
            write(figure, 0.0, top + high / 2, MEANING[show], SMALL - 0.3, SOFT)
        if ends and roll.final is not None:
            left = side + len(chosen) * (wide + GAP)
            row = rows.index("x") if "x" in rows else 0
            write(figure, left, HEAD, "σ 0", SMALL + 0.5, INK)
            frame(figure, left, HEAD + 0.2 + row * (high + GAP), wide, high, roll.final, accent=True)
            write(figure, left, HEAD + 0.2 + row * (high + GAP) + high + 0.05, "the picture", SMALL, SOFT)
        bottom = HEAD + 0.2 + max(len(rows), 1) * (high + GAP) + 0.05
        note = f"frames by {roll.by}" if roll.by else ""
        if len(chosen) < len(roll.sigmas):
            note += f"; {len(chosen)} of {len(roll.sigmas)} steps shown"
        write(figure, side, bottom, note, SMALL - 0.5, SOFT)
    return placed(figure, ax)


def compare(
    trajectories: Sequence[Trajectory | Film],
    *,
    show: str = "clean",
    decode: Decode | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Several walks under one another, each frame where its sigma is: 1 at the left, 0 at the right.

    Walks of different step counts visit different noise levels, so their third steps have little in common; what
    stands in one column here was made at one sigma. Frames that would overlap are left out.

    Arguments:
        walks: Trajectories or Films, one row each.
        show: "clean", "x", "v" or "noise".
        decode, labels: as in `filmstrip`; labels name only what differs when left out.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.
    """
    if show not in NAMES:
        raise unknown_choice("show", show, tuple(NAMES))
    rolls = frame_sets(trajectories, shows=(show,), decode=decode, labels=labels)
    rolls = tuple(roll for roll in rolls if show in roll.frames)
    if not rolls:
        raise InputError(f"films without {show!r}", "each film shows one thing", f"decode them with what={show!r}")
    wide, high = max(box(roll)[0] for roll in rolls), max(box(roll)[1] for roll in rolls)
    side, span = 1.3, max(7.0, 4 * (wide + GAP)) - wide
    row_height = high + 0.14
    with styled():
        figure = new(side + span + 2 * (wide + GAP), HEAD + len(rolls) * row_height + 0.5)
        heading(figure, f"The {NAMES[show]} at equal noise", common(trajectories))
        width, height = figure.get_size_inches()

        def place(sigma: float) -> float:
            return side + (1.0 - sigma) * (span + wide + GAP)

        for row, roll in enumerate(rolls):
            top = HEAD + row * row_height
            write(figure, 0.0, top + high / 2 - 0.08, wrap(roll.label, 20), TEXT, INK)
            line = 1 - (top + high / 2) / height
            figure.add_artist(rule(place(roll.sigmas[0] if roll.sigmas else 1.0) / width, place(0.0) / width, line))
            shown = spaced(roll.sigmas, (wide + GAP) / (span + wide + GAP), closes=roll.final is not None)
            for index in shown:
                frame(figure, place(roll.sigmas[index]), top, wide, high, roll.frames[show][index])
            if roll.final is not None:
                frame(figure, place(0.0), top, wide, high, roll.final, accent=True)
        base = HEAD + len(rolls) * row_height + 0.02
        figure.add_artist(rule(place(1.0) / width, (place(0.0) + wide) / width, 1 - base / height))
        for sigma in (1.0, 0.75, 0.5, 0.25, 0.0):
            figure.add_artist(rule(place(sigma) / width, place(sigma) / width, 1 - base / height, 0.05 / height))
            word = {1.0: "σ 1 · noise", 0.0: "σ 0 · the picture"}.get(sigma, f"{sigma:g}")
            write(figure, place(sigma), base + 0.08, word, SMALL, SOFT)
        by = " and ".join(sorted({roll.by for roll in rolls if roll.by}))
        write(figure, side, base + 0.26, f"a frame holds until the next; frames by {by}", SMALL - 0.5, SOFT)
    return placed(figure, ax)


def contact_sheet(
    sweep: Sweep, *, rows: str | None = None, columns: str | None = None, ax: Axes | None = None
) -> Figure:
    """The pictures of a sweep as a labelled grid; rows and columns are axes of the sweep.

    With more than two axes the remaining ones make further blocks of rows, one for each of their values.

    Arguments:
        sweep: what `fnb.sweep` returned; cells it never reached stay empty.
        rows, columns: axis names; left out, the columns are the last axis with several values, the rows the one
            before it.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: a sweep without cells, or a name that is no axis of it.
    """
    if not len(sweep):
        raise InputError("a sweep without cells", "there is nothing to show", "run it again, or show what it stored")
    axes = {name: tuple(values) for name, values in sweep.axes.items()} or {"seed": (sweep[0].recipe.seed,)}
    for role, name in (("rows", rows), ("columns", columns)):
        if name is not None and name not in axes:
            raise unknown_choice(role, name, tuple(axes))
    several = [name for name in axes if len(axes[name]) > 1 and name not in (rows, columns)]
    spare = [name for name in axes if name not in (rows, columns) and name not in several]
    across = columns or (several.pop() if several else spare.pop() if spare else next(iter(axes)))
    down = rows or (several.pop() if several else spare.pop() if spare else None)
    said = {name: dict(zip(values, values_of(name, values), strict=True)) for name, values in axes.items()}
    blocks = blocks_of(axes, [name for name in axes if name not in (across, down)])
    down_values: tuple[Any, ...] = (None,) if down is None or down == across else axes[down]
    size = sweep[0].image.size
    wide, high = FRAME * 1.15 * min(1.0, size[0] / size[1]), FRAME * 1.15 * min(1.0, size[1] / size[0])
    words = max((breadth(said[down][value]) for value in down_values if down), default=0)
    side = 0.0 if down is None else min(0.25 + 0.075 * min(words, 20), 1.6)
    width = side + len(axes[across]) * (wide + GAP)
    room = int(12 * (width - side))
    texts = [wrap(", ".join(said[name][value] for name, value in block.items()), room) for block in blocks]
    lines = max(text.count("\n") + 1 for text in texts)
    block_head = 0.12 + 0.18 * lines if len(blocks) > 1 else 0.0
    block_height = block_head + len(down_values) * (high + GAP) + (0.12 if len(blocks) > 1 else 0)
    heads = [wrap(said[across][value], int(14 * wide)) for value in axes[across]]
    top = HEAD + 0.2 + 0.14 * max(head.count("\n") for head in heads)
    with styled():
        figure = new(max(width, 3.6), top + len(blocks) * block_height + 0.05)
        prompts = {cell.recipe.prompt for cell in sweep}
        title = prompts.pop() if len(prompts) == 1 else f"{len(prompts)} prompts"
        heading(figure, clip(title, int(9 * max(width, 3.6))), facts_of(sweep, axes))
        for column, head in enumerate(heads):
            write(figure, side + column * (wide + GAP), HEAD, head, SMALL + 0.5, INK)
        for number, block in enumerate(blocks):
            start = top + number * block_height
            if block_head:
                write(figure, side, start + 0.08, texts[number], TEXT, INK)
            for row, down_value in enumerate(down_values):
                y = start + block_head + row * (high + GAP)
                if down is not None:
                    write(figure, 0.0, y + high / 2 - 0.09, wrap(said[down][down_value], 20), SMALL + 0.5, INK)
                for column, value in enumerate(axes[across]):
                    wanted = {**block, across: value} | ({down: down_value} if down else {})
                    found = sweep.select(**wanted)
                    square(figure, side + column * (wide + GAP), y, wide, high, found[0] if found else None)
    return placed(figure, ax)


def latent_channels(trajectory: Trajectory, step: int = -1, *, show: str = "clean", ax: Axes | None = None) -> Figure:
    """The sixteen channels of one step's latents, each a small map; purple below zero, orange above.

    All channels share one scale, so a pale channel carries little. One cell is 8 x 8 pixels of the picture.

    Arguments:
        walk: a Trajectory.
        step: an index; -1 for the last.
        show: "x", "v", "clean" or "noise".
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.
    """
    if not -len(trajectory) <= step < len(trajectory):
        raise InputError(
            f"step={shorten(step)}", f"this walk has steps 0 to {len(trajectory) - 1}", "try step=-1, the last"
        )
    chosen = trajectory[step]
    maps = chosen.latents(show).float().numpy()
    limit = float(np.quantile(np.abs(maps), 0.995)) or 1.0
    across = 8
    rows = -(-len(maps) // across)
    high = 0.85 * maps.shape[1] / maps.shape[2]
    with styled():
        figure = new(across * (0.85 + GAP) + 0.62, HEAD + 0.05 + rows * (high + 0.22))
        heading(figure, f"The {len(maps)} latent channels of the {NAMES[show]} at σ {chosen.sigma:.2f}",
                clip(trajectory.caption, 110))  # fmt: skip
        image = None
        for channel, values in enumerate(maps):
            left, top = channel % across * (0.85 + GAP), HEAD + 0.18 + channel // across * (high + 0.22)
            write(figure, left, top - 0.15, str(channel), SMALL - 0.5, SOFT)
            axes = spot(figure, left, top, 0.85, high)
            image = axes.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest")
        bar = spot(figure, across * (0.85 + GAP) + 0.08, HEAD + 0.18, 0.09, rows * (high + 0.22) - 0.22)
        if image is not None:
            figure.colorbar(image, cax=bar, ticks=[-limit, 0, limit]).outline.set_visible(False)
            bar.set_yticklabels([f"−{limit:.1f}", "0", f"{limit:.1f}"])
            bar.tick_params(length=0, labelsize=SMALL - 0.5)
    return placed(figure, ax)
