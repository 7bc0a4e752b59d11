"""lab(): the widget that asks, over the engine that makes."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxnb.errors import InputError, shorten, validates_own_input
from fluxnb.grid.axes import Axes
from fluxnb.grid.cost_estimate import remember, work_of
from fluxnb.grid.runner import Making
from fluxnb.grid.store import Store
from fluxnb.io.files import user_path
from fluxnb.pipeline.flux import Flux
from fluxnb.records import Cell, Keep
from fluxnb.records.recipe import Recipe, ResolvedRecipe
from fluxnb.sampling.sampler import STOP
from fluxnb.widgets.lab import Job, Lab, StepCallback

__all__ = ["lab"]

PROMPT = "a cat in the snow"
SMALL = 256  # pixels up to which every step is kept, so that the pictures of a lab can be scrubbed through


@validates_own_input
def lab(flux: Flux, *, prompt: str = PROMPT, store: str | Path | Store | None = None, keep: Keep | None = None) -> Lab:
    """A form for prompt, seeds, steps, size and guidance, with the pictures below it as they come.

    The kernel stays free: other cells run while pictures are made. Calls of one model take turns, walk by walk.

    Arguments:
        flux: from `fnb.load`.
        prompt: what stands in the form at first.
        store: a folder for the pictures; what it has is not made again.
        keep: what to keep of each walk; by default everything up to 256 pixels and nothing above.

    Returns:
        The Lab, a widget; `lab.grid` is the last grid as a Sweep, which `fnb.explore` takes.

    Example:
        >>> bench = lab(flux)                                                       # doctest: +SKIP
        >>> bench                                                                   # doctest: +SKIP
        Lab(pocket, idle)
    """
    if not isinstance(flux, Flux):
        raise InputError(f"lab({shorten(type(flux).__name__)})", "a loaded model comes first", 'try fnb.load("pocket")')
    Recipe(prompt=prompt)  # says what is possible
    where = store if store is None or isinstance(store, Store) else Store(user_path(store))
    defaults = flux.defaults
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

    def generate(arguments: Mapping[str, Any], on_step: StepCallback) -> Job:
        grid = Axes.of(**arguments)
        recipes = list(dict.fromkeys(flux.resolve(recipe) for recipe in grid))
        small = max(recipes[0].height, recipes[0].width) <= SMALL
        kept = keep if keep is not None else Keep() if small else None
        making = Making(flux=flux, store=where, keep=kept, watcher=on_step)
        work = work_of(flux, recipes, [each for each in recipes if making.stored(each) is None], where, kept)
        return Job(
            recipes=recipes,
            cells=_made(flux, making, recipes),
            steps=work.evaluations // flux.evaluations_of(recipes[0], 1),
            axes=grid.shown,
            model=flux.model,
            preview=flux.preview,
            seconds=work.seconds,
        )

    return Lab(generate, fields, model=flux.model, stop=STOP)


def _made(flux: Flux, making: Making, recipes: Sequence[ResolvedRecipe]) -> Generator[Cell, None, None]:
    cells = making.cells(recipes)
    try:
        for cell in cells:
            remember(flux, cell)
            yield cell
    except KeyboardInterrupt:
        return
    finally:
        cells.close()
