"""Words in the picture: for each word and step, what of the picture looked at it."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from fluxnb.errors import InputError, shorten, unknown_choice
from fluxnb.plots.captions import subtitle_of, title_of, wrap
from fluxnb.plots.layout import FRAME, GAP, HEAD, box, evenly, frame, write
from fluxnb.plots.style import INK, SMALL, SOFT, TEXT, clip, heading, new, placed, styled
from fluxnb.records import Trajectory
from fluxnb.visuals.frames import NAMES, Decode, frames_of
from fluxnb.visuals.overlays import lit, looked_at, strengths, telling

__all__ = ["attention"]

MOST = 6  # rows when no words are named


def attention(
    trajectory: Trajectory,
    words: Sequence[str] | None = None,
    *,
    over: str = "picture",
    decode: Decode | None = None,
    columns: int = 8,
    ax: Axes | None = None,
) -> Figure:
    """Where the model looked for each word: a row a word, a column a step; bright is where the picture looked at it.

    A word has one scale along its row, from its weakest place to its strongest, and another than its neighbours. What
    is shown is where attention went, which is a hint at what a word did and no proof.

    Arguments:
        walk: a Trajectory whose run kept attention.
        words: which words of the prompt; None for those whose attention differs most from place to place, at most
            six, in the prompt's order.
        over: "picture", the one it ended in; or "clean", "x", "v" or "noise" of each step.
        decode: from latents (n, 16, h/8, w/8) to pictures; None for the walk's own linear preview.
        columns: most steps shown, at least 2.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: a walk without attention, a word it does not have, or nothing to lay it over.

    Example:
        >>> walk = run(flux, "a cat in the snow", keep=Keep(attention="all"))       # doctest: +SKIP
        >>> attention(walk, ["cat", "snow"])                                        # doctest: +SKIP
        <View size 1200x420 with 8 Axes>
    """
    if columns < 2:
        raise InputError(
            f"columns={shorten(columns)}", "at least 2 are needed, the first and the last", "try columns=8"
        )
    if over != "picture" and over not in NAMES:
        raise unknown_choice("over", over, ("picture", *NAMES))
    places = looked_at(trajectory)
    named = [words] if isinstance(words, str) else telling(trajectory, MOST) if words is None else list(words)
    rows = {word: strengths(trajectory, word) for word in named} if places else {}
    if not rows:
        told = "no step kept it" if named else "no word was named"
        raise InputError("no attention to show", told, 'run again with keep=fnb.Keep(attention="all")')
    if over == "picture" and trajectory.image is None:
        over = "clean"
    under = _under(trajectory, over, decode)
    places = tuple(place for place in places if place in under)
    if not places:
        raise InputError(
            "attention without a picture", "it is laid over a picture or what a step kept", "keep x and v too"
        )
    chosen = evenly(len(places), columns)
    wide, high = box(trajectory)
    size, side = (round(256 * wide / FRAME), round(256 * high / FRAME)), 1.3
    with styled():
        figure = new(side + max(len(chosen), 3) * (wide + GAP), HEAD + 0.2 + len(rows) * (high + GAP) + 0.4)
        heading(figure, clip(title_of(trajectory), 28 + 9 * max(len(chosen), 3)), subtitle_of(trajectory))
        for column, index in enumerate(chosen):
            left, place = side + column * (wide + GAP), places[index]
            write(figure, left, HEAD, f"σ {trajectory.steps[place].sigma:.2f}", SMALL + 0.5, INK)
            for row, strength in enumerate(rows.values()):
                shown = lit(under[place], strength[looked_at(trajectory).index(place)], size)
                frame(figure, left, HEAD + 0.2 + row * (high + GAP), wide, high, shown)
        for row, word in enumerate(rows):
            middle = HEAD + 0.2 + row * (high + GAP) + high / 2
            write(figure, 0.0, middle - 0.1, wrap(clip(word, 40), 18), TEXT, INK)
        known = len({word.casefold() for word in trajectory.words})
        parts = [f"{len(rows)} of {known} words"] if len(rows) < known else []
        parts += [f"{len(chosen)} of {len(trajectory)} steps"] if len(chosen) < len(trajectory) else []
        note = "bright: what looked at the word; each word has its own scale"
        note += f"\n{', '.join(parts)} shown" if parts else ""
        write(figure, side, HEAD + 0.25 + len(rows) * (high + GAP), note, SMALL - 0.5, SOFT)
    return placed(figure, ax)


def _under(trajectory: Trajectory, over: str, decode: Decode | None) -> dict[int, Image.Image]:
    """What the light falls on, for each place in `walk.steps` that has it."""
    if over == "picture" and trajectory.image is not None:
        return dict.fromkeys(range(len(trajectory)), trajectory.image)
    frames = frames_of(trajectory, shows=(over,), decode=decode).frames[over]
    return dict(zip((place for place, step in enumerate(trajectory.steps) if step.kept), frames, strict=True))
