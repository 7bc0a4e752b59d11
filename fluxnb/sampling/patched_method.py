"""Patching a method of one object, or `__call__` of a class, for the length of a block."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from fluxnb.cleanup import undoing

__all__ = ["Wrapper", "bound_arguments", "own_attribute", "patched_call", "patched_method"]

Wrapper = Callable[..., Any]  # called with the original method and its arguments


class _Patch:
    """A function in the place of a method, active until its block ends."""

    def __init__(self, original: Callable[..., Any], wrapper: Wrapper, replaced: object) -> None:
        functools.update_wrapper(self, original)  # diffusers reads the signature of set_timesteps
        self.original, self.wrapper, self.replaced, self.active = original, wrapper, replaced, True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrapper(self.original, *args, **kwargs) if self.active else self.original(*args, **kwargs)


@contextlib.contextmanager
def patched_method(owner: Any, name: str, wrapper: Wrapper) -> Iterator[None]:
    """Call `wrapper(original, *args, **kwargs)` in place of `owner.name(*args, **kwargs)` inside the block.

    Blocks may nest and may end in any order; the last one to end restores the method.
    """
    patch = _Patch(getattr(owner, name), wrapper, vars(owner).get(name))

    def restore() -> None:
        patch.active = False
        # Blocks that are held by generators may end out of order; the patch on top removes those that ended before it.
        while isinstance(top := vars(owner).get(name), _Patch) and not top.active:
            if top.replaced is None:
                delattr(owner, name)
            else:
                setattr(owner, name, top.replaced)

    with undoing(restore):
        setattr(owner, name, patch)
        yield


@dataclass(eq=False)
class _PatchedClass:
    """A class with a replaced `__call__`.

    Arguments:
        before: the `__call__` that the class itself had, None where it was inherited.
        users: the open blocks.
    """

    before: Any
    users: set[object] = field(default_factory=set)


_PATCHED: dict[Any, _PatchedClass] = {}
_LOCK = threading.Lock()


@contextlib.contextmanager
def patched_call(kind: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Replace `__call__` of a class by `wrap(__call__)` while at least one block with that class is open.

    The blocks of one class share one replacement, so all of them must give the same `wrap`.
    """
    user = object()

    def restore() -> None:
        with _LOCK:
            patched = _PATCHED.get(kind)
            if patched is None:
                return
            patched.users.discard(user)
            if patched.users:
                return
            if patched.before is not None:
                kind.__call__ = patched.before
            elif "__call__" in vars(kind):
                del kind.__call__
            _PATCHED.pop(kind, None)

    with undoing(restore):
        with _LOCK:
            patched = _PATCHED.setdefault(kind, _PatchedClass(vars(kind).get("__call__")))
            patched.users.add(user)
            if len(patched.users) == 1:
                kind.__call__ = wrap(kind.__call__)
        yield


def own_attribute(owner: Any, name: str) -> object:
    """An attribute that is set on the object itself, apart from patches of this module; None without one."""
    found = vars(owner).get(name)
    while isinstance(found, _Patch):
        found = found.replaced
    return found


def bound_arguments(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, positional ones included; pipelines disagree on their order."""
    while isinstance(function, _Patch | functools.partial):
        function = function.original if isinstance(function, _Patch) else function.func
    if not args:
        return dict(kwargs)
    plain = getattr(function, "__func__", None)
    try:
        names = _positional.__wrapped__(function) if plain is None else _positional(plain)[1:]
    except (TypeError, ValueError):  # without a signature
        names = ()
    return {**dict(zip(names, args, strict=False)), **kwargs}


@functools.lru_cache(maxsize=64)  # reading a signature takes as long as a small matrix product
def _positional(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the parameters that may be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, each in inspect.signature(function).parameters.items() if each.kind in kinds)
