"""What passes by while a pipeline is called: what was asked, each step as it went, and what came of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fluxnb.errors import FluxnbError
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.preview import known_preview
from fluxnb.records import Step, Trajectory
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.sampling.attention import Words

__all__ = ["Call", "Raw", "fresh_seeds", "mark", "pictures", "recipe_of", "step_of", "trajectories_of"]


@dataclass(kw_only=True)
class Raw:
    """One step as it passed by, on its device, the whole batch."""

    index: int
    sigma: float
    sigma_next: float
    tensors: dict[str, Tensor]
    norms: dict[str, Tensor]
    mark: Any


@dataclass(kw_only=True)
class Call:
    """A pipeline call under way."""

    started: float
    prompt: Any = None
    words: tuple[Words, ...] = ()  # of each prompt, where attention is looked at
    height: int | None = None
    width: int | None = None
    length: int | None = None
    generator: Any = None
    seeds: tuple[int | None, ...] = ()
    given: Any = None  # sigmas as handed to the scheduler, before it shifts them
    levels: list[float] = field(default_factory=list)
    first: int = 0
    encodes: int = 0
    kin: bool = False  # img2img or inpaint: there is more to the question than a recipe holds
    raws: list[Raw] = field(default_factory=list)
    prepared: float = 0.0
    denoised: float = 0.0
    begin: Any = None
    images: list[Image.Image] | None = None
    out: Tensor | None = None
    out_version: int | None = None

    @property
    def prompts(self) -> list[Any]:
        """What was asked for, one or several."""
        return self.prompt if isinstance(self.prompt, list) else [self.prompt]

    @property
    def count(self) -> int:
        """Pictures in the batch."""
        return len(self.raws[0].norms["v"])

    @property
    def planned(self) -> int:
        """Steps that the call will take if nothing stops it."""
        return len(self.levels) - 1 - self.first

    def words_of(self, item: int) -> tuple[str, ...]:
        """The words of one picture's prompt."""
        return self.words[item * len(self.words) // self.count].words if self.words else ()


def mark(on_cuda: bool) -> Any:
    """This moment, of the device's own clock where there is one: no wait for it is needed until it is read."""
    if not on_cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    if isinstance(start, float) or isinstance(end, float):
        return end - start if isinstance(start, float) and isinstance(end, float) else 0.0
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def step_of(call: Call, raw: Raw, item: int, moved: dict[int, Tensor] | None = None) -> Step:
    """One picture's share of a step, on the CPU; tensors that two steps share stay shared."""
    moved = {} if moved is None else moved
    for value in raw.tensors.values():
        if id(value) not in moved:
            moved[id(value)] = value.to("cpu")
    tensors = {name: moved[id(value)][item] for name, value in raw.tensors.items()}
    if "attention" in tensors:
        tensors["attention"] = tensors["attention"][:, : len(call.words_of(item))]
    start = call.raws[raw.index - 1].mark if raw.index else call.begin
    return Step(
        index=raw.index,
        sigma=raw.sigma,
        dt=raw.sigma_next - raw.sigma,
        height=call.height or 0,
        width=call.width or 0,
        tensors=tensors,
        norms={name: float(value[item]) for name, value in raw.norms.items()},
        seconds=_between(start, raw.mark) if start is not None else 0.0,
    )


def trajectories_of(call: Call, flux: Flux | None, pipe: Any) -> tuple[Trajectory, ...]:
    """What is left of a call when it has ended, well or not: one Trajectory a picture."""
    ended = time.perf_counter()
    if not call.height or not call.width:  # a call that told no size: the picture is taken to be square
        found = next((value for raw in call.raws for value in raw.tensors.values()), None)
        call.height = call.width = int(np.sqrt(found.shape[-2])) * 16 if found is not None else 0
    moved: dict[int, Tensor] = {}
    marks = [each for each in (call.begin, *(raw.mark for raw in call.raws)) if each is not None]
    seconds = {
        "encode": max(0.0, call.prepared - call.started),
        "denoise": sum(_between(a, b) for a, b in itertools.pairwise(marks)),
        "decode": ended - call.denoised if call.images else 0.0,
    }
    trajectories = []
    for item in range(call.count):
        steps = tuple(step_of(call, raw, item, moved) for raw in call.raws)
        trajectories.append(
            Trajectory(
                image=call.images[item] if call.images and item < len(call.images) else None,
                recipe=recipe_of(call, item, flux, pipe),
                finished=len(call.raws) == call.planned,
                sigmas=tuple(call.levels[call.first :]),
                # A whole batch's tensor must not stay alive for the sake of one of its pictures.
                steps=_own(steps) if call.count > 1 else steps,
                height=call.height or 0,
                width=call.width or 0,
                seconds=seconds,
                versions=flux.versions_on(call.raws[0].norms["v"].device) if flux else {},
                model=flux.model if flux else type(pipe).__name__,
                preset=flux.plan.preset if flux else "",
                numerics=flux.numerics(call.count) if flux else "exact",
                preview=known_preview(pipe.vae) if flux else None,
                words=call.words_of(item),
            )
        )
    return tuple(trajectories)


def recipe_of(call: Call, item: int, flux: Flux | None, pipe: Any) -> ResolvedRecipe | None:
    """What was asked, if the call told all of it; a recipe that repeats something else would be worse than none."""
    prompts, images = call.prompts, call.count
    seed = call.seeds[item] if len(call.seeds) == images else None
    told = seed is not None and isinstance(prompts[0], str) and images % len(prompts) == 0
    plain = not call.kin and call.encodes == 1 and not pipe.scheduler.config.get("stochastic_sampling", False)
    if flux is None or not told or not plain or not (call.height and call.width and call.length):
        return None
    given = None if call.given is None else tuple(float(level) for level in np.asarray(call.given).tolist())
    even = tuple(np.linspace(1.0, 1 / call.planned, call.planned).tolist())
    kind = flux.defaults.guidance_kind
    try:
        return ResolvedRecipe(
            prompt=prompts[item // (images // len(prompts))],
            seed=seed or 0,
            steps=call.planned,
            height=call.height,
            width=call.width,
            # A call that encodes one prompt is not guided by a second evaluation.
            guidance={"embedded": pipe.guidance_scale, "true_cfg": 1.0}.get(kind),
            negative="" if kind == "true_cfg" else None,
            sigmas=None if given == even else given,
            max_sequence_length=call.length,
            model=flux.model,
            revision=flux.revision,
            dtype=flux.dtype,
        )
    except FluxnbError:
        return None  # an empty prompt, say: a legal call, but no recipe of ours


def fresh_seeds(generator: Any) -> tuple[int | None, ...]:
    """The seeds of CPU generators that have drawn nothing yet; None for any other."""
    each = generator if isinstance(generator, list | tuple) else [generator]
    seeds: list[int | None] = []
    for one in each:
        fresh = isinstance(one, torch.Generator) and one.device.type == "cpu"
        if fresh:
            untouched = torch.Generator().manual_seed(one.initial_seed())
            fresh = torch.equal(untouched.get_state(), one.get_state())
        seeds.append(one.initial_seed() if fresh else None)
    return tuple(seeds)


def pictures(result: Any) -> list[Image.Image] | None:
    """What a pipeline's image processor returned, as pictures: PIL, an array or a tensor (0 to 1)."""
    if isinstance(result, list) and result and all(isinstance(each, Image.Image) for each in result):
        return list(result)
    if isinstance(result, np.ndarray):
        result = torch.from_numpy(result).movedim(-1, 1)
    if isinstance(result, Tensor) and result.ndim == 4:
        # To bytes where the picture is: as floats it is four times as much to bring to a CPU, and slow to turn there.
        small = (result.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
        return [Image.fromarray(each) for each in small.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
    return None


def _own(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The same steps with tensors of their own instead of views into a batch; shared ones stay shared."""
    copies: dict[int, Tensor] = {}
    owned = []
    for step in steps:
        tensors = {}
        for name, value in step.tensors.items():
            copies.setdefault(value.data_ptr(), value.clone())
            tensors[name] = copies[value.data_ptr()]
        owned.append(replace(step, tensors=tensors))
    return tuple(owned)
