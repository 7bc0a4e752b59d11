"""Standing in front of a method, on one instance, for the length of a block, and leaving no trace."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["Around", "bound", "shadow"]

Around = Callable[..., Any]  # called with the original and its arguments


class _Shadow:
    """A function in front of a method, which knows whether it is still wanted."""

    def __init__(self, original: Callable[..., Any], around: Around, before: object) -> None:
        functools.update_wrapper(self, original)  # diffusers reads the signature of set_timesteps
        self.original, self.around, self.before, self.live = original, around, before, True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.around(self.original, *args, **kwargs) if self.live else self.original(*args, **kwargs)


@contextlib.contextmanager
def shadow(owner: Any, name: str, around: Around) -> Iterator[None]:
    """Have `around(original, *args, **kwargs)` called wherever `owner.name(*args, **kwargs)` is, inside the block.

    Blocks may nest and may end in any order; the last one out puts the method back.
    """
    front = _Shadow(getattr(owner, name), around, vars(owner).get(name))
    setattr(owner, name, front)
    try:
        yield
    finally:
        front.live = False
        # Blocks usually end in reverse order; where a generator made them end otherwise, the last one out clears up.
        while isinstance(top := vars(owner).get(name), _Shadow) and not top.live:
            if top.before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, top.before)


def bound(original: Around, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, however they were given; the pipelines disagree on their order."""
    while isinstance(original, _Shadow | functools.partial):
        original = original.original if isinstance(original, _Shadow) else original.func
    function = getattr(original, "__func__", None)
    try:
        if function is None:
            return dict(inspect.signature(original).bind_partial(*args, **kwargs).arguments)
        return dict(_signature(function).bind_partial(None, *args, **kwargs).arguments)
    except (TypeError, ValueError):
        return dict(kwargs)  # a call that will raise anyway, and should raise its own error


# Reading a signature takes as long as a small matrix product, and there are only a handful of these functions.
_signature = functools.lru_cache(maxsize=64)(inspect.signature)
