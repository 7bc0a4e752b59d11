"""Keep: how much of a run its record holds."""

from __future__ import annotations

from dataclasses import dataclass

from fluxnb.errors import InputError, checks_itself, cut, one_of

__all__ = ["KINDS", "Keep"]

KINDS = ("x", "v", "x_next")  # what a step can keep


@checks_itself
@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which steps and which tensors of a run to keep; sigmas, norms and seconds are kept for every step.

    The default keeps all: at 1024 px in bfloat16 a step is 1 MiB, at 128 px in float32 32 KiB.

    Arguments:
        steps: None for all, or the indices to keep; negative ones count from the end.
        every: of the chosen steps only each n-th, and always the last.
        tensors: of "x" (what the model saw), "v" (what it answered) and "x_next" (what the scheduler made of it).

    Example:
        >>> [Keep(every=2).wants(i, 5) for i in range(5)]
        [True, False, True, False, True]
    """

    steps: tuple[int, ...] | None = None
    every: int = 1
    tensors: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", tuple(self.tensors))
        for name in self.tensors:
            if name not in KINDS:
                raise one_of("tensors", name, KINDS)
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise InputError(f"every={cut(self.every)}", "at least 1 is needed", "try every=1 to keep each step")
        if self.steps is not None:
            steps = tuple(self.steps)
            if any(isinstance(index, bool) or not isinstance(index, int) for index in steps):
                raise InputError(f"steps={cut(steps)}", "they are step indices", "try steps=(0, -1)")
            object.__setattr__(self, "steps", steps)

    @classmethod
    def all(cls) -> Keep:
        """Every tensor of every step."""
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

    def nbytes(self, height: int, width: int, steps: int, bytes_per_number: int = 4) -> int:
        """The most memory a run of so many steps and pixels will hold, in bytes.

        Example:
            >>> Keep().nbytes(1024, 1024, steps=4, bytes_per_number=2) / 2**20
            4.5
        """
        kept = sum(self.wants(index, steps) for index in range(steps))
        number = height * width // 4 * bytes_per_number  # 64 numbers for 256 pixels
        # x_next is the next step's x and shares its memory, but for the last of each kept stretch.
        stretches = sum(self.wants(i, steps) and (i + 1 == steps or not self.wants(i + 1, steps)) for i in range(steps))
        per_step = sum(name in self.tensors for name in ("x", "v"))
        if "x_next" not in self.tensors:
            return kept * per_step * number
        return (kept * per_step + (stretches if "x" in self.tensors else kept)) * number
