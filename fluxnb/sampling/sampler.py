"""The sampler: trajectories of resolved recipes. The loop is diffusers' own; a call trace observes it."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor

from fluxnb.errors import FluxnbError, RunError
from fluxnb.pipeline.compat import interrupt
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.prompts import Encoded
from fluxnb.pipeline.schedule import Generators
from fluxnb.pipeline.solvers import turn_upward
from fluxnb.records import Keep, Step, Trajectory
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.sampling.attention import attention_modules, words_of
from fluxnb.sampling.call_trace import CallTrace
from fluxnb.sampling.initial_state import InitialState

__all__ = ["STOP", "FiniteCheck", "Interrupted", "StepCallback", "sample", "sample_batch"]


class _Stop(enum.Enum):
    STOP = "stop"

    def __repr__(self) -> str:
        return "fnb.STOP"


STOP: Final = _Stop.STOP


class Interrupted(KeyboardInterrupt):
    """An interrupt after the first evaluation.

    Arguments:
        trajectories: of the pictures of the batch, with the steps that were sampled.
    """

    def __init__(self, trajectories: Sequence[Trajectory]) -> None:
        super().__init__()
        self.trajectories = trajectories


StepCallback = Callable[[Step, ResolvedRecipe], Any]
Decoded = tuple[Image.Image | None, float]  # a picture and the seconds that decoding it took


@dataclass(frozen=True)
class _Prefix:
    """What precedes the first evaluation.

    Arguments:
        steps: per picture, known steps that need no evaluation.
        count: the evaluations that are left out: those that are known, or come before a noised picture.
        latents: x after them.
        levels: of the trajectory.
        upward: whether the run goes from sigma 0 to noise.
    """

    steps: list[tuple[Step, ...]]
    count: int = 0
    latents: Tensor | None = None
    levels: tuple[float, ...] = ()
    upward: bool = False


@dataclass(frozen=True, kw_only=True)
class _Options:
    """Arguments of `sample_batch` that do not decide the numbers."""

    keep: Keep
    on_step: StepCallback | None
    on_progress: Callable[[], Any]
    decode: bool


def _ignore() -> None:
    """In the place of a callback that is not given."""


def sample(
    flux: Flux,
    recipe: ResolvedRecipe,
    encoded: Encoded,
    *,
    keep: Keep,
    on_step: StepCallback | None = None,
    on_progress: Callable[[], Any] | None = None,
    known: Sequence[Step] = (),
    begin: InitialState | None = None,
    decode: bool = True,
) -> Trajectory:
    """Sample one resolved recipe from its encoded prompt; see `sample_batch`.

    Arguments:
        on_progress: called after each step, which a GPU may still be computing.
        begin: another state than the noise of the seed.
    """
    options = _Options(keep=keep, on_step=on_step, on_progress=on_progress or _ignore, decode=decode)
    return _on_device(flux, [recipe], [encoded], options, known=[known], begin=begin)[0]


def sample_batch(
    flux: Flux,
    recipes: Sequence[ResolvedRecipe],
    encoded: Sequence[Encoded],
    *,
    keep: Keep,
    on_step: StepCallback | None = None,
    known: Sequence[Sequence[Step]],
    decode: bool = True,
) -> list[Trajectory]:
    """Sample resolved recipes that differ in prompt and seed alone in one call.

    A single recipe gives the bytes of the plain diffusers call; in a batch the last digit may differ.

    Arguments:
        on_step: called with each Step and its recipe; returning STOP ends the whole batch after that step.
        known: for each recipe, the first steps of another trajectory with the same beginning, equally many; their
            evaluations are not repeated.
        decode: False leaves the pictures to the caller.

    Raises:
        Interrupted: the call was interrupted; what was sampled before is decoded.
    """
    options = _Options(keep=keep, on_step=on_step, on_progress=_ignore, decode=decode)
    return _on_device(flux, recipes, encoded, options, known=known)


def _on_device(
    flux: Flux,
    recipes: Sequence[ResolvedRecipe],
    encoded: Sequence[Encoded],
    options: _Options,
    *,
    known: Sequence[Sequence[Step]],
    begin: InitialState | None = None,
) -> list[Trajectory]:
    # Streams and events are those of the current device, which differs from thread to thread.
    with torch.cuda.device(flux.device) if flux.device.type == "cuda" else contextlib.nullcontext():
        return _sample_batch(flux, recipes, encoded, options, known=known, begin=begin)


def _sample_batch(
    flux: Flux,
    recipes: Sequence[ResolvedRecipe],
    encoded: Sequence[Encoded],
    options: _Options,
    *,
    known: Sequence[Sequence[Step]],
    begin: InitialState | None,
) -> list[Trajectory]:
    first, prompts = recipes[0], Encoded.batch(encoded)
    each = [torch.Generator("cpu").manual_seed(recipe.seed) for recipe in recipes]
    generators: Generators = each if len(each) > 1 else each[0]
    if begin is None:
        prefix = _known_prefix(flux, first, known, generators)
    else:
        levels = flux.schedule(first)[begin.first :]
        levels = levels[::-1] if begin.upward else levels
        prefix = _Prefix([()], begin.first, begin.x.to(flux.device), levels, begin.upward)
    rest: Sequence[Trajectory] = ()
    decoded: list[Decoded] = []
    interrupted = False
    if prefix.count < first.evaluations:
        parts = _sample_rest(flux, recipes, prompts, prefix, options=options, generators=generators)
        rest, decoded, interrupted = parts
    if options.decode and not decoded:
        ends = [(part.steps[-1], part.finished) for part in rest] or [(steps[-1], True) for steps in prefix.steps]
        try:
            decoded = [_decode_end(flux, recipe, *end) for recipe, end in zip(recipes, ends, strict=True)]
        except KeyboardInterrupt:
            rest, interrupted = _unfinished(rest), True
    trajectories = [
        _joined(
            flux,
            recipe,
            prefix.steps[item],
            rest[item] if rest else None,
            levels=prefix.levels,
            keep=options.keep,
            decoded=decoded[item] if decoded else (None, 0.0),
            numerics=flux.numerics(len(recipes)),
        )
        for item, recipe in enumerate(recipes)
    ]
    if interrupted:
        raise Interrupted(trajectories)
    return trajectories


def _known_prefix(
    flux: Flux, recipe: ResolvedRecipe, known: Sequence[Sequence[Step]], generators: Generators
) -> _Prefix:
    """Replay the known steps on this recipe's schedule."""
    count = len(known[0])
    if not count:
        return _Prefix([() for _ in known])
    levels = flux.schedule(recipe)
    velocities = [torch.stack([steps[index].v for steps in known]) for index in range(count)]
    path = flux.replay(recipe, torch.stack([steps[0].x for steps in known]), velocities, generators)
    steps = [_on_schedule(each, [x[item] for x in path], levels) for item, each in enumerate(known)]
    return _Prefix(steps, count, path[-1], levels)


