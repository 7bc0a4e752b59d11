"""Step and Trajectory: one walk from noise to picture, and what the model saw and answered on the way."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.display import figure, write_page, write_trajectory
from fluxnb.errors import InputError, UnavailableError, unknown_choice
from fluxnb.flow import clean_estimate, noise_estimate
from fluxnb.records.frozen_dict import FrozenDict
from fluxnb.records.keep import Keep
from fluxnb.records.latents import LinearRGB, token_grid, unpack
from fluxnb.records.recipe import ResolvedRecipe

__all__ = ["SHOWN", "Step", "Trajectory"]

SHOWN = ("x", "v", "clean", "noise", "x_next")  # what can be read from a step

Tokens = Float[Tensor, "tokens features"]
Latents = Float[Tensor, "channels height width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One evaluation of the model: at sigma it saw x and answered v.

    Tensors are tokens (h/16 w/16, 64) in the dtype of the run, exactly as the model saw and gave them;
    `step.x[None]` goes back into a pipeline as `latents=`. The estimates are computed from x and v in float32, so
    that x = (1 - sigma) clean + sigma noise holds to float precision.

    Arguments:
        index: 0 for the first.
        sigma, dt: the noise level, and how far the step went (negative; sigma + dt is the next level).
        height, width: the picture in pixels.
        tensors: what was kept of "x", "v", "x_next" and "attention".
        norms: Euclidean lengths of x and v, kept even where the tensors are not.
        seconds: from the step before (or the first evaluation's start) to this one.
    """

    index: int
    sigma: float
    dt: float
    height: int
    width: int
    tensors: Mapping[str, Tensor] = field(repr=False)
    norms: Mapping[str, float] = field(repr=False)
    seconds: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", FrozenDict(self.tensors))
        object.__setattr__(self, "norms", FrozenDict(self.norms))

    @property
    def x(self) -> Tokens:
        """What the model saw at this sigma."""
        return self._kept("x")

    @property
    def v(self) -> Tokens:
        """The velocity, the model's own output; under true CFG the combined one."""
        return self._kept("v")

    @property
    def x_next(self) -> Tokens:
        """What the scheduler made of x and v."""
        return self._kept("x_next")

    @property
    def attention(self) -> Float[Tensor, "tokens words"]:
        """The share of its attention, 0 to 1, that each place gave to each word of `walk.words`, in float32."""
        return self._kept("attention")

    @property
    def clean(self) -> Tokens:
        """The clean estimate, x - sigma v, in float32."""
        return clean_estimate(self.x, self.v, self.sigma)

    @property
    def noise(self) -> Tokens:
        """The noise estimate, x + (1 - sigma) v, in float32."""
        return noise_estimate(self.x, self.v, self.sigma)

    def latents(self, what: str = "clean") -> Latents:
        """One of "x", "v", "clean", "noise", "x_next" as spatial latents (16, h/8, w/8)."""
        if what not in SHOWN:
            raise unknown_choice("what", what, SHOWN)
        return unpack(getattr(self, what), self.height, self.width)

    @property
    def kept(self) -> bool:
        """Whether x and v are there, and with them the estimates."""
        return "x" in self.tensors and "v" in self.tensors

    def thinned(self, keep: Keep, count: int) -> Step:
        """This step of a walk of `count` steps with nothing but what is to be kept of it."""
        wanted = keep.tensors if keep.wants(self.index, count) else ()
        if set(wanted) >= set(self.tensors):
            return self
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in wanted}
        return dataclasses.replace(self, tensors=tensors)

    def _kept(self, name: str) -> Tensor:
        if name not in self.tensors:
            there = ", ".join(sorted(self.tensors)) or "nothing"
            how = 'fnb.Keep(attention="all")' if name == "attention" else "fnb.Keep()"
            raise UnavailableError(
                f"{name} of step {self.index}", f"this run kept {there} of it", f"run again with keep={how}"
            )
        return self.tensors[name]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """The whole walk from noise to picture: what was asked, every step, the picture, and what it took.

    Arguments:
        image: the picture; for an unfinished walk the decoded clean estimate so far; None where the call that was
            watched gave no picture.
        recipe: what was asked, fully resolved; None where a watched call does not tell (embeddings instead of a
            prompt, a generator without a known seed, another picture to start from).
        finished: False for a walk that was stopped or broke off.
        sigmas: the levels planned, the final 0 included, so one more than the steps planned.
        steps: the steps taken.
        height, width: pixels.
        seconds: of "encode", "denoise" and "decode".
        versions: of the libraries and of fluxnb.
        model: whose walk this is, for captions.
        preset: how the model was held in memory, for captions.
        numerics: "exact", or what changes the numbers against the plain diffusers call: a lossy preset, "batch", both,
            or "unknown".
        preview: linear map from latents to colours, so that the walk can show itself without its model.
        words: of the prompt, as many as `step.attention` has columns; empty where attention was not kept.

    Example:
        >>> walk.finished, len(walk), walk.sigmas                                   # doctest: +SKIP
        (True, 4, (1.0, 0.75, 0.5, 0.25, 0.0))
        >>> walk.steps[0].latents("clean").shape                                    # doctest: +SKIP
        torch.Size([16, 16, 16])
    """

    image: Image.Image | None = field(repr=False)
    recipe: ResolvedRecipe | None
    finished: bool
    sigmas: tuple[float, ...]
    steps: tuple[Step, ...] = field(repr=False)
    height: int
    width: int
    seconds: Mapping[str, float] = field(repr=False)
    versions: Mapping[str, str] = field(repr=False)
    model: str = ""
    preset: str = ""
    numerics: str = "exact"
    preview: LinearRGB | None = field(default=None, repr=False)
    words: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seconds", FrozenDict(self.seconds))
        object.__setattr__(self, "versions", FrozenDict(self.versions))

    def __getstate__(self) -> dict[str, Any]:
        # pickle writes the storage behind a tensor, once for each view of it.
        return {**vars(self), "steps": _compact(self.steps)}

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __getitem__(self, index: int) -> Step:
        return self.steps[index]

    @property
    def x_T(self) -> Tokens:
        """Where the walk began: pure noise for a text-to-image run."""
        return self._step(0).x

    @property
    def final(self) -> Tokens:
        """Where it ended: the last step's x_next, which the decoder turned into the picture."""
        return self._step(-1).x_next

    @property
    def exact(self) -> bool:
        """Whether the numbers are those of the plain diffusers call."""
        return self.numerics == "exact"

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors; one that two steps share counts once."""
        seen = {tensor.data_ptr(): tensor.nbytes for step in self.steps for tensor in step.tensors.values()}
        return sum(seen.values())

    @property
    def caption(self) -> str:
        """One line that says what this is: prompt, model, seed, steps; plain text, not escaped."""
        count = f"{len(self.steps)} of {len(self.sigmas) - 1} steps, unfinished"
        if self.finished:
            count = f"{len(self.steps)} step{'' if len(self.steps) == 1 else 's'}"
        if self.recipe is None:
            return ", ".join(part for part in ("a watched call", self.model, count) if part)
        asked = self.recipe
        extra = [asked.sampler] if asked.sampler != "euler" else []
        extra += [f"guidance {asked.guidance:g}"] if asked.guidance else []
        return ", ".join(part for part in (asked.prompt, self.model, f"seed {asked.seed}", count, *extra) if part)

    def attention(self, word: str | int) -> Float[Tensor, "steps rows columns"]:
        """How much each place of the picture looked at a word, at each step that kept it: shares, 0 to 1.

        Arguments:
            word: one of `walk.words`, whatever its case, all of its occurrences together; or an index into them.

        Raises:
            InputError: no such word, or a walk whose run did not keep attention.
        """
        if not self.words:
            told = "its call was given no prompt to read words from" if self.recipe is None else "its run kept none"
            raise InputError("a walk without attention", told, 'run again with keep=fnb.Keep(attention="all")')
        if isinstance(word, str):
            columns = [place for place, known in enumerate(self.words) if known.casefold() == word.casefold()]
        else:
            columns = [word] if -len(self.words) <= word < len(self.words) else []
        if not columns:
            raise unknown_choice("word", word, dict.fromkeys(self.words))
        rows, across = token_grid(self.height, self.width)
        kept = [step.attention[:, columns].sum(1) for step in self.steps if "attention" in step.tensors]
        return torch.stack(kept).reshape(len(kept), rows, across) if kept else torch.zeros(0, rows, across)

    def _step(self, index: int) -> Step:
        if not self.steps:
            raise UnavailableError("a trajectory without steps", "it was stopped before the first", "run it again")
        return self.steps[index]

    def save(self, path: str | Path) -> Path:
        """Write everything to one file, safetensors with a JSON header; see `fnb.open_trajectory`."""
        return write_trajectory(self, path)

    def to_html(self, path: str | Path, **options: Any) -> Path:
        """Write a self-contained page that scrubs through the steps, no kernel and no network needed."""
        return write_page(self, path, **options)

    def __repr__(self) -> str:
        return f"Trajectory({self.caption!r}, {self.height} x {self.width} px)"

    def _repr_png_(self) -> bytes | None:
        return figure(self) or (None if self.image is None else png_bytes(self.image))


def _compact(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Equal steps in which views of one memory are one tensor, and no tensor holds memory beyond its numbers."""
    known: dict[tuple[Any, ...], Tensor] = {}

    def compact(tensor: Tensor) -> Tensor:
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if place not in known:
            known[place] = tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        return known[place]

    return tuple(
        dataclasses.replace(step, tensors={name: compact(tensor) for name, tensor in step.tensors.items()})
        for step in steps
    )


def png_bytes(image: Image.Image) -> bytes:
    """A picture as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
