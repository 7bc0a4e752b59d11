"""Figures made of pictures: the film strip, several walks side by side, the grid, the latent channels.

Frames are placed in inches, so that a frame has the same size in a strip of two steps and in one of ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from fluxnb.errors import InputError, cut, one_of
from fluxnb.frames import NAMES, Decode, Reel, reel, reels
from fluxnb.plots.style import FAINT, INK, SMALL, SOFT, TEXT, clip, heading, new, plain, styled
from fluxnb.records import Cell, Film, Sweep, Trajectory

__all__ = ["compare", "contact_sheet", "filmstrip", "latent_channels"]

FRAME = 1.05  # inches, the side of a frame
GAP = 0.07
HEAD = 0.62  # above the frames, for title and subtitle

MEANING = {
    "x": "what the model sees",
    "v": "what it answers:\nnoise minus picture",
    "clean": "the picture it\nhas in mind: x − σ v",
    "noise": "the noise it\nsees: x + (1 − σ) v",
    "x_next": "where the step led",
}


def filmstrip(
    walk: Trajectory | Film,
    *,
    shows: Sequence[str] = ("x", "v", "clean", "noise"),
    decode: Decode | None = None,
    columns: int = 8,
) -> Figure:
    """Every step of one walk from noise to picture: a column per step, a row for each thing the step holds.

    The last column is sigma 0, where x is the picture. A walk of more steps than `columns` shows evenly chosen ones,
    the first and the last always.

    Arguments:
        walk: a Trajectory, or a Film, which has one row.
        shows: the rows, of "x", "v", "clean", "noise".
        decode: from latents (n, 16, h/8, w/8) to pictures; None for the walk's own linear preview.
        columns: most steps shown, at least 2.

    Returns:
        The Figure.

    Raises:
        InputError: an unknown row, or a walk whose run kept no tensors.

    Example:
        >>> filmstrip(walk, shows=["x", "clean"]).savefig("strip.png")              # doctest: +SKIP
    """
    if columns < 2:
        raise InputError(f"columns={cut(columns)}", "at least 2 are needed, the first and the last", "try columns=8")
    roll = reel(walk, shows=shows, decode=decode)
    rows = [show for show in roll.frames if roll.frames[show]]
    chosen = _evenly(len(roll.sigmas), columns)
    ends = roll.final is not None
    wide, high = _box(roll)
    side = 1.3
    count = max(len(chosen) + ends, 1)
    with styled():
        figure = new(side + count * (wide + GAP), HEAD + 0.2 + max(len(rows), 1) * (high + GAP) + 0.24)
        heading(figure, clip(_title(walk), 28 + 9 * count), _subtitle(walk))
        for place, index in enumerate(chosen):
            left = side + place * (wide + GAP)
            _write(figure, left, HEAD, f"σ {roll.sigmas[index]:.2f}", SMALL + 0.5, INK)
            for row, show in enumerate(rows):
                _frame(figure, left, HEAD + 0.2 + row * (high + GAP), wide, high, roll.frames[show][index])
        for row, show in enumerate(rows):
            top = HEAD + 0.2 + row * (high + GAP)
            _write(figure, 0.0, top + high / 2 - 0.17, NAMES[show], TEXT, INK)
            _write(figure, 0.0, top + high / 2, MEANING[show], SMALL - 0.3, SOFT)
        if ends and roll.final is not None:
            left = side + len(chosen) * (wide + GAP)
            row = rows.index("x") if "x" in rows else 0
            _write(figure, left, HEAD, "σ 0", SMALL + 0.5, INK)
            _frame(figure, left, HEAD + 0.2 + row * (high + GAP), wide, high, roll.final, accent=True)
            _write(figure, left, HEAD + 0.2 + row * (high + GAP) + high + 0.05, "the picture", SMALL, SOFT)
        bottom = HEAD + 0.2 + max(len(rows), 1) * (high + GAP) + 0.05
        note = f"frames by {roll.by}" if roll.by else ""
        if len(chosen) < len(roll.sigmas):
            note += f"; {len(chosen)} of {len(roll.sigmas)} steps shown"
        _write(figure, side, bottom, note, SMALL - 0.5, SOFT)
    return figure


def compare(
    walks: Sequence[Trajectory | Film],
    *,
    show: str = "clean",
    decode: Decode | None = None,
    labels: Sequence[str] | None = None,
) -> Figure:
    """Several walks under one another, each frame where its sigma is: 1 at the left, 0 at the right.

    Walks of different step counts visit different noise levels, so their third steps have little in common; what
    stands in one column here was made at one sigma. Frames that would overlap are left out.

    Arguments:
        walks: Trajectories or Films, one row each.
        show: "clean", "x", "v" or "noise".
        decode, labels: as in `filmstrip`; labels name only what differs when left out.

    Returns:
        The Figure.
    """
    if show not in NAMES:
        raise one_of("show", show, tuple(NAMES))
    rolls = reels(walks, shows=(show,), decode=decode, labels=labels)
    rolls = tuple(roll for roll in rolls if show in roll.frames)
    if not rolls:
        raise InputError(f"films without {show!r}", "each film shows one thing", f"decode them with what={show!r}")
    wide, high = max(_box(roll)[0] for roll in rolls), max(_box(roll)[1] for roll in rolls)
    side, span = 1.3, max(7.0, 4 * (wide + GAP)) - wide
    row_height = high + 0.14
    with styled():
        figure = new(side + span + 2 * (wide + GAP), HEAD + len(rolls) * row_height + 0.5)
        heading(figure, f"The {NAMES[show]} at equal noise", _common(walks))
        width, height = figure.get_size_inches()

        def place(sigma: float) -> float:
            return side + (1.0 - sigma) * (span + wide + GAP)

        for row, roll in enumerate(rolls):
            top = HEAD + row * row_height
            _write(figure, 0.0, top + high / 2 - 0.08, _wrap(roll.label, 20), TEXT, INK)
            line = 1 - (top + high / 2) / height
            figure.add_artist(_rule(place(roll.sigmas[0] if roll.sigmas else 1.0) / width, place(0.0) / width, line))
            shown = _spaced(roll.sigmas, (wide + GAP) / (span + wide + GAP), closes=roll.final is not None)
            for index in shown:
                _frame(figure, place(roll.sigmas[index]), top, wide, high, roll.frames[show][index])
            if roll.final is not None:
                _frame(figure, place(0.0), top, wide, high, roll.final, accent=True)
        base = HEAD + len(rolls) * row_height + 0.02
        figure.add_artist(_rule(place(1.0) / width, (place(0.0) + wide) / width, 1 - base / height))
        for sigma in (1.0, 0.75, 0.5, 0.25, 0.0):
            figure.add_artist(_rule(place(sigma) / width, place(sigma) / width, 1 - base / height, 0.05 / height))
            word = {1.0: "σ 1 · noise", 0.0: "σ 0 · the picture"}.get(sigma, f"{sigma:g}")
            _write(figure, place(sigma), base + 0.08, word, SMALL, SOFT)
        by = " and ".join(sorted({roll.by for roll in rolls if roll.by}))
        _write(figure, side, base + 0.26, f"a frame holds until the next; frames by {by}", SMALL - 0.5, SOFT)
    return figure


def contact_sheet(sweep: Sweep, *, rows: str | None = None, columns: str | None = None) -> Figure:
    """The pictures of a sweep as a labelled grid; rows and columns are axes of the sweep.

    With more than two axes the remaining ones make further blocks of rows, one for each of their values.

    Arguments:
        sweep: what `fnb.sweep` returned; cells it never reached stay empty.
        rows, columns: axis names; left out, the columns are the last axis with several values, the rows the one
            before it.

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
            raise one_of(role, name, tuple(axes))
    several = [name for name in axes if len(axes[name]) > 1 and name not in (rows, columns)]
    spare = [name for name in axes if name not in (rows, columns) and name not in several]
    across = columns or (several.pop() if several else spare.pop() if spare else next(iter(axes)))
    down = rows or (several.pop() if several else spare.pop() if spare else None)
    blocks = _blocks(axes, [name for name in axes if name not in (across, down)])
    down_values: tuple[Any, ...] = (None,) if down is None or down == across else axes[down]
    size = sweep[0].image.size
    wide, high = FRAME * 1.15 * min(1.0, size[0] / size[1]), FRAME * 1.15 * min(1.0, size[1] / size[0])
    words = max((len(_value(down, value)) for value in down_values if down), default=0)
    side = 0.0 if down is None else min(0.25 + 0.075 * min(words, 20), 1.6)
    width = side + len(axes[across]) * (wide + GAP)
    texts = [_wrap(", ".join(_value(*pair) for pair in block.items()), int(12 * (width - side))) for block in blocks]
    lines = max(text.count("\n") + 1 for text in texts)
    block_head = 0.12 + 0.17 * lines if len(blocks) > 1 else 0.0
    block_height = block_head + len(down_values) * (high + GAP) + (0.12 if len(blocks) > 1 else 0)
    top = HEAD + 0.2
    with styled():
        figure = new(max(width, 3.6), top + len(blocks) * block_height + 0.05)
        prompts = {cell.recipe.prompt for cell in sweep}
        title = prompts.pop() if len(prompts) == 1 else f"{len(prompts)} prompts"
        heading(figure, clip(title, int(10 * max(width, 3.6))), _facts(sweep, axes))
        for column, value in enumerate(axes[across]):
            label = clip(_value(across, value), int(13 * wide))
            _write(figure, side + column * (wide + GAP), HEAD, label, SMALL + 0.5, INK)
        for number, block in enumerate(blocks):
            start = top + number * block_height
            if block_head:
                _write(figure, side, start + 0.08, texts[number], TEXT, INK)
            for row, down_value in enumerate(down_values):
                y = start + block_head + row * (high + GAP)
                if down is not None:
                    _write(figure, 0.0, y + high / 2 - 0.09, _wrap(_value(down, down_value), 20), SMALL + 0.5, INK)
                for column, value in enumerate(axes[across]):
                    wanted = {**block, across: value} | ({down: down_value} if down else {})
                    found = sweep.select(**wanted)
                    _cell(figure, side + column * (wide + GAP), y, wide, high, found[0] if found else None)
    return figure


