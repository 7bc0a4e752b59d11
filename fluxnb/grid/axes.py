"""Axes of a grid: the Cartesian product of values for the fields of a recipe."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any, TypedDict, Unpack

from fluxnb.arguments import EXAMPLES, entry_point
from fluxnb.errors import InputError, shorten
from fluxnb.records.recipe import Recipe

__all__ = ["Axes", "FurtherAxes"]


class AxisValues(TypedDict, total=False):
    """Values for the fields of a recipe."""

    prompt: Iterable[str]
    seed: Iterable[int]
    steps: Iterable[int]
    negative: Iterable[str | None]
    height: Iterable[int | None]
    width: Iterable[int | None]
    guidance: Iterable[float | None]
    sampler: Iterable[str]
    sigmas: Iterable[Iterable[float] | None]
    shift: Iterable[float | None]
    max_sequence_length: Iterable[int | None]
    model: Iterable[str | None]
    revision: Iterable[str | None]
    dtype: Iterable[str | None]


class FurtherAxes(TypedDict, total=False):
    """The axes beside prompts, seeds and steps, each given as one value or several."""

    negative: str | Iterable[str | None] | None
    height: int | Iterable[int | None] | None
    width: int | Iterable[int | None] | None
    guidance: float | Iterable[float | None] | None
    sampler: str | Iterable[str]
    sigmas: Iterable[float] | Iterable[Iterable[float] | None] | None
    shift: float | Iterable[float | None] | None
    max_sequence_length: int | Iterable[int | None] | None
    model: str | Iterable[str | None] | None
    revision: str | Iterable[str | None] | None
    dtype: str | Iterable[str | None] | None


class Axes:
    """The Cartesian product of values for some fields of a base recipe.

    Iteration yields the recipes, with the last axis varying fastest. The order depends on the arguments alone.

    Arguments:
        base: the recipe whose fields are replaced.
        values: field names and lists of values.

    Raises:
        InputError: no such field, an empty list, or a value that a recipe cannot have.

    Example:
        >>> grid = Axes(Recipe(prompt="a fox"), seed=[1, 2], steps=[1, 4])
        >>> len(grid), [(r.seed, r.steps) for r in grid]
        (4, [(1, 1), (1, 4), (2, 1), (2, 4)])
    """

    @entry_point(accepts=AxisValues, base=EXAMPLES["recipe"].removeprefix("recipe="))
    def __init__(self, base: Recipe, **values: Unpack[AxisValues]) -> None:
        self.base = base
        self.values: dict[str, tuple[Any, ...]] = {}
        for name, given in values.items():
            if isinstance(given, str | bytes) or not isinstance(given, Iterable):
                raise InputError(
                    f"{name}={shorten(given)}", "an axis is a list of values", f"try {name}=[{shorten(given)}]"
                )
            # The recipe normalizes the values, so that np.int64(3), 3 and a repeated 3 are one value.
            checked = tuple(dict.fromkeys(getattr(base.replace(**{name: value}), name) for value in given))
            if not checked:
                raise InputError(f"{name}=[]", "an axis needs at least one value", f"leave {name} out or fill it")
            self.values[name] = checked

    @classmethod
    @entry_point("prompts", "seeds", "steps", accepts=FurtherAxes)
    def of(
        cls,
        base: Recipe | None = None,
        *,
        prompts: str | Iterable[str],
        seeds: int | Iterable[int] | None = None,
        steps: int | Iterable[int] | None = None,
        **further: Unpack[FurtherAxes],
    ) -> Axes:
        """The grid of prompts x seeds x steps and further fields, each given as one value or several.

        Seeds and steps that are left out are those of the base recipe.

        Raises:
            InputError: no prompt, no such field, or a value that a recipe cannot have.

        Example:
            >>> Axes.of(prompts="a fox", seeds=range(4), steps=[1, 4])
            Axes(1 prompt x 4 seed x 2 steps = 8)
        """
        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not texts:
            raise InputError("prompts=[]", "at least one prompt is needed", 'try prompts=["a fox in the snow"]')
        base = base or Recipe(prompt=texts[0])
        values: dict[str, list[Any]] = {
            "prompt": texts,
            "seed": [base.seed] if seeds is None else _as_list(seeds),
            "steps": [base.steps] if steps is None else _as_list(steps),
        }
        values.update({name: _as_list(given) for name, given in further.items()})
        if "sigmas" in values:
            # A schedule is a list itself, so an axis of schedules is a list of lists.
            is_schedule = all(isinstance(level, int | float) for level in values["sigmas"])
            values["sigmas"] = [tuple(values["sigmas"])] if is_schedule else values["sigmas"]
            values.pop("steps")  # a schedule determines the number of steps
        return cls(base, **values)

    @property
    def displayed(self) -> dict[str, tuple[Any, ...]]:
        """The axes that records and views display: prompt, seed and steps, and every other with several values."""
        always = ("prompt", "seed", "steps")
        return {name: values for name, values in self.values.items() if name in always or len(values) > 1}

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of values of each axis."""
        return tuple(len(given) for given in self.values.values())

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __iter__(self) -> Iterator[Recipe]:
        for combination in itertools.product(*self.values.values()):
            yield self.base.replace(**dict(zip(self.values, combination, strict=True)))

    def __repr__(self) -> str:
        sizes = " x ".join(f"{len(given)} {name}" for name, given in self.values.items())
        return f"Axes({sizes or '1 recipe'} = {len(self)})"


def _as_list(given: Any) -> list[Any]:
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        return list(given)
    return [given]
