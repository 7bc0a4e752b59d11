"""Walks of resolved recipes. The loop is diffusers' own; a recorder watches it."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from fluxnb.errors import FluxnbError, RunError
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.prompts import Encoded
from fluxnb.pipeline.schedule import Draws
from fluxnb.records import Keep, Step, Trajectory
from fluxnb.records.latents import unpack
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.sampling.attention import words_of
from fluxnb.sampling.finite import Finite
from fluxnb.sampling.recording import recording

__all__ = ["STOP", "Watcher", "take", "take_together"]


class _Stop(enum.Enum):
    STOP = "stop"

    def __repr__(self) -> str:
        return "fnb.STOP"


STOP: Final = _Stop.STOP
Watcher = Callable[[Step, ResolvedRecipe], Any]
Drawn = tuple[Image.Image | None, float]  # a picture and the seconds it took


@dataclass(frozen=True)
class _Begun:
    """How far walks have come without an evaluation: the steps that are known, the tokens after them, all levels."""

    steps: list[tuple[Step, ...]]
    count: int = 0
    latents: Tensor | None = None
    levels: tuple[float, ...] = ()


def take(
    flux: Flux,
    recipe: ResolvedRecipe,
    encoded: Encoded,
    *,
    keep: Keep,
    watcher: Watcher | None = None,
    known: Sequence[Step] = (),
    decode: bool = True,
) -> Trajectory:
    """One walk of a resolved recipe from its encoded prompt; see `take_together`."""
    return take_together(flux, [recipe], [encoded], keep=keep, watcher=watcher, known=[known], decode=decode)[0]


def take_together(
    flux: Flux,
    recipes: Sequence[ResolvedRecipe],
    encoded: Sequence[Encoded],
    *,
    keep: Keep,
    watcher: Watcher | None = None,
    known: Sequence[Sequence[Step]],
    decode: bool = True,
) -> list[Trajectory]:
    """Walks of resolved recipes that differ in prompt and seed alone, in one call.

    Alone a walk has the bytes of the plain diffusers call; in company its numbers may differ in the last place.

    Arguments:
        watcher: called with each Step and its recipe; returning STOP ends all of them there.
        known: for each, the first steps of another walk that begins the same way; equally many. Their evaluations
            are not made again.
        decode: False leaves the pictures to the caller.
    """
    first, together = recipes[0], Encoded.together(encoded)
    generators = [torch.Generator("cpu").manual_seed(recipe.seed) for recipe in recipes]
    draws: Draws = generators if len(generators) > 1 else generators[0]
    begun = _begin(flux, first, known, draws)
    after: Sequence[Trajectory] = ()
    drawn: list[Drawn] = []
    if begun.count < first.steps:
        after, drawn = _go_on(flux, recipes, together, draws, begun, keep, watcher, decode)
    if decode and not drawn:
        ends = [(each.steps[-1], each.finished) for each in after] or [(steps[-1], True) for steps in begun.steps]
        drawn = [_decoded(flux, recipe, *end) for recipe, end in zip(recipes, ends, strict=True)]
    return [
        _finished(
            flux, recipe, begun.steps[item], after[item] if after else None, begun.levels, keep,
            drawn[item] if drawn else (None, 0.0), flux.numerics(len(recipes)),
        )
        for item, recipe in enumerate(recipes)
    ]  # fmt: skip


def _begin(flux: Flux, recipe: ResolvedRecipe, known: Sequence[Sequence[Step]], draws: Draws) -> _Begun:
    """Take the steps that are known."""
    count = len(known[0])
    if not count:
        return _Begun([() for _ in known])
    levels = flux.schedule(recipe)
    velocities = [torch.stack([steps[index].v for steps in known]) for index in range(count)]
    path = flux.replay(recipe, torch.stack([steps[0].x for steps in known]), velocities, draws)
    steps = [_replayed(each, [x[item] for x in path], levels) for item, each in enumerate(known)]
    return _Begun(steps, count, path[-1], levels)


def _go_on(
    flux: Flux, recipes: Sequence[ResolvedRecipe], encoded: Encoded, draws: Draws, begun: _Begun, keep: Keep,
    watcher: Watcher | None, decode: bool,
) -> tuple[Sequence[Trajectory], list[Drawn]]:  # fmt: skip
    """Take the other steps: their record, and with `decode` the pictures if the walks came to their end."""
    pipe, first, numbers = flux.pipe, recipes[0], Finite(recipes)
    halted: list[object] = []
    failure: FluxnbError | None = None

    def watch(v: Tensor, step: Callable[[int], Step]) -> None:
        numbers.check(v, step, late=v.is_cuda and watcher is None)
        for item, recipe in enumerate(recipes if watcher is not None else ()):
            now = step(item)
            now = dataclasses.replace(now, index=now.index + begun.count)
            if watcher is not None and watcher(now, recipe) is STOP:
                halted.append(STOP)
                pipe._interrupt = True  # diffusers' own way of leaving the loop

    prompts = [recipe.prompt for recipe in recipes]
    with flux.turn, _bar(pipe, first), recording(flux, keep=keep, _watch=watch, _prompts=prompts) as recorder:
        tokens, fetch = None, None
        try:
            tokens = flux.denoise(first, encoded, draws=draws, latents=begun.latents, done=begun.count)
        except KeyboardInterrupt:
            halted.append(KeyboardInterrupt)
        except torch.cuda.OutOfMemoryError:
            failure = _out_of_memory(flux, first)
        finally:
            pipe._interrupt = False
        if decode and tokens is not None and not halted:
            numbers.settle()
            started = time.perf_counter()
            fetch = flux.begin_decoding(unpack(tokens, first.height, first.width))
    # When that block ended the walks were written down, while a GPU decoded.
    if failure is not None or halted:
        _settle(pipe)
    if failure is not None:
        raise failure  # outside the except: a traceback would hold on to the tensors
    numbers.settle()
    images = fetch() if fetch is not None else ()
    drawn: list[Drawn] = [(image, (time.perf_counter() - started) / len(images)) for image in images]
    trajectories = recorder.trajectories[-len(recipes) :]
    if not trajectories:
        raise KeyboardInterrupt  # stopped before the first evaluation: there is nothing to show
    return trajectories, drawn


def _decoded(flux: Flux, recipe: ResolvedRecipe, last: Step, done: bool) -> Drawn:
    """The picture of a walk that ends with this step; of one that was broken off, of the clean estimate there."""
    started, tokens = time.perf_counter(), last.x_next if done else last.clean.to(last.x.dtype)
    image = flux.decode_tokens(tokens, recipe.height, recipe.width)
    return image, time.perf_counter() - started


def _finished(
    flux: Flux,
    recipe: ResolvedRecipe,
    before: tuple[Step, ...],
    after: Trajectory | None,
    levels: tuple[float, ...],
    keep: Keep,
    drawn: Drawn,
    numerics: str,
) -> Trajectory:
    """The record: the steps known and the steps taken as one, the picture, and only what is to be kept."""
    steps = before + tuple(
        dataclasses.replace(step, index=step.index + len(before)) for step in (after.steps if after else ())
    )
    image, decoding = drawn
    return Trajectory(
        image=image,
        recipe=recipe,
        finished=after is None or after.finished,
        sigmas=levels or (after.sigmas if after else ()),
        steps=tuple(step.thinned(keep, recipe.steps) for step in steps),
        height=recipe.height,
        width=recipe.width,
        seconds={"encode": 0.0, "denoise": sum(step.seconds for step in steps), "decode": decoding},
        versions=flux.versions,
        model=flux.model,
        preset=flux.plan.preset,
        numerics=numerics,
        preview=flux.preview,
        words=_words(flux, recipe) if "attention" in keep.tensors else (),
    )


def _words(flux: Flux, recipe: ResolvedRecipe) -> tuple[str, ...]:
    return words_of(flux.pipe.tokenizer_2, recipe.prompt, recipe.max_sequence_length).words


def _replayed(known: Sequence[Step], path: Sequence[Tensor], levels: Sequence[float]) -> tuple[Step, ...]:
    """The known steps as steps of this walk: same x and v, but another way to go."""
    moved = [x.to("cpu") for x in path]
    return tuple(
        dataclasses.replace(
            step, index=i, dt=levels[i + 1] - levels[i], tensors={**step.tensors, "x": moved[i], "x_next": moved[i + 1]}
        )
        for i, step in enumerate(known)
    )


@contextlib.contextmanager
def _bar(pipe: Any, recipe: ResolvedRecipe) -> Iterator[None]:
    """The progress bar of diffusers, but none for a walk that is over before it could be read."""
    before = getattr(pipe, "_progress_bar_config", None)
    small = recipe.height * recipe.width * recipe.steps <= 30 * 256 * 256
    pipe.set_progress_bar_config(**{"leave": False, **(before or {}), **({"disable": True} if small else {})})
    try:
        yield
    finally:
        if before is None:
            vars(pipe).pop("_progress_bar_config", None)
        else:
            pipe._progress_bar_config = before


def _settle(pipe: Any) -> None:
    """What diffusers does at the end of a call, for a call that never got there, and the memory back."""
    pipe.maybe_free_model_hooks()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _out_of_memory(flux: Flux, recipe: ResolvedRecipe) -> RunError:
    return flux.plan.out_of_memory(f"{recipe.height} x {recipe.width} px with {flux.model}")
