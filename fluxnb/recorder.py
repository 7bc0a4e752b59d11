"""recording(pipe): watch any FluxPipeline call from outside and change no bit of it.

A recorder stands in front of a few methods, on the instances alone: the scheduler's `set_timesteps` and `step`, where
sigma, x and v pass by, and four of the pipeline's own that mark where a call begins, what it was asked, and where it
ends. No module is touched, so offload hooks and compiled transformers go on as they are. When the block ends, every
shadow is gone, whatever happened inside.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fluxnb.errors import FluxnbError, InputError
from fluxnb.loading import handle_of
from fluxnb.pipeline import _PREVIEWS, Flux
from fluxnb.recipe import Recipe
from fluxnb.records import Keep, Step, Trajectory

__all__ = ["Recorder", "recording"]

Around = Callable[..., Any]
Watch = Callable[[Tensor, Callable[[], Step]], None]  # the velocity on its device, and a way to get the step


class Recorder:
    """What `recording` yields: `.trajectories` grows by one per picture whenever a call ends."""

    def __init__(self, keep: Keep, flux: Flux | None, watch: Watch | None) -> None:
        self.trajectories: tuple[Trajectory, ...] = ()
        self._keep = keep
        self._flux = flux
        self._watch = watch
        self._call: _Call | None = None

    def __repr__(self) -> str:
        return f"Recorder({len(self.trajectories)} trajectories)"


@contextlib.contextmanager
def recording(pipe: Any, *, keep: Keep | None = None, _watch: Watch | None = None) -> Iterator[Recorder]:
    """Record every call of a FluxPipeline, or of its img2img and inpaint kin, made inside the block.

    The call's output is the same to the bit. One Trajectory per picture, so a batch gives several; a call that
    raises or is interrupted leaves what there was, marked unfinished. Blocks may nest.

    Arguments:
        pipe: a diffusers pipeline, or a Flux.
        keep: which steps and tensors to keep; all by default.

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
    recorder = Recorder(keep or Keep(), flux or handle_of(pipe), _watch)
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
        for owner, name, around in watched:
            if hasattr(owner, name):
                shadows.enter_context(_shadow(owner, name, around))
        try:
            yield recorder
        finally:
            eyes.close()
            recorder._flux = None  # whoever keeps the recorder should not keep the model


class _Shadow:
    """A function in front of a method, which knows whether it is still wanted."""

    def __init__(self, original: Callable[..., Any], around: Around, before: object) -> None:
        functools.update_wrapper(self, original)  # diffusers reads the signature of set_timesteps
        self.original, self.around, self.before, self.live = original, around, before, True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.around(self.original, *args, **kwargs) if self.live else self.original(*args, **kwargs)


@contextlib.contextmanager
def _shadow(owner: Any, name: str, around: Around) -> Iterator[None]:
    shadow = _Shadow(getattr(owner, name), around, vars(owner).get(name))
    setattr(owner, name, shadow)
    try:
        yield
    finally:
        shadow.live = False
        # Blocks usually end in reverse order; where a generator made them end otherwise, the last one out clears up.
        while isinstance(top := vars(owner).get(name), _Shadow) and not top.live:
            if top.before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, top.before)


@dataclass(kw_only=True)
class _Raw:
    """One step as it passed by, on its device, the whole batch."""

    index: int
    sigma: float
    sigma_next: float
    tensors: dict[str, Tensor]
    norms: dict[str, Tensor]
    mark: Any


@dataclass(kw_only=True)
class _Call:
    """A pipeline call under way."""

    started: float
    prompt: Any = None
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
    raws: list[_Raw] = field(default_factory=list)
    prepared: float = 0.0
    denoised: float = 0.0
    begin: Any = None
    images: list[Image.Image] | None = None
    out: Tensor | None = None
    out_version: int | None = None