def _sample_rest(
    flux: Flux,
    recipes: Sequence[ResolvedRecipe],
    encoded: Encoded,
    prefix: _Prefix,
    *,
    options: _Options,
    generators: Generators,
) -> tuple[Sequence[Trajectory], list[Decoded], bool]:
    """Sample the steps after the prefix.

    Returns:
        Their trajectories; with `decode` the pictures of a completed call; whether the call was interrupted.
    """
    first, finite, keep, on_step = recipes[0], FiniteCheck(recipes), options.keep, options.on_step
    if keep.attention is not None:
        attention_modules(flux.pipe.transformer, keep.attention, keep.heads)  # raises before anything runs
    view = _view(flux, first, generators, upward=prefix.upward)
    stopped = interrupted = False
    failure: FluxnbError | None = None

    def on_velocity(v: Tensor, step: Callable[[int], Step]) -> None:
        nonlocal stopped
        finite.check(v, step, late=v.is_cuda and on_step is None)
        options.on_progress()
        for item, recipe in enumerate(recipes if on_step is not None else ()):
            now = step(item)
            now = dataclasses.replace(now, index=now.index + len(prefix.steps[item]))
            if on_step is not None and on_step(now, recipe) is STOP:
                stopped = True
                interrupt(view)

    given = {"max_sequence_length": first.max_sequence_length, "output_type": "latent"}
    trace = CallTrace(
        pipe=view,
        keep=keep,
        given=given,
        flux=flux,
        prompts=[recipe.prompt for recipe in recipes],
        on_velocity=on_velocity,
    )
    with flux.lock, _freeing_after_errors(flux.pipe):
        completed = undecoded = False
        fetch: Callable[[], Sequence[Image.Image]] | None = None
        try:
            with trace.observed():
                flux.denoise(view, first, encoded, generators=generators, latents=prefix.latents, done=prefix.count)
            completed = True
        except KeyboardInterrupt:
            interrupted = True
        except torch.cuda.OutOfMemoryError:
            failure = flux.plan.out_of_memory(f"{first.height} x {first.width} px with {flux.model}")
        try:
            # What the pipeline returns may be denormalized already; x after the last step is the same for all families.
            x = trace.last_x if options.decode and completed and not stopped else None
            if x is not None and flux.can_decode:
                finite.settle()
                started = time.perf_counter()
                latents = flux.geometry.latents(x, first.height, first.width)
                fetch = flux.begin_decoding(latents, together=True)
        except KeyboardInterrupt:
            undecoded = True
        trajectories = trace.finish()  # a GPU decodes while the trajectories are copied from it
    if failure is not None or stopped or interrupted or undecoded:
        _free_memory(flux.pipe)
    if failure is not None:
        raise failure  # outside the except: a traceback would keep the tensors alive
    finite.settle()
    images: Sequence[Image.Image] = ()
    try:
        images = fetch() if fetch is not None else ()
    except KeyboardInterrupt:
        undecoded = True
    if interrupted and not trajectories:
        raise KeyboardInterrupt  # before the first evaluation: there is nothing to return
    if not trajectories or (trace.broken and not stopped and not interrupted):
        raise RunError("the steps of this run could not be recorded", "the warning before names the cause")
    if undecoded:  # every step is there, and no picture
        return _unfinished(trajectories), [(None, 0.0) for _ in trajectories], True
    decoded: list[Decoded] = [(image, (time.perf_counter() - started) / len(images)) for image in images]
    return trajectories, decoded, interrupted


