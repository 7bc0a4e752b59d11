"""Keep: how much of a run its record holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fluxnb.errors import InputError, shorten, unknown_choice, validates_own_input

__all__ = ["GROUPS", "KINDS", "Keep"]

KINDS = ("x", "v", "x_next", "attention")  # what a step can keep
GROUPS = ("all", "double", "single")  # of a transformer's blocks


@validates_own_input
@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which steps and which tensors of a run to keep; sigmas, norms and seconds are kept for every step.

    The default keeps all but attention: at 1024 px in bfloat16 a step is 1 MiB, at 128 px in float32 32 KiB.

    Arguments:
        steps: None for all, or the indices to keep; negative ones count from the end.
        every: of the chosen steps only each n-th, and always the last.
        tensors: of "x" (what the model saw), "v" (what it answered), "x_next" (what the scheduler made of it) and
            "attention" (how much each place of the picture looked at each word of the prompt).
        attention: over which blocks of the transformer attention is averaged: "all", "double", "single", or
            indices, the double blocks first. None keeps none. Looking costs about one more attention call a block,
            and while the model runs the memory of one; what is kept is 4 bytes for each image token and word, so at
            1024 px 16 KiB a word and step.
        heads: over which heads attention is averaged; None for all.

    Example:
        >>> [Keep(every=2).wants(i, 5) for i in range(5)]
        [True, False, True, False, True]
        >>> Keep(attention="double", steps=(0, -1)).tensors
        ('x', 'v', 'x_next', 'attention')
    """

    steps: tuple[int, ...] | None = None
    every: int = 1
    tensors: tuple[str, ...] = KINDS[:3]
    attention: str | tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", tuple(self.tensors))
        for name in self.tensors:
            if name not in KINDS:
                raise unknown_choice("tensors", name, KINDS)
        if self.attention is not None and "attention" not in self.tensors:
            object.__setattr__(self, "tensors", (*self.tensors, "attention"))
        if self.attention is None and "attention" in self.tensors:
            object.__setattr__(self, "attention", "all")
        if isinstance(self.attention, str) and self.attention not in GROUPS:
            raise unknown_choice("attention", self.attention, GROUPS)
        for name, indices in (("attention", self.attention), ("heads", self.heads)):
            if indices is not None and not isinstance(indices, str):
                object.__setattr__(self, name, _indices(name, indices))
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise InputError(f"every={shorten(self.every)}", "at least 1 is needed", "try every=1 to keep each step")
        if self.steps is not None:
            object.__setattr__(self, "steps", _indices("steps", self.steps))

    @classmethod
    def all(cls) -> Keep:
        """Every tensor of every step; attention is no part of it."""
        return cls()

    @classmethod
    def last(cls) -> Keep:
        """The last step alone."""
        return cls(steps=(-1,))

    @classmethod
    def nothing(cls) -> Keep:
        """No tensors; the sigmas, norms and seconds remain."""
        return cls(tensors=())

    def wants(self, index: int, count: int) -> bool:
        """Whether step `index` of `count` keeps its tensors."""
        if not self.tensors:
            return False
        chosen = self.steps is None or any(index == (i if i >= 0 else count + i) for i in self.steps)
        return chosen and (self.steps is not None or index % self.every == 0 or index == count - 1)

    def nbytes(self, height: int, width: int, steps: int, bytes_per_number: int = 4, words: int = 0) -> int:
        """The most memory a run of so many steps and pixels will hold, in bytes; `words` count for attention alone.

        Example:
            >>> Keep().nbytes(1024, 1024, steps=4, bytes_per_number=2) / 2**20
            4.5
        """
        kept = sum(self.wants(index, steps) for index in range(steps))
        number = height * width // 4 * bytes_per_number  # 64 numbers for 256 pixels
        # x_next is the next step's x and shares its memory, but for the last of each kept stretch.
        stretches = sum(self.wants(i, steps) and (i + 1 == steps or not self.wants(i + 1, steps)) for i in range(steps))
        per_step = sum(name in self.tensors for name in ("x", "v"))
        looked = kept * (height * width // 256) * words * 4 if "attention" in self.tensors else 0
        if "x_next" not in self.tensors:
            return kept * per_step * number + looked
        return (kept * per_step + (stretches if "x" in self.tensors else kept)) * number + looked


def _indices(name: str, given: object) -> tuple[int, ...]:
    found = tuple(given) if isinstance(given, Iterable) else (given,)
    if any(isinstance(index, bool) or not isinstance(index, int) for index in found):
        raise InputError(f"{name}={shorten(given)}", "they are indices", f"try {name}=(0, -1)")
    return found
