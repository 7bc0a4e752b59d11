"""CallTrace: what passes through one call of a pipeline, from its arguments to its trajectories.

A trace patches methods of the call's own pipeline and scheduler instances for the length of the call: the scheduler's
`set_timesteps` and `step`, where sigma, x and v pass, the pipeline's `prepare_latents`, which has the size, and the
`postprocess` of its image processor, which has the decoded picture. No module is touched, so offload hooks and compiled
transformers work as before. A failure of the trace's own bookkeeping never reaches the call: it becomes one warning and
an incomplete trajectory.
"""

from __future__ import annotations

import contextlib
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fluxnb.cleanup import progress_lock
from fluxnb.errors import warn_caller
from fluxnb.families.reading import NotRecorded, Reading, TrigFlow, geometry_of_call, levels_of, trigflow_of
from fluxnb.pipeline.compat import tensor_version
from fluxnb.pipeline.flux import Flux
from fluxnb.records import Keep, Step, Trajectory
from fluxnb.sampling.attention import AttentionCapture, PromptWords, capture_attention, words_of
from fluxnb.sampling.patched_method import Wrapper, bound_arguments, patched_method
from fluxnb.sampling.recorded_recipe import FollowedCallback, Surroundings, observed_hooks
from fluxnb.sampling.recorded_trajectory import (
    StepTrace,
    mark_now,
    norms_of,
    on_cuda,
    pictures_of,
    step_of,
    straighten,
    trajectories_of,
)

__all__ = ["CallTrace", "OnVelocity", "RecordingWarning"]

# Called with the batch's velocities on their device, and a function that makes the Step of one picture.
OnVelocity = Callable[[Tensor, Callable[[int], Step]], None]


