"""run(): one recipe, one walk. The loop is diffusers' own; a recorder watches it."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import gc
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from fluxnb.attention_maps import words_of
from fluxnb.errors import FluxnbError, InputError, RunError, checks_itself, cut
from fluxnb.finite import Finite
from fluxnb.latents import unpack
from fluxnb.pipeline import Flux
from fluxnb.prompts import Encoded
from fluxnb.recipe import Recipe
from fluxnb.recorder import recording
from fluxnb.records import Keep, Step, Trajectory
from fluxnb.scheduling import Draws

__all__ = ["STOP", "run"]


class _Stop(enum.Enum):
    STOP = "stop"

    def __repr__(self) -> str:
        return "fnb.STOP"


STOP: Final = _Stop.STOP
OnStep = Callable[[Step], Any]
Watcher = Callable[[Step, Recipe], Any]
Drawn = tuple[Image.Image | None, float]  # a picture and the seconds it took


@checks_itself
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
    watcher = None if on_step is None else lambda step, _: on_step(step)
    walk = take(flux, recipe, encoded, keep=keep or Keep(), watcher=watcher)
    return dataclasses.replace(walk, seconds={**walk.seconds, "encode": spent})


@checks_itself
def resolve(flux: Flux, prompt: str | Recipe, **fields: Any) -> Recipe:
    """A prompt or recipe, with single fields changed, as a full recipe of this model."""
    if not isinstance(flux, Flux):
        raise InputError(
            f"run({cut(type(flux).__name__)})", "a loaded model comes first", 'try flux = fnb.load("pocket")'
        )
    given = {name: value for name, value in fields.items() if value is not None}
    if isinstance(prompt, Recipe):
        return flux.resolve(prompt.replace(**given))
    given.setdefault("steps", len(given["sigmas"]) if "sigmas" in given else flux.profile.steps)
    return flux.resolve(Recipe(prompt=prompt, **given))


def take(
    flux: Flux,
    recipe: Recipe,
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
    recipes: Sequence[Recipe],
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
    pipe, first, together, count = flux.pipe, recipes[0], Encoded.together(encoded), len(known[0])
    generators = [torch.Generator("cpu").manual_seed(recipe.seed) for recipe in recipes]
    draws: Draws = generators if len(generators) > 1 else generators[0]
    before: list[tuple[Step, ...]] = [() for _ in recipes]
    latents: Tensor | None = None
    levels: tuple[float, ...] = ()
    if count:
        levels = flux.schedule(first)
        velocities = [torch.stack([steps[index].v for steps in known]) for index in range(count)]
        path = flux.replay(first, together, velocities, draws)
        before = [_replayed(steps, [x[item] for x in path], levels) for item, steps in enumerate(known)]
        latents = path[-1]
    halted: list[object] = []
    failure: FluxnbError | None = None
    after: list[Trajectory] = []
    drawn: list[Drawn] = [] if decode else [(None, 0.0)] * len(recipes)
    if count < first.steps:
        numbers = Finite(recipes)

        def watch(v: Tensor, step: Callable[[int], Step]) -> None:
            numbers.check(v, step, late=v.is_cuda and watcher is None)
            for item, recipe in enumerate(recipes if watcher is not None else ()):
                now = step(item)
                now = dataclasses.replace(now, index=now.index + count)
                if watcher is not None and watcher(now, recipe) is STOP:
                    halted.append(STOP)
                    pipe._interrupt = True  # diffusers' own way of leaving the loop

        prompts = [recipe.prompt for recipe in recipes]
        with flux.turn, _bar(pipe, first), recording(flux, keep=keep, _watch=watch, _prompts=prompts) as recorder:
            tokens, fetch = None, None
            try:
                tokens = flux.denoise(first, together, draws=draws, latents=latents, done=count)
            except KeyboardInterrupt:
                halted.append(KeyboardInterrupt)
            except torch.cuda.OutOfMemoryError:
                failure = _out_of_memory(flux, first)
            finally:
                pipe._interrupt = False
            if decode and tokens is not None and not halted:
                numbers.settle()
                started = time.perf_counter()
                fetch = flux.begin_decoding(unpack(tokens, first.height or 0, first.width or 0))
        # When that block ended the walks were written down, while a GPU decoded.
        if failure is not None or halted:
            _settle(pipe)
        if failure is not None:
            raise failure  # outside the except: a traceback would hold on to the tensors
        numbers.settle()
        if fetch is not None:
            images = fetch()
            drawn = [(image, (time.perf_counter() - started) / len(images)) for image in images]
        after = list(recorder.trajectories[-len(recipes) :])
        if not after:
            raise KeyboardInterrupt  # stopped before the first evaluation: there is nothing to show
    if not drawn:
        ends = [(each.steps[-1], each.finished) for each in after] or [(steps[-1], True) for steps in before]
        drawn = [_decoded(flux, recipe, *end) for recipe, end in zip(recipes, ends, strict=True)]
    return [
        _finished(flux, recipe, before[item], after[item] if after else None, levels, keep, drawn[item])
        for item, recipe in enumerate(recipes)
    ]


def _decoded(flux: Flux, recipe: Recipe, last: Step, done: bool) -> Drawn:
    """The picture of a walk that ends with this step; of one that was broken off, of the clean estimate there."""
    started, tokens = time.perf_counter(), last.x_next if done else last.clean.to(last.x.dtype)
    image = flux.decode_tokens(tokens, recipe.height or 0, recipe.width or 0)
    return image, time.perf_counter() - started


def _finished(
    flux: Flux,
    recipe: Recipe,
    before: tuple[Step, ...],
    after: Trajectory | None,
    levels: tuple[float, ...],
    keep: Keep,
    drawn: Drawn,
) -> Trajectory:
    """The record: the steps known and the steps taken as one, the picture, and only what is to be kept."""
    height, width = recipe.height or 0, recipe.width or 0
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
        height=height,
        width=width,
        seconds={"encode": 0.0, "denoise": sum(step.seconds for step in steps), "decode": decoding},
        versions=flux.versions,
        model=flux.model,
        preset=flux.plan.preset,
        preview=flux.preview,
        words=_words(flux, recipe) if "attention" in keep.tensors else (),
    )


def _words(flux: Flux, recipe: Recipe) -> tuple[str, ...]:
    return words_of(flux.pipe.tokenizer_2, recipe.prompt, recipe.max_sequence_length or 512).words


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
def _bar(pipe: Any, recipe: Recipe) -> Iterator[None]:
    """The progress bar of diffusers, but none for a walk that is over before it could be read."""
    before = getattr(pipe, "_progress_bar_config", None)
    small = (recipe.height or 0) * (recipe.width or 0) * recipe.steps <= 30 * 256 * 256
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


def _out_of_memory(flux: Flux, recipe: Recipe) -> RunError:
    return flux.plan.out_of_memory(f"{recipe.height} x {recipe.width} px with {flux.model}")
