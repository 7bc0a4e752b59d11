"""Step and Trajectory: the record of one sampling run, from noise to image."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.arguments import entry_point
from fluxnb.display import figure, write_page, write_picture, write_trajectory
from fluxnb.errors import InputError, UnavailableError, unknown_choice
from fluxnb.flow import clean_estimate, noise_estimate
from fluxnb.records.frozen_dict import FrozenDict
from fluxnb.records.geometry import FLUX1, Geometry
from fluxnb.records.keep import Keep
from fluxnb.records.latents import Decode, LinearRGB
from fluxnb.records.pair import Pair
from fluxnb.records.recipe import ResolvedRecipe

__all__ = ["STEP_QUANTITIES", "Step", "Trajectory"]

STEP_QUANTITIES = ("x", "v", "clean", "noise", "x_next")  # tensors that can be read from a step

State = Float[Tensor, "*shape"]  # tokens (tokens, features) or latents (channels, rows, columns), by family
Latents = Float[Tensor, "channels height width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One evaluation of the model: its input x at noise level sigma, and its output v.

    Tensors have the dtype of the run, bit for bit the numbers of the call, and the shape `geometry.shape(height,
    width)`: tokens (h/16 w/16, 64) for FLUX.1, latents in space (16, h/8, w/8) for Z-Image. The estimates are computed
    from x and v in float32, so that x = (1 - sigma) clean + sigma noise holds to float precision.

    Arguments:
        index: 0 for the first.
        sigma, dt: the noise level, and its change in this step (negative; sigma + dt is the next level).
        height, width: of the image in pixels.
        tensors: those of "x", "v", "x_next" and "attention" that were kept.
        norms: Euclidean norms of x and v, also where the tensors were not kept.
        seconds: since the previous step, or since the start of the first evaluation.
        geometry: how the numbers of the tensors are arranged in the picture.

    Raises:
        UnavailableError: by the properties below, for a tensor that was not kept.
    """

    index: int
    sigma: float
    dt: float
    height: int
    width: int
    tensors: Mapping[str, Tensor] = field(repr=False)
    norms: Mapping[str, float] = field(repr=False)
    seconds: float
    geometry: Geometry = field(default=FLUX1, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", FrozenDict(self.tensors))
        object.__setattr__(self, "norms", FrozenDict(self.norms))

    @property
    def x(self) -> State:
        """The input of the model at this sigma."""
        return self._kept("x")

    @property
    def v(self) -> State:
        """The velocity, the output of the model; with true CFG the combination of both evaluations."""
        return self._kept("v")

    @property
    def x_next(self) -> State:
        """The output of the scheduler, the input of the next step."""
        return self._kept("x_next")

    @property
    def attention(self) -> Float[Tensor, "tokens words"]:
        """The attention weight, 0 to 1 in float32, that each image token gives to each word of `trajectory.words`."""
        return self._kept("attention")

    @property
    def clean(self) -> State:
        """The clean estimate, x - sigma v, in float32."""
        return clean_estimate(self.x, self.v, self.sigma)

    @property
    def noise(self) -> State:
        """The noise estimate, x + (1 - sigma) v, in float32."""
        return noise_estimate(self.x, self.v, self.sigma)

    @entry_point("what")
    def latents(self, what: str = "clean") -> Latents:
        """One of "x", "v", "clean", "noise", "x_next" as latents in space (channels, rows, columns)."""
        if what not in STEP_QUANTITIES:
            raise unknown_choice("what", what, STEP_QUANTITIES)
        return self.geometry.latents(getattr(self, what), self.height, self.width)

    @property
    def kept(self) -> bool:
        """Whether x and v were kept, and the estimates can be computed."""
        return "x" in self.tensors and "v" in self.tensors

    def reduced(self, keep: Keep, count: int) -> Step:
        """This step with only the tensors that `keep` retains of it, in a trajectory of `count` steps."""
        retained = keep.tensors if keep.wants(self.index, count) else ()
        if set(retained) >= set(self.tensors):
            return self
        tensors = {name: tensor for name, tensor in self.tensors.items() if name in retained}
        return dataclasses.replace(self, tensors=tensors)

    def _kept(self, name: str) -> Tensor:
        if name not in self.tensors:
            kept = ", ".join(sorted(self.tensors)) or "nothing"
            keep = 'fnb.Keep(attention="all")' if name == "attention" else "fnb.Keep()"
            raise UnavailableError(
                f"{name} of step {self.index}", f"this run kept {kept} of it", f"run again with keep={keep}"
            )
        return self.tensors[name]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """The record of one sampling run: recipe, steps, image and times.

    Arguments:
        image: the image; of an unfinished run the decoded clean estimate of its last step; None if a recorded call
            returned none.
        recipe: the resolved recipe; None if a call or a run cannot be repeated by a recipe (embeddings instead of a
            prompt, a generator without a known seed, an image to start from).
        recipe_missing: why there is no recipe, in one sentence; "" where there is one.
        prompt: what was to be drawn; that of the recipe where there is one, "" where a call gave embeddings.
        finished: False for a run that was stopped or failed.
        sigmas: the planned noise levels including the final 0, one more than the planned evaluations; rising from 0
            for an inversion.
        steps: the evaluations, one Step each. With the samplers "heun" and "midpoint" two of them are one step: the
            x_next of the first is where the second is evaluated, and that of the second is where the step ends.
        height, width: of the image in pixels.
        seconds: spent on "encode", "denoise" and "decode".
        versions: of the libraries and the device.
        model: name of the model, for captions.
        preset: how the weights were held in memory, for captions.
        numerics: "exact", or why the numbers may differ from the plain diffusers call: a lossy preset, "batch", both,
            or "unknown".
        preview: linear map from latents to RGB, for frames without the model.
        words: of the prompt, one per column of `step.attention`; empty if attention was not kept.
        geometry: how the numbers of x are arranged in the picture.
        predicts: what the network computes: "velocity"; "mean velocity", the average over the step, whose clean
            estimate is where the step points; or "trigflow", recorded as the velocity of the equal rectified flow.
        pair: the teacher and the student that the model is one of; None where its partner is not public.
        stages: evaluations in a step of the sampler, 1 or 2.

    Example:
        >>> trajectory.finished, len(trajectory), trajectory.sigmas                 # doctest: +SKIP
        (True, 4, (1.0, 0.75, 0.5, 0.25, 0.0))
        >>> trajectory.steps[0].latents("clean").shape                              # doctest: +SKIP
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
    recipe_missing: str = ""
    prompt: str = ""
    geometry: Geometry = field(default=FLUX1, repr=False)
    predicts: str = field(default="velocity", repr=False)
    pair: Pair | None = field(default=None, repr=False)
    stages: int = field(default=1, repr=False)

    def __post_init__(self) -> None:
        if self.recipe is not None:
            object.__setattr__(self, "prompt", self.recipe.prompt)
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
    def x_T(self) -> State:
        """The first input: pure noise for a text-to-image run."""
        return self._step(0).x

    @property
    def final(self) -> State:
        """The last x_next, the latents of the image as the transformer has them."""
        return self._step(-1).x_next

    @property
    def step_count(self) -> int:
        """The steps of the sampler: as many as `steps`, or half of them if each step takes two evaluations."""
        return -(-len(self.steps) // self.stages)

    @property
    def exact(self) -> bool:
        """Whether the numbers are those of the plain diffusers call."""
        return self.numerics == "exact"

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors; memory that steps share counts once."""
        seen = {tensor.data_ptr(): tensor.nbytes for step in self.steps for tensor in step.tensors.values()}
        return sum(seen.values())

    @property
    def caption(self) -> str:
        """Prompt, model, seed and steps in one line of plain text, not escaped."""
        unit = "steps" if self.stages == 1 else "evaluations"
        count = f"{len(self.steps)} of {len(self.sigmas) - 1} {unit}, unfinished"
        if self.finished:
            count = f"{self.step_count} step{'' if self.step_count == 1 else 's'}"
            count += "" if self.stages == 1 else f" ({len(self.steps)} evaluations)"
        if self.recipe is None:
            return ", ".join(part for part in (self.prompt or "no recipe", self.model, count) if part)
        recipe = self.recipe
        extra = [recipe.sampler] if recipe.sampler != "euler" else []
        extra += [f"guidance {recipe.guidance:g}"] if recipe.guidance else []
        return ", ".join(part for part in (recipe.prompt, self.model, f"seed {recipe.seed}", count, *extra) if part)

    @entry_point(word='word="fox"')
    def attention(self, word: str | int) -> Float[Tensor, "steps rows columns"]:
        """The attention weight, 0 to 1, that each image token gives to a word, at each step that kept attention.

        Arguments:
            word: one of `trajectory.words` in any case, of which all occurrences are summed, or an index into them.

        Raises:
            InputError: an unknown word, or a run that did not keep attention.
        """
        if not self.words:
            reason = "its call was given no prompt" if self.recipe is None else "its run kept none"
            raise InputError("a trajectory without attention", reason, 'run again with keep=fnb.Keep(attention="all")')
        if isinstance(word, str):
            columns = [place for place, known in enumerate(self.words) if known.casefold() == word.casefold()]
        else:
            columns = [word] if -len(self.words) <= word < len(self.words) else []
        if not columns:
            raise unknown_choice("word", word, dict.fromkeys(self.words))
        rows, across = self.geometry.grid(self.height, self.width)
        kept = [step.attention[:, columns].sum(1) for step in self.steps if "attention" in step.tensors]
        return torch.stack(kept).reshape(len(kept), rows, across) if kept else torch.zeros(0, rows, across)

    def _step(self, index: int) -> Step:
        if not self.steps:
            raise UnavailableError("a trajectory without steps", "it was stopped before the first", "run it again")
        return self.steps[index]

    @entry_point(path='path="fox.safetensors"')
    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file and return its path; see `fnb.open_trajectory`."""
        return write_trajectory(self, path)

    @entry_point(path='path="fox.png"')
    def save_png(self, path: str | Path) -> Path:
        """Write the image as PNG with its recipe, which `image.save` leaves out, and return the path.

        The file also holds the graph of ComfyUI and the `parameters` of A1111, where they can hold the recipe. It
        replaces an older file only when it is complete.

        Raises:
            UnavailableError: a trajectory without an image.
            StorageError: the file cannot be written.
        """
        if self.image is None:
            raise UnavailableError("a trajectory without an image", "it was not decoded", "run it again")
        return write_picture(self, path)

    @entry_point("path")
    def to_html(self, path: str | Path, *, shows: Sequence[str] | None = None, decode: Decode | None = None) -> Path:
        """Write a self-contained page with a slider over the steps and return its path.

        Arguments:
            path: the file to write.
            shows: the quantities to choose from, of "clean", "x", "v", "noise"; all by default.
            decode: from latents in space to pictures, such as `flux.decode`; by default the trajectory's own
                linear preview.
        """
        return write_page(self, path, shows=shows, decode=decode)

    def __repr__(self) -> str:
        missing = f", no recipe: {self.recipe_missing}" if self.recipe_missing else ""
        return f"Trajectory({self.caption!r}, {self.height} x {self.width} px{missing})"

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
    """An image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
