"""Pictures of what each step holds: the one place where tensors of a record become frames for a view.

Film strips, scrubbers, pages and GIFs all show the same frames. A frame comes from a `Film` that was decoded before,
from a `decode` callable that is handed in, or, with neither, from the walk's own linear preview; a walk that has no
preview either shows the three principal directions of its latents. Nothing here needs the model.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.errors import InputError, unknown_choice
from fluxnb.records import Film, Step, Sweep, Trajectory
from fluxnb.visuals.labels import NAMES, differing, label_of, tell_apart, value_of
from fluxnb.visuals.overlays import looked_at, strengths, veil

__all__ = [
    "NAMES",
    "SHOWS",
    "Decode",
    "FrameSet",
    "describe",
    "frame_sets",
    "frames_of",
    "payload",
    "tell_apart",
    "value_of",
    "webp",
]

SHOWS = ("clean", "x", "v", "noise")

# From latents (frames, 16, h/8, w/8) to one picture each; `flux.decode` is one.
Decode = Callable[[Tensor], Sequence[Image.Image]]


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameSet:
    """One walk as frames: for each thing it shows one picture per step, and the picture it ended in.

    Arguments:
        label: short, for a legend or below a frame; plain text, not escaped.
        caption: one line that says model, seed and steps; plain text, not escaped.
        sigmas: the noise level of each frame, falling; without the final 0.
        frames: "x", "v", "clean", "noise" ... to one picture per sigma.
        final: the picture at sigma 0, where there is one.
        by: who made the frames, for the small print.
        height, width: of the picture, in pixels; frames may be smaller.
        veils: for each word of the prompt one veil per sigma, to be laid over a frame: clear where the model looked
            for the word; None for a step that kept no attention.
    """

    label: str
    caption: str
    sigmas: tuple[float, ...]
    frames: Mapping[str, tuple[Image.Image, ...]]
    final: Image.Image | None
    by: str
    height: int
    width: int
    veils: Mapping[str, tuple[Image.Image | None, ...]] = field(default_factory=dict)

    def at(self, show: str, sigma: float) -> Image.Image | None:
        """The frame in view at this sigma: of the last step that had begun by then; at 0 the final picture."""
        if sigma <= 0 and self.final is not None and show in ("x", "clean"):
            return self.final
        begun = [frame for level, frame in zip(self.sigmas, self.frames[show], strict=True) if level >= sigma - 1e-6]
        return begun[-1] if begun else (self.frames[show][0] if self.frames[show] else self.final)


def frames_of(
    trajectory: Trajectory | Film,
    *,
    shows: Sequence[str] = SHOWS,
    decode: Decode | None = None,
    label: str | None = None,
) -> FrameSet:
    """The frames of one walk.

    Arguments:
        walk: a Trajectory, or a Film, whose frames are taken as they are.
        shows: which of "x", "v", "clean", "noise"; the velocity is decoded like the rest, so it looks like noise
            with the negative of the picture in it.
        decode: from latents (n, 16, h/8, w/8) to n pictures; None for the walk's own linear preview.
        label: short name; None for "4 steps, seed 3".

    Raises:
        InputError: an unknown word in `shows`, or a walk whose run kept no tensors.

    Example:
        >>> reel(walk, shows=["clean"]).frames["clean"][0].size                     # doctest: +SKIP
        (16, 16)
    """
    if isinstance(trajectory, Film):
        first = trajectory.frames[0] if trajectory.frames else Image.new("RGB", (16, 16))
        return FrameSet(
            label=label or NAMES.get(trajectory.what, trajectory.what),
            caption=trajectory.caption,
            sigmas=trajectory.sigmas,
            frames={trajectory.what: trajectory.frames},
            final=None,
            by=_made(trajectory.by, trajectory.error),
            height=first.height,
            width=first.width,
        )
    for show in shows:
        if show not in NAMES:
            raise unknown_choice("shows", show, tuple(NAMES))
    steps = [step for step in trajectory.steps if step.kept]
    if not steps and trajectory.image is None:
        raise InputError("a walk without tensors", "its run kept neither x nor v", "run again with keep=fnb.Keep()")
    frames: dict[str, tuple[Image.Image, ...]] = {}
    draw, by = (
        _without_model(trajectory) if decode is None else (decode, _made("decoder", getattr(decode, "error", None)))
    )
    for show in shows:
        stack = [step.latents(show).float() for step in steps]
        frames[show] = tuple(draw(torch.stack(stack))) if stack else ()
    return FrameSet(
        label=label or label_of(trajectory),
        caption=trajectory.caption,
        sigmas=tuple(step.sigma for step in steps),
        frames=frames,
        final=trajectory.image,
        by=by,
        height=trajectory.height,
        width=trajectory.width,
        veils=_veils(trajectory, steps),
    )


def _veils(trajectory: Trajectory, steps: Sequence[Step]) -> dict[str, tuple[Image.Image | None, ...]]:
    looked = [trajectory.steps[place].index for place in looked_at(trajectory)]
    made = {}
    for word in dict.fromkeys(word.casefold() for word in trajectory.words) if looked else ():
        by_step = dict(zip(looked, strengths(trajectory, word), strict=True))
        made[word] = tuple(veil(by_step[step.index]) if step.index in by_step else None for step in steps)
    return made


def frame_sets(
    record: Any, *, shows: Sequence[str] = SHOWS, decode: Decode | None = None, labels: Sequence[str] | None = None
) -> tuple[FrameSet, ...]:
    """The frames of whatever can be shown: a Trajectory, a Film, a Sweep, or several walks.

    The cells of a Sweep are labelled by what differs between them, and are single pictures where the sweep kept no
    walks.
    """
    if isinstance(record, Sweep):
        names = labels or differing(record)
        made = []
        for cell, name in zip(record.cells, names, strict=True):
            if cell.trajectory is not None and any(step.kept for step in cell.trajectory.steps):
                made.append(frames_of(cell.trajectory, shows=shows, decode=decode, label=name))
                continue
            image = cell.image
            blank: dict[str, tuple[Image.Image, ...]] = {show: () for show in shows}
            made.append(
                FrameSet(label=name, caption=cell.recipe.prompt, sigmas=(), frames=blank, final=image, by="",
                     height=image.height, width=image.width)
            )  # fmt: skip
        return tuple(made)
    if isinstance(record, Trajectory | Film):
        record = [record]
    if not isinstance(record, Sequence) or not all(isinstance(trajectory, Trajectory | Film) for trajectory in record):
        raise InputError(
            f"a {type(record).__name__}",
            "a Trajectory, a Film, a Sweep or a list of walks can be shown",
            "give what fnb.run or fnb.sweep returned",
        )
    if not record:
        raise InputError("an empty list", "at least one walk is needed", "give what fnb.run returned")
    if labels is not None and len(labels) != len(record):
        raise InputError(f"{len(labels)} labels for {len(record)} walks", "each walk has one", "count them again")
    if labels is None:
        labels = tell_apart(record)
    return tuple(
        frames_of(trajectory, shows=shows, decode=decode, label=name)
        for trajectory, name in zip(record, labels, strict=True)
    )


def webp(image: Image.Image, quality: int = 88, *, lossless: bool | None = None) -> bytes:
    """A frame as WebP bytes; a small one without loss, since there a block of 16 pixels is the whole picture."""
    buffer = io.BytesIO()
    exact = max(image.size) <= 160 if lossless is None else lossless
    image = image if image.mode == "RGBA" else image.convert("RGB")
    image.save(buffer, "WEBP", quality=quality, lossless=exact, method=4)
    return buffer.getvalue()


def describe(record: Any, rolls: Sequence[FrameSet]) -> tuple[str, int]:
    """The title above the frames of a record, plain text, and in how many columns they stand; 0 for a free flow."""
    if isinstance(record, Sweep):
        # A grid keeps its last axis across.
        several = [len(values) for values in record.axes.values() if len(values) > 1]
        return record.caption, several[-1] if several else 1
    if isinstance(record, Trajectory | Film):
        return record.caption, 0
    prompts = {
        trajectory.recipe.prompt
        for trajectory in record
        if isinstance(trajectory, Trajectory) and trajectory.recipe is not None
    }
    if len(prompts) == 1:
        return prompts.pop(), 0
    return "; ".join(dict.fromkeys(roll.caption for roll in rolls)), 0


def payload(record: Any, rolls: Sequence[FrameSet]) -> tuple[dict[str, Any], list[bytes]]:
    """What the scrubber's JavaScript is given: a JSON description, and the frames it numbers, as WebP.

    Frames that are the same picture are sent once. The same pair feeds the widget and the self-contained page.

    Arguments:
        record: what is shown.
        rolls: its frames, from `reels`.
    """
    title, columns = describe(record, rolls)
    frames: list[bytes] = []
    seen: dict[bytes, int] = {}

    def number(image: Image.Image | None) -> int | None:
        if image is None:
            return None
        data = webp(image)
        if data not in seen:
            seen[data] = len(frames)
            frames.append(data)
        return seen[data]

    shown = [show for show in (*SHOWS, "x_next") if any(roll.frames.get(show) for roll in rolls)]
    words = list(dict.fromkeys(word for roll in rolls for word in roll.veils))
    trajectories = [
        {
            "label": roll.label,
            "caption": roll.caption,
            "sigmas": list(roll.sigmas),
            "frames": {show: [number(image) for image in roll.frames.get(show, ())] for show in shown},
            "final": number(roll.final),
            "width": roll.width,
            "height": roll.height,
            "overlays": [[number(image) for image in roll.veils.get(word, ())] for word in words],
        }
        for roll in rolls
    ]
    by = sorted({roll.by for roll in rolls if roll.by})
    return {
        "title": title,
        "shows": [{"key": show, "name": NAMES[show]} for show in shown],
        "trajectories": trajectories,
        "words": words,
        "columns": columns,
        "note": f"frames by {' and '.join(by)}" if by else "",
    }, frames


def _without_model(trajectory: Trajectory) -> tuple[Decode, str]:
    if trajectory.preview is not None:
        return trajectory.preview.pictures, _made("linear", trajectory.preview.error)
    return _principal(trajectory), "the three principal directions of the latents"


def _made(by: str, error: float | None) -> str:
    """Who made the frames, and how far they are from the VAE's where they are not its own."""
    by = {"vae": "the VAE", "linear": "the linear preview"}.get(by, by)
    return f"{by} (rms {error:.2g} from the VAE)" if error else by


def _principal(trajectory: Trajectory) -> Decode:
    """Colours for a walk that brought no preview: the three directions in which its own latents differ most."""
    kept = [step for step in trajectory.steps if step.kept]
    last: Float[Tensor, "channels _h _w"] = kept[-1].latents("clean").float()
    cells = last.flatten(1).T
    centre = cells.mean(0)
    _, lengths, directions = torch.linalg.svd(cells - centre, full_matrices=False)
    spread = lengths[:3] / max(len(cells) - 1, 1) ** 0.5

    def draw(latents: Tensor) -> list[Image.Image]:
        three = torch.einsum("kc,nchw->nhwk", directions[:3], latents - centre[:, None, None])
        # Two standard deviations of the final estimate fill the range from black to full colour.
        scaled = (0.5 + three / (4 * spread.clamp_min(1e-6))).clamp(0, 1)
        return [Image.fromarray(frame.numpy()) for frame in (scaled * 255).round().to(torch.uint8)]

    return draw
