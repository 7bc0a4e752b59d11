"""Schedulers for one call: copies with the recipe's noise levels, sampler and shift; the pipeline's own stays as is."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch

from fluxnb.errors import InputError
from fluxnb.families.family import Family
from fluxnb.families.flux1 import FLUX1
from fluxnb.pipeline.compat import calculate_shift, empirical_shift, own_instance, progress_bar_config
from fluxnb.pipeline.solvers import take_two_stages
from fluxnb.pipeline.state import mark_as_view
from fluxnb.records.recipe import Recipe, ResolvedRecipe

__all__ = [
    "Generators",
    "pipeline_view",
    "prepared_scheduler",
    "require_supported",
    "scheduler_for",
    "unshifted_sigmas",
]

# Where noise comes from: one generator for a picture, or one for each picture of a batch.
Generators: TypeAlias = torch.Generator | Sequence[torch.Generator]


def unshifted_sigmas(recipe: Recipe, family: Family = FLUX1) -> list[float]:
    """The noise levels that the scheduler is given, before it shifts them; the even ones exactly as the pipeline's.

    Example:
        >>> unshifted_sigmas(Recipe(prompt="a fox", steps=4))
        [1.0, 0.75, 0.5, 0.25]
    """
    return family.even(recipe.steps) if recipe.sigmas is None else list(recipe.sigmas)


SUPPORTED = "FlowMatchEulerDiscreteScheduler"


def scheduler_for(scheduler: Any, recipe: Recipe, generators: Generators) -> Any:
    """A copy of a scheduler, set to the recipe's sampler and shift.

    Arguments:
        generators: of the fresh noise that the "renoise" sampler draws.

    Raises:
        InputError: a scheduler whose steps a recipe does not describe.
    """
    require_supported(scheduler, recipe)
    # A method that was replaced on the instance is bound to the original and would step that one.
    own = copy.copy(scheduler)
    for name in ("step", "set_timesteps"):
        vars(own).pop(name, None)
    if recipe.sampler == "renoise":
        own.register_to_config(stochastic_sampling=True)
        # FluxPipeline passes no generator to `step`, and the noise would come from the global one.
        own.step = functools.partial(own.step, generator=generators)
    elif recipe.stages > 1:
        take_two_stages(own, recipe.sampler)
    if recipe.shift is not None:
        own.register_to_config(use_dynamic_shifting=False)
        own.set_shift(recipe.shift)
    return own


def require_supported(scheduler: Any, recipe: Recipe) -> None:
    """Raise InputError for a scheduler whose steps a recipe does not describe."""
    name = type(scheduler).__name__
    if name != SUPPORTED:
        raise InputError(
            f"sampling with {name}",
            f"fluxnb samples with {SUPPORTED} and records calls with any scheduler",
            f"type pipe.scheduler = {SUPPORTED}.from_config(pipe.scheduler.config), or record with fnb.recording(pipe)",
        )
    if scheduler.config.get("stochastic_sampling", False) and recipe.sampler != "renoise":
        raise InputError(
            f"sampler={recipe.sampler!r} with a scheduler that has stochastic_sampling=True",
            "such a scheduler adds noise at every step",
            'type sampler="renoise", or load the scheduler without stochastic_sampling',
        )


def time_shift(family: Family, height: int, width: int, steps: int, config: Any) -> float:
    """The mu of the time shift for a picture size in pixels, computed by diffusers' own functions.

    mu depends on the number of image tokens, for some families also on the number of all steps, whether they are taken
    or known already; schedulers without dynamic shifting ignore it.
    """
    tokens = family.geometry.tokens(height, width)
    return calculate_shift(tokens, config) if family.shift == "by size" else empirical_shift(tokens, steps)


def prepared_scheduler(
    pipe: Any,
    family: Family,
    recipe: ResolvedRecipe,
    generators: Generators,
    *,
    device: torch.device,
    first: int = 0,
) -> Any:
    """The scheduler of a recipe with its timesteps set, ready to step.

    Arguments:
        pipe: the pipeline, whose scheduler stays as it is.
        family: of the pipeline.
        device: of its sigmas: a dt on the CPU would be rounded differently in bfloat16.
        first: the step to start from, as a call that continues from known ones does.
    """
    own = scheduler_for(pipe.scheduler, recipe, generators)
    mu = time_shift(family, recipe.height, recipe.width, recipe.steps, own.config)
    own.set_timesteps(sigmas=unshifted_sigmas(recipe, family)[first:], mu=mu, device=device)
    return own


def pipeline_view(pipe: Any, recipe: ResolvedRecipe, generators: Generators, *, device: torch.device) -> Any:
    """A pipeline over the same modules for one call: its own scheduler, progress bar and loop state.

    What a call writes on its pipeline (`_interrupt`, guidance, timesteps) stays on the view, so a user's own call of
    the original may run at the same time.
    """
    view = own_instance(pipe, scheduler_for(pipe.scheduler, recipe, generators), device)
    mark_as_view(view, pipe)
    # `run` and `sweep` display their own progress, which covers more than this loop.
    view.set_progress_bar_config(**{**progress_bar_config(pipe), "disable": True})
    return view