def latent_channels(walk: Trajectory, step: int = -1, *, show: str = "clean") -> Figure:
    """The sixteen channels of one step's latents, each a small map; purple below zero, orange above.

    All channels share one scale, so a pale channel carries little. One cell is 8 x 8 pixels of the picture.

    Arguments:
        walk: a Trajectory.
        step: an index; -1 for the last.
        show: "x", "v", "clean" or "noise".

    Returns:
        The Figure.
    """
    if not -len(walk) <= step < len(walk):
        raise InputError(f"step={cut(step)}", f"this walk has steps 0 to {len(walk) - 1}", "try step=-1, the last")
    chosen = walk[step]
    maps = chosen.latents(show).float().numpy()
    limit = float(np.quantile(np.abs(maps), 0.995)) or 1.0
    across = 8
    rows = -(-len(maps) // across)
    high = 0.85 * maps.shape[1] / maps.shape[2]
    with styled():
        figure = new(across * (0.85 + GAP) + 0.62, HEAD + 0.05 + rows * (high + 0.22))
        heading(figure, f"The {len(maps)} latent channels of the {NAMES[show]} at σ {chosen.sigma:.2f}",
                clip(walk.caption, 110))  # fmt: skip
        image = None
        for channel, values in enumerate(maps):
            left, top = channel % across * (0.85 + GAP), HEAD + 0.18 + channel // across * (high + 0.22)
            _write(figure, left, top - 0.15, str(channel), SMALL - 0.5, SOFT)
            axes = _axes(figure, left, top, 0.85, high)
            image = axes.imshow(values, cmap="PuOr_r", vmin=-limit, vmax=limit, interpolation="nearest")
        bar = _axes(figure, across * (0.85 + GAP) + 0.08, HEAD + 0.18, 0.09, rows * (high + 0.22) - 0.22)
        if image is not None:
            figure.colorbar(image, cax=bar, ticks=[-limit, 0, limit]).outline.set_visible(False)
            bar.set_yticklabels([f"−{limit:.1f}", "0", f"{limit:.1f}"])
            bar.tick_params(length=0, labelsize=SMALL - 0.5)
    return figure


# ------------------------------------------------------------------------------------------------ placing, in inches


def _axes(figure: Figure, left: float, top: float, wide: float, high: float) -> Any:
    width, height = figure.get_size_inches()
    return plain(figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height)))


