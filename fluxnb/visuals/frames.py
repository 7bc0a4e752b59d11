"""Frames of trajectories: the one place where the tensors of a record become pictures.

Film strips, widgets, pages and animations all draw from the same frames. A frame comes from a `Film`, from a `decode`
callable, or from the linear preview that the trajectory carries. A trajectory without a preview is displayed by the
three principal components of its latents. No function here needs the model.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fluxnb.errors import InputError, unknown_choice
from fluxnb.records import Cell, Film, Step, Sweep, Trajectory
from fluxnb.records.latents import Decode, LinearRGB
from fluxnb.visuals.labels import NAMES, cell_labels, distinct_labels, label_of, name_of, pair_note
from fluxnb.visuals.overlays import normalized_attention, overlay, steps_with_attention

__all__ = ["SHOWS", "Decode", "FrameSet", "at_most", "describe", "frame_sets", "frames_of", "payload", "webp"]

SHOWS = ("clean", "x", "v", "noise")
# Pixels of one payload. A million takes 0.05 to 0.15 seconds as WebP, and half of that where the search is short.
MANY_PIXELS, MOST_PIXELS, LONGEST_SIDE = 12_000_000, 40_000_000, 4096

MOST_CELLS = 2**16  # of a latent, from which principal components are computed: all of 2048 x 2048 pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameSet:
    """The frames of one trajectory: one picture a step for each quantity, and the final picture.

    Arguments:
        label: short, for a legend or below a frame; plain text, not escaped.
        caption: one line with model, seed and steps; plain text, not escaped.
        sigmas: the noise level of each frame, falling; without the final 0.
        frames: "x", "v", "clean", "noise" ... to one picture for each sigma.
        final: the picture at sigma 0, or None.
        by: name of the decoder, for the small print.
        height, width: of the picture, in pixels; frames may be smaller.
        overlays: for each word of the prompt one overlay for each sigma, transparent where the attention to the word
            is high; None for a step without attention.
    """

    label: str
    caption: str
    sigmas: tuple[float, ...]
    frames: Mapping[str, tuple[Image.Image, ...]]
    final: Image.Image | None
    by: str
    height: int
    width: int
    overlays: Mapping[str, tuple[Image.Image | None, ...]] = field(default_factory=dict)

    def at(self, show: str, sigma: float) -> Image.Image | None:
        """The frame displayed at `sigma`: the last one at this level or above; at 0 the final picture."""
        if sigma <= 0 and self.final is not None and show in ("x", "clean"):
            return self.final
        frames = self.frames[show]
        reached = [frame for level, frame in zip(self.sigmas, frames, strict=True) if level >= sigma - 1e-6]
        return reached[-1] if reached else (frames[0] if frames else self.final)


def frames_of(
    trajectory: Trajectory | Film,
    *,
    shows: Sequence[str] = SHOWS,
    decode: Decode | None = None,
    label: str | None = None,
) -> FrameSet:
    """Decode the frames of one trajectory.

    Arguments:
        trajectory: a Trajectory, or a Film, whose frames are used as they are.
        shows: which of "x", "v", "clean", "noise". The velocity is decoded like latents, so it looks like noise minus
            the picture.
        decode: from latents in space to n pictures; None for the trajectory's own linear preview.
        label: short name; None for "4 steps, seed 3".

    Raises:
        InputError: an unknown name in `shows`, or a trajectory with neither tensors nor a picture.

    Example:
        >>> frames_of(trajectory, shows=["clean"]).frames["clean"][0].size          # doctest: +SKIP
        (16, 16)
    """
    if isinstance(trajectory, Film):
        return _frames_of_film(trajectory, label)
    for show in shows:
        if show not in NAMES:
            raise unknown_choice("shows", show, tuple(NAMES))
    steps = [step for step in trajectory.steps if step.kept]
    if not steps and trajectory.image is None:
        raise InputError(
            "a trajectory without tensors or a picture", "x and v are needed", "run again with keep=fnb.Keep()"
        )
    if decode is None:
        linear, by = _linear_map(trajectory)
    else:
        by = _decoder_name("decoder", getattr(decode, "error", None))
    frames: dict[str, tuple[Image.Image, ...]] = {}
    for show in shows:
        latents = (step.latents(show).float() for step in steps)
        if decode is None:  # step by step, since a step of 8192 pixels has 64 MB
            frames[show] = tuple(picture for each in latents for picture in linear.pictures(each[None]))
        else:
            frames[show] = tuple(decode(torch.stack(list(latents)))) if steps else ()
    return FrameSet(
        label=label or label_of(trajectory),
        caption=trajectory.caption,
        sigmas=tuple(step.sigma for step in steps),
        frames=frames,
        final=trajectory.image,
        by=by,
        height=trajectory.height,
        width=trajectory.width,
        overlays=_overlays(trajectory, steps),
    )


def _frames_of_film(film: Film, label: str | None) -> FrameSet:
    first = film.frames[0] if film.frames else Image.new("RGB", (16, 16))
    return FrameSet(
        label=label or NAMES.get(film.what, film.what),
        caption=film.caption,
        sigmas=film.sigmas,
        frames={film.what: film.frames},
        final=None,
        by=_decoder_name(film.by, film.error),
        height=first.height,
        width=first.width,
    )


def _overlays(trajectory: Trajectory, steps: Sequence[Step]) -> dict[str, tuple[Image.Image | None, ...]]:
    recorded = [trajectory.steps[index].index for index in steps_with_attention(trajectory)]
    if not recorded:
        return {}
    overlays = {}
    for word in dict.fromkeys(word.casefold() for word in trajectory.words):
        by_step = dict(zip(recorded, normalized_attention(trajectory, word), strict=True))
        overlays[word] = tuple(overlay(by_step[step.index]) if step.index in by_step else None for step in steps)
    return overlays


def frame_sets(
    record: Any, *, shows: Sequence[str] = SHOWS, decode: Decode | None = None, labels: Sequence[str] | None = None
) -> tuple[FrameSet, ...]:
    """Decode the frames of a record: a Trajectory, a Film, a Sweep, or a list of the first two.

    The cells of a Sweep are labeled by what differs between them. A cell without a trajectory has its picture only.

    Raises:
        InputError: any other type, an empty list, or as many labels as do not match.
    """
    if isinstance(record, Sweep):
        names = cell_labels(record) if labels is None else labels
        _check_labels(names, len(record.cells), "cells")
        return tuple(
            _frames_of_cell(cell, shows, decode, label) for cell, label in zip(record.cells, names, strict=True)
        )
    if (refusal := getattr(type(record), "refusal", None)) is not None:
        raise refusal(record, "steps")  # of an endpoint
    trajectories = [record] if isinstance(record, Trajectory | Film) else record
    if not isinstance(trajectories, Sequence) or not all(isinstance(each, Trajectory | Film) for each in trajectories):
        raise InputError(
            f"a {type(record).__name__}",
            "a Trajectory, a Film, a Sweep or a list of trajectories is accepted",
            "pass the result of fnb.run or fnb.sweep",
        )
    if not trajectories:
        raise InputError("an empty list", "at least one trajectory is needed", "pass the result of fnb.run")
    names = distinct_labels(trajectories) if labels is None else labels
    _check_labels(names, len(trajectories), "trajectories")
    return tuple(
        frames_of(trajectory, shows=shows, decode=decode, label=label)
        for trajectory, label in zip(trajectories, names, strict=True)
    )


def _check_labels(labels: Sequence[str], count: int, noun: str) -> None:
    if len(labels) != count:
        raise InputError(f"{len(labels)} labels for {count} {noun}", "each needs one label", f"pass {count} labels")


def _frames_of_cell(cell: Cell, shows: Sequence[str], decode: Decode | None, label: str) -> FrameSet:
    if cell.trajectory is not None and any(step.kept for step in cell.trajectory.steps):
        return frames_of(cell.trajectory, shows=shows, decode=decode, label=label)
    image = cell.image
    return FrameSet(
        label=label,
        caption=cell.recipe.prompt,
        sigmas=(),
        frames={show: () for show in shows},
        final=image,
        by="",
        height=image.height,
        width=image.width,
    )


def at_most(image: Image.Image, longest: int) -> Image.Image:
    """The picture, reduced to `longest` pixels on its longer side if it has more."""
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=1.0)


def _limits(frame_sets: Sequence[FrameSet]) -> tuple[int, int]:
    """The longest side of a frame with which all of them have MOST_PIXELS at most, and the effort of WebP, 0 to 6."""
    pictures = [image for each in frame_sets for images in (*each.frames.values(), (each.final,)) for image in images]
    sizes = [image.size for image in {id(image): image for image in pictures if image is not None}.values()]

    def pixels(side: int) -> float:
        return sum(width * height * min(1.0, side / max(width, height)) ** 2 for width, height in sizes)

    longest = LONGEST_SIDE
    while longest > 64 and pixels(longest) > MOST_PIXELS:
        longest = max(64, int(longest * 0.95))
    return longest, 1 if pixels(longest) > MANY_PIXELS else 4


def webp(image: Image.Image, quality: int = 88, *, lossless: bool | None = None, effort: int = 4) -> bytes:
    """Encode a frame as WebP; by default without loss up to 160 pixels, where lossy blocks of 16 pixels are visible."""
    buffer = io.BytesIO()
    exact = max(image.size) <= 160 if lossless is None else lossless
    image = image if image.mode == "RGBA" else image.convert("RGB")
    image.save(buffer, "WEBP", quality=quality, lossless=exact, method=effort)
    return buffer.getvalue()


def describe(record: Any, frame_sets: Sequence[FrameSet]) -> tuple[str, int]:
    """Title of a record, plain text, and the number of columns of its frames; 0 where they may flow freely."""
    if isinstance(record, Sweep):
        # The last axis of a grid is across.
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
    return "; ".join(dict.fromkeys(frame_set.caption for frame_set in frame_sets)), 0


def payload(record: Any, frame_sets: Sequence[FrameSet]) -> tuple[dict[str, Any], list[bytes]]:
    """The scrubber's data: a JSON description, and WebP frames, to which it refers by number.

    Equal pictures are sent once. The same pair feeds the widget and the self-contained page. Pictures
    above 4096 pixels are reduced, and the largest ones where all have more than 40 million pixels together.

    Arguments:
        record: a Trajectory, a Film, a Sweep, or a list of the first two.
        frame_sets: its frames, from `frame_sets`.
    """
    title, columns = describe(record, frame_sets)
    frames: list[bytes] = []
    numbers: dict[bytes, int] = {}
    longest, effort = _limits(frame_sets)

    def number(image: Image.Image | None) -> int | None:
        if image is None:
            return None
        data = webp(at_most(image, longest), effort=effort)
        if data not in numbers:
            numbers[data] = len(frames)
            frames.append(data)
        return numbers[data]

    shows = [show for show in (*SHOWS, "x_next") if any(frame_set.frames.get(show) for frame_set in frame_sets)]
    words = list(dict.fromkeys(word for frame_set in frame_sets for word in frame_set.overlays))
    trajectories = [
        {
            "label": frame_set.label,
            "caption": frame_set.caption,
            "sigmas": list(frame_set.sigmas),
            "frames": {show: [number(image) for image in frame_set.frames.get(show, ())] for show in shows},
            "final": number(frame_set.final),
            "width": frame_set.width,
            "height": frame_set.height,
            "overlays": [[number(image) for image in frame_set.overlays.get(word, ())] for word in words],
        }
        for frame_set in frame_sets
    ]
    by = sorted({frame_set.by for frame_set in frame_sets if frame_set.by})
    notes = (f"frames by {' and '.join(by)}" if by else "", pair_note(_trajectories_in(record)))
    return {
        "title": title,
        "shows": [{"key": show, "name": name_of(show, _trajectories_in(record))} for show in shows],
        "trajectories": trajectories,
        "words": words,
        "columns": columns,
        "note": ". ".join(filter(None, notes)),
    }, frames


def _trajectories_in(record: Any) -> Sequence[object]:
    if isinstance(record, Sweep):
        return [cell.trajectory for cell in record.cells]
    return [record] if isinstance(record, Trajectory | Film) else list(record)


def _linear_map(trajectory: Trajectory) -> tuple[LinearRGB, str]:
    """The trajectory's own preview, or its principal components, with the name of the map."""
    if trajectory.preview is not None:
        return trajectory.preview, _decoder_name("linear", trajectory.preview.error)
    return _principal_components(trajectory), "the three principal directions of the latents"


