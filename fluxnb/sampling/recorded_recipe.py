"""The recipe of a recorded call, where running it would repeat the call.

A recipe is given only when everything that decided the picture is known: every argument of the call is one that a
recipe can express, the pipeline is the plain one of diffusers, nothing around the call added randomness or another
precision, and callbacks and hooks changed nothing. In any other case the trajectory has a reason instead.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fluxnb.cleanup import undoing
from fluxnb.errors import FluxnbError
from fluxnb.pipeline.compat import forward_hooks, is_caching, remove_hooks, tensor_version
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.identity import is_random
from fluxnb.pipeline.markers import change_markers, deep_markers, modules_in_training, modules_with_hooks
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.sampling.patched_method import own_attribute

if TYPE_CHECKING:
    from fluxnb.sampling.call_trace import CallTrace

__all__ = ["FollowedCallback", "Surroundings", "observed_hooks", "reason_without_recipe", "recipe_of"]

# Arguments of a pipeline's call that a recipe expresses or that do not change the picture, beside those of guidance.
EXPRESSED = {
    "prompt",
    "height",
    "width",
    "num_inference_steps",
    "sigmas",
    "guidance_scale",
    "num_images_per_prompt",
    "generator",
    "output_type",
    "return_dict",
    "max_sequence_length",
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
}
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
LIBRARIES = ("fluxnb", "diffusers", "accelerate", "torch", "transformers")  # their hooks leave the numbers as they are


# ------------------------------------------------------------------------------------------------------- the recipe
def recipe_of(call: CallTrace, item: int) -> tuple[ResolvedRecipe | None, str]:
    """The recipe that repeats one picture of a recorded call, or None and the reason in one sentence."""
    if call.on_velocity is not None:
        return None, ""  # a call of the sampler, which has the recipe
    try:
        reason = reason_without_recipe(call, item)
        if reason or call.flux is None or call.surroundings is None:
            return None, reason
        return _recipe(call, call.flux, call.surroundings, item), ""
    except FluxnbError as problem:
        return None, f"no recipe has {problem.given}: {problem.possible}"
    except Exception as problem:  # an argument of an unexpected type
        return None, f"the arguments of the call are not those of a recipe ({type(problem).__name__}: {problem})"


def prompt_of(call: CallTrace, item: int) -> str:
    """The prompt of one picture of a recorded call; "" where the call gave embeddings, or none that is text."""
    prompts = _prompts(call) or call.prompts or []
    if not prompts or call.count % len(prompts):
        return ""
    prompt = prompts[item // (call.count // len(prompts))]
    return prompt if isinstance(prompt, str) else ""


def _recipe(call: CallTrace, flux: Flux, surroundings: Surroundings, item: int) -> ResolvedRecipe:
    prompts, sigmas = _prompts(call), call.given.get("sigmas")
    levels = None if sigmas is None else tuple(float(level) for level in np.asarray(sigmas).tolist())
    even = tuple(flux.family.even(call.planned))
    return ResolvedRecipe(
        prompt=prompts[item // (call.count // len(prompts))],
        negative=_negative(call, flux, item),
        seed=call.seeds[item] or 0,
        steps=call.planned,
        height=call.height or 0,
        width=call.width or 0,
        guidance=_guidance(call, flux),
        sigmas=None if levels == even else levels,
        max_sequence_length=_argument(call, "max_sequence_length"),
        model=flux.model,
        revision=surroundings.revision,
        dtype=surroundings.dtype,
    )


def reason_without_recipe(call: CallTrace, item: int) -> str:
    """Why no recipe repeats this picture, in one sentence; "" where one does."""
    if call.flux is None or call.surroundings is None:
        return f"fluxnb has no model for a {type(call.pipe).__name__}"
    return (
        _reason_in_arguments(call, call.flux, item)
        or call.surroundings.reason
        or _reason_in_progress(call)
        or call.difference()
    )


def _reason_in_arguments(call: CallTrace, flux: Flux, item: int) -> str:
    given, prompts, guidance = call.given, _prompts(call), flux.family.guidance
    defaults = {name for name in flux.family.expressed if given.get(name) == call.defaults.get(name)}
    expressed = EXPRESSED | {guidance.argument, guidance.negative} | defaults
    others = sorted(name for name, value in given.items() if name not in expressed and value is not None)
    if others:
        return f"{others[0]} is not part of a recipe"
    if not prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        return "the call gave no prompt as text"
    if call.count % len(prompts):
        return "the number of pictures is not a multiple of the number of prompts"
    if len(call.seeds) != call.count or call.seeds[item] is None:
        return "the generator was not a fresh one on the CPU for this picture, so its seed is not known"
    if flux.family.shift == "by size and steps" and _argument(call, "num_inference_steps") != call.planned:
        return "the call took another number of steps than num_inference_steps, by which its schedule is shifted"
    return _reason_in_guidance(call, flux)


def _reason_in_guidance(call: CallTrace, flux: Flux) -> str:
    guidance = flux.family.guidance
    for name in sorted({guidance.argument, "guidance_scale"}):
        if type(_argument(call, name)) not in (int, float):
            return f"{name} is not a plain number"
    if flux.defaults.guidance_kind != "true_cfg" and _guided(call, flux):
        return "the model does not take true classifier-free guidance"
    if _guided(call, flux) and guidance.scale(_argument(call, guidance.argument)) is None:
        return f"no scale leads to {guidance.argument}={_argument(call, guidance.argument)!r} exactly"
    return ""


def _reason_in_progress(call: CallTrace) -> str:
    """What happened between the first step and the last."""
    if call.broken:
        return "the record of the call is incomplete"
    if call.returned and len(call.steps) < call.planned:
        return f"the call was stopped after {len(call.steps)} of {call.planned} steps"
    if call.given.get("callback_on_step_end") is not None and not call.followed_callback:
        return "the call has a callback that cannot be followed"
    if call.changed:
        return call.changed
    return "something changed x after a step" if call.altered else ""


def _argument(call: CallTrace, name: str) -> Any:
    """An argument of the call, or the pipeline's own default."""
    return call.given.get(name, call.defaults.get(name))


