"""recording(pipe): record any pipeline call from outside without changing a bit of it.

A recorder follows the calls that its own context makes of its pipeline. Where a call begins and ends is known from the
call itself: while a recording is open, `__call__` of the pipeline's class is wrapped, and passes everything on to the
original where no recorder of the calling context follows the instance. A `CallTrace` observes the call in between; the
sampler uses the same traces for its own calls.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fluxnb.arguments import entry_point
from fluxnb.cleanup import undoing
from fluxnb.errors import InputError, warn_caller
from fluxnb.installation import warn_of_newer_libraries
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.load import handle_of
from fluxnb.pipeline.state import original_of
from fluxnb.records import Keep, Trajectory
from fluxnb.remote.handle import Remote
from fluxnb.runtime.compat import class_of
from fluxnb.runtime.exclusive import ending_interrupted_calls
from fluxnb.sampling.attention import attention_modules
from fluxnb.sampling.call_trace import CallTrace, RecordingWarning
from fluxnb.sampling.patched_method import bound_arguments, patched_call

__all__ = ["Recorder", "RecordingWarning", "recording"]


class Recorder:
    """Made by `recording`: `.trajectories` grows by one per picture whenever a call ends."""

    def __init__(self, pipe: Any, keep: Keep, flux: Flux | None, prompts: list[str] | None = None) -> None:
        self.trajectories: tuple[Trajectory, ...] = ()
        self._pipe: Any = pipe
        self._keep = keep
        self._flux = flux
        self._prompts = prompts

    def __repr__(self) -> str:
        return f"Recorder({len(self.trajectories)} trajectories)"

    def _follows(self, pipe: Any) -> bool:
        return self._pipe is not None and original_of(pipe) is self._pipe

    @contextlib.contextmanager
    def _call(self, pipe: Any, given: dict[str, Any], defaults: dict[str, Any]) -> Iterator[_Call]:
        """Trace one call, made inside the block; what the pipeline returned is appended to its output."""
        trace = CallTrace(
            pipe=pipe, keep=self._keep, given=given, defaults=defaults, flux=self._flux, prompts=self._prompts
        )
        call = _Call(trace)
        try:
            with trace.observed():
                yield call
        finally:
            self.trajectories += trace.finish(*call.output)

    def _close(self) -> None:
        self._pipe = self._flux = None  # a recorder that is kept does not keep the model alive


@dataclass
class _Call:
    """A call that is traced, and a list with what the pipeline returned; empty where it raised."""

    trace: CallTrace
    output: list[Any] = field(default_factory=list)


# The open recorders of this thread or task, in the order in which they were opened.
_OPEN: contextvars.ContextVar[tuple[Recorder, ...]] = contextvars.ContextVar("fluxnb_open_recorders", default=())


@entry_point("keep", "prompts")
def recording(
    pipe: Any, *, keep: Keep | None = None, prompts: Sequence[str] | None = None
) -> contextlib.AbstractContextManager[Recorder]:
    """Record every call of a diffusers pipeline made inside the block.

    The call's output is the same to the bit. Each picture gives one Trajectory, so a batch gives several; a call that
    raises or is interrupted leaves the steps it took, marked unfinished. Blocks may nest. Calls that another thread
    makes of the same pipeline, and calls of other pipelines that share its parts, are not recorded.

    Arguments:
        pipe: a diffusers pipeline, also a modular one, or a Flux. A call whose scheduler does not follow a rectified
            flow, or whose x no view could display, is not recorded, and one warning gives the reason.
        keep: which steps and tensors to keep; all by default. `Keep(attention="all")` adds how much each place of the
            picture attended to each word of the prompt, under true CFG in the evaluation with the prompt.
        prompts: for calls with prompt embeddings, the prompts that they encode; without them such a call has no words
            to record attention for.

    Raises:
        InputError: not a diffusers pipeline with a scheduler, or attention of a model whose attention is not known.

    Warns:
        RecordingWarning: a record is incomplete, or the numbers of a call are not finite; the call is not affected.
        VersionWarning: a library is newer than the version that fluxnb was tested with; once in a process.

    Example:
        >>> with recording(pipe) as recorder:                                       # doctest: +SKIP
        ...     image = pipe("a fox", num_inference_steps=4).images[0]
        >>> recorder.trajectories[0].steps[0].clean.shape                           # doctest: +SKIP
        torch.Size([4096, 64])
    """
    warn_of_newer_libraries()
    if isinstance(pipe, Remote):
        raise pipe.refusal("recording")
    flux = pipe if isinstance(pipe, Flux) else None
    pipe = pipe if flux is None else flux.pipe
    scheduler = getattr(pipe, "scheduler", None)
    if not hasattr(scheduler, "step") or not hasattr(scheduler, "set_timesteps"):
        raise InputError(
            f"recording({type(pipe).__name__})",
            "a diffusers pipeline with a scheduler is needed",
            'try pipe = fnb.load("pocket").pipe',
        )
    keep = keep or Keep()
    if keep.attention is not None:
        attention_modules(getattr(pipe, "transformer", None), keep.attention, keep.heads)  # refuse before the call
    recorder = Recorder(pipe, keep, flux or _described(pipe), None if prompts is None else list(prompts))
    return _opened(recorder, class_of(pipe))


@contextlib.contextmanager
def _opened(recorder: Recorder, kind: type) -> Iterator[Recorder]:
    def close() -> None:
        recorder._close()
        _OPEN.set(tuple(each for each in _OPEN.get() if each is not recorder))

    with undoing(close):
        _OPEN.set((*_OPEN.get(), recorder))
        with patched_call(kind, functools.partial(_observed, kind)):
            yield recorder


def _described(pipe: Any) -> Flux | None:
    """A handle that describes the pipeline and its preview; None for other pipelines. The pipeline stays as it is."""
    try:
        flux = handle_of(pipe)
        if flux is not None:
            _ = flux.preview
        return flux
    except Exception as problem:
        warn_caller(
            f"recordings of this {type(pipe).__name__} have no recipe ({type(problem).__name__}: {problem})",
            RecordingWarning,
        )
        return None


def _observed(kind: type, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        # A subclass that calls `super().__call__` has a wrapper of its own.
        recorders = [each for each in _OPEN.get() if each._follows(self)] if class_of(self) is kind else []
        if not recorders:
            return original(self, *args, **kwargs)
        with ending_interrupted_calls(self), contextlib.ExitStack() as stack:
            calls: list[_Call] = []
            try:
                given = bound_arguments(types.MethodType(original, self), args, kwargs)
                defaults = _defaults_of(original)
                for each in recorders:
                    calls.append(stack.enter_context(each._call(self, given, defaults)))
                    kwargs = calls[-1].trace.arguments(kwargs)
            except Exception as problem:
                warn_caller(
                    f"a call of {kind.__name__} is not recorded ({type(problem).__name__}: {problem}); "
                    "the picture is not affected",
                    RecordingWarning,
                )
            result = original(self, *args, **kwargs)
            for traced in calls:
                traced.output.append(result)
            return result

    return call


def _defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    return {name: each.default for name, each in parameters.items() if each.default is not inspect.Parameter.empty}
