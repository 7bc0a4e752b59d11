"""The scheduler as a recipe wants it: its noise levels, its sampler and its shift, for the length of one call.

diffusers' own scheduler makes every step; here it is only told how.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from fluxnb.records.latents import tokens_in
from fluxnb.records.recipe import Recipe, ResolvedRecipe

__all__ = ["Draws", "given_sigmas", "planned", "sampling_as"]

# Where noise comes from: one generator for a picture, or one for each picture of a batch.
Draws: TypeAlias = torch.Generator | Sequence[torch.Generator]


def given_sigmas(recipe: Recipe) -> list[float]:
    """What is handed to the scheduler, before it shifts; the even ones exactly as FluxPipeline makes them.

    Example:
        >>> given_sigmas(Recipe(prompt="a fox", steps=4))
        [1.0, 0.75, 0.5, 0.25]
    """
    if recipe.sigmas is not None:
        return list(recipe.sigmas)
    even: list[float] = np.linspace(1.0, 1 / recipe.steps, recipe.steps).tolist()
    return even


@contextlib.contextmanager
def sampling_as(scheduler: Any, recipe: Recipe, draws: Draws) -> Iterator[None]:
    """Set a scheduler to the recipe's sampler and shift inside the block.

    The scheduler object stays the same, so that whoever watches it goes on seeing every step.
    """
    before, shift = scheduler.config, scheduler.shift
    stepping = vars(scheduler).get("step")
    try:
        if recipe.sampler == "renoise":
            scheduler.register_to_config(stochastic_sampling=True)
            # FluxPipeline hands no generator on, and the noise would come from the global one.
            scheduler.step = functools.partial(scheduler.step, generator=draws)
        if recipe.shift is not None:
            scheduler.register_to_config(use_dynamic_shifting=False)
            scheduler.set_shift(recipe.shift)
        yield
    finally:
        scheduler._internal_dict = before
        scheduler.set_shift(shift)
        if recipe.sampler == "renoise":
            vars(scheduler).pop("step", None)
            if stepping is not None:
                scheduler.step = stepping


def planned(scheduler: Any, recipe: ResolvedRecipe, device: torch.device) -> Any:
    """A copy of a scheduler, set up for this recipe and ready to step; the given one is not touched.

    Arguments:
        device: where its numbers lie: a dt on the CPU would be rounded differently in bfloat16.
    """
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = copy.copy(scheduler)
    for watched in ("step", "set_timesteps"):
        vars(scheduler).pop(watched, None)
    config, tokens = scheduler.config, tokens_in(recipe.height, recipe.width)
    mu = calculate_shift(
        tokens,
        config.get("base_image_seq_len", 256),
        config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5),
        config.get("max_shift", 1.15),
    )
    with sampling_as(scheduler, recipe, torch.Generator()):
        scheduler.set_timesteps(sigmas=given_sigmas(recipe), mu=mu, device=device)
    return scheduler
