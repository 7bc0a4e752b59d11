"""Exclusive forward passes: one thread at a time calls modules that hold state while they run.

An adaLN cache, CUDA graphs, streamed weights and diffusers' CPU offload keep state in the modules themselves: which row
is displayed, which weights are on the device. Two threads inside such a module read each other's state. The modules
that share state form a group with one lock. A forward pre-hook takes the lock and an always-called forward hook
releases it, so every caller is covered: a Flux handle, a plain `pipe(...)` and a raw `pipe.transformer(...)`.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import nn

from fluxnb.cleanup import undoing
from fluxnb.runtime.compat import (
    has_stateful_hooks,
    model_offload_hooks,
    models_of,
    module_call_frame,
    tokenizer_method,
)

__all__ = ["ExclusiveGroup", "ending_interrupted_calls", "group_of", "protect"]

# A call that was interrupted releases nothing (PyTorch calls hooks after an Exception, not after a KeyboardInterrupt).
# A waiting thread looks for such calls once per interval.
CHECK_INTERVAL = 0.05  # seconds

F = TypeVar("F", bound=Callable[..., Any])

_GROUPS: weakref.WeakKeyDictionary[Any, ExclusiveGroup] = weakref.WeakKeyDictionary()


def group_of(part: Any) -> ExclusiveGroup | None:
    """The group that a module or tokenizer was added to, if any."""
    return _GROUPS.get(part)


@dataclass(eq=False)
class _Hold:
    """One acquisition of the lock, granted or awaited, by the call that runs in this frame.

    An interrupt may arrive at any instruction of an acquisition or a release. The frame then ends, and with it the
    hold, wherever it stands.
    """

    frame: FrameType
    thread: int = field(default_factory=threading.get_ident)
    cleanup: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    gate: Any = field(default_factory=threading.Lock)  # locked while the hold waits for its turn

    def has_ended(self) -> bool:
        """Whether the frame returned or raised without releasing the lock."""
        try:
            self.frame.clear()  # documented to raise while the frame is executing, in any thread
        except RuntimeError:
            return False
        return True


class ExclusiveGroup:
    """Modules that one thread at a time may call, with a lock that is re-entrant and first come, first served.

    A call that ends without releasing the lock, as after a KeyboardInterrupt, is found by the next acquisition, and
    its `during` block is closed then.

    Arguments:
        modules: see `add`.
        device: where they compute. On CUDA, a call on another stream waits for the work of the call before it.

    Example:
        >>> group = ExclusiveGroup(pipe.transformer)                                # doctest: +SKIP
    """

    def __init__(self, *modules: nn.Module, device: torch.device | None = None) -> None:
        self._device = device
        # Of the locks of `threading`, Lock and RLock alone are entered and left in one instruction. Condition, Event
        # and Semaphore are Python code, in which an interrupt leaves them locked.
        self._guard = threading.RLock()
        self._holds: list[_Hold] = []  # of one thread, the outermost first
        self._queue: deque[_Hold] = deque()
        self._stream: Any = None
        for module in modules:
            self.add(module)

    def __repr__(self) -> str:
        return f"ExclusiveGroup({'held' if self._holds else 'free'}, {len(self._queue)} waiting)"

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied module gets a lock of its own; copies made in one `deepcopy` share one.
        return functools.partial(ExclusiveGroup, device=self._device), ()

    def add(self, module: nn.Module, during: Callable[[], AbstractContextManager[Any]] | None = None) -> None:
        """Make calls of a module exclusive.

        Arguments:
            during: makes a context manager that is entered once the lock is held and left before it is released.
        """
        hooks = _Hooks(self, during)
        module.register_forward_pre_hook(hooks.before, prepend=True)
        module.register_forward_hook(hooks.after, always_call=True)
        _GROUPS[module] = self

    def wrap(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A function that calls `method` while holding the lock, for methods that run without module hooks."""
        return functools.wraps(method)(_ExclusiveMethod(self, method))

    def acquire(self, hold: _Hold) -> None:
        """Wait for the lock and take it."""
        with self._guard:
            self._drop_ended()
            if self._is_due(hold):
                self._holds.append(hold)
            else:
                hold.gate.acquire()
                self._queue.append(hold)
        while not self._is_granted(hold):
            hold.gate.acquire(timeout=CHECK_INTERVAL)
        if len(self._holds) == 1:
            self._follow_stream()

    def release(self, frame: FrameType) -> None:
        """Undo the acquisition by this frame; without effect if there is none."""
        with self._guard:
            for hold in [hold for hold in self._holds if hold.frame is frame][-1:]:
                self._end(hold)

    def drop_ended(self) -> None:
        """Release the lock where a call that held it was interrupted, and with it the tensors of that call."""
        with self._guard:
            self._drop_ended()

    def _end(self, hold: _Hold) -> None:
        try:
            hold.cleanup.close()
        finally:
            self._holds.remove(hold)
            self._drop_ended()
            if self._queue and self._queue[0].gate.locked():
                self._queue[0].gate.release()

    def _is_due(self, hold: _Hold) -> bool:
        """Whether nothing precedes this hold."""
        if self._holds:
            return self._holds[0].thread == hold.thread
        return not self._queue or self._queue[0] is hold

    def _is_granted(self, hold: _Hold) -> bool:
        """Whether this hold has the lock; the first of the queue gets it here once it is due."""
        with self._guard:
            if hold in self._holds:
                return True
            self._drop_ended()
            if not self._is_due(hold):
                return False
            self._holds.append(hold)
            self._queue.remove(hold)
            return True

    def _drop_ended(self) -> None:
        for hold in [hold for hold in self._queue if hold.has_ended()]:
            self._queue.remove(hold)
        for hold in [hold for hold in self._holds if hold.has_ended()]:
            hold.cleanup.close()
            self._holds.remove(hold)

    def _follow_stream(self) -> None:
        if self._device is None or self._device.type != "cuda" or torch.cuda.is_current_stream_capturing():
            return
        stream = torch.cuda.current_stream(self._device)
        if self._stream is not None and stream != self._stream:
            stream.wait_stream(self._stream)
        self._stream = stream


