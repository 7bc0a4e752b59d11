"""The trace of one pipeline call: what was requested, every step as it passes, and the trajectories it leaves.

A trace patches three methods of the call's own pipeline and scheduler instances for the length of the call: the
scheduler's `set_timesteps` and `step`, where sigma, x and v pass, and the pipeline's `prepare_latents`, which has the
size. No module is touched, so offload hooks and compiled transformers work as before. A failure of the trace's own
bookkeeping never reaches the call: it becomes one warning and an incomplete trajectory.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fluxnb.errors import warn_caller
from fluxnb.pipeline.compat import tensor_version
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.state import state_of
from fluxnb.records import Keep, Step, Trajectory
from fluxnb.sampling.attention import AttentionCapture, PromptWords, capture_attention, words_of
from fluxnb.sampling.patched_method import Wrapper, bound_arguments, patched_method
from fluxnb.sampling.recorded_recipe import recipe_of

__all__ = ["CallTrace", "OnVelocity", "RecordingWarning", "StepTrace", "trajectories_of"]

# Called with the batch's velocities on their device, and a function that makes the Step of one picture.
OnVelocity = Callable[[Tensor, Callable[[int], Step]], None]


class RecordingWarning(UserWarning):
    """A recording is incomplete because fluxnb failed to follow a call; the call itself is not affected."""


@dataclass(kw_only=True)
class StepTrace:
    """One step of the whole batch, on its device."""

    index: int
    sigma: float
    sigma_next: float
    tensors: dict[str, Tensor]
    norms: dict[str, Tensor]
    mark: Any


@dataclass(kw_only=True, eq=False)
class CallTrace:
    """One call of a pipeline, from its arguments to its trajectories.

    Arguments:
        pipe: the pipeline instance that is called.
        keep: which steps and tensors to keep.
        given: the arguments of the call by name.
        defaults: the default values of the call's other parameters.
        flux: the handle that describes the model, None for pipelines of other kinds.
        prompts: for a call with prompt embeddings, the prompts that they encode.
        on_velocity: called after each step.
    """

    pipe: Any
    keep: Keep
    given: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    flux: Flux | None = None
    prompts: list[str] | None = None
    on_velocity: OnVelocity | None = None

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        self.height: int | None = self.given.get("height")
        self.width: int | None = self.given.get("width")
        self.seeds = _fresh_seeds(self.given.get("generator"))
        self.words: tuple[PromptWords, ...] = ()
        self.levels: list[float] = []
        self.first = 0
        self.steps: list[StepTrace] = []
        self.prepared = self.denoised = 0.0
        self.begin: Any = None
        self.images: list[Image.Image] | None = None
        self.altered = False  # a callback or a mask changed x between two steps
        self.broken = False
        self._x_next: tuple[Tensor, int | None] | None = None
        self._attention: AttentionCapture | None = None
        self._thread = threading.get_ident()

    # ------------------------------------------------------------------------------------------------ what it covers
    @property
    def count(self) -> int:
        """Pictures in the batch."""
        return len(self.steps[0].norms["v"])

    @property
    def planned(self) -> int:
        """Steps that the call takes if nothing stops it."""
        return len(self.levels) - 1 - self.first

    def words_of(self, item: int) -> tuple[str, ...]:
        """The words of one picture's prompt, where attention is recorded."""
        return self.words[item * len(self.words) // self.count].words if self.words else ()

    @contextlib.contextmanager
    def observed(self) -> Iterator[CallTrace]:
        """Patch the pipeline and its scheduler inside the block, which makes the call."""
        scheduler = self.pipe.scheduler
        patches: list[tuple[Any, str, Wrapper]] = [
            (scheduler, "set_timesteps", self._set_timesteps),
            (scheduler, "step", self._step),
            (self.pipe, "prepare_latents", self._prepare_latents),
        ]
        with contextlib.ExitStack() as stack:
            if self.keep.attention is not None:
                self._attention = stack.enter_context(
                    capture_attention(
                        self.pipe.transformer,
                        blocks=self.keep.attention,
                        heads=self.keep.heads,
                        enabled=self._keeps_next_step,
                    )
                )
                with self._guarded():
                    self._aim(self._attention)
            for owner, name, wrapper in patches:
                if hasattr(owner, name):
                    stack.enter_context(patched_method(owner, name, self._if_own_thread(wrapper)))
            yield self

    def finish(self, output: Any = None) -> tuple[Trajectory, ...]:
        """The trajectories of the call, one a picture; none where no step was taken.

        Arguments:
            output: what the pipeline returned, None where it raised.
        """
        if not self.steps:
            return ()
        with self._guarded():
            if output is not None and self.given.get("output_type", "pil") != "latent":
                self.images = _pictures(output)
            if self.on_velocity is None:  # a caller that follows the steps needs the last one whole
                self._discard(self.steps[-1])
        try:
            return trajectories_of(self)
        except Exception as problem:
            self._give_up(problem)
            return ()

    # ------------------------------------------------------------------------------------------------- the patches
    def _if_own_thread(self, wrapper: Wrapper) -> Wrapper:
        """Another thread may call the same pipeline; its steps are not those of this call."""

        def filtered(original: Wrapper, *args: Any, **kwargs: Any) -> Any:
            if self.broken or threading.get_ident() != self._thread:
                return original(*args, **kwargs)
            return wrapper(original, *args, **kwargs)

        return filtered

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Keep a failure of the bookkeeping inside the block from the caller's call."""
        try:
            yield
        except Exception as problem:
            self._give_up(problem)

    def _give_up(self, problem: Exception) -> None:
        if not self.broken:
            self.broken = True
            name = type(self.pipe).__name__
            warn_caller(
                f"recording {name} stopped after {len(self.steps)} steps ({type(problem).__name__}: {problem}); "
                "the picture is not affected",
                RecordingWarning,
            )

    def _prepare_latents(self, original: Wrapper, *args: Any, **kwargs: Any) -> Any:
        given: dict[str, Any] = {}
        with self._guarded():
            given = bound_arguments(original, args, kwargs)
            self.height = int(given.get("height") or self.height or 0) // 16 * 16
            self.width = int(given.get("width") or self.width or 0) // 16 * 16
        result = original(*args, **kwargs)
        with self._guarded():
            self.prepared, self.begin = time.perf_counter(), _mark(_on_cuda(given))
        return result

    def _set_timesteps(self, original: Wrapper, *args: Any, **kwargs: Any) -> Any:
        given: dict[str, Any] = {}
        with self._guarded():
            given = bound_arguments(original, args, kwargs)
        result = original(*args, **kwargs)
        with self._guarded():
            # One transfer of the levels here, before any work is queued, saves a wait for the GPU in every step.
            self.levels = [float(level) for level in self.pipe.scheduler.sigmas.tolist()]
            self.prepared, self.begin = time.perf_counter(), _mark(_on_cuda(given))
        return result

    def _step(self, original: Wrapper, *args: Any, **kwargs: Any) -> Any:
        step: StepTrace | None = None
        with self._guarded():
            given = bound_arguments(original, args, kwargs)
            step = self._before(given["sample"], given["model_output"])
        result = original(*args, **kwargs)
        if step is not None:
            with self._guarded():
                self._after(step, given["model_output"], result)
            if self.on_velocity is not None and not self.broken:
                self.on_velocity(given["model_output"], lambda item: _step_of(self, step, item))
            if len(self.steps) > 1:  # the step before is complete now: this one began from its x_next
                self._discard(self.steps[-2])
        return result

    def _before(self, x: Tensor, v: Tensor) -> StepTrace:
        """Copy x and v before the scheduler gets them."""
        shared: Tensor | None = None
        if self.steps:
            known, version = self._x_next if self._x_next is not None else (None, None)
            x_next = self.steps[-1].tensors.get("x_next")
            if x is known and version is not None and tensor_version(x) == version:
                shared = x_next
            elif x_next is None or not torch.equal(x, x_next):
                self.altered = True
        tensors = {"x": shared if shared is not None else x.detach().clone(), "v": v.detach().clone()}
        norms = {name: torch.linalg.vector_norm(value.flatten(1).float(), dim=1) for name, value in tensors.items()}
        return StepTrace(index=len(self.steps), sigma=0.0, sigma_next=0.0, tensors=tensors, norms=norms, mark=None)

    def _after(self, step: StepTrace, v: Tensor, result: Any) -> None:
        out = result[0] if isinstance(result, tuple) else result.prev_sample
        position = self.pipe.scheduler.step_index - 1  # a plain int, initialised by the step itself
        if not self.steps:
            self.first = position
        step.sigma, step.sigma_next = self.levels[position], self.levels[position + 1]
        # The next step's x is this very tensor, unless a callback or a mask changes it; then both are kept.
        step.tensors["x_next"] = out.detach().clone()
        self._x_next = out, tensor_version(out)
        if self._attention is not None and (maps := self._attention.take()) is not None:
            step.tensors["attention"] = maps[:, : v.shape[1]]  # some pipelines put a second picture behind the first
        step.mark, self.denoised = _mark(v.device.type == "cuda"), time.perf_counter()
        self.steps.append(step)

    def _discard(self, step: StepTrace) -> None:
        """Drop the tensors of a step that are not to be kept."""
        names = self.keep.tensors if self.keep.wants(step.index, self.planned) else ()
        step.tensors = {name: value for name, value in step.tensors.items() if name in names}

    # --------------------------------------------------------------------------------------------------- attention
    def _aim(self, attention: AttentionCapture) -> None:
        """Capture attention for the words that T5 reads; CLIP's single vector has no words in it."""
        prompt = self.given.get("prompt_2") or self.given.get("prompt") or self.prompts
        prompts: list[Any] = prompt if isinstance(prompt, list) else [prompt]
        tokenizer = getattr(self.pipe, "tokenizer_2", None)
        length = self.given.get("max_sequence_length") or self.defaults.get("max_sequence_length") or 512
        if tokenizer is not None and all(isinstance(each, str) for each in prompts):
            self.words = tuple(words_of(tokenizer, each, length) for each in prompts)
        attention.aim(self.words if any(each.words for each in self.words) else ())

    def _keeps_next_step(self) -> bool:
        """Whether the evaluation that is about to run belongs to a step that is kept."""
        if self.broken or threading.get_ident() != self._thread:
            return False
        if not self.steps:
            self.first = self.pipe.scheduler.begin_index or 0
        return self.keep.wants(len(self.steps), self.planned)


def trajectories_of(call: CallTrace) -> tuple[Trajectory, ...]:
    """The trajectories of a call that has ended, completed or not: one a picture."""
    ended, flux, pipe = time.perf_counter(), call.flux, call.pipe
    if not call.height or not call.width:  # the call gave no size: assume a square picture
        found = next((value for step in call.steps for value in step.tensors.values()), None)
        call.height = call.width = int(np.sqrt(found.shape[-2])) * 16 if found is not None else 0
    moved: dict[int, Tensor] = {}
    marks = [each for each in (call.begin, *(step.mark for step in call.steps)) if each is not None]
    seconds = {
        "encode": max(0.0, call.prepared - call.started),
        "denoise": sum(_seconds_between(a, b) for a, b in itertools.pairwise(marks)),
        "decode": ended - call.denoised if call.images else 0.0,
    }
    trajectories = []
    for item in range(call.count):
        steps = tuple(_step_of(call, step, item, moved) for step in call.steps)
        trajectories.append(
            Trajectory(
                image=call.images[item] if call.images and item < len(call.images) else None,
                recipe=recipe_of(call, item),
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
                preview=state_of(pipe).preview(pipe.vae) if flux else None,
                words=call.words_of(item),
            )
        )
    return tuple(trajectories)


def _step_of(call: CallTrace, step: StepTrace, item: int, moved: dict[int, Tensor] | None = None) -> Step:
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
    )


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


