"""invert(): from a picture to noise, along the model's flow in the other direction."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, unknown_choice
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.schedule import require_supported
from fluxnb.records import Keep, Trajectory
from fluxnb.records.recipe import Recipe
from fluxnb.sampling.initial_state import InitialState
from fluxnb.sampling.run import ON_INTERRUPT, OnStep, resolve, sample_from

__all__ = ["invert"]

SOURCE = "the run inverted a picture"
Latents = Float[Tensor, "channels height width"]


@entry_point("flux", "keep", "on_step", picture="picture=trajectory.image", on_interrupt='on_interrupt="return"')
def invert(
    flux: Flux,
    picture: Image.Image | Trajectory | Latents,
    prompt: str | Recipe,
    *,
    steps: int | None = None,
    guidance: float | None = None,
    negative: str | None = None,
    sigmas: Sequence[float] | None = None,
    shift: float | None = None,
    keep: Keep | None = None,
    on_step: OnStep | None = None,
    on_interrupt: str = "raise",
) -> Trajectory:
    """Follow the model's flow from a picture to the noise that it assigns to it.

    Each step goes up by one level with the velocity of the upper level at the x from which it starts: one fixed-point
    iteration of the inverse of an Euler step. `trajectory.final` is the noise, from which `fnb.run(flux, prompt,
    noise=trajectory.final, steps=steps)` returns to the picture approximately. The error falls with the steps as soon
    as they are short enough for the velocity to change little within one. A model that takes very different noise to
    one picture needs many steps: the way up has to separate pictures that hardly differ. The noise is not normal
    in general for the same reason.

    Arguments:
        flux: from `fnb.load`.
        picture: an image, whose sides are multiples of a token's pixels; latents in space, as `flux.encode_image`
            gives them; or a trajectory, whose final latents are taken.
        prompt: what the picture shows, or a Recipe with the sampler "euler".
        steps, guidance, negative, sigmas, shift: as in `fnb.run`; the way back needs the same.
        keep, on_step, on_interrupt: as in `fnb.run`.

    Returns:
        A Trajectory with rising sigmas, from 0 to 1 with the model's own levels, without an image and a recipe.
        `step.x` is at `step.sigma`, and `step.v` was evaluated at the level above.

    Raises:
        InputError: a picture of another form, another sampler, or an argument that is not possible.
        RunError: the model gave a velocity that is not finite, or ran out of memory.

    Example:
        >>> inverted = invert(flux, picture, "a fox in the snow", steps=28)         # doctest: +SKIP
        >>> back = fnb.run(flux, "a fox in the snow", noise=inverted.final, steps=28)   # doctest: +SKIP
    """
    if on_interrupt not in ON_INTERRUPT:
        raise unknown_choice("on_interrupt", on_interrupt, ON_INTERRUPT)
    latents, height, width = _latents(flux, picture)
    recipe = resolve(
        flux,
        prompt,
        steps=steps,
        guidance=guidance,
        negative=negative,
        sigmas=sigmas,
        shift=shift,
        height=height,
        width=width,
    )
    if recipe.sampler != "euler":
        raise InputError(
            f"an inversion with sampler={recipe.sampler!r}",
            "it takes Euler steps",
            'type recipe.replace(sampler="euler")',
        )
    require_supported(flux.pipe.scheduler, recipe)
    begin = InitialState(flux.geometry.arrange(latents[None]), 0, SOURCE, upward=True)
    return sample_from(flux, recipe, begin, keep=keep, on_step=on_step, on_interrupt=on_interrupt)


def _latents(flux: Flux, picture: Image.Image | Trajectory | Tensor) -> tuple[Tensor, int, int]:
    """The clean latents in space of a picture, and its height and width in pixels."""
    geometry = flux.geometry
    if isinstance(picture, Image.Image):
        return flux.encode_image(picture), picture.height, picture.width
    if isinstance(picture, Trajectory):
        final = picture.final
        if final.shape != geometry.shape(picture.height, picture.width):
            raise InputError(
                f"a trajectory of {picture.model or 'another model'} for {flux.model}",
                "its latents are those of another model family",
                "type picture=trajectory.image",
            )
        return geometry.latents(final, picture.height, picture.width), picture.height, picture.width
    channels, rows, columns = picture.shape
    if channels != geometry.channels or rows % geometry.patch or columns % geometry.patch:
        raise InputError(
            f"latents of {tuple(picture.shape)}",
            f"they have {geometry.channels} channels, and rows and columns in multiples of {geometry.patch}",
            "type picture=flux.encode_image(image)",
        )
    if not bool(picture.isfinite().all()):
        raise InputError("latents that are not finite", "every value is finite", "check how they were computed")
    return picture.detach().to("cpu"), rows * geometry.cell, columns * geometry.cell