class _Eyes:
    """The functions that stand in front of the pipeline's methods; each calls the original with what it was given."""

    def __init__(self, recorder: Recorder, pipe: Any) -> None:
        self.recorder, self.pipe = recorder, pipe
        self.on_cuda = torch.cuda.is_available() and pipe._execution_device.type == "cuda"

    # ------------------------------------------------------------------------------- where a call begins and ends
    def check_inputs(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        self._begin()
        given = _bound(original, args, kwargs)
        call = self._call()
        call.prompt = given.get("prompt")
        call.height, call.width = given.get("height"), given.get("width")
        call.length = given.get("max_sequence_length")
        call.kin = "strength" in given
        return original(*args, **kwargs)

    def encode_prompt(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        self._call().encodes += 1
        return original(*args, **kwargs)

    def prepare_latents(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        call, given = self._call(), _bound(original, args, kwargs)
        call.height = int(given.get("height") or call.height or 0) // 16 * 16
        call.width = int(given.get("width") or call.width or 0) // 16 * 16
        call.kin = call.kin or given.get("image") is not None
        if given.get("latents") is None:
            call.seeds = _fresh_seeds(given.get("generator"))
        result = original(*args, **kwargs)
        call.prepared, call.begin = time.perf_counter(), self._mark()
        return result

    def set_timesteps(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        call, given = self._call(), _bound(original, args, kwargs)
        call.given = given.get("sigmas")
        call.kin = call.kin or given.get("timesteps") is not None
        result = original(*args, **kwargs)
        # One read of the levels here, before any work is queued, saves a wait for the GPU in every step.
        call.levels = [float(level) for level in self.pipe.scheduler.sigmas.tolist()]
        call.prepared, call.begin = time.perf_counter(), self._mark()
        return result

    def postprocess(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        call = self.recorder._call
        if call is not None and call.raws:
            call.images = _pictures(result)
        return result

    def maybe_free_model_hooks(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        call = self.recorder._call
        if call is not None and call.raws:
            self._end(call)
        return result

    def close(self) -> None:
        """Keep what a call that broke off has left."""
        call = self.recorder._call
        if call is not None and call.raws:
            self._end(call)
        self.recorder._call = None

    # --------------------------------------------------------------------------------------------------- the step
    def step(self, original: Around, *args: Any, **kwargs: Any) -> Any:
        given = _bound(original, args, kwargs)
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
        raw.mark, call.denoised = self._mark(), time.perf_counter()
        call.raws.append(raw)
        if watch is not None:
            watch(v, lambda: self._step(call, raw, 0))
        if len(call.raws) > 1:  # the step before has had its use: this one began from its x_next
            self._thin(call, call.raws[-2])
        return result

    def _look(self, call: _Call, x: Tensor, v: Tensor) -> _Raw:
        """Copy x and v before the scheduler sees them."""
        same = call.raws and x is call.out and _version(x) is not None and _version(x) == call.out_version
        seen = call.raws[-1].tensors.get("x_next") if same else None
        tensors = {"x": seen if seen is not None else x.detach().clone(), "v": v.detach().clone()}
        norms = {name: torch.linalg.vector_norm(value.flatten(1).float(), dim=1) for name, value in tensors.items()}
        return _Raw(index=0, sigma=0.0, sigma_next=0.0, tensors=tensors, norms=norms, mark=None)

    def _thin(self, call: _Call, raw: _Raw) -> None:
        """Let go of what is not to be kept."""
        keep, count = self.recorder._keep, len(call.levels) - 1 - call.first
        wanted = keep.tensors if keep.wants(raw.index, count) else ()
        raw.tensors = {name: value for name, value in raw.tensors.items() if name in wanted}

    # ------------------------------------------------------------------------------------------------ bookkeeping
    def _call(self) -> _Call:
        if self.recorder._call is None:
            self.recorder._call = _Call(started=time.perf_counter())
        return self.recorder._call

    def _begin(self) -> None:
        self.close()
        self._call()

    def _mark(self) -> Any:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        if not self.on_cuda:
            return float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000

    def _step(self, call: _Call, raw: _Raw, item: int, moved: dict[int, Tensor] | None = None) -> Step:
        """One picture's share of a step, on the CPU; tensors that two steps share stay shared."""
        moved = {} if moved is None else moved
        for value in raw.tensors.values():
            if id(value) not in moved:
                moved[id(value)] = value.to("cpu")
        start = call.raws[raw.index - 1].mark if raw.index else call.begin
        return Step(
            index=raw.index,
            sigma=raw.sigma,
            dt=raw.sigma_next - raw.sigma,
            height=call.height or 0,
            width=call.width or 0,
            tensors={name: moved[id(value)][item] for name, value in raw.tensors.items()},
            norms={name: float(value[item]) for name, value in raw.norms.items()},
            seconds=self._between(start, raw.mark) if start is not None else 0.0,
        )

    def _end(self, call: _Call) -> None:
        self.recorder._call = None
        ended = time.perf_counter()
        planned = len(call.levels) - 1 - call.first
        if self.recorder._watch is None:  # whoever watches needs the last step whole, for the picture of a broken walk
            self._thin(call, call.raws[-1])
        self._square(call)
        moved: dict[int, Tensor] = {}
        seconds = {
            "encode": max(0.0, call.prepared - call.started),
            "denoise": sum(self._between(a, b) for a, b in self._spans(call)),
            "decode": ended - call.denoised if call.images else 0.0,
        }
        flux = self.recorder._flux
        for item in range(len(call.raws[0].norms["v"])):
            steps = tuple(self._step(call, raw, item, moved) for raw in call.raws)
            # A whole batch's tensor must not stay alive for the sake of one of its pictures.
            walk = Trajectory(
                image=call.images[item] if call.images and item < len(call.images) else None,
                recipe=self._recipe(call, item, planned),
                finished=len(call.raws) == planned,
                sigmas=tuple(call.levels[call.first :]),
                steps=_own(steps) if len(call.raws[0].norms["v"]) > 1 else steps,
                height=call.height or 0,
                width=call.width or 0,
                seconds=seconds,
                versions=dict(flux.versions) if flux else {},
                model=flux.model if flux else type(self.pipe).__name__,
                preset=flux.plan.preset if flux else "",
                preview=_PREVIEWS.get(self.pipe.vae) if flux else None,
            )
            self.recorder.trajectories += (walk,)

    def _spans(self, call: _Call) -> list[tuple[Any, Any]]:
        marks = [call.begin, *(raw.mark for raw in call.raws)]
        return [(a, b) for a, b in itertools.pairwise(marks) if a is not None]

    def _square(self, call: _Call) -> None:
        """A size for a call that told none: the picture is taken to be square."""
        if call.height and call.width:
            return
        found = next((value for raw in call.raws for value in raw.tensors.values()), None)
        side = int(np.sqrt(found.shape[-2])) * 16 if found is not None else 0
        call.height, call.width = side, side

    def _recipe(self, call: _Call, item: int, planned: int) -> Recipe | None:
        """What was asked, if the call told all of it; a recipe that repeats something else would be worse than none."""
        flux, prompts = self.recorder._flux, call.prompt if isinstance(call.prompt, list) else [call.prompt]
        images = len(call.raws[0].norms["v"])
        seed = call.seeds[item] if len(call.seeds) == images else None
        told = flux is not None and seed is not None and isinstance(prompts[0], str) and images % len(prompts) == 0
        plain = not call.kin and call.encodes == 1 and not self.pipe.scheduler.config.get("stochastic_sampling", False)
        if not told or not plain or flux is None:
            return None
        given = None if call.given is None else tuple(float(level) for level in np.asarray(call.given).tolist())
        even = tuple(np.linspace(1.0, 1 / planned, planned).tolist())
        embedded = flux.profile.guidance_kind == "embedded"
        try:
            return Recipe(
                prompt=prompts[item // (images // len(prompts))],
                seed=seed or 0,
                steps=planned,
                height=call.height,
                width=call.width,
                guidance=float(self.pipe.guidance_scale) if embedded else None,
                sigmas=None if given == even else given,
                max_sequence_length=call.length,
                model=flux.model,
                revision=flux.revision,
                dtype=flux.dtype,
                numerics="exact" if flux.plan.exact else flux.plan.preset,
            )
        except FluxnbError:
            return None  # an empty prompt, say: a legal call, but no recipe of ours


def _bound(original: Around, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, however they were given; the pipelines disagree on their order."""
    while isinstance(original, _Shadow | functools.partial):
        original = original.original if isinstance(original, _Shadow) else original.func
    function = getattr(original, "__func__", None)
    try:
        if function is None:
            return dict(inspect.signature(original).bind_partial(*args, **kwargs).arguments)
        return dict(_signature(function).bind_partial(None, *args, **kwargs).arguments)
    except (TypeError, ValueError):
        return dict(kwargs)  # a call that will raise anyway, and should raise its own error


# Reading a signature takes as long as a small matrix product, and there are only a handful of these functions.
_signature = functools.lru_cache(maxsize=64)(inspect.signature)


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was written in place; None where torch does not count (inference mode)."""
    return None if tensor.is_inference() else int(tensor._version)


def _fresh_seeds(generator: Any) -> tuple[int | None, ...]:
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


def _pictures(result: Any) -> list[Image.Image] | None:
    """What a pipeline's image processor returned, as pictures: PIL, an array or a tensor (0 to 1)."""
    if isinstance(result, list) and result and all(isinstance(each, Image.Image) for each in result):
        return list(result)
    if isinstance(result, Tensor):
        result = result.detach().float().cpu().permute(0, 2, 3, 1).numpy()
    if isinstance(result, np.ndarray) and result.ndim == 4:
        return [Image.fromarray(each) for each in (result.clip(0, 1) * 255).round().astype("uint8")]
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
        owned.append(
            Step(
                index=step.index,
                sigma=step.sigma,
                dt=step.dt,
                height=step.height,
                width=step.width,
                tensors=tensors,
                norms=step.norms,
                seconds=step.seconds,
            )
        )
    return tuple(owned)
