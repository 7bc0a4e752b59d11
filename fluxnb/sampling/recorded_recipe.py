"""The recipe of a recorded call, where running it would repeat the call.

A recipe is given only when every argument of the call is one that a recipe can express. Anything else (a second prompt,
an image, an adapter, a callback that changed x) leaves the trajectory without one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fluxnb.errors import FluxnbError
from fluxnb.records.recipe import ResolvedRecipe

if TYPE_CHECKING:
    from fluxnb.sampling.call_trace import CallTrace

__all__ = ["reason_without_recipe", "recipe_of"]

# Arguments of FluxPipeline.__call__ that a recipe expresses or that do not change the picture.
EXPRESSED = {
    "prompt",
    "negative_prompt",
    "true_cfg_scale",
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


def recipe_of(call: CallTrace, item: int) -> ResolvedRecipe | None:
    """The recipe that repeats one picture of a recorded call, or None; `reason_without_recipe` gives the reason."""
    flux, given = call.flux, call.given
    if flux is None or call.height is None or call.width is None or reason_without_recipe(call, item):
        return None
    prompts, seed = _prompts(call), _seed(call, item)
    sigmas = given.get("sigmas")
    levels = None if sigmas is None else tuple(float(level) for level in np.asarray(sigmas).tolist())
    even = tuple(np.linspace(1.0, 1 / call.planned, call.planned).tolist())
    try:
        return ResolvedRecipe(
            prompt=prompts[item // (call.count // len(prompts))],
            negative=_negative(call, item),
            seed=seed or 0,
            steps=call.planned,
            height=call.height,
            width=call.width,
            guidance=_guidance(call),
            sigmas=None if levels == even else levels,
            max_sequence_length=_argument(call, "max_sequence_length"),
            model=flux.model,
            revision=flux.revision,
            dtype=flux.dtype,
        )
    except FluxnbError:
        return None


def reason_without_recipe(call: CallTrace, item: int) -> str:
    """Why no recipe repeats this picture, in one sentence; "" where one does."""
    flux, given, scheduler = call.flux, call.given, call.pipe.scheduler
    others = sorted(name for name, value in given.items() if name not in EXPRESSED and value is not None)
    prompts = _prompts(call)
    if flux is None:
        return f"fluxnb has no model for a {type(call.pipe).__name__}"
    if others:
        return f"{others[0]} is not part of a recipe"
    if not prompts or not all(isinstance(prompt, str) and prompt.strip() for prompt in prompts):
        return "the call gave no prompt as text"
    if call.count % len(prompts):
        return "the number of pictures is not a multiple of the number of prompts"
    if _seed(call, item) is None:
        return "the generator was not a fresh one on the CPU, so its seed is not known"
    if type(scheduler).__name__ != "FlowMatchEulerDiscreteScheduler":
        return f"a recipe does not describe the scheduler {type(scheduler).__name__}"
    if scheduler.config.get("stochastic_sampling", False):
        return "stochastic sampling drew from the global generator"
    if call.altered:
        return "something changed x between two steps"
    if given.get("callback_on_step_end") is not None and given.get("callback_on_step_end_tensor_inputs") not in (
        None,
        ["latents"],
    ):
        return "the callback had access to the prompt embeddings"
    if flux.defaults.guidance_kind != "true_cfg" and _guided(call):
        return "the model does not take true classifier-free guidance"
    return ""


def _argument(call: CallTrace, name: str) -> Any:
    """An argument of the call, or the pipeline's own default."""
    return call.given.get(name, call.defaults.get(name))


def _prompts(call: CallTrace) -> list[Any]:
    prompt = call.given.get("prompt")
    return list(prompt) if isinstance(prompt, list) else [] if prompt is None else [prompt]


def _seed(call: CallTrace, item: int) -> int | None:
    return call.seeds[item] if len(call.seeds) == call.count else None


def _guided(call: CallTrace) -> bool:
    """Whether the call evaluated the network twice a step (true CFG), as FluxPipeline decides it."""
    scale = _argument(call, "true_cfg_scale")
    return isinstance(scale, int | float) and scale > 1 and call.given.get("negative_prompt") is not None


def _negative(call: CallTrace, item: int) -> str | None:
    """The negative prompt: None for a model that takes none, "" where it was not used."""
    if call.flux is None or call.flux.defaults.guidance_kind != "true_cfg":
        return None
    negative = call.given["negative_prompt"] if _guided(call) else ""
    return str(negative[item // (call.count // len(negative))]) if isinstance(negative, list) else str(negative)


def _guidance(call: CallTrace) -> float | None:
    kind = call.flux.defaults.guidance_kind if call.flux is not None else "none"
    if kind == "embedded":
        return float(_argument(call, "guidance_scale"))
    if kind == "true_cfg":
        return float(_argument(call, "true_cfg_scale")) if _guided(call) else 1.0
    return None
