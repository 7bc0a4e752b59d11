"""What fluxnb remembers about a pipeline for as long as the pipeline lives."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from fluxnb.records.latents import LinearRGB

ENCODINGS = 8  # prompts; at full size each takes 2 to 8 MB on the device

T = TypeVar("T")

__all__ = ["PipelineState", "original_of", "state_of"]


@dataclass(eq=False)
class PipelineState:
    """The lock, the known facts and the caches of one pipeline; nothing in it refers to the pipeline.

    Arguments:
        lock: held while one of our calls uses the pipeline, so that calls of several threads follow each other.
        facts: model, revision, defaults and plan, from which `Flux` handles are made; empty until the first.
        timings: seconds per evaluation by picture size, for cost estimates.
        encodings: of the prompts that were encoded last, see `encoded`.
    """

    lock: Any = field(default_factory=threading.RLock)
    facts: dict[str, Any] = field(default_factory=dict)
    timings: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    encodings: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    _preview: tuple[weakref.ref[Any], LinearRGB | None] | None = None

    def encoded(self, key: tuple[Any, ...], encode: Callable[[], T]) -> T:
        """The encoding with this key, computed where it is not among the last `ENCODINGS`.

        Arguments:
            key: everything that decides the encoding.
        """
        found = self.encodings.pop(key) if key in self.encodings else encode()
        self.encodings[key] = found  # at the end: the first one was used the longest time ago
        while len(self.encodings) > ENCODINGS:
            del self.encodings[next(iter(self.encodings))]
        return cast(T, found)

    def preview(self, vae: Any) -> LinearRGB | None:
        """The linear preview that was fitted to this VAE; None before, and where none can be fitted."""
        known = self._preview
        return known[1] if known is not None and known[0]() is vae else None

    def has_preview(self, vae: Any) -> bool:
        """Whether a preview of this VAE was fitted, or found to be impossible."""
        return self._preview is not None and self._preview[0]() is vae

    def keep_preview(self, vae: Any, preview: LinearRGB | None) -> None:
        """Remember the preview of a VAE, or that none can be fitted; another VAE has another preview."""
        self._preview = (weakref.ref(vae), preview)


_STATES: weakref.WeakKeyDictionary[Any, PipelineState] = weakref.WeakKeyDictionary()
_CREATING = threading.Lock()
_ORIGINAL = "_fluxnb_original"  # on a view: a weak reference to the pipeline that it was made from


def state_of(pipe: Any) -> PipelineState:
    """The state of a pipeline, created when first needed; a view shares the state of its original."""
    pipe = original_of(pipe)
    with _CREATING:
        if pipe not in _STATES:
            _STATES[pipe] = PipelineState()
        return _STATES[pipe]


def original_of(pipe: Any) -> Any:
    """The pipeline that a view was made from, or the pipeline itself."""
    reference = getattr(pipe, "__dict__", {}).get(_ORIGINAL)
    original = None if reference is None else reference()
    return pipe if original is None else original


def mark_as_view(view: Any, original: Any) -> None:
    """Note on a view which pipeline it was made from."""
    vars(view)[_ORIGINAL] = weakref.ref(original)
