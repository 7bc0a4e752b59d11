"""Two models of which one at a time is on the device, and the other in page-locked main memory.

A teacher and its student share text encoder and VAE. Where both transformers do not fit beside them, a transformer is
moved to the device when it is called and stays there until the other one is.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fluxnb.runtime.exclusive import ExclusiveGroup

__all__ = ["swap"]


def swap(first: nn.Module, second: nn.Module, device: torch.device) -> None:
    """Let two models take turns on a device; `first` is there now, and `second` is in main memory.

    Exact: the same kernels compute on the same numbers. Calls of both are exclusive, so a thread that calls one waits
    for a thread inside the other.

    Example:
        >>> swap(student.pipe.transformer, teacher.pipe.transformer, torch.device("cuda"))   # doctest: +SKIP
    """
    turns = _Turns(first, second, device)
    group = ExclusiveGroup(device=device)
    for model in (first, second):
        group.add(model, during=functools.partial(turns.on_device, model))


class _Turns:
    """Which of two models is on the device; None while they change places, and after an interrupt in between."""

    def __init__(self, first: nn.Module, second: nn.Module, device: torch.device) -> None:
        self._models, self._device = (first, second), device
        self._main: dict[nn.Parameter, Tensor] = {}  # weights in main memory, allocated once
        for weight in second.parameters():
            self._leave(weight)
        self._there: nn.Module | None = first

    @contextlib.contextmanager
    def on_device(self, model: nn.Module) -> Iterator[None]:
        """Move a model to the device, and the other one away."""
        if model is not self._there:
            self._bring(model)
        yield

    def _bring(self, model: nn.Module) -> None:
        self._there = None
        first, second = self._models
        # One leaves before the other arrives, so that the device never holds both.
        for weight in (second if model is first else first).parameters():
            self._leave(weight)
        for weight in model.parameters():
            if self._is_in_main_memory(weight):
                weight.data = weight.data.to(self._device, copy=True)
        self._there = model

    def _leave(self, weight: nn.Parameter) -> None:
        if self._is_in_main_memory(weight):
            return
        if weight not in self._main:
            empty = torch.empty_like(weight.data, device="cpu")
            self._main[weight] = empty.pin_memory() if torch.cuda.is_available() else empty
        # Copied each time: an adapter may have been fused into the weight since.
        weight.data = self._main[weight].copy_(weight.data)

    def _is_in_main_memory(self, weight: nn.Parameter) -> bool:
        return weight in self._main and weight.data.data_ptr() == self._main[weight].data_ptr()
