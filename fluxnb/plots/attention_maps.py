"""Where each word of the prompt was attended to, at each step, laid over the picture."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten, unknown_choice
from fluxnb.plots.captions import subtitle_of, title_of, wrap
from fluxnb.plots.layout import FRAME, GAP, HEAD, Box, draw_frame, draw_text, evenly_spaced, frame_size
from fluxnb.plots.style import SMALL, SOFT, TEXT, draw_into, heading, new_figure, style_context, truncate
from fluxnb.records import Trajectory
from fluxnb.visuals.frames import Decode, frames_of
from fluxnb.visuals.labels import NAMES
from fluxnb.visuals.overlays import darken, normalized_attention, steps_with_attention, words_with_most_contrast

__all__ = ["attention"]

MOST_WORDS = 6  # rows when no words are named
LABELS = 1.3  # inches, the width of the labels beside the rows


@entry_point("trajectory", "decode", "ax", words='words=["fox"]', over='over="clean"', columns="columns=8")
def attention(
    trajectory: Trajectory,
    words: str | Sequence[str] | None = None,
    *,
    over: str = "picture",
    decode: Decode | None = None,
    columns: int = 8,
    ax: Axes | None = None,
) -> Figure:
    """Show the attention to words of the prompt: one row a word, one column a step, bright where attention is high.

    Each word has one scale for its row, from its lowest value to its highest. Attention indicates which image tokens
    read a word; it does not prove what the word caused.

    Arguments:
        trajectory: a Trajectory recorded with attention.
        words: words of the prompt; None for those whose attention varies most over the picture, at most six, in the
            order of the prompt.
        over: "picture", the final picture; or "clean", "x", "v" or "noise" of each step.
        decode: from latents in space to pictures; None for the trajectory's own linear preview.
        columns: most steps drawn, at least 2.
        ax: axes to draw in; None for a new figure.

    Returns:
        The Figure.

    Raises:
        InputError: a trajectory without attention, an unknown word, or neither picture nor tensors to draw on.

    Example:
        >>> trajectory = run(flux, "a cat in the snow", keep=Keep(attention="all"))  # doctest: +SKIP
        >>> attention(trajectory, ["cat", "snow"])                                   # doctest: +SKIP
        <View size 1200x420 with 8 Axes>
    """
    if columns < 2:
        raise InputError(
            f"columns={shorten(columns)}", "at least 2 are needed, the first and the last", "try columns=8"
        )
    if over != "picture" and over not in NAMES:
        raise unknown_choice("over", over, ("picture", *NAMES))
    rows = _rows(trajectory, words)
    if over == "picture" and trajectory.image is None:
        over = "clean"
    pictures = _pictures(trajectory, over, decode)
    recorded = steps_with_attention(trajectory)
    steps = tuple(step for step in recorded if step in pictures)
    if not steps:
        raise InputError(
            "attention without a picture", "it is laid over the final picture, or over x and v", "keep x and v too"
        )
    chosen = [steps[index] for index in evenly_spaced(len(steps), columns)]
    width, height = frame_size(trajectory)
    pixels = (round(256 * width / FRAME), round(256 * height / FRAME))
    tops = [HEAD + 0.2 + row * (height + GAP) for row in range(len(rows))]
    across = max(len(chosen), 3)
    with style_context():
        figure = new_figure(LABELS + across * (width + GAP), tops[-1] + height + GAP + 0.4)
        heading(figure, truncate(title_of(trajectory), 28 + 9 * across), subtitle_of(trajectory))
        for column, step in enumerate(chosen):
            left = LABELS + column * (width + GAP)
            draw_text(figure, left, HEAD, f"σ {trajectory.steps[step].sigma:.2f}", size=SMALL + 0.5)
            for top, strength in zip(tops, rows.values(), strict=True):
                picture = darken(pictures[step], strength[recorded.index(step)], pixels)
                draw_frame(figure, Box(left, top, width, height), picture)
        for top, word in zip(tops, rows, strict=True):
            draw_text(figure, 0.0, top + height / 2 - 0.1, wrap(truncate(word, 40), 18), size=TEXT)
        note = _note(trajectory, len(rows), len(chosen))
        draw_text(figure, LABELS, tops[-1] + height + GAP + 0.05, note, size=SMALL - 0.5, color=SOFT)
    return draw_into(figure, ax)


def _rows(trajectory: Trajectory, words: str | Sequence[str] | None) -> dict[str, Float[Tensor, "steps rows columns"]]:
    """Word to attention in 0 to 1, for the requested words or those with most contrast."""
    if not steps_with_attention(trajectory):
        raise InputError(
            "no attention to show", "it is recorded on request only", 'run again with keep=fnb.Keep(attention="all")'
        )
    if words is None:
        words = words_with_most_contrast(trajectory, MOST_WORDS)
    elif isinstance(words, str):
        words = [words]
    elif not words:
        raise InputError("words=[]", "at least one word of the prompt is needed", "leave words= out to choose them")
    if not words:
        raise InputError(
            "attention without words", "the prompt had no words that the encoder reads", "run a prompt with words"
        )
    return {word: normalized_attention(trajectory, word) for word in words}


def _pictures(trajectory: Trajectory, over: str, decode: Decode | None) -> dict[int, Image.Image]:
    """Index in `trajectory.steps` to the picture below the overlay."""
    if over == "picture" and trajectory.image is not None:
        return dict.fromkeys(range(len(trajectory)), trajectory.image)
    frames = frames_of(trajectory, shows=(over,), decode=decode).frames[over]
    return dict(zip((index for index, step in enumerate(trajectory.steps) if step.kept), frames, strict=True))


def _note(trajectory: Trajectory, words: int, steps: int) -> str:
    known = len({word.casefold() for word in trajectory.words})
    parts = [f"{words} of {known} words"] if words < known else []
    parts += [f"{steps} of {len(trajectory)} steps"] if steps < len(trajectory) else []
    note = "bright: image tokens that attend to the word; each word has its own scale"
    return f"{note}\n{', '.join(parts)} shown" if parts else note
