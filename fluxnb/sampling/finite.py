"""Whether what the network answers are numbers, asked without making the device wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxnb.errors import RunError
from fluxnb.records import Step
from fluxnb.records.recipe import ResolvedRecipe

__all__ = ["Finite"]


class Finite:
    """Looks at the velocities of a walk; its error comes instead of a picture that would have been grey.

    Arguments:
        recipes: of the pictures of the batch, in order, for the words of the error.

    Example:
        >>> numbers = Finite([recipe])                                              # doctest: +SKIP
        >>> numbers.check(v, step, late=True), numbers.settle()                     # doctest: +SKIP
    """

    def __init__(self, recipes: Sequence[ResolvedRecipe]) -> None:
        self._recipes = recipes
        self._asked: tuple[Tensor, Any, Callable[[int], Step]] | None = None

    def check(self, v: Tensor, step: Callable[[int], Step], *, late: bool) -> None:
        """Look at the velocities (batch, tokens, 64) of a step; `step` gives the record of one picture's.

        With `late` the answer is read when the next step is there, or by `settle`: a GPU would stand still while the
        host waited for it.

        Raises:
            RunError: they are not all numbers, or with `late` those of the step before were not.
        """
        self.settle()
        finite = torch.isfinite(v).flatten(1).all(1).to("cpu", non_blocking=True)
        copied = torch.cuda.Event() if v.is_cuda else None
        if copied is not None:
            copied.record()
        self._asked = finite, copied, step
        if not late:
            self.settle()

    def settle(self) -> None:
        """Read the answer that is still owed; raises as `check` does."""
        asked, self._asked = self._asked, None
        if asked is None:
            return
        finite, copied, step = asked
        if copied is not None:
            copied.synchronize()
        if not bool(finite.all()):
            item = int((~finite).nonzero()[0])
            raise _not_a_number(step(item), self._recipes[item])


def _not_a_number(step: Step, recipe: ResolvedRecipe) -> RunError:
    advice = "load a float32 model and compare"
    if recipe.dtype == "float16":
        advice = 'load with dtype="bfloat16" or dtype="float32": float16 overflows above 65504'
    elif recipe.dtype == "bfloat16":
        advice = 'load with dtype="float32"; if it stays, the weights themselves may be damaged'
    return RunError(
        f"the velocity of step {step.index} (sigma {step.sigma:.3g}, {recipe.dtype}) is not finite",
        "a walk needs finite numbers, so it was stopped there",
        advice,
    )
