"""run(): one recipe, one trajectory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from fluxnb.arguments import entry_point
from fluxnb.cleanup import progress_lock
from fluxnb.errors import unknown_choice
from fluxnb.pipeline.compat import progress_bar_config
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.schedule import require_supported
from fluxnb.progress import Progress
from fluxnb.records import Keep, Step, Trajectory
from fluxnb.records.geometry import State
from fluxnb.records.recipe import Recipe, ResolvedRecipe
from fluxnb.sampling.initial_state import InitialState, initial_state
from fluxnb.sampling.sampler import Interrupted, StepCallback, sample

__all__ = ["ON_INTERRUPT", "OnStep", "last", "resolve", "run", "sample_from"]

OnStep = Callable[[Step], Any]
ON_INTERRUPT = ("raise", "return")

last: Trajectory | None = None  # the trajectory of the latest run that was interrupted


@entry_point(
    "flux",
    "keep",
    "on_step",
    image="image=trajectory.image",
    noise="noise=trajectory.x_T",
    strength="strength=0.6",
    on_interrupt='on_interrupt="return"',
)
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
    noise: State | None = None,
    image: Image.Image | None = None,
    strength: float | None = None,
    keep: Keep | None = None,
    on_step: OnStep | None = None,
    on_interrupt: str = "raise",
) -> Trajectory:
    """Sample one picture and record every step.

    The picture has the same bytes as the plain diffusers call with `torch.Generator("cpu").manual_seed(seed)`.

    Main arguments:
        flux: from `fnb.load`.
        prompt: what to draw, or a Recipe, of which the arguments below change single fields.
        seed: 0 to 2**64 - 1; 0 by default.
        steps: the model's default where left out: 4 for pocket and schnell, 28 for pocket-base and dev.
        height, width: pixels, multiples of 16; the model's own size by default.
        guidance: the model's default where left out; models that take no guidance refuse it.

    Other arguments:
        negative: the negative prompt, for a model with true classifier-free guidance.
        sampler: "euler"; "renoise", with fresh noise at every level; "heun" or "midpoint", of second order, with two
            evaluations a step (Heun's last step takes one), each of which is a Step of the trajectory.
        sigmas: noise levels instead of the even ones, strictly falling, within (0, 1]; as many as steps.
        shift: a time shift instead of the model's; 1 is none.
        noise: the initial noise instead of that of the seed, in the shape of `trajectory.x_T`.
        image: begin from this picture, mixed with the noise, instead of from noise alone (SDEdit, 2108.01073). It
            determines the size. The VAE's mean is used, so that the noise is that of the seed.
        strength: the share of the steps that are taken from an image, 0 to 1; 0.6 by default. The higher, the less is
            left of it; 1 begins from noise alone.
        keep: which steps and tensors to keep; all by default.
        on_step: called with each Step; returning `fnb.STOP` ends the run there. The Trajectory is then unfinished, and
            its picture is the decoded clean estimate of that step.
        on_interrupt: what follows Ctrl-C or the stop button of a notebook. "raise" raises the KeyboardInterrupt again,
            so that loops and further cells stop too; `fnb.last` is then the unfinished Trajectory. "return" returns it.

    Raises:
        InputError: an argument that is not possible; the message names what is.
        RunError: the model gave a velocity that is not finite, or ran out of memory.
        KeyboardInterrupt: the run was interrupted; see `on_interrupt`.

    Example:
        >>> trajectory = run(flux, "a fox in the snow", seed=3, steps=4, height=128, width=128)    # doctest: +SKIP
        >>> trajectory.image.size, trajectory.sigmas                                # doctest: +SKIP
        ((128, 128), (1.0, 0.75, 0.5, 0.25, 0.0))
        >>> other = run(flux, "an owl in the snow", image=trajectory.image, strength=0.5)   # doctest: +SKIP
    """
    if on_interrupt not in ON_INTERRUPT:
        raise unknown_choice("on_interrupt", on_interrupt, ON_INTERRUPT)
    fields = {
        "seed": seed,
        "steps": steps,
        "height": image.height if image is not None and height is None else height,
        "width": image.width if image is not None and width is None else width,
        "guidance": guidance,
        "negative": negative,
        "sampler": sampler,
        "sigmas": sigmas,
        "shift": shift,
    }
    recipe = resolve(flux, prompt, **fields)
    require_supported(flux.pipe.scheduler, recipe)  # before the prompt is encoded, which takes seconds for T5
    share = None if strength is None else float(strength)
    begin = initial_state(flux, recipe, noise=noise, image=image, strength=share)
    return sample_from(flux, recipe, begin, keep=keep, on_step=on_step, on_interrupt=on_interrupt)


def sample_from(
    flux: Flux,
    recipe: ResolvedRecipe,
    begin: InitialState | None,
    *,
    keep: Keep | None,
    on_step: OnStep | None,
    on_interrupt: str,
) -> Trajectory:
    """Encode the prompt of a resolved recipe and sample it, from its own noise or from another state; see `run`."""
    started = time.perf_counter()
    encoded = flux.encode(recipe)
    spent = time.perf_counter() - started
    interrupted = False
    remaining = recipe.evaluations if begin is None else recipe.evaluations - begin.first
    unit = "steps" if recipe.stages == 1 else "evaluations"
    try:
        with progress_lock(), Progress(remaining, unit=unit, displayed=_shows_progress(flux)) as bar:
            trajectory = sample(
                flux,
                recipe,
                encoded,
                keep=keep or Keep(),
                on_step=_step_callback(on_step),
                # Not from a Step: reading one makes a GPU wait.
                on_progress=bar.update if bar.possible else None,
                begin=begin,
                decode=begin is None or not begin.upward,
            )
    except Interrupted as interrupt:
        interrupted, (trajectory,) = True, interrupt.trajectories
    trajectory = dataclasses.replace(trajectory, seconds={**trajectory.seconds, "encode": spent})
    if begin is not None:  # a recipe cannot repeat it
        trajectory = dataclasses.replace(trajectory, recipe=None, recipe_missing=begin.source, prompt=recipe.prompt)
    if interrupted and on_interrupt == "raise":
        global last
        last = trajectory
        raise KeyboardInterrupt
    return trajectory


def _step_callback(on_step: OnStep | None) -> StepCallback | None:
    return None if on_step is None else lambda step, _: on_step(step)


def _shows_progress(flux: Flux) -> bool | None:
    """False where the progress bars of the pipeline are switched off, else None."""
    return False if progress_bar_config(flux.pipe).get("disable") else None


@entry_point()
def resolve(flux: Flux, prompt: str | Recipe, **fields: Any) -> ResolvedRecipe:
    """A prompt or recipe, with single fields changed, as a resolved recipe of this model.

    Fields that are None are left as they are in the recipe, or take the model's default.
    """
    flux.refresh_if_changed()
    given = {name: value for name, value in fields.items() if value is not None}
    if isinstance(prompt, Recipe):
        return flux.resolve(prompt.replace(**given))
    if "sigmas" not in given:
        given.setdefault("steps", flux.defaults.steps)
    return flux.resolve(Recipe(prompt=prompt, **given))
