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
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.sampling.sampler import STOP, StepCallback, sample_batch

__all__ = ["Making", "starts", "text_of"]

PATIENCE = 0.05  # seconds between looks at a cell that another process is making
SIGN = 10.0  # seconds between signs of life for claims that are held


@dataclass(eq=False)
class Start:
    """Recipes that differ in nothing but the way they go, and the walks made of them so far."""

    recipes: list[ResolvedRecipe]
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
    watcher: StepCallback | None = None
    beside: bool = False
    evaluations: int = field(default=0, init=False)
    encodes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._prompts: OrderedDict[tuple[Any, ...], tuple[Encoded, float]] = OrderedDict()
        self._claims: dict[str, ExitStack] = {}
        self._signed, self._stopped = time.monotonic(), False

    def cells(self, recipes: Sequence[ResolvedRecipe]) -> Generator[Cell, None, None]:
        """The cells of resolved recipes as they finish, those that the store has first.

        Raises:
            KeyboardInterrupt: stopped; every walk that was at its end is a cell by then.
        """
        missing: list[ResolvedRecipe] = []
        for recipe in recipes:
            if (found := self.stored(recipe)) is not None:
                yield found
            else:
                missing.append(recipe)
        others: list[ResolvedRecipe] = []  # being made by other processes
        spread = self.batch > 1
        size = max(((each.height, each.width) for each in missing), key=math.prod, default=(0, 0))
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
        self, members: Sequence[tuple[Start, ResolvedRecipe]], finisher: Finisher, others: list[ResolvedRecipe]
    ) -> Iterator[Cell]:
        """Claim what of these is still missing and walk it; yields what was finished elsewhere in the meantime."""
        levels = self.flux.schedule(members[0][1])
        by_count: dict[int, list[tuple[Start, ResolvedRecipe, Trajectory | None]]] = {}
        for start, recipe in members:
            if not self._claim(recipe):
                others.append(recipe)
            elif (found := self.stored(recipe)) is not None:
                self._release(self._claim_key(recipe))
                yield found
            else:
                index, count = share_prefixes([trajectory.sigmas for trajectory in start.trajectories] + [levels])[-1]
                by_count.setdefault(count, []).append((start, recipe, start.trajectories[index] if count else None))
        for count, these in by_count.items():
            recipes = [recipe for _, recipe, _ in these]
            encoded = [self._encoded(recipe) for recipe in recipes]
            # Everything, since later cells may go on from here; what is not to be kept goes when the cell is made.
            whole = Keep() if self.keep is None else Keep(attention=self.keep.attention, heads=self.keep.heads)
            trajectories = sample_batch(
                self.flux,
                recipes,
                [prompt for prompt, _ in encoded],
                keep=whole,
                on_step=self._watch(recipes[0]),
                known=[() if donor is None else donor.steps[:count] for _, _, donor in these],
                decode=False,
            )
            if not trajectories[0].finished:
                raise KeyboardInterrupt  # half a walk is no cell; one that was stopped at its last step is
            for (start, recipe, donor), taken, (_, spent) in zip(these, trajectories, encoded, strict=True):
                seconds = {**taken.seconds, "encode": spent, "denoise": taken.seconds["denoise"] / len(these)}
                # Steps shared with a trajectory of a batch have the numerics of the batch.
                numerics = taken.numerics if donor is None or len(these) > 1 else donor.numerics
                trajectory = dataclasses.replace(taken, seconds=seconds, numerics=numerics)
                start.trajectories.append(trajectory)
                cost = self.flux.evaluations_of(recipe, recipe.steps - count)
                self.evaluations += cost
                finisher.add(
                    Sampled(
                        recipe=recipe,
                        key=self._key(recipe, numerics),
                        trajectory=trajectory,
                        evaluations=cost,
                        release=self._letting_go(recipe),
                    )
                )
            if self._stopped:
                raise KeyboardInterrupt

    def _await(self, recipe: ResolvedRecipe, finisher: Finisher) -> Iterator[Cell]:
        """Wait for another process's cell, and take over from one that died."""
        while True:
            if (found := self.stored(recipe)) is not None:
                yield found
                return
            again: list[ResolvedRecipe] = []
            yield from self._walk([(Start([recipe]), recipe)], finisher, again)
            if not again:
                yield from finisher.ready(all=True)
                return
            time.sleep(PATIENCE)

    # --------------------------------------------------------------------------------------------- store and claims
    def _key(self, recipe: ResolvedRecipe, numerics: str) -> str:
        return recipe.key(self.flux.versions, numerics=numerics)

    def stored(self, recipe: ResolvedRecipe) -> Cell | None:
        """The cell that the store has for a resolved recipe, if it has one."""
        if self.store is None:
            return None
        # A sweep with a batch also accepts cells made one by one; a sweep without never accepts those of a batch.
        for numerics in dict.fromkeys((self.flux.numerics(), self.flux.numerics(self.batch))):
            key = self._key(recipe, numerics)
            found = self.store.get(key, recipe, numerics=numerics, trajectory=self.keep is not None)
            if found is not None:
                return found
        return None

    def _claim_key(self, recipe: ResolvedRecipe) -> str:
        """The key of the claim is that of the answer of a single run, so that one process makes the cell."""
        return self._key(recipe, self.flux.numerics())

    def _claim(self, recipe: ResolvedRecipe) -> bool:
        if self.store is None:
            return True
        key, claim = self._claim_key(recipe), ExitStack()
        if not claim.enter_context(self.store.claim(key)):
            return False
        self._claims[key] = claim
        return True

    def _release(self, key: str) -> None:
        if (claim := self._claims.pop(key, None)) is not None:
            claim.close()

    def _letting_go(self, recipe: ResolvedRecipe) -> Callable[[], None]:
        key = self._claim_key(recipe)
        return lambda: self._release(key)

    # ----------------------------------------------------------------------------------------- prompts and watching
    def _encoded(self, recipe: ResolvedRecipe) -> tuple[Encoded, float]:
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

    def _watch(self, recipe: ResolvedRecipe) -> StepCallback | None:
        """The watcher, who is remembered to have said STOP, and a sign of life for claims that take long."""
        store = self.store if _slow(recipe) else None
        if self.watcher is None and store is None:
            return None

        def watch(step: Step, recipe: ResolvedRecipe) -> Any:
            if store is not None and time.monotonic() - self._signed > SIGN:
                self._signed = time.monotonic()
                for key in list(self._claims):
                    store.touch(key)
            answer = None if self.watcher is None else self.watcher(step, recipe)
            self._stopped = self._stopped or answer is STOP
            return answer

        return watch


