"""recording(pipe): watch any FluxPipeline call from outside and change no bit of it.

A recorder stands in front of a few methods, on the instances alone: the scheduler's `set_timesteps` and `step`, where
sigma, x and v pass by, and four of the pipeline's own that mark where a call begins, what it was asked, and where it
ends. No module is touched, so offload hooks and compiled transformers go on as they are. When the block ends, every
shadow is gone, whatever happened inside.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fluxnb.errors import InputError
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.load import handle_of
from fluxnb.records import Keep, Step, Trajectory
from fluxnb.sampling.attention import Attention, looking, words_of
from fluxnb.sampling.call_trace import Call, Raw, fresh_seeds, mark, pictures, step_of, trajectories_of
from fluxnb.sampling.patched_methods import Around, bound, shadow

__all__ = ["Recorder", "recording"]

Watch = Callable[[Tensor, Callable[[int], Step]], None]  # the velocities on their device, and a way to each step


class Recorder:
    """What `recording` yields: `.trajectories` grows by one per picture whenever a call ends."""

    def __init__(self, keep: Keep, flux: Flux | None, watch: Watch | None, prompts: list[str] | None) -> None:
        self.trajectories: tuple[Trajectory, ...] = ()
        self._keep = keep
        self._flux = flux
        self._watch = watch
        self._prompts = prompts
        self._call: Call | None = None

    def __repr__(self) -> str:
        return f"Recorder({len(self.trajectories)} trajectories)"


@contextlib.contextmanager
def recording(
    pipe: Any, *, keep: Keep | None = None, _watch: Watch | None = None, _prompts: list[str] | None = None
) -> Iterator[Recorder]:
    """Record every call of a FluxPipeline, or of its img2img and inpaint kin, made inside the block.

    The call's output is the same to the bit. One Trajectory per picture, so a batch gives several; a call that
    raises or is interrupted leaves what there was, marked unfinished. Blocks may nest.

    Arguments:
        pipe: a diffusers pipeline, or a Flux.
        keep: which steps and tensors to keep; all by default. With `Keep(attention="all")`, where the model looked for
            each word of the prompt; under true CFG in the evaluation with the prompt. A call that is given embeddings
            has no words to look for.

    Raises:
        InputError: no diffusers pipeline with a scheduler, or attention of a model that cannot be looked into.

    Example:
        >>> with recording(pipe) as recorder:                                       # doctest: +SKIP
        ...     image = pipe("a fox", num_inference_steps=4).images[0]
        >>> recorder.trajectories[0].steps[0].clean.shape                           # doctest: +SKIP
        torch.Size([4096, 64])
    """
    flux = pipe if isinstance(pipe, Flux) else None
    pipe = pipe if flux is None else flux.pipe
    scheduler = getattr(pipe, "scheduler", None)
    if not hasattr(scheduler, "step") or not hasattr(scheduler, "set_timesteps"):
        raise InputError(
            f"recording({type(pipe).__name__})",
            "a diffusers pipeline with a scheduler is needed",
            'try pipe = fnb.load("pocket").pipe',
        )
    recorder = Recorder(keep or Keep(), flux or handle_of(pipe), _watch, _prompts)
    eyes = _Eyes(recorder, pipe)
    watched: list[tuple[Any, str, Around]] = [
        (scheduler, "set_timesteps", eyes.set_timesteps),
        (scheduler, "step", eyes.step),
        (pipe, "check_inputs", eyes.check_inputs),
        (pipe, "encode_prompt", eyes.encode_prompt),
        (pipe, "prepare_latents", eyes.prepare_latents),
        (pipe, "maybe_free_model_hooks", eyes.maybe_free_model_hooks),
        (getattr(pipe, "image_processor", None), "postprocess", eyes.postprocess),
    ]
    with contextlib.ExitStack() as shadows:
        if recorder._keep.attention is not None:
            looked = looking(
                getattr(pipe, "transformer", None),
                blocks=recorder._keep.attention,
                heads=recorder._keep.heads,
                wanted=eyes.wants_attention,
            )
            eyes.attention = shadows.enter_context(looked)
        for owner, name, around in watched:
            if hasattr(owner, name):
                shadows.enter_context(shadow(owner, name, around))
        try:
            yield recorder
        finally:
            eyes.close()
            recorder._flux = None  # whoever keeps the recorder should not keep the model


class _Eyes:
    """The functions that stand in front of the pipeline's methods; each calls the original with what it was given."""

    def __init__(self, recorder: Recorder, pipe: Any) -> None:
        self.recorder, self.pipe = recorder, pipe
        self.attention: Attention | None = None

    # ------------------------------------------------------------------------------- where a call begins and ends
    def check_inputs(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        self._begin()
        given = bound(original, args, kwargs)
        call = self._call()
        call.prompt = given.get("prompt")
        call.height, call.width = given.get("height"), given.get("width")
        call.length = given.get("max_sequence_length")
        call.kin = "strength" in given
        if self.attention is not None:
            self._aim(self.attention, call, given.get("prompt_2") or call.prompt or self.recorder._prompts)
        return original(*args, **kwargs)

    def encode_prompt(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        self._call().encodes += 1
        return original(*args, **kwargs)

    def prepare_latents(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        call, given = self._call(), bound(original, args, kwargs)
        call.height = int(given.get("height") or call.height or 0) // 16 * 16
        call.width = int(given.get("width") or call.width or 0) // 16 * 16
        call.kin = call.kin or given.get("image") is not None
        if given.get("latents") is None:
            call.seeds = fresh_seeds(given.get("generator"))
        result = original(*args, **kwargs)
        call.prepared, call.begin = time.perf_counter(), mark(_on_cuda(given))
        return result

    def set_timesteps(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        call, given = self._call(), bound(original, args, kwargs)
        call.given = given.get("sigmas")
        call.kin = call.kin or given.get("timesteps") is not None
        result = original(*args, **kwargs)
        # One read of the levels here, before any work is queued, saves a wait for the GPU in every step.
        call.levels = [float(level) for level in self.pipe.scheduler.sigmas.tolist()]
        call.prepared, call.begin = time.perf_counter(), mark(_on_cuda(given))
        return result

    def postprocess(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        call = self.recorder._call
        if call is not None and call.raws:
            call.images = pictures(result)
        return result

    def maybe_free_model_hooks(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        call = self.recorder._call
        # Writing a walk down waits for the device. Whoever watches gives it something more to do before the block ends.
        if call is not None and call.raws and self.recorder._watch is None:
            self._end(call)
        return result

    def _aim(self, attention: Attention, call: Call, prompt: Any) -> None:
        """Look for the words of the prompt that T5 reads; CLIP's one vector has no words in it."""
        prompts, tokenizer = prompt if isinstance(prompt, list) else [prompt], getattr(self.pipe, "tokenizer_2", None)
        if tokenizer is not None and all(isinstance(each, str) for each in prompts):
            call.words = tuple(words_of(tokenizer, each, call.length or 512) for each in prompts)
        attention.aim(call.words if any(each.words for each in call.words) else ())

    def wants_attention(self) -> bool:
        """Whether the evaluation about to be made belongs to a step that is to be kept."""
        call = self._call()
        if not call.raws:
            call.first = self.pipe.scheduler.begin_index or 0
        return self.recorder._keep.wants(len(call.raws), call.planned)

    def close(self) -> None:
        """Keep what a call that broke off has left."""
        call = self.recorder._call
        if call is not None and call.raws:
            self._end(call)
        self.recorder._call = None

    # --------------------------------------------------------------------------------------------------- the step
    def step(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        given = bound(original, args, kwargs)
        v, x = given["model_output"], given["sample"]
        call = self._call()
        raw = self._look(call, x, v)
        watch = self.recorder._watch
        result = original(*args, **kwargs)
        out = result[0] if isinstance(result, tuple) else result.prev_sample
        scheduler = self.pipe.scheduler
        position = scheduler.step_index - 1  # a plain int, initialised by the step itself
        if not call.raws:
            call.first = position
        raw.index = len(call.raws)
        raw.sigma, raw.sigma_next = call.levels[position], call.levels[position + 1]
        # The next x is this very tensor, unless a callback or a mask changes it; then there are two copies.
        raw.tensors["x_next"] = out.detach().clone()
        call.out, call.out_version = out, _version(out)
        if self.attention is not None and (maps := self.attention.take()) is not None:
            raw.tensors["attention"] = maps[:, : x.shape[1]]  # some kin put a second picture behind the first
        raw.mark, call.denoised = mark(v.device.type == "cuda"), time.perf_counter()
        call.raws.append(raw)
        if watch is not None:
            watch(v, lambda item: step_of(call, raw, item))
        if len(call.raws) > 1:  # the step before has had its use: this one began from its x_next
            self._thin(call, call.raws[-2])
        return result

    def _look(self, call: Call, x: Tensor, v: Tensor) -> Raw:
        """Copy x and v before the scheduler sees them."""
        same = call.raws and x is call.out and _version(x) is not None and _version(x) == call.out_version
        seen = call.raws[-1].tensors.get("x_next") if same else None
        tensors = {"x": seen if seen is not None else x.detach().clone(), "v": v.detach().clone()}
        norms = {name: torch.linalg.vector_norm(value.flatten(1).float(), dim=1) for name, value in tensors.items()}
        return Raw(index=0, sigma=0.0, sigma_next=0.0, tensors=tensors, norms=norms, mark=None)

    def _thin(self, call: Call, raw: Raw) -> None:
        """Let go of what is not to be kept."""
        keep = self.recorder._keep
        wanted = keep.tensors if keep.wants(raw.index, call.planned) else ()
        raw.tensors = {name: value for name, value in raw.tensors.items() if name in wanted}

    # ------------------------------------------------------------------------------------------------ bookkeeping
    def _call(self) -> Call:
        if self.recorder._call is None:
            self.recorder._call = Call(started=time.perf_counter())
        return self.recorder._call

    def _begin(self) -> None:
        self.close()
        self._call()

    def _end(self, call: Call) -> None:
        self.recorder._call = None
        if self.recorder._watch is None:  # whoever watches needs the last step whole, for the picture of a broken walk
            self._thin(call, call.raws[-1])
        self.recorder.trajectories += trajectories_of(call, self.recorder._flux, self.pipe)


def _on_cuda(given: dict[str, Any]) -> bool:
    """Whether a method of the pipeline was told to work on a GPU; to ask the pipeline itself takes milliseconds."""
    device = given.get("device")
    return device is not None and torch.device(device).type == "cuda"


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written in place; None where torch does not count (inference mode)."""
    return None if tensor.is_inference() else int(tensor._version)