def _prompts(call: CallTrace) -> list[Any]:
    prompt = call.given.get("prompt")
    return list(prompt) if isinstance(prompt, list) else [] if prompt is None else [prompt]


def _guided(call: CallTrace, flux: Flux) -> bool:
    """Whether the call evaluated the network with and without the prompt (true CFG), as its pipeline decides it."""
    guidance = flux.family.guidance
    if guidance.needs_negative and call.given.get(guidance.negative) is None:
        return False
    if getattr(call.pipe.config, "is_distilled", False):
        return False
    return bool(_argument(call, guidance.argument) + guidance.less > 1)


def _negative(call: CallTrace, flux: Flux, item: int) -> str | None:
    """The negative prompt: None for a model that takes none, "" where it was not used."""
    if flux.defaults.guidance_kind != "true_cfg":
        return None
    negative = (call.given.get(flux.family.guidance.negative) or "") if _guided(call, flux) else ""
    return str(negative[item // (call.count // len(negative))]) if isinstance(negative, list) else str(negative)


def _guidance(call: CallTrace, flux: Flux) -> float | None:
    kind = flux.defaults.guidance_kind
    if kind == "embedded":
        return float(_argument(call, "guidance_scale"))
    if kind == "true_cfg":
        guidance = flux.family.guidance
        return guidance.scale(float(_argument(call, guidance.argument))) if _guided(call, flux) else 1.0
    return None


# ----------------------------------------------------------------------------------------------- around the call
@dataclass(frozen=True)
class Surroundings:
    """What decides a call's picture besides its arguments, read before the call.

    Arguments:
        revision, dtype: of the pipeline.
        markers: of the pipeline's objects and of their content.
        threads: of the CPU, on which sums depend.
        hooked: modules with hooks of the user, and their hooks.
        reason: why a recipe cannot describe them, "" where it can.
    """

    revision: str
    dtype: str
    markers: tuple[Any, ...]
    threads: int
    hooked: tuple[tuple[nn.Module, tuple[Any, ...]], ...]
    reason: str

    @classmethod
    def of(cls, pipe: Any, flux: Flux) -> Surroundings:
        """The surroundings of a call that is about to begin; the revision of the handle is brought up to date."""
        markers: tuple[Any, ...] = ()
        hooked: tuple[tuple[nn.Module, tuple[Any, ...]], ...] = ()
        try:
            markers, models = _comparable(*flux.refresh_if_changed()), _models(pipe)
            reason, hooked = next(_reasons(pipe, flux, models), ""), _hooked(models)
        except Exception as problem:  # parts of an unexpected kind
            reason = f"the pipeline cannot be identified ({type(problem).__name__}: {problem})"
        return cls(
            revision=flux.revision,
            dtype=flux.dtype,
            markers=markers,
            threads=torch.get_num_threads(),
            hooked=hooked,
            reason=reason,
        )

    def reason_afterwards(self, pipe: Any) -> str:
        """What differs after the call from before, in words."""
        if _comparable(change_markers(pipe), deep_markers(pipe)) != self.markers:
            return "the models or the scheduler were changed during the call"
        if torch.get_num_threads() != self.threads:
            return "the number of threads was changed during the call"
        if _hooked(_models(pipe)) != self.hooked:
            return "hooks were added or removed during the call"
        return ""


def _comparable(objects: tuple[Any, ...], content: int) -> tuple[Any, ...]:
    # The marker of adapters is never equal; the deep markers cover them.
    return (*(each for each in objects if type(each) is not object), content)


def _models(pipe: Any) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def _reasons(pipe: Any, flux: Flux, models: dict[str, nn.Module]) -> Iterator[str]:
    """Why a recipe cannot describe a pipeline as it is."""
    kind, scheduler = type(pipe), pipe.scheduler
    processor = getattr(pipe, "image_processor", None)
    pipelines = flux.family.pipelines
    if kind.__name__ not in pipelines or not kind.__module__.startswith("diffusers."):
        yield f"the call of a {kind.__name__} may differ from that of a {pipelines[0]}"
    if type(scheduler).__name__ != SCHEDULER:
        yield f"a recipe does not describe the scheduler {type(scheduler).__name__}"
    if scheduler.config.get("stochastic_sampling", False):
        yield "stochastic sampling drew from the global generator"
    for owner, name in ((scheduler, "the scheduler"), (pipe, "the pipeline"), (processor, "the image processor")):
        if replaced := _replaced_method(owner):
            yield f"{name} has a method {replaced} of its own"
    if pipe.vae_scale_factor != flux.family.geometry.cell:
        yield f"the VAE has {pipe.vae_scale_factor} pixels per latent instead of {flux.family.geometry.cell}"
    if is_caching(pipe.transformer):
        yield "the transformer keeps state from one evaluation to the next (enable_cache)"
    yield from flux.unidentified
    if _is_autocast(flux):
        yield "the call ran under torch.autocast"
    for name, model in models.items():
        if any(map(is_random, modules_in_training(model))):
            yield f"{name} is in training mode, and its dropout is random"


def _is_autocast(flux: Flux) -> bool:
    """Whether autocast is enabled for the device of a model, which takes long to find, or for the CPU."""
    if torch.is_autocast_enabled("cpu"):
        return True
    accelerator = torch.accelerator.current_accelerator()
    return (
        accelerator is not None and torch.is_autocast_enabled(accelerator.type) and flux.device.type == accelerator.type
    )


def _hooked(models: dict[str, nn.Module]) -> tuple[tuple[nn.Module, tuple[Any, ...]], ...]:
    """The modules that have forward hooks of the user, with these hooks."""
    found = (
        (module, tuple(hook for hook in forward_hooks(module) if not _is_from_library(hook)))
        for model in models.values()
        for module in modules_with_hooks(model)
    )
    return tuple((module, hooks) for module, hooks in found if hooks)


def _replaced_method(owner: Any) -> str:
    """The name of a method that was replaced on an object; "" for none."""
    for name in getattr(owner, "__dict__", ()):
        own = own_attribute(owner, name)
        if callable(own) and callable(getattr(type(owner), name, None)) and not _is_from_library(own):
            return name
    return ""


def _is_from_library(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    module = getattr(function, "__module__", None) or type(function).__module__
    return str(module).split(".")[0] in LIBRARIES


# ----------------------------------------------------------------------------------------- hooks and callbacks
@contextlib.contextmanager
def observed_hooks(trace: CallTrace, hooked: Sequence[tuple[nn.Module, tuple[Any, ...]]]) -> Iterator[None]:
    """Note on the trace where hooks of the user change the arguments or the output of a module inside the block.

    Each of these modules gets a hook before the user's and one after them, which compare what they are given.
    """
    observers = [(module, _HookObserver(trace)) for module, _ in hooked]

    def remove() -> None:
        for module, observer in observers:
            remove_hooks(module, observer.owns)

    with undoing(remove):
        for module, observer in observers:
            module.register_forward_pre_hook(observer.arguments_before, with_kwargs=True, prepend=True)
            module.register_forward_pre_hook(observer.arguments_after, with_kwargs=True)
            module.register_forward_hook(observer.output_before, prepend=True)
            module.register_forward_hook(observer.output_after)
        yield


class _HookObserver:
    """Compares what a module is called with, and what it returns, before and after the hooks of the user."""

    def __init__(self, trace: CallTrace) -> None:
        self._trace = trace
        self._before: list[tuple[Any, Any]] = []

    def owns(self, hook: Any) -> bool:
        return getattr(hook, "__self__", None) is self

    def arguments_before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._note((*args, kwargs))

    def arguments_after(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self._compare(module, (*args, kwargs))

    def output_before(self, module: nn.Module, args: Any, output: Any) -> None:
        self._note(output)

    def output_after(self, module: nn.Module, args: Any, output: Any) -> None:
        self._compare(module, output)

    def _note(self, value: Any) -> None:
        with self._trace.guarded():
            if self._trace.observes:
                self._before.append((value, _signature(value)))

    def _compare(self, module: nn.Module, value: Any) -> None:
        with self._trace.guarded():
            _, before = self._before.pop() if self._trace.observes and self._before else (None, None)
            if before is not None and before != _signature(value) and not self._trace.changed:
                self._trace.changed = f"a hook on a {type(module).__name__} changed its arguments or its output"


class FollowedCallback:
    """A user's `callback_on_step_end` that is called unchanged; what it changes is noted on the trace.

    Arguments:
        trace: of the call.
        callback: the user's.
    """

    def __init__(self, trace: CallTrace, callback: Any) -> None:
        self._trace, self._callback = trace, callback

    def __call__(self, pipe: Any, index: Any, timestep: Any, tensors: Any) -> Any:
        """Call the callback."""
        trace, before = self._trace, None
        with trace.guarded():
            before = _Before.of(pipe, tensors)
        with trace.paused():
            result = self._callback(pipe, index, timestep, tensors)
        with trace.guarded():
            if before is not None and not trace.changed:
                trace.changed = before.change(pipe, result)
                if not trace.changed and trace.surroundings is not None:
                    trace.changed = trace.surroundings.reason_afterwards(trace.pipe)
        return result


@dataclass(frozen=True)
class _Before:
    """What a callback may change, as it was before."""

    tensors: dict[str, tuple[Any, Any]]
    attributes: dict[str, Any]
    schedule: dict[str, Any]
    alive: tuple[Any, ...]  # an identity is not used again while its object is referred to

    @classmethod
    def of(cls, pipe: Any, tensors: dict[str, Any]) -> _Before:
        return cls(
            tensors={k: (v, v.detach().clone() if isinstance(v, Tensor) else v) for k, v in tensors.items()},
            attributes=_attributes(pipe),
            schedule=_attributes(pipe.scheduler),
            alive=tuple(
                dict(value) if isinstance(value, dict) else value
                for owner in (pipe, pipe.scheduler)
                for value in vars(owner).copy().values()
            ),
        )

    def change(self, pipe: Any, result: Any) -> str:
        """What the callback changed, in words; "" for nothing."""
        for name, (value, copy) in self.tensors.items():
            if isinstance(value, Tensor) and not torch.equal(value, copy):
                return f"the callback wrote into {name}"
        for name, value in result.items() if isinstance(result, dict) else ():
            if name not in self.tensors or self.tensors[name][0] is not value:
                return f"the callback returned another {name}"
        for owner, before in ((pipe, self.attributes), (pipe.scheduler, self.schedule)):
            after = _attributes(owner)
            for name in {**before, **after}:
                if name not in before or name not in after or before[name] != after[name]:
                    return f"the callback changed {name} of a {type(owner).__name__}"
        return ""


def _attributes(owner: Any) -> dict[str, Any]:
    """The attributes of an object by identity, tensors also by version, dictionaries by their entries."""
    # Copied first: a call of the same pipeline in another thread may add attributes.
    return {name: _signature(value) for name, value in vars(owner).copy().items()}


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), tensor_version(value)
    if isinstance(value, bool | int | float | str | None):
        return value
    if isinstance(value, dict):
        return {name: _signature(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return tuple(_signature(each) for each in value)
    return id(value)