def _frame(
    figure: Figure, left: float, top: float, wide: float, high: float, image: Image.Image, *, accent: bool = False
) -> None:
    axes = _axes(figure, left, top, wide, high)
    # A linear preview has one pixel for 8 x 8; drawn smooth it reads as the blurred picture it is, not as a mosaic.
    axes.imshow(np.asarray(image.convert("RGB")), interpolation="bicubic", aspect="auto")
    for spine in axes.spines.values():
        spine.set(visible=accent, color=INK, linewidth=1.0)


def _cell(figure: Figure, left: float, top: float, wide: float, high: float, cell: Cell | None) -> None:
    if cell is not None:
        _frame(figure, left, top, wide, high, cell.image)
        return
    axes = _axes(figure, left, top, wide, high)
    for spine in axes.spines.values():
        spine.set(visible=True, color=FAINT, linewidth=0.7)


def _write(figure: Figure, left: float, top: float, text: str, size: float, colour: str) -> None:
    width, height = figure.get_size_inches()
    figure.text(left / width, 1 - top / height, text, fontsize=size, color=colour, va="top", ha="left",
                linespacing=1.25)  # fmt: skip


def _rule(left: float, right: float, y: float, drop: float = 0.0) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([left, right], [y, y - drop], color=FAINT if not drop else SOFT, linewidth=0.8, zorder=-1)


