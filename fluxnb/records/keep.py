"""Keep: which tensors of which steps a trajectory retains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten, unknown_choice
from fluxnb.records.geometry import FLUX1, Geometry

__all__ = ["BLOCK_GROUPS", "KEPT_TENSORS", "Keep"]

KEPT_TENSORS = ("x", "v", "x_next", "attention")  # names of the tensors that a step can hold
BLOCK_GROUPS = ("all", "double", "single")  # of the blocks of a transformer


@entry_point()
@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which tensors of which steps to keep; sigmas, norms and seconds are kept for every step.

    The default keeps everything but attention. A step of FLUX.1 takes 1 MiB at 1024 px in bfloat16, 32 KiB at
    128 px in float32.

    Arguments:
        steps: indices of the steps to keep, negative ones from the end; None for all.
        every: with `steps=None`, keep each n-th step and the last.
        tensors: any of "x" (input of the model), "v" (its output), "x_next" (output of the scheduler) and "attention"
            (weight that each image token gives to each word of the prompt).
        attention: the blocks over which attention is averaged: "all", "double", "single", or indices, the double
            blocks first; None keeps no attention. Capturing it costs about one more attention call per block, and the
            memory of one such call. A step keeps 4 bytes per image token and word: 16 KiB per word at 1024 px.
        heads: the heads over which attention is averaged; None for all.

    Raises:
        InputError: an unknown name, or indices that are not integers.

    Example:
        >>> [Keep(every=2).wants(i, 5) for i in range(5)]
        [True, False, True, False, True]
        >>> Keep(attention="double", steps=(0, -1)).tensors
        ('x', 'v', 'x_next', 'attention')
    """

    steps: tuple[int, ...] | None = None
    every: int = 1
    tensors: tuple[str, ...] = KEPT_TENSORS[:3]
    attention: str | tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", _names(self.tensors))
        for name in self.tensors:
            if name not in KEPT_TENSORS:
                raise unknown_choice("tensors", name, KEPT_TENSORS)
        if self.attention is not None and "attention" not in self.tensors:
            object.__setattr__(self, "tensors", (*self.tensors, "attention"))
        if self.attention is None and "attention" in self.tensors:
            object.__setattr__(self, "attention", "all")
        if isinstance(self.attention, str):
            if self.attention not in BLOCK_GROUPS:
                raise unknown_choice("attention", self.attention, BLOCK_GROUPS)
        elif self.attention is not None:
            object.__setattr__(self, "attention", _indices("attention", self.attention))
        if self.heads is not None:
            object.__setattr__(self, "heads", _indices("heads", self.heads))
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise InputError(f"every={shorten(self.every)}", "at least 1 is needed", "try every=1 to keep each step")
        if self.steps is not None:
            object.__setattr__(self, "steps", _indices("steps", self.steps))

    @classmethod
    def all(cls) -> Keep:
        """Every tensor of every step, without attention."""
        return cls()

    @classmethod
    def last(cls) -> Keep:
        """Only the last step."""
        return cls(steps=(-1,))

    @classmethod
    def nothing(cls) -> Keep:
        """No tensors; sigmas, norms and seconds only."""
        return cls(tensors=())

    def wants(self, index: int, count: int) -> bool:
        """Whether step `index` of `count` keeps its tensors."""
        if not self.tensors:
            return False
        chosen = self.steps is None or any(index == (i if i >= 0 else count + i) for i in self.steps)
        return chosen and (self.steps is not None or index % self.every == 0 or index == count - 1)

    def nbytes(
        self,
        height: int,
        width: int,
        steps: int,
        *,
        bytes_per_number: int = 4,
        words: int = 0,
        geometry: Geometry = FLUX1,
    ) -> int:
        """An upper bound of the memory that a trajectory of `steps` steps holds, in bytes.

        Arguments:
            height, width: pixels.
            steps: number of steps of the run.
            bytes_per_number: 4 for float32, 2 for bfloat16.
            words: of the prompt; they count only if attention is kept.
            geometry: of the model.

        Example:
            >>> Keep().nbytes(1024, 1024, steps=4, bytes_per_number=2) / 2**20
            4.5
        """
        kept = sum(self.wants(index, steps) for index in range(steps))
        tensor = geometry.numbers(height, width) * bytes_per_number
        # x_next shares the memory of the x of the next step, except for the last step of each run of kept steps.
        last_of_runs = sum(
            self.wants(i, steps) and (i + 1 == steps or not self.wants(i + 1, steps)) for i in range(steps)
        )
        per_step = sum(name in self.tensors for name in ("x", "v"))
        attention = kept * geometry.tokens(height, width) * words * 4 if "attention" in self.tensors else 0
        if "x_next" not in self.tensors:
            return kept * per_step * tensor + attention
        return (kept * per_step + (last_of_runs if "x" in self.tensors else kept)) * tensor + attention


def _names(given: object) -> tuple[Any, ...]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InputError(f"tensors={shorten(given)}", "names of tensors are listed", 'try tensors=("x", "v")')
    return tuple(given)


def _indices(name: str, given: object) -> tuple[int, ...]:
    found = tuple(given) if isinstance(given, Iterable) else (given,)
    if any(isinstance(index, bool) or not isinstance(index, int) for index in found):
        raise InputError(f"{name}={shorten(given)}", "indices are integers", f"try {name}=(0, -1)")
    return found