def _fresh_seeds(generator: Any) -> tuple[int | None, ...]:
    """The seeds of CPU generators that have drawn nothing yet; None for any other."""
    seeds: list[int | None] = []
    for one in generator if isinstance(generator, list | tuple) else [generator]:
        fresh = isinstance(one, torch.Generator) and one.device.type == "cpu"
        if fresh:
            untouched = torch.Generator().manual_seed(one.initial_seed())
            fresh = torch.equal(untouched.get_state(), one.get_state())
        seeds.append(one.initial_seed() if fresh else None)
    return tuple(seeds)


def _pictures(output: Any) -> list[Image.Image] | None:
    """The pictures that a pipeline returned: PIL, an array or a tensor (0 to 1)."""
    result = getattr(output, "images", output[0] if isinstance(output, tuple) and output else None)
    if isinstance(result, list) and result and all(isinstance(each, Image.Image) for each in result):
        return list(result)
    if isinstance(result, np.ndarray):
        result = torch.from_numpy(result).movedim(-1, 1)
    if isinstance(result, Tensor) and result.ndim == 4 and result.shape[1] == 3:
        # Converted to bytes on the device: floats are four times as much to transfer, and slow to convert on a CPU.
        small = (result.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
        return [Image.fromarray(each) for each in small.permute(0, 2, 3, 1).contiguous().cpu().numpy()]
    return None


def _mark(on_cuda: bool) -> Any:
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


def _on_cuda(given: dict[str, Any]) -> bool:
    """Whether a method of the pipeline was given a GPU; looking it up on the pipeline takes milliseconds."""
    device = given.get("device")
    return device is not None and torch.device(device).type == "cuda"