# ------------------------------------------------------------------------------------------------ choosing and saying


def _box(roll: Reel) -> tuple[float, float]:
    """The size of a frame in inches: the longer side is FRAME."""
    longest = max(roll.width, roll.height)
    return FRAME * roll.width / longest, FRAME * roll.height / longest


def _evenly(count: int, most: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, count - 1, min(count, most))}) if count else []


def _spaced(sigmas: Sequence[float], gap: float, *, closes: bool) -> list[int]:
    """Indices of the levels at least `gap` apart, counted from noise; the end at 0 keeps its place free."""
    shown: list[int] = []
    for index, sigma in enumerate(sigmas):
        free_of_last = not shown or sigmas[shown[-1]] - sigma >= gap - 1e-6
        if free_of_last and (sigma >= gap - 1e-6 or not closes):
            shown.append(index)
    return shown


def _blocks(axes: dict[str, tuple[Any, ...]], names: list[str]) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = [{}]
    for name in names:
        blocks = [{**block, name: value} for block in blocks for value in axes[name]]
    return blocks


def _value(name: str | None, value: Any) -> str:
    if name == "prompt":
        return str(value)
    if name == "steps":
        return f"{value} step" if value == 1 else f"{value} steps"
    if name == "guidance" and value is not None:
        return f"guidance {value:g}"
    return f"{name} {value}"


def _title(walk: Trajectory | Film) -> str:
    if isinstance(walk, Film):
        return walk.caption
    return "A watched call" if walk.recipe is None else walk.recipe.prompt


def _subtitle(walk: Trajectory | Film) -> str:
    if isinstance(walk, Film):
        return f"{NAMES.get(walk.what, walk.what)}, {len(walk)} frames"
    said = walk.caption if walk.recipe is None else walk.caption.removeprefix(walk.recipe.prompt).removeprefix(", ")
    return " · ".join(part for part in (clip(said, 80), f"{walk.width} × {walk.height} px") if part)


def _common(walks: Sequence[Trajectory | Film]) -> str:
    """What all walks share, for the line under the title: prompt, model and seed where they agree."""
    known = [walk for walk in walks if isinstance(walk, Trajectory) and walk.recipe is not None]
    if len(known) < len(walks) or not known:
        return clip("; ".join(dict.fromkeys(walk.caption for walk in walks)), 110)
    facts = [
        {walk.recipe.prompt for walk in known if walk.recipe},
        {walk.model for walk in known},
        {f"seed {walk.recipe.seed}" for walk in known if walk.recipe},
        {f"{len(walk)} step{'' if len(walk) == 1 else 's'}" for walk in known},
    ]
    shared = [clip(next(iter(fact)), 70) for fact in facts if len(fact) == 1]
    return " · ".join(part for part in shared if part)


def _facts(sweep: Sweep, axes: dict[str, tuple[Any, ...]]) -> str:
    """Model, seed and steps under the title, those that the labels of the grid do not say anyway."""
    recipe = sweep[0].recipe
    fixed = [_value(name, getattr(recipe, name)) for name in ("seed", "steps") if len(axes.get(name, (0,))) == 1]
    model = sweep.model or recipe.model or ""
    done = "" if sweep.finished else "unfinished"
    return " · ".join(part for part in (model, *fixed, f"{len(sweep)} pictures", done) if part)


def _wrap(text: str, width: int) -> str:
    import textwrap

    lines = textwrap.wrap(" ".join(text.split()), width) or [""]
    return "\n".join(lines[:4] if len(lines) <= 4 else [*lines[:3], clip(lines[3] + " …", width)])