class RecordingWarning(UserWarning):
    """A record is incomplete, or the numbers of a recorded call are not finite; the call itself is not affected."""


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
        # A pipeline may write into the lists that it is given, as Z-Image's does with its template.
        self.given = {name: list(value) if type(value) is list else value for name, value in self.given.items()}
        self.started = time.perf_counter()
        self.height: int | None = self.given.get("height")
        self.width: int | None = self.given.get("width")
        self.seeds: tuple[int | None, ...] = ()
        self.surroundings: Surroundings | None = None
        self.followed_callback = False
        self._difference: str | None = None  # None: not compared yet
        self.changed = ""  # what a callback or a hook changed, in words
        self.words: tuple[PromptWords, ...] = ()
        self.levels: list[float] = []
        self.first = 0
        self.steps: list[StepTrace] = []
        self.prepared = self.denoised = 0.0
        self.begin: Any = None
        self.images: list[Image.Image] | None = None
        self.returned = False
        self.altered = False  # a callback or a mask changed x between two steps
        self.broken = False
        self.reading: Reading | None = None  # known from the first step on
        self.refused = ""  # why this call is not recorded
        self._trigflow: TrigFlow | None = None
        self._x_next: tuple[Tensor, int | None] | None = None
        self._attention: AttentionCapture | None = None
        self._finite_picture: Tensor | None = None
        self._thread = threading.get_ident()
        self._paused = False
        with self.guarded():
            self.seeds = _fresh_seeds(self.given.get("generator"))
            if self.on_velocity is None and self.flux is not None:
                self.surroundings = Surroundings.of(self.pipe, self.flux)

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

    def difference(self) -> str:
        """What in the pipeline differs from before the call, in words; compared when this is first called."""
        if self._difference is None:
            self._difference = "" if self.surroundings is None else self.surroundings.reason_afterwards(self.pipe)
        return self._difference

    @property
    def last_x(self) -> Tensor | None:
        """The x after the last step, on its device; None where it was not recorded."""
        return self.steps[-1].tensors.get("x_next") if self.steps else None

    @contextlib.contextmanager
    def observed(self) -> Iterator[CallTrace]:
        """Patch the pipeline and its scheduler inside the block, which makes the call."""
        with progress_lock(), contextlib.ExitStack() as stack:
            with self.guarded():
                if self.keep.attention is not None:
                    self._observe_attention(stack)
                self._observe_methods(stack)
            yield self

    def _observe_methods(self, stack: contextlib.ExitStack) -> None:
        scheduler, processor = self.pipe.scheduler, getattr(self.pipe, "image_processor", None)
        patches: list[tuple[Any, str, Wrapper]] = [
            (scheduler, "set_timesteps", self._set_timesteps),
            (scheduler, "step", self._step),
            (self.pipe, "prepare_latents", self._prepare_latents),
        ]
        if self.on_velocity is None:  # the sampler decodes by itself, and its view shares the image processor
            patches.append((processor, "postprocess", self._postprocess))
        if self.surroundings is not None:
            stack.enter_context(observed_hooks(self, self.surroundings.hooked))
        for owner, name, wrapper in patches:
            if hasattr(owner, name):
                stack.enter_context(patched_method(owner, name, self._if_own_call(wrapper)))

    def _observe_attention(self, stack: contextlib.ExitStack) -> None:
        try:
            capture = capture_attention(
                self.pipe.transformer,
                blocks=self.keep.attention or "all",
                heads=self.keep.heads,
                enabled=self._keeps_next_step,
            )
            self._attention = stack.enter_context(capture)
            self._aim(self._attention)
        except Exception as problem:
            self._lose_attention(problem)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Observe nothing inside the block: what a callback calls does not belong to this call."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @property
    def observes(self) -> bool:
        """Whether what runs now in this thread belongs to this call."""
        return not self.broken and not self._paused and threading.get_ident() == self._thread

    def arguments(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the call, with a callback that is followed in the place of a plain function."""
        callback = kwargs.get("callback_on_step_end")
        kinds = {kind.__name__ for kind in type(callback).__mro__}
        # diffusers reads attributes of its own callback classes, which change the call anyway.
        if self.surroundings is None or callback is None or kinds & {"PipelineCallback", "MultiPipelineCallbacks"}:
            return kwargs
        self.followed_callback = True
        return {**kwargs, "callback_on_step_end": FollowedCallback(self, callback)}

    def finish(self, output: Any = None) -> tuple[Trajectory, ...]:
        """The trajectories of the call, one a picture; none where no step was taken.

        Arguments:
            output: what the pipeline returned, None where it raised.
        """
        self.returned = output is not None
        if not self.steps or self.reading is None:
            return ()
        with self.guarded():
            if output is not None and self.given.get("output_type", "pil") != "latent":
                self.images = pictures_of(output)
            if self._x_next is not None and not self.altered:
                self.altered = self._was_written(*self._x_next)
            if self.on_velocity is None:  # a caller that follows the steps needs the last one whole
                self._discard(self.steps[-1])
        try:
            trajectories = trajectories_of(self)
            if self.on_velocity is None:
                self._warn_if_not_finite()
            return trajectories
        except Exception as problem:
            self._give_up(problem)
            return ()

    # ------------------------------------------------------------------------------------------------- the patches
    def _if_own_call(self, wrapper: Wrapper) -> Wrapper:
        """Another thread, or a callback of this call, may call the same pipeline; its steps are not those of this."""

        def filtered(original: Wrapper, *args: Any, **kwargs: Any) -> Any:
            if not self.observes:
                return original(*args, **kwargs)
            return wrapper(original, *args, **kwargs)

        return filtered

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Keep a failure of the bookkeeping inside the block from the caller's call."""
        try:
            yield
        except NotRecorded as problem:
            self._refuse(str(problem))
        except Exception as problem:
            self._give_up(problem)

    def _refuse(self, reason: str) -> None:
        """Record nothing of this call: no view could show it."""
        if not self.broken:
            self.broken, self.refused, self.steps = True, reason, []
            warn_caller(
                f"a call of {type(self.pipe).__name__} is not recorded: {reason}. The picture is not affected.",
                RecordingWarning,
            )

    def _give_up(self, problem: Exception) -> None:
        if not self.broken:
            self.broken = True
            name = type(self.pipe).__name__
            warn_caller(
                f"recording {name} stopped after {len(self.steps)} steps ({type(problem).__name__}: {problem}); "
                "the picture is not affected",
                RecordingWarning,
            )

    def _lose_attention(self, problem: Exception) -> None:
        if self._attention is not None:
            self._attention.aim(())
        self._attention = None
        warn_caller(
            f"attention is not recorded ({type(problem).__name__}: {problem}); the picture is not affected",
            RecordingWarning,
        )

    def _warn_if_not_finite(self) -> None:
        """Warn of numbers that are not finite, which a run refuses; a user's own call goes on with them."""
        bad = [step for step in self.steps if not bool(torch.isfinite(step.norms["v"]).all())]
        if bad:
            given = f"the velocity of step {bad[0].index} (sigma {bad[0].sigma:.3g})"
        elif self._finite_picture is not None and not bool(self._finite_picture):
            given = "the picture that the VAE decoded"
        else:
            return
        warn_caller(
            f"{given} is not finite. Load the pipeline in torch.bfloat16 or torch.float32 and compare.",
            RecordingWarning,
        )

    def _postprocess(self, original: Wrapper, *args: Any, **kwargs: Any) -> Any:
        with self.guarded():
            picture = args[0] if args else kwargs.get("image")
            if isinstance(picture, Tensor):
                self._finite_picture = torch.isfinite(picture).all()
            if len(self.steps) == self.planned:
                # Nothing after this changes the picture, and a GPU is still decoding it while the models are compared.
                self.difference()
        return original(*args, **kwargs)

    def _prepare_latents(self, original: Wrapper, *args: Any, **kwargs: Any) -> Any:
        given: dict[str, Any] = {}
        with self.guarded():
            given = bound_arguments(original, args, kwargs)
            self.height = int(given.get("height") or self.height or 0)
            self.width = int(given.get("width") or self.width or 0)
        result = original(*args, **kwargs)
        with self.guarded():
            self.prepared, self.begin = time.perf_counter(), mark_now(on_cuda(given))
        return result

    def _set_timesteps(self, original: Wrapper, *args: Any, **kwargs: Any) -> Any:
        given: dict[str, Any] = {}
        with self.guarded():
            given = bound_arguments(original, args, kwargs)
        result = original(*args, **kwargs)
        with self.guarded():
            self.levels = levels_of(self.pipe.scheduler)
            self._trigflow = trigflow_of(self.pipe.scheduler)
            self.prepared, self.begin = time.perf_counter(), mark_now(on_cuda(given))
        return result

    def _step(self, original: Wrapper, *args: Any, **kwargs: Any) -> Any:
        step: StepTrace | None = None
        with self.guarded():
            x, v = _step_arguments(self.pipe.scheduler, original, args, kwargs)
            step = self._before(x, v)
        result = original(*args, **kwargs)
        if step is not None:
            with self.guarded():
                self._after(step, v, result)
            if self.on_velocity is not None and not self.broken:
                with self.paused():
                    self.on_velocity(v, lambda item: step_of(self, step, item))
            with self.guarded():
                if len(self.steps) > 1:  # the step before is complete now: this one began from its x_next
                    self._discard(self.steps[-2])
        return result

    def _before(self, x: Tensor, v: Tensor) -> StepTrace:
        """Copy x and v before the scheduler gets them."""
        if self.reading is None:
            self.reading = geometry_of_call(self.pipe, tuple(v.shape[1:]), self.height or 0, self.width or 0)
            self.height, self.width = self.reading.height, self.reading.width
        shared: Tensor | None = None
        if self.steps:
            known, version = self._x_next if self._x_next is not None else (None, None)
            x_next = self.steps[-1].tensors.get("x_next")
            if self._trigflow is not None:
                pass  # x and x_next are read at different angles
            elif x is known and not self._was_written(x, version):
                shared = x_next
            elif x_next is None or not torch.equal(x, x_next):
                self.altered = True
        if len(x) < len(v):  # more negative prompts than prompts: the guidance made the batch larger
            x = x.expand_as(v)
        tensors = {"x": shared if shared is not None else x.detach().clone(), "v": v.detach().clone()}
        return StepTrace(
            index=len(self.steps), sigma=0.0, sigma_next=0.0, tensors=tensors, norms=norms_of(tensors), mark=None
        )

    def _was_written(self, x_next: Tensor, version: int | None) -> bool:
        """Whether the scheduler's last output was written in place; writes through `.data` or numpy have no version."""
        callback = self.given.get("callback_on_step_end") is not None
        if version is not None and not callback:
            return tensor_version(x_next) != version
        recorded = self.steps[-1].tensors.get("x_next")
        return recorded is None or not torch.equal(x_next, recorded)

    def _after(self, step: StepTrace, v: Tensor, result: Any) -> None:
        out = result[0] if isinstance(result, tuple) else result.prev_sample
        position = self.pipe.scheduler.step_index - 1  # a plain int, initialised by the step itself
        if not self.steps:
            self.first = position
        step.sigma, step.sigma_next = self.levels[position], self.levels[position + 1]
        # The next step's x is this very tensor, unless a callback or a mask changes it; then both are kept.
        step.tensors["x_next"] = out.detach().clone()
        if self._trigflow is not None:
            straighten(step, self._trigflow, position)
        self._x_next = out, tensor_version(out)
        if self._attention is not None:
            self._take_attention(self._attention, step, v.shape[1])
        step.mark, self.denoised = mark_now(v.device.type == "cuda"), time.perf_counter()
        self.steps.append(step)

    def _take_attention(self, attention: AttentionCapture, step: StepTrace, tokens: int) -> None:
        try:
            if attention.failure is not None:
                raise attention.failure
            if (maps := attention.take()) is not None:
                step.tensors["attention"] = maps[:, :tokens]  # some pipelines put a second picture behind the first
        except Exception as problem:
            self._lose_attention(problem)

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
        if not self.observes:
            return False
        if not self.steps:
            self.first = self.pipe.scheduler.begin_index or 0
        return self.keep.wants(len(self.steps), self.planned)


def _step_arguments(
    scheduler: Any, original: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """X and v of a call of `scheduler.step`, whose wrapper on the instance need not name its parameters."""
    plain = getattr(type(scheduler), "step", None)
    given = bound_arguments(original if plain is None else types.MethodType(plain, scheduler), args, kwargs)
    return given["sample"], given["model_output"]


def _fresh_seeds(generator: Any) -> tuple[int | None, ...]:
    """The seeds of CPU generators that have drawn nothing yet; None for any other."""
    seeds: list[int | None] = []
    several = list(generator) if isinstance(generator, list | tuple) else [generator]
    for place, one in enumerate(several):
        fresh = isinstance(one, torch.Generator) and one.device.type == "cpu"
        fresh = fresh and not any(one is before for before in several[:place])  # used again, it is not fresh
        if fresh:
            untouched = torch.Generator().manual_seed(one.initial_seed())
            fresh = torch.equal(untouched.get_state(), one.get_state())
        seeds.append(one.initial_seed() if fresh else None)
    return tuple(seeds)
