"""The making of a grid: each cell claimed, walked once, sharing what its neighbours have walked already.

Recipes that start from the same prompt and noise are walked one after the other, and each goes on from the longest
beginning that one before it has in common with it. With a batch, several such starts are walked side by side.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from fluxnb.flow import share_prefixes
from fluxnb.grid.decode_workers import Finisher, Sampled
from fluxnb.grid.store import Store
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.prompts import Encoded
from fluxnb.records import Cell, Keep, Step, Trajectory
from fluxnb.records.recipe import Recipe
from fluxnb.sampling.sampler import STOP, Watcher, take_together

__all__ = ["Making", "starts", "text_of"]

PATIENCE = 0.05  # seconds between looks at a cell that another process is making
SIGN = 10.0  # seconds between signs of life for claims that are held


@dataclass(eq=False)
class Start:
    """Recipes that differ in nothing but the way they go, and the walks made of them so far."""

    recipes: list[Recipe]
    trajectories: list[Trajectory] = field(default_factory=list)


@dataclass(kw_only=True, eq=False)
class Making:
    """One grid under way.

    Arguments:
        flux: from `fnb.load`.
        store: where cells are looked for and written, None for nowhere.
        keep: what stays of the walks, None for nothing.
        batch: how many pictures are walked side by side; 1 is exact.
        watcher: called with each Step that is computed and its recipe; returning STOP ends the making.
        beside: True decodes and writes beside the walking, and cells come a little later for it.
    """

    flux: Flux
    store: Store | None = None
    keep: Keep | None = None
    batch: int = 1
    watcher: Watcher | None = None
    beside: bool = False
    evaluations: int = field(default=0, init=False)
    encodes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._prompts: OrderedDict[tuple[Any, ...], tuple[Encoded, float]] = OrderedDict()
        self._claims: dict[str, ExitStack] = {}
        self._signed, self._stopped = time.monotonic(), False

    def cells(self, recipes: Sequence[Recipe]) -> Generator[Cell, None, None]:
        """The cells of resolved recipes as they finish, those that the store has first.

        Raises:
            KeyboardInterrupt: stopped; every walk that was at its end is a cell by then.
        """
        missing: list[Recipe] = []
        for recipe in recipes:
            if (found := self.stored(recipe)) is not None:
                yield found
            else:
                missing.append(recipe)
        others: list[Recipe] = []  # being made by other processes
        spread = self.batch > 1
        size = max(((each.height or 0, each.width or 0) for each in missing), key=math.prod, default=(0, 0))
        finisher = Finisher(self.flux, self.store, self.keep, size=size, beside=self.beside, spread=spread)
        try:
            for together in _companies(starts(missing), self.batch):
                for members in _rounds(together):
                    yield from self._walk(members, finisher, others)
                    yield from finisher.ready()
            yield from finisher.ready(all=True)
            for recipe in others:
                yield from self._await(recipe, finisher)
        except KeyboardInterrupt:
            yield from finisher.ready(all=True)
            raise
        finally:
            finisher.close()
            for key in list(self._claims):
                self._release(key)

    def _walk(
        self, members: Sequence[tuple[Start, Recipe]], finisher: Finisher, others: list[Recipe]
    ) -> Iterator[Cell]:
        """Claim what of these is still missing and walk it; yields what was finished elsewhere in the meantime."""
        levels = self.flux.schedule(members[0][1])
        by_count: dict[int, list[tuple[Start, Recipe, Sequence[Step]]]] = {}
        for start, recipe in members:
            if not self._claim(recipe):
                others.append(recipe)
            elif (found := self.stored(recipe)) is not None:
                self._release(self._key(recipe))
                yield found
            else:
                donor, count = share_prefixes([trajectory.sigmas for trajectory in start.trajectories] + [levels])[-1]
                known = start.trajectories[donor].steps[:count] if count else ()
                by_count.setdefault(count, []).append((start, recipe, known))
        for count, these in by_count.items():
            recipes = [recipe for _, recipe, _ in these]
            encoded = [self._encoded(recipe) for recipe in recipes]
            # Everything, since later cells may go on from here; what is not to be kept goes when the cell is made.
            whole = Keep() if self.keep is None else Keep(attention=self.keep.attention, heads=self.keep.heads)
            trajectories = take_together(
                self.flux,
                recipes,
                [prompt for prompt, _ in encoded],
                keep=whole,
                watcher=self._watch(recipes[0]),
                known=[known for _, _, known in these],
                decode=False,
            )
            if not trajectories[0].finished:
                raise KeyboardInterrupt  # half a walk is no cell; one that was stopped at its last step is
            for (start, recipe, _), trajectory, (_, spent) in zip(these, trajectories, encoded, strict=True):
                start.trajectories.append(trajectory)
                cost = self.flux.evaluations_of(recipe, recipe.steps - count)
                self.evaluations += cost
                answered = recipe if len(these) == 1 else _in_company(recipe)
                seconds = {**trajectory.seconds, "encode": spent, "denoise": trajectory.seconds["denoise"] / len(these)}
                finisher.add(
                    Sampled(
                        recipe=answered,
                        key=self._key(answered),
                        trajectory=dataclasses.replace(trajectory, recipe=answered, seconds=seconds),
                        evaluations=cost,
                        release=self._letting_go(recipe),
                    )
                )
            if self._stopped:
                raise KeyboardInterrupt

    def _await(self, recipe: Recipe, finisher: Finisher) -> Iterator[Cell]:
        """Wait for another process's cell, and take over from one that died."""
        while True:
            if (found := self.stored(recipe)) is not None:
                yield found
                return
            again: list[Recipe] = []
            yield from self._walk([(Start([recipe]), recipe)], finisher, again)
            if not again:
                yield from finisher.ready(all=True)
                return
            time.sleep(PATIENCE)

    # --------------------------------------------------------------------------------------------- store and claims
    def _key(self, recipe: Recipe) -> str:
        return recipe.key(self.flux.versions)

    def stored(self, recipe: Recipe) -> Cell | None:
        """The cell that the store has for a resolved recipe, if it has one."""
        if self.store is None:
            return None
        # Who takes pictures made in company takes exact ones too; the other way round never.
        for asked in (recipe,) if self.batch == 1 else (recipe, _in_company(recipe)):
            found = self.store.get(self._key(asked), asked, trajectory=self.keep is not None)
            if found is not None:
                return found
        return None

    def _claim(self, recipe: Recipe) -> bool:
        if self.store is None:
            return True
        # By the exact recipe's key, however it will be answered: a cell is made once.
        key, claim = self._key(recipe), ExitStack()
        if not claim.enter_context(self.store.claim(key)):
            return False
        self._claims[key] = claim
        return True

    def _release(self, key: str) -> None:
        if (claim := self._claims.pop(key, None)) is not None:
            claim.close()

    def _letting_go(self, recipe: Recipe) -> Callable[[], None]:
        key = self._key(recipe)
        return lambda: self._release(key)

    # ----------------------------------------------------------------------------------------- prompts and watching
    def _encoded(self, recipe: Recipe) -> tuple[Encoded, float]:
        """The prompt, encoded once, and how long that took; recipes come sorted by prompt, so few are held."""
        text = text_of(recipe)
        if text not in self._prompts:
            started = time.perf_counter()
            encoded = self.flux.encode(recipe)
            self._prompts[text] = (encoded, time.perf_counter() - started)
            self.encodes += 1
            while len(self._prompts) > self.batch:
                self._prompts.popitem(last=False)
        return self._prompts[text]

    def _watch(self, recipe: Recipe) -> Watcher | None:
        """The watcher, who is remembered to have said STOP, and a sign of life for claims that take long."""
        store = self.store if _slow(recipe) else None
        if self.watcher is None and store is None:
            return None

        def watch(step: Step, recipe: Recipe) -> Any:
            if store is not None and time.monotonic() - self._signed > SIGN:
                self._signed = time.monotonic()
                for key in list(self._claims):
                    store.touch(key)
            answer = None if self.watcher is None else self.watcher(step, recipe)
            self._stopped = self._stopped or answer is STOP
            return answer

        return watch