# The compiler cannot trace locks and frames. diffusers has imported it by the time a model is loaded.
_not_compiled: Callable[[F], F] = torch.compiler.disable


@dataclass(eq=False)
class _Hooks:
    group: ExclusiveGroup
    during: Callable[[], AbstractContextManager[Any]] | None

    @_not_compiled
    def before(self, _: nn.Module, __: Any) -> None:
        hold = _Hold(module_call_frame())
        self.group.acquire(hold)
        if self.during is not None:
            hold.cleanup.enter_context(self.during())

    @_not_compiled
    def after(self, *_: Any) -> None:
        # Also runs when a pre-hook before ours raised, in which case this call holds nothing.
        self.group.release(module_call_frame())


@dataclass(eq=False)
class _ExclusiveMethod:
    group: ExclusiveGroup
    method: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe()
        self.group.acquire(_Hold(frame))
        try:
            return self.method(*args, **kwargs)
        finally:
            self.group.release(frame)


def protect(pipe: Any, device: torch.device | None = None) -> None:
    """Make the parts of a pipeline exclusive that hold state during a call.

    These are the tokenizers, whose padding and truncation are set by each call, and the models with hooks of diffusers'
    offloading. Under `enable_model_cpu_offload` the call of one model moves another to the CPU, so all of them form one
    group; otherwise each part is a group of its own. Parts that belong to a group already keep it.

    Example:
        >>> pipe.enable_model_cpu_offload()                                         # doctest: +SKIP
        >>> protect(pipe)                                                           # doctest: +SKIP
    """
    parts = [part for part in pipe.components.values() if part is not None and group_of(part) is None]
    models = [part for part in parts if isinstance(part, nn.Module)]
    if models and (hooks := model_offload_hooks(pipe)):
        shared = ExclusiveGroup(device=device)
        pipe.maybe_free_model_hooks = _OffloadAll(pipe, shared, hooks)
        for model in models:
            _add_with_methods(shared, model)
    else:
        for model in filter(has_stateful_hooks, models):
            _add_with_methods(ExclusiveGroup(device=device), model)
    for part in parts:
        if name := tokenizer_method(part):
            _GROUPS[part] = group = ExclusiveGroup()
            setattr(part, name, group.wrap(getattr(part, name)))


def ending_interrupted_calls(pipe: Any) -> AbstractContextManager[None]:
    """At the end of the block, release the locks and the tensors of a pipeline's calls that were interrupted in it.

    Without the block, the next call of the same part releases them.

    Example:
        >>> with ending_interrupted_calls(pipe):                                    # doctest: +SKIP
        ...     image = pipe("a fox").images[0]
    """
    return undoing(functools.partial(_end_interrupted_calls, pipe))


def _end_interrupted_calls(pipe: Any) -> None:
    for group in {group for model in models_of(pipe) if (group := group_of(model)) is not None}:
        group.drop_ended()


def _add_with_methods(group: ExclusiveGroup, model: nn.Module) -> None:
    group.add(model)
    for name in ("encode", "decode"):  # an autoencoder's entry points, which run without module hooks
        if hasattr(model, name):
            setattr(model, name, group.wrap(getattr(model, name)))


@dataclass(eq=False)
class _OffloadAll:
    """In place of `pipe.maybe_free_model_hooks`, which removes and re-creates every hook, also of calls in progress."""

    pipe: Any
    group: ExclusiveGroup
    hooks: list[Any]

    def __call__(self) -> None:
        if model_offload_hooks(self.pipe) is not self.hooks:  # the caller has enabled or removed offloading since
            type(self.pipe).maybe_free_model_hooks(self.pipe)
            return
        for component in self.pipe.components.values():
            if hasattr(component, "_reset_stateful_cache"):
                component._reset_stateful_cache()
        self.group.wrap(self._offload)()

    def _offload(self) -> None:
        for hook in self.hooks:
            hook.offload()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
