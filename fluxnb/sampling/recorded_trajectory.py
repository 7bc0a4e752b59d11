"""The trajectories that a recorded call leaves: its steps on the CPU, divided among the pictures of the batch."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fluxnb.families.reading import TrigFlow, prediction_of
from fluxnb.pipeline.state import state_of
from fluxnb.records import Step, Trajectory
from fluxnb.records.geometry import FLUX1
from fluxnb.records.latents import to_pixels
from fluxnb.sampling.recorded_recipe import prompt_of, recipe_of

if TYPE_CHECKING:
    from fluxnb.sampling.call_trace import CallTrace

__all__ = ["StepTrace", "mark_now", "norms_of", "on_cuda", "pictures_of", "step_of", "straighten", "trajectories_of"]


@dataclass(kw_only=True)
class StepTrace:
    """One step of the whole batch, on its device."""

    index: int
    sigma: float
    sigma_next: float
    tensors: dict[str, Tensor]
    norms: dict[str, Tensor]
    mark: Any


def trajectories_of(call: CallTrace) -> tuple[Trajectory, ...]:
    """The trajectories of a call that has ended, completed or not: one a picture."""
    ended, flux, pipe = time.perf_counter(), call.flux, call.pipe
    moved: dict[int, Tensor] = {}
    marks = [each for each in (call.begin, *(step.mark for step in call.steps)) if each is not None]
    seconds = {
        "encode": max(0.0, call.prepared - call.started),
        "denoise": sum(_seconds_between(a, b) for a, b in itertools.pairwise(marks)),
        "decode": ended - call.denoised if call.images else 0.0,
    }
    trajectories = []
    preview = state_of(pipe).preview(pipe.vae) if flux and getattr(pipe, "vae", None) is not None else None
    for item in range(call.count):
        recipe, missing = recipe_of(call, item)
        steps = tuple(step_of(call, step, item, moved) for step in call.steps)
        trajectories.append(
            Trajectory(
                image=call.images[item] if call.images and item < len(call.images) else None,
                recipe=recipe,
                recipe_missing=missing,
                prompt=prompt_of(call, item),
                finished=len(call.steps) == call.planned and not call.broken,
                sigmas=tuple(call.levels[call.first :]),
                # The tensors of a whole batch must not stay alive for one of its pictures.
                steps=_own_tensors(steps) if call.count > 1 else steps,
                height=call.height or 0,
                width=call.width or 0,
                seconds=seconds,
                versions=flux.versions_on(call.steps[0].norms["v"].device) if flux else {},
                model=flux.model if flux else type(pipe).__name__,
                preset=flux.plan.preset if flux else "",
                numerics=flux.numerics(call.count) if flux else "exact",
                preview=preview,
                words=call.words_of(item),
                geometry=call.reading.geometry if call.reading else FLUX1,
                predicts=prediction_of(pipe),
                pair=flux.pair if flux else None,
            )
        )
    return tuple(trajectories)


def step_of(call: CallTrace, step: StepTrace, item: int, moved: dict[int, Tensor] | None = None) -> Step:
    """One picture's part of a step, on the CPU; tensors that two steps share stay shared."""
    moved = {} if moved is None else moved
    for value in step.tensors.values():
        if id(value) not in moved:
            moved[id(value)] = value.to("cpu")
    tensors = {name: moved[id(value)][item] for name, value in step.tensors.items()}
    if "attention" in tensors:
        tensors["attention"] = tensors["attention"][:, : len(call.words_of(item))]
    start = call.steps[step.index - 1].mark if step.index else call.begin
    return Step(
        index=step.index,
        sigma=step.sigma,
        dt=step.sigma_next - step.sigma,
        height=call.height or 0,
        width=call.width or 0,
        tensors=tensors,
        norms={name: float(value[item]) for name, value in step.norms.items()},
        seconds=_seconds_between(start, step.mark) if start is not None else 0.0,
        geometry=call.reading.geometry if call.reading else FLUX1,
    )


def norms_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The Euclidean norms of x and v, one for each picture of the batch."""
    return {name: torch.linalg.vector_norm(tensors[name].flatten(1).float(), dim=1) for name in ("x", "v")}


def _own_tensors(steps: Sequence[Step]) -> tuple[Step, ...]:
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


def pictures_of(output: Any) -> list[Image.Image] | None:
    """The pictures that a pipeline returned: PIL, an array or a tensor (0 to 1), alone or in an output."""
    result = output if isinstance(output, list) else getattr(output, "images", None)
    if isinstance(output, tuple) and output:
        result = output[0]
    if isinstance(result, list) and result and all(isinstance(each, Image.Image) for each in result):
        return list(result)
    if isinstance(result, np.ndarray):
        result = torch.from_numpy(result).movedim(-1, 1)
    if isinstance(result, Tensor) and result.ndim == 4 and result.shape[1] == 3:
        return [Image.fromarray(each) for each in to_pixels(result.detach().float().clamp(0, 1)).cpu().numpy()]
    return None


def mark_now(on_cuda: bool) -> Any:
    """This moment, on the device's clock where there is one; reading it later does not make the device wait now."""
    if not on_cuda:
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _seconds_between(start: Any, end: Any) -> float:
    if isinstance(start, float) or isinstance(end, float):
        return end - start if isinstance(start, float) and isinstance(end, float) else 0.0
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def straighten(step: StepTrace, trigflow: TrigFlow, position: int) -> None:
    """Replace the tensors of a TrigFlow step by those of the equal rectified flow."""
    sample, output, after = (step.tensors[name] for name in ("x", "v", "x_next"))
    step.tensors["x"], step.tensors["v"] = trigflow.x(sample, position), trigflow.v(sample, output, position)
    step.tensors["x_next"] = trigflow.x(after, position + 1)
    step.norms = norms_of(step.tensors)


def on_cuda(given: dict[str, Any]) -> bool:
    """Whether a method of the pipeline was given a GPU; reading it from the pipeline takes milliseconds."""
    device = given.get("device")
    return device is not None and torch.device(device).type == "cuda"
