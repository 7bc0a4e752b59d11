"""lab(): the lab widget on top of the grid runner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxnb.arguments import entry_point
from fluxnb.grid.axes import Axes
from fluxnb.grid.cost_estimate import estimate_cost, recorded
from fluxnb.grid.handles import Handle, prepare, runner_of
from fluxnb.grid.store import Store
from fluxnb.io.files import user_path
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.prompts import truncations
from fluxnb.pipeline.vocabulary import unknown_words_text
from fluxnb.records import Keep
from fluxnb.records.recipe import Recipe, ResolvedRecipe
from fluxnb.remote.handle import Remote
from fluxnb.sampling.sampler import STOP
from fluxnb.widgets.lab import Job, Lab, StepCallback

__all__ = ["lab"]

PROMPT = "a cat in the snow"
EXAMPLES = ("a fox in the snow, watercolor", "a lighthouse at dusk, long exposure", 'a shop sign that reads "open"')
SMALL_SIDE = 256  # pixels up to which the record holds all steps by default, so that the images can be scrubbed


@entry_point("flux", "store", "keep", prompt='prompt="a fox"')
def lab(
    flux: Flux | Remote, *, prompt: str = PROMPT, store: str | Path | Store | None = None, keep: Keep | None = None
) -> Lab:
    """A form for prompt, seeds, steps, size and guidance, which displays the images as they are sampled.

    The kernel stays free for other cells. Calls of one model are executed one trajectory at a time.

    Arguments:
        flux: from `fnb.load`, a model or an endpoint, which is paid for each image.
        prompt: initial prompt of the form.
        store: a folder for the images; those that it has are not sampled again.
        keep: which tensors a trajectory retains; by default all of them up to 256 pixels and none above.

    Returns:
        The Lab, a widget; `lab.grid` is the latest grid as a Sweep, for `fnb.explore`.

    Raises:
        InputError: `flux` is no loaded model, an empty prompt, or `keep` for an endpoint, which gives no steps.

    Example:
        >>> widget = lab(flux)                                                      # doctest: +SKIP
        >>> widget                                                                  # doctest: +SKIP
        Lab(pocket, idle)
    """
    Recipe(prompt=prompt)  # raises for an invalid prompt
    if isinstance(flux, Remote):
        prepare(flux, keep=keep, batch=1)
    opened = store if store is None or isinstance(store, Store) else Store(user_path(store))

    def generate(arguments: Mapping[str, Any], on_step: StepCallback) -> Job:
        grid = Axes.of(**arguments)
        recipes = list(dict.fromkeys(flux.resolve(recipe) for recipe in grid))
        is_small = isinstance(flux, Flux) and max(recipes[0].height, recipes[0].width) <= SMALL_SIDE
        retained = keep if keep is not None else Keep() if is_small else None
        runner = runner_of(flux, opened, keep=retained, on_step=on_step, on_wait=widget.show_waiting)
        missing = [recipe for recipe in recipes if runner.stored(recipe) is None]
        cost = estimate_cost(flux, recipes, missing=missing, store=opened, keep=retained)
        return Job(
            recipes=recipes,
            cells=recorded(flux, runner.cells(recipes)),
            steps=cost.evaluations // flux.evaluations_of(recipes[0], 1) if isinstance(flux, Flux) else 0,
            axes=grid.displayed,
            model=flux.model,
            preview=flux.preview,
            seconds=cost.seconds,
            notices=_notices(flux, recipes[0]),
        )

    examples = EXAMPLES if flux.vocabulary is None else flux.vocabulary.examples
    widget = Lab(generate, _initial_fields(flux, prompt), model=flux.model, stop=STOP, examples=examples, owner=flux)
    return widget


def _notices(flux: Handle, recipe: ResolvedRecipe) -> list[str]:
    """What may surprise about a request: a truncated prompt, unknown words, a size far from that of the training."""
    if isinstance(flux, Remote):
        return [f"{flux.provider} draws each image, which is paid for. Its seeds are not the seeds here."]
    notices = truncations(flux.pipe, flux.family, recipe.prompt, recipe.max_sequence_length)
    vocabulary = flux.vocabulary
    if vocabulary is not None and (text := unknown_words_text(flux.model, vocabulary, recipe.prompt)):
        notices.append(text)
    size = flux.defaults.size
    if max(recipe.height, recipe.width) > 2 * size or min(recipe.height, recipe.width) < size // 2:
        notices.append(
            f"{flux.model} is made for about {size} pixels; {recipe.width} x {recipe.height} may look wrong."
        )
    return notices


def _initial_fields(flux: Handle, prompt: str) -> dict[str, str]:
    """The texts of the form at first; guidance and negative prompt only for models that have them."""
    defaults = flux.defaults
    if isinstance(flux, Remote):  # one paid image
        size = str(defaults.size)
        return {"prompt": prompt, "seeds": "0", "steps": str(defaults.steps), "width": size, "height": size}
    fields = {
        "prompt": prompt,
        "seeds": "0-3",
        "steps": "1, 2, 3, 4" if defaults.steps <= 4 else str(defaults.steps),
        "width": str(defaults.size),
        "height": str(defaults.size),
    }
    if defaults.guidance_kind != "none":
        fields["guidance"] = f"{defaults.guidance or 1:g}"
    if defaults.guidance_kind == "true_cfg":
        fields["negative"] = ""
    return fields
