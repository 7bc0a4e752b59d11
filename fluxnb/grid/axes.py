"""A grid of recipes: Axes says which, and reads what somebody typed for prompts, seeds and steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

from fluxnb.errors import InputError, shorten, unknown_choice, validates_own_input
from fluxnb.records.recipe import Recipe

__all__ = ["Axes"]


class Axes:
    """A grid of recipes: one base and, for some of its fields, the values to go through.

    Iterating gives the recipes, the last axis fastest. A pure value: same base, same axes, same order.

    Example:
        >>> grid = Axes(Recipe(prompt="a fox"), seed=[1, 2], steps=[1, 4])
        >>> len(grid), [(r.seed, r.steps) for r in grid]
        (4, [(1, 1), (1, 4), (2, 1), (2, 4)])
    """

    @validates_own_input
    def __init__(self, base: Recipe, **values: Iterable[Any]) -> None:
        known = [field.name for field in fields(Recipe)]
        self.base = base
        self.values: dict[str, tuple[Any, ...]] = {}
        for name, given in values.items():
            if name not in known:
                raise unknown_choice("axis", name, known)
            if isinstance(given, str | bytes) or not isinstance(given, Iterable):
                raise InputError(
                    f"{name}={shorten(given)}", "an axis is a list of values", f"try {name}=[{shorten(given)}]"
                )
            # Through the recipe's own check, so that np.int64(3), 3 and a doubled 3 are one value.
            checked = tuple(dict.fromkeys(getattr(base.replace(**{name: value}), name) for value in given))
            if not checked:
                raise InputError(f"{name}=[]", "an axis needs at least one value", f"leave {name} out or fill it")
            self.values[name] = checked

    @classmethod
    @validates_own_input
    def of(
        cls,
        base: Recipe | None = None,
        *,
        prompts: str | Iterable[str],
        seeds: int | Iterable[int] = 0,
        steps: int | Iterable[int] = 4,
        **further: Any,
    ) -> Axes:
        """The grid of prompts x seeds x steps and of any further field, each one value or several.

        Raises:
            InputError: no prompt, no such field, or a value that a recipe cannot have.

        Example:
            >>> Axes.of(prompts="a fox", seeds=range(4), steps=[1, 4])
            Axes(1 prompt x 4 seed x 2 steps = 8)
        """
        words = [prompts] if isinstance(prompts, str) else list(prompts)
        if not words:
            raise InputError("prompts=[]", "at least one prompt is needed", 'try prompts=["a fox in the snow"]')
        values: dict[str, list[Any]] = {"prompt": words, "seed": _several(seeds), "steps": _several(steps)}
        for name, given in further.items():
            if name in ("prompt", "seed"):
                raise InputError(f"{name}={shorten(given)}", f"the axis is called {name}s", f"say {name}s=...")
            # Own sigmas are a list already, so an axis of them is a list of lists.
            one = given is not None and name == "sigmas" and all(isinstance(level, int | float) for level in given)
            values[name] = [tuple(given)] if one else _several(given)
        if "sigmas" in values:
            values.pop("steps")  # each list of sigmas has its own count
        return cls(base or Recipe(prompt=words[0]), **values)

    @property
    def shown(self) -> dict[str, tuple[Any, ...]]:
        """The axes as records and views have them: the three that every grid has, and those with several values."""
        usual = ("prompt", "seed", "steps")
        return {name: values for name, values in self.values.items() if name in usual or len(values) > 1}

    @property
    def shape(self) -> tuple[int, ...]:
        """How many values each axis has, in order."""
        return tuple(len(given) for given in self.values.values())

    def __len__(self) -> int:
        return math.prod(self.shape)

    def __iter__(self) -> Iterator[Recipe]:
        for chosen in itertools.product(*self.values.values()):
            yield self.base.replace(**dict(zip(self.values, chosen, strict=True)))

    def __repr__(self) -> str:
        sizes = " x ".join(f"{len(given)} {name}" for name, given in self.values.items())
        return f"Axes({sizes or '1 recipe'} = {len(self)})"


def _several(given: Any) -> list[Any]:
    if isinstance(given, Iterable) and not isinstance(given, str | bytes):
        return list(given)
    return [given]