def _view(flux: Flux, recipe: ResolvedRecipe, generators: Generators, *, upward: bool) -> Any:
    view = flux.view(recipe, generators)
    if upward:
        turn_upward(view.scheduler)
    return view


def _unfinished(trajectories: Sequence[Trajectory]) -> tuple[Trajectory, ...]:
    return tuple(dataclasses.replace(each, finished=False) for each in trajectories)


def _decode_end(flux: Flux, recipe: ResolvedRecipe, last: Step, completed: bool) -> Decoded:
    """The picture after this step, for an incomplete trajectory that of the clean estimate; None without a VAE."""
    started, x = time.perf_counter(), last.x_next if completed else last.clean.to(last.x.dtype)
    image = flux.decode_state(x, recipe.height, recipe.width) if flux.can_decode else None
    return image, time.perf_counter() - started


def _joined(
    flux: Flux,
    recipe: ResolvedRecipe,
    before: tuple[Step, ...],
    after: Trajectory | None,
    *,
    levels: tuple[float, ...],
    keep: Keep,
    decoded: Decoded,
    numerics: str,
) -> Trajectory:
    """The trajectory of a recipe: its known and its sampled steps as one, reduced to what is to be kept."""
    steps = after.steps if after else ()
    if before:
        steps = before + tuple(dataclasses.replace(step, index=step.index + len(before)) for step in steps)
    image, decoding = decoded
    sigmas = levels or (after.sigmas if after else ())
    return Trajectory(
        image=image,
        recipe=recipe,
        finished=after is None or after.finished,
        sigmas=sigmas,
        steps=tuple(step.reduced(keep, len(sigmas) - 1) for step in steps),
        height=recipe.height,
        width=recipe.width,
        seconds={"encode": 0.0, "denoise": sum(step.seconds for step in steps), "decode": decoding},
        versions=flux.versions,
        model=flux.model,
        preset=flux.plan.preset,
        numerics=numerics,
        preview=flux.preview,
        words=_words(flux, recipe, steps) if "attention" in keep.tensors else (),
        geometry=flux.geometry,
        predicts=flux.family.predicts,
        pair=flux.pair,
        stages=recipe.stages,
    )