def _decoder_name(by: str, error: float | None) -> str:
    """Name of a decoder, with the distance of its pictures from those of the VAE where it is known."""
    by = {"vae": "the VAE", "linear": "the linear preview"}.get(by, by)
    return f"{by} (rms {error:.2g} from the VAE)" if error else by


def _principal_components(trajectory: Trajectory) -> LinearRGB:
    """The map of latents to RGB by the three principal components of the last clean estimate.

    Cells that are not finite do not count.
    """
    kept = [step for step in trajectory.steps if step.kept]
    last: Float[Tensor, "channels _h _w"] = kept[-1].latents("clean") if kept else torch.zeros(3, 1, 1)
    cells = last.flatten(1)
    cells = cells[:, :: max(1, cells.shape[1] // MOST_CELLS)].T.double()
    cells = cells[cells.isfinite().all(1)]
    center = cells.mean(0).nan_to_num()  # of no cell at all it is NaN
    variances, directions = torch.linalg.eigh((cells - center).T @ (cells - center) / max(len(cells) - 1, 1))
    # Latents may have one or two channels; the others are zeros.
    spread = functional.pad(variances.flip(0), (0, 2))[:3].clamp_min(0).sqrt()
    axes = functional.pad(directions.T.flip(0), (0, 0, 0, 2))[:3]
    # Two standard deviations of the last estimate fill the range from black to full color.
    weight = axes / (4 * spread.clamp_min(1e-6))[:, None]
    red, green, blue = (0.5 - weight @ center).tolist()
    return LinearRGB(weight=tuple(map(tuple, weight.tolist())), bias=(red, green, blue), error=0.0)
