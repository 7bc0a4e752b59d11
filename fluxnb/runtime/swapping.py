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
    """Which of two models is on the device."""

    def __init__(self, first: nn.Module, second: nn.Module, device: torch.device) -> None:
        self._device, self._there, self._other = device, first, second
        self._main: dict[nn.Parameter, Tensor] = {}  # weights in main memory, allocated once
        for weight in second.parameters():
            weight.data = self._main_memory(weight).copy_(weight.data)

    @contextlib.contextmanager
    def on_device(self, model: nn.Module) -> Iterator[None]:
        """Move a model to the device, and the other one away."""
        if model is not self._there:
            self._exchange()
        yield

    def _exchange(self) -> None:
        leaving, arriving = self._there, self._other
        # Weight by weight, so that the device never holds both models. An interrupt in between leaves each weight in
        # one of the two places; the next call moves the rest.
        self._there, self._other = arriving, leaving
        for weight in leaving.parameters():
            main = self._main_memory(weight)
            if weight.data.data_ptr() != main.data_ptr():
                # Copied back each time: an adapter may have been fused into the weight since.
                weight.data = main.copy_(weight.data)
        for weight in arriving.parameters():
            weight.data = weight.data.to(self._device, copy=True)

    def _main_memory(self, weight: nn.Parameter) -> Tensor:
        if weight not in self._main:
            empty = torch.empty_like(weight.data, device="cpu")
            self._main[weight] = empty.pin_memory() if torch.cuda.is_available() else empty
        return self._main[weight]