def starts(recipes: Sequence[ResolvedRecipe]) -> list[Start]:
    """Recipes by what they start from; prompts stay together, too."""
    found: dict[ResolvedRecipe, Start] = {}
    order = {text: place for place, text in enumerate(dict.fromkeys(text_of(each) for each in recipes))}
    for recipe in sorted(recipes, key=lambda each: order[text_of(each)]):
        noise = dataclasses.replace(recipe, steps=4, sigmas=None, shift=None)
        found.setdefault(noise, Start([])).recipes.append(recipe)
    return list(found.values())


def text_of(recipe: ResolvedRecipe) -> tuple[Any, ...]:
    """What decides the encoded prompt; guidance decides whether there is a negative one."""
    guided = recipe.guidance is not None and recipe.guidance > 1.0
    return (recipe.prompt, recipe.negative if guided else None, recipe.max_sequence_length, guided)


def _companies(starts: Sequence[Start], batch: int) -> Iterator[list[Start]]:
    """Starts that may be walked side by side: they differ in prompt and seed alone."""
    alike: dict[ResolvedRecipe, list[Start]] = {}
    for start in starts:
        kind = dataclasses.replace(start.recipes[0], prompt="-", seed=0, steps=4, sigmas=None, shift=None)
        alike.setdefault(kind, []).append(start)
    for these in alike.values():
        for first in range(0, len(these), batch):
            yield these[first : first + batch]


def _rounds(together: Sequence[Start]) -> Iterator[list[tuple[Start, ResolvedRecipe]]]:
    """What of them goes the same way, way by way."""
    every = itertools.chain.from_iterable(start.recipes for start in together)
    for way in dict.fromkeys(_way(recipe) for recipe in every):
        yield [(start, recipe) for start in together for recipe in start.recipes if _way(recipe) == way]


def _way(recipe: ResolvedRecipe) -> tuple[Any, ...]:
    return (recipe.steps, recipe.sigmas, recipe.shift)


def _slow(recipe: ResolvedRecipe) -> bool:
    return recipe.height * recipe.width * recipe.steps > 10 * 256 * 256