def _words(flux: Flux, recipe: ResolvedRecipe, steps: Sequence[Step]) -> tuple[str, ...]:
    if not any("attention" in step.tensors for step in steps):
        return ()  # it could not be captured
    return words_of(flux.pipe.tokenizer_2, recipe.prompt, recipe.max_sequence_length).words


def _on_schedule(known: Sequence[Step], path: Sequence[Tensor], levels: Sequence[float]) -> tuple[Step, ...]:
    """The known steps on another schedule: the same x and v, and a different distance to the next level."""
    moved = [x.to("cpu") for x in path]
    return tuple(
        dataclasses.replace(
            step, index=i, dt=levels[i + 1] - levels[i], tensors={**step.tensors, "x": moved[i], "x_next": moved[i + 1]}
        )
        for i, step in enumerate(known)
    )


@contextlib.contextmanager
def _freeing_after_errors(pipe: Any) -> Iterator[None]:
    """Empty caches of activations and move models back after an error, which diffusers does after a completed call."""
    try:
        yield
    except Exception:
        pipe.maybe_free_model_hooks()
        raise


def _free_memory(pipe: Any) -> None:
    """End a call that did not reach its end, as diffusers ends others, and return cached memory."""
    pipe.maybe_free_model_hooks()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class FiniteCheck:
    """Checks that the velocities of a batch are finite without making a GPU wait.

    Arguments:
        recipes: of the pictures of the batch, in order, for the error message.

    Example:
        >>> finite = FiniteCheck([recipe])                                          # doctest: +SKIP
        >>> finite.check(v, step, late=True), finite.settle()                       # doctest: +SKIP
    """

    def __init__(self, recipes: Sequence[ResolvedRecipe]) -> None:
        self._recipes = recipes
        self._pending: tuple[Tensor, Any, Callable[[int], Step]] | None = None

    def check(self, v: Tensor, step: Callable[[int], Step], *, late: bool) -> None:
        """Check the velocities (batch, ...) of a step; `step` makes the record of one picture's.

        With `late` the result is read at the next step or by `settle`, since a GPU would be idle while the host waits.

        Raises:
            RunError: a velocity is not finite; with `late` one of the step before.
        """
        self.settle()
        # The sum of a velocity with one value that is not finite is not finite; it takes one pass over the memory. That
        # of finite values may overflow, so what follows decides. A GPU would have to wait for the sum.
        if not late and all(math.isfinite(total) for total in v.flatten(1).sum(1, dtype=torch.float32).tolist()):
            return
        finite = torch.isfinite(v).flatten(1).all(1).to("cpu", non_blocking=True)
        copied = torch.cuda.Event() if v.is_cuda else None
        if copied is not None:
            copied.record()
        self._pending = finite, copied, step
        if not late:
            self.settle()

    def settle(self) -> None:
        """Read the result that is still pending; raises as `check` does."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        finite, copied, step = pending
        if copied is not None:
            copied.synchronize()
        if not bool(finite.all()):
            item = int((~finite).nonzero()[0])
            raise _not_finite(step(item), self._recipes[item])


def _not_finite(step: Step, recipe: ResolvedRecipe) -> RunError:
    advice = "load a float32 model and compare"
    if recipe.dtype == "float16":
        advice = 'load with dtype="bfloat16" or dtype="float32": float16 overflows above 65504'
    elif recipe.dtype == "bfloat16":
        advice = 'load with dtype="float32"; if the error stays, the weights may be damaged'
    return RunError(
        f"the velocity of step {step.index} (sigma {step.sigma:.3g}, {recipe.dtype}) is not finite",
        "sampling needs finite numbers and stopped there",
        advice,
    )