def starts(recipes: Sequence[Recipe]) -> list[Start]:
    """Recipes by what they start from; prompts stay together, too."""
    found: dict[Recipe, Start] = {}
    order = {text: place for place, text in enumerate(dict.fromkeys(text_of(each) for each in recipes))}
    for recipe in sorted(recipes, key=lambda each: order[text_of(each)]):
        noise = dataclasses.replace(recipe, steps=4, sigmas=None, shift=None)
        found.setdefault(noise, Start([])).recipes.append(recipe)
    return list(found.values())


def text_of(recipe: Recipe) -> tuple[Any, ...]:
    """What decides the encoded prompt; guidance decides whether there is a negative one."""
    guided = recipe.guidance is not None and recipe.guidance > 1.0
    return (recipe.prompt, recipe.negative if guided else None, recipe.max_sequence_length, guided)


def _companies(starts: Sequence[Start], batch: int) -> Iterator[list[Start]]:
    """Starts that may be walked side by side: they differ in prompt and seed alone."""
    alike: dict[Recipe, list[Start]] = {}
    for start in starts:
        kind = dataclasses.replace(start.recipes[0], prompt="-", seed=0, steps=4, sigmas=None, shift=None)
        alike.setdefault(kind, []).append(start)
    for these in alike.values():
        for first in range(0, len(these), batch):
            yield these[first : first + batch]


def _rounds(together: Sequence[Start]) -> Iterator[list[tuple[Start, Recipe]]]:
    """What of them goes the same way, way by way."""
    every = itertools.chain.from_iterable(start.recipes for start in together)
    for way in dict.fromkeys(_way(recipe) for recipe in every):
        yield [(start, recipe) for start in together for recipe in start.recipes if _way(recipe) == way]


def _way(recipe: Recipe) -> tuple[Any, ...]:
    return (recipe.steps, recipe.sigmas, recipe.shift)


def _in_company(recipe: Recipe) -> Recipe:
    """The recipe as a batch answers it: sums in another order, so the last digit is not the plain call's."""
    return recipe.replace(numerics="batch" if recipe.exact else f"{recipe.numerics}, batch")


def _slow(recipe: Recipe) -> bool:
    return (recipe.height or 0) * (recipe.width or 0) * recipe.steps > 10 * 256 * 256
