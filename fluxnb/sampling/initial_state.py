"""The state that a run begins from: the noise of its seed, a given noise, or a noised picture."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from fluxnb.errors import InputError, shorten
from fluxnb.flow import interpolate
from fluxnb.pipeline.flux import Flux
from fluxnb.records.geometry import State
from fluxnb.records.recipe import ResolvedRecipe

__all__ = ["InitialState", "initial_state"]

STRENGTH = 0.6  # of a picture, where none is given


@dataclass(frozen=True)
class InitialState:
    """What a run begins from, where that is not the noise of its seed.

    Arguments:
        x: (1, ...), on the CPU.
        first: the evaluation to begin with; those before it are left out.
        source: where x comes from, in words.
        upward: whether x is clean, and the run goes from sigma 0 to noise.
    """

    x: State
    first: int
    source: str
    upward: bool = False


def initial_state(
    flux: Flux,
    recipe: ResolvedRecipe,
    *,
    noise: State | None = None,
    image: Image.Image | None = None,
    strength: float | None = None,
) -> InitialState | None:
    """The state of `fnb.run(noise=, image=, strength=)`; None where none of them is given.

    Raises:
        InputError: a noise of another shape, a picture of another size, a strength out of range.
    """
    if noise is not None:
        noise = _checked_noise(flux, recipe, noise)
    if image is None:
        if strength is not None:
            raise InputError(
                f"strength={strength} without an image", "it is the noise level of one", "add image=picture"
            )
        return None if noise is None else InitialState(noise, 0, "the initial noise was given")
    first = _first_step(recipe, STRENGTH if strength is None else strength) * recipe.stages
    if (image.height, image.width) != (recipe.height, recipe.width):
        raise InputError(
            f"an image of {image.width} x {image.height} pixels for a run of {recipe.width} x {recipe.height}",
            "both have the same size",
            f"type image=picture.resize(({recipe.width}, {recipe.height}))",
        )
    if not flux.can_continue(recipe, first):
        raise InputError(
            f"an image with the schedule of {type(flux.pipe.scheduler).__name__}",
            "a Karras, exponential or beta schedule, and a transformer with a cache, cannot begin in the middle",
            "use the model's own schedule",
        )
    clean = flux.geometry.arrange(flux.encode_image(image)[None])
    drawn = flux.initial_noise(recipe) if noise is None else noise
    x = interpolate(clean.float(), drawn.float(), flux.schedule(recipe)[first])
    return InitialState(x, first, "the run began from a picture")


def _checked_noise(flux: Flux, recipe: ResolvedRecipe, noise: Tensor) -> State:
    """The noise with a dimension for the batch."""
    shape = flux.geometry.shape(recipe.height, recipe.width)
    batched = noise[None] if tuple(noise.shape) == shape else noise
    if tuple(batched.shape) != (1, *shape):
        raise InputError(
            f"noise of {tuple(noise.shape)} for {recipe.height} x {recipe.width} pixels",
            f"its shape is {shape}",
            "type noise=trajectory.x_T of a run of this size",
        )
    if not bool(torch.isfinite(batched).all()):
        raise InputError("noise with values that are not finite", "every value is finite", "check how it was computed")
    return batched.detach().to("cpu")


def _first_step(recipe: ResolvedRecipe, strength: float) -> int:
    """The first step of a run that takes a share of the steps, counted as the pipelines of diffusers do."""
    if not 0 < strength <= 1:
        raise InputError(f"strength={shorten(strength)}", "0 to 1 is possible, without 0", "try strength=0.6")
    return int(max(recipe.steps - min(recipe.steps * strength, recipe.steps), 0))
