"""run(): one recipe, one walk."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from fluxnb.errors import InputError, shorten, validates_own_input
from fluxnb.pipeline.flux import Flux
from fluxnb.records import Keep, Step, Trajectory
from fluxnb.records.recipe import Recipe, ResolvedRecipe
from fluxnb.sampling.sampler import sample

__all__ = ["OnStep", "resolve", "run"]

OnStep = Callable[[Step], Any]


@validates_own_input
def run(
    flux: Flux,
    prompt: str | Recipe,
    *,
    seed: int | None = None,
    steps: int | None = None,
    height: int | None = None,
    width: int | None = None,
    guidance: float | None = None,
    negative: str | None = None,
    sampler: str | None = None,
    sigmas: Sequence[float] | None = None,
    shift: float | None = None,
    keep: Keep | None = None,
    on_step: OnStep | None = None,
) -> Trajectory:
    """Walk from noise to a picture and keep what happened on the way.

    The picture has the same bytes as the plain diffusers call with `torch.Generator("cpu").manual_seed(seed)`.

    Main arguments:
        flux: from `fnb.load`.
        prompt: what to draw, or a Recipe, of which the arguments below then change single fields.
        seed: 0 to 2**64 - 1; 0 by default.
        steps: what the model is made for by default: 4 for pocket and schnell, 28 for pocket-base and dev.
        height, width: pixels, multiples of 16; the model's own size by default.
        guidance: the model's default; models that take none refuse it.

    Other arguments:
        negative: what to steer away from, for a model with true CFG.
        sampler: "euler" or "renoise".
        sigmas: own noise levels, falling, within (0, 1]; as many as steps.
        shift: own time shift; 1 is none.
        keep: which steps and tensors to keep; all by default.
        on_step: called with each Step; returning `fnb.STOP` or raising KeyboardInterrupt ends the walk there. The
            Trajectory is then unfinished and its picture the decoded clean estimate so far.

    Raises:
        InputError: something asked for cannot be; says what can.
        RunError: the model gave a velocity that is not a number, or ran out of memory.

    Example:
        >>> walk = run(flux, "a fox in the snow", seed=3, steps=4)                  # doctest: +SKIP
        >>> walk.image.size, walk.sigmas                                            # doctest: +SKIP
        ((128, 128), (1.0, 0.75, 0.5, 0.25, 0.0))
    """
    asked = {
        "seed": seed,
        "steps": steps,
        "height": height,
        "width": width,
        "guidance": guidance,
        "negative": negative,
        "sampler": sampler,
        "sigmas": None if sigmas is None else tuple(sigmas),
        "shift": shift,
    }
    recipe = resolve(flux, prompt, **asked)
    started = time.perf_counter()
    encoded = flux.encode(recipe)
    spent = time.perf_counter() - started
    callback = None if on_step is None else lambda step, _: on_step(step)
    trajectory = sample(flux, recipe, encoded, keep=keep or Keep(), on_step=callback)
    return dataclasses.replace(trajectory, seconds={**trajectory.seconds, "encode": spent})


@validates_own_input
def resolve(flux: Flux, prompt: str | Recipe, **fields: Any) -> ResolvedRecipe:
    """A prompt or recipe, with single fields changed, as a full recipe of this model."""
    if not isinstance(flux, Flux):
        raise InputError(
            f"run({shorten(type(flux).__name__)})", "a loaded model comes first", 'try flux = fnb.load("pocket")'
        )
    given = {name: value for name, value in fields.items() if value is not None}
    if isinstance(prompt, Recipe):
        return flux.resolve(prompt.replace(**given))
    given.setdefault("steps", len(given["sigmas"]) if "sigmas" in given else flux.defaults.steps)
    return flux.resolve(Recipe(prompt=prompt, **given))
