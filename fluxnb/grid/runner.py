"""The grid runner: samples each missing cell once, in one process or in several, and shares steps between cells.

Recipes with the same prompt and noise form a group. They are sampled one after the other, and each starts from the
longest prefix that it has in common with an earlier one. With a batch size above 1, several groups are sampled in one
call.

Processes that share a store claim groups, so that a first evaluation is made by one of them. Each takes the first group
that no other has claimed, and begins again at the front of the list after each group: the claim of a process that ended
is taken over by the next process that is free.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from fluxnb.errors import warn_caller
from fluxnb.flow import share_prefixes
from fluxnb.grid.decode_workers import DecodeWorkers, Sampled
from fluxnb.grid.store import Store, StoreWarning
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.prompts import Encoded
from fluxnb.planning.processes import launched
from fluxnb.records import Cell, Keep, Step, Trajectory
from fluxnb.records.recipe import ResolvedRecipe
from fluxnb.sampling.sampler import STOP, StepCallback, sample_batch

__all__ = ["GridRunner", "Runner", "Waiting", "prompt_key", "shared_prefixes"]

POLL_INTERVALS = (0.02, 0.2)  # seconds between checks of cells that other processes sample, at first and at most
DISPLAY_AFTER = 1.0  # seconds without a cell after which a display shows what a sweep waits for, and between updates
REPORT_AFTER = 3.0  # seconds without a cell after which a sweep reports what it waits for
LOOK_INTERVAL = 1.0  # seconds after which a sweep looks again for cells that other processes have stored
LOOK_SHARE = 0.02  # of the time of a sweep that it may spend on that
DECODE_COST = 0.5  # evaluations that take about as long as decoding a picture
PROMPTS = 8  # encoded prompts that are cached; one of FLUX.1 has 2 MB


@runtime_checkable
class Runner(Protocol):
    """Samples the cells of one grid: GridRunner on this machine, RemoteRunner at an endpoint."""

    evaluations: int
    encodes: int
    on_wait: Callable[[str], None] | None

    def cells(self, recipes: Sequence[ResolvedRecipe]) -> Generator[Cell, None, None]:
        """Yield the cells of resolved recipes as they finish, beginning with those in the store."""

    def stored(self, recipe: ResolvedRecipe) -> Cell | None:
        """The cell of a resolved recipe in the store, None if there is none."""

    def holder(self, recipe: ResolvedRecipe) -> str:
        """A description of the process that samples a recipe, empty if there is none."""


@dataclass(eq=False)
class SharedPrefix:
    """Recipes with the same prompt, noise and guidance: all step counts of one prompt and seed.

    Arguments:
        key: what they have in common, see `without_schedule`.
        recipes: those that are still to be sampled; they differ in their schedule alone.
        trajectories: those sampled so far, whose first steps later ones may share.
    """

    key: ResolvedRecipe
    recipes: list[ResolvedRecipe]
    trajectories: list[Trajectory] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class _Pending:
    """A claimed cell, and the trajectory whose first steps it shares, if there is one."""

    group: SharedPrefix
    recipe: ResolvedRecipe
    donor: Trajectory | None


@dataclass(kw_only=True, eq=False)
class GridRunner:
    """Samples the cells of one grid.

    Arguments:
        flux: from `fnb.load`.
        store: where cells are read and written, None for nowhere.
        keep: which tensors a cell's trajectory retains, None for no trajectory.
        batch: number of images per transformer call; 1 is exact.
        on_step: called with each computed Step and its recipe; returning STOP ends the run.
        background: True decodes and writes in threads, so that cells are yielded a little later.
        on_wait: called about once a second with a sentence about the process that this sweep waits for, and with ""
            once it no longer waits.
    """

    flux: Flux
    store: Store | None = None
    keep: Keep | None = None
    batch: int = 1
    on_step: StepCallback | None = None
    background: bool = False
    on_wait: Callable[[str], None] | None = None
    evaluations: int = field(default=0, init=False)
    encodes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._prompts: OrderedDict[tuple[Any, ...], tuple[Encoded, float]] = OrderedDict()
        self._claims: dict[str, _Held] = {}
        self._mutex = threading.Lock()
        self._stopped = False

    def cells(self, recipes: Sequence[ResolvedRecipe]) -> Generator[Cell, None, None]:
        """Yield the cells of resolved recipes as they finish, beginning with those in the store.

        Raises:
            KeyboardInterrupt: the run was stopped. All complete trajectories have been yielded as cells before.
        """
        missing: list[ResolvedRecipe] = []
        for recipe in recipes:
            if (found := self.stored(recipe)) is not None:
                yield found
            else:
                missing.append(recipe)
        size = max(((each.height, each.width) for each in missing), key=math.prod, default=(0, 0))
        workers = DecodeWorkers(
            self.flux, self.store, self.keep, size=size, background=self.background, batched=self.batch > 1
        )
        pending, waiting, looks = self._ordered(shared_prefixes(missing)), Waiting(self), _Looks()
        try:
            while pending:
                groups = self._claimed(pending)
                if not groups:
                    yield from workers.finished(wait=True)
                    waiting.pause([recipe for group in pending for recipe in group.recipes])
                else:
                    waiting.pause([])
                    yield from self._sample(groups, workers)
                if not groups or looks.due():
                    with looks:
                        elsewhere = self._stored_elsewhere(pending)
                    yield from elsewhere
                pending = [group for group in pending if group.recipes]
            waiting.pause([])
            yield from workers.finished(wait=True)
        except KeyboardInterrupt:
            yield from workers.finished(wait=True)
            raise
        finally:
            workers.close()
            self._prompts.clear()  # a Stream, which holds this runner, may live longer
            for key in list(self._claims):
                self._release(key, all_uses=True)

    def _ordered(self, groups: list[SharedPrefix]) -> list[SharedPrefix]:
        """The groups in the order in which this process tries to claim them.

        Of several processes that a launcher has started, each takes the longest groups first, so that none of them is
        left with a long one at the end, and they begin at different prompts, so that few prompts are encoded twice.
        """
        process = launched()
        if self.store is None or process.count == 1:
            return groups
        prompts = {key: index for index, key in enumerate(dict.fromkeys(prompt_key(g.recipes[0]) for g in groups))}
        first = process.rank * len(prompts) // process.count

        def order(group: SharedPrefix) -> tuple[float, int]:
            place = prompts[prompt_key(group.recipes[0])]
            return -self._predicted_cost(group), (place - first) % len(prompts)

        return sorted(groups, key=order)

    def _predicted_cost(self, group: SharedPrefix) -> float:
        """Evaluations of a group and decoded pictures times their pixels; to be compared with that of another group."""
        first, steps = group.recipes[0], sum(recipe.evaluations for recipe in group.recipes)
        evaluations = self.flux.evaluations_of(first, steps - len(group.recipes) + 1)
        return (evaluations + DECODE_COST * len(group.recipes)) * first.height * first.width

    def _claimed(self, pending: Sequence[SharedPrefix]) -> list[SharedPrefix]:
        """Claim the first groups that can be claimed and sampled in one call; empty if others have all of them."""
        claimed: list[SharedPrefix] = []
        most = self.batch
        if self.store is not None and self.batch > 1:
            most = min(self.batch, math.ceil(len(pending) / launched().count))  # the others have their part
        for group in pending:
            if claimed and _batch_key(group) != _batch_key(claimed[0]):
                continue
            if self._claim(group.key):
                claimed.append(group)
                if len(claimed) == most:
                    break
        return claimed

    def _stored_elsewhere(self, pending: Sequence[SharedPrefix]) -> list[Cell]:
        """The cells that other processes have stored in the meantime; they are removed from their groups."""
        cells: list[Cell] = []
        for group in pending if self.store is not None else ():
            for recipe in list(group.recipes):
                if (found := self.stored(recipe)) is not None:
                    group.recipes.remove(recipe)
                    cells.append(found)
        return cells

    def _sample(self, groups: Sequence[SharedPrefix], workers: DecodeWorkers) -> Iterator[Cell]:
        """Sample claimed groups and release them; yields what is finished.

        In the background all schedules are sampled under one claim. Otherwise the caller may take any time to request
        the next cell, and the claims cover a single schedule: they are released before its cells are yielded.
        """
        late: list[Cell] = []
        try:
            for members in _by_schedule(groups):
                late += self._sample_schedule(members, workers)
                if not self.background:
                    break
                yield from workers.finished()
        finally:
            for group in groups:
                self._release(self.claim_key(group.key))
        yield from workers.finished()
        yield from late

    def _sample_schedule(
        self, members: Sequence[tuple[SharedPrefix, ResolvedRecipe]], workers: DecodeWorkers
    ) -> list[Cell]:
        """Sample claimed recipes of one schedule; returns the cells that another process had finished before."""
        late: list[Cell] = []
        by_shared_steps: dict[int, list[_Pending]] = {}
        for group, recipe in members:
            if (found := self.stored(recipe)) is not None:
                group.recipes.remove(recipe)
                late.append(found)
                continue
            levels = self.flux.schedule(recipe)
            index, count = share_prefixes([each.sigmas for each in group.trajectories] + [levels])[-1]
            count = count if self.flux.can_continue(recipe, count) else 0
            donor = group.trajectories[index] if count else None
            by_shared_steps.setdefault(count, []).append(_Pending(group, recipe, donor))
        for count, pending in by_shared_steps.items():
            for sampled in self._sample_together(pending, count):
                workers.add(sampled)
            if self._stopped:
                raise KeyboardInterrupt
        return late

    def _sample_together(self, pending: Sequence[_Pending], shared_steps: int) -> Iterator[Sampled]:
        """Sample claimed cells, which share equally many steps with earlier trajectories, in one call."""
        recipes = [each.recipe for each in pending]
        encoded = [self._encoded(recipe) for recipe in recipes]
        # Every step is retained, since later cells may start from it; the decode workers drop the rest.
        keep = Keep() if self.keep is None else Keep(attention=self.keep.attention, heads=self.keep.heads)
        trajectories = sample_batch(
            self.flux,
            recipes,
            [prompt for prompt, _ in encoded],
            keep=keep,
            on_step=self._step_callback(recipes[0]),
            known=[() if each.donor is None else each.donor.steps[:shared_steps] for each in pending],
            decode=False,
        )
        if not trajectories[0].finished:
            raise KeyboardInterrupt  # an incomplete trajectory is no cell
        for each, sampled, (_, encode_seconds) in zip(pending, trajectories, encoded, strict=True):
            denoise_seconds = sampled.seconds["denoise"] / len(pending)
            seconds = {**sampled.seconds, "encode": encode_seconds, "denoise": denoise_seconds}
            # Steps that are shared with a trajectory of a batch have the numerics of the batch.
            numerics = sampled.numerics if each.donor is None or len(pending) > 1 else each.donor.numerics
            trajectory = dataclasses.replace(sampled, seconds=seconds, numerics=numerics)
            each.group.trajectories.append(trajectory)
            each.group.recipes.remove(each.recipe)
            evaluations = self.flux.evaluations_of(each.recipe, each.recipe.evaluations - shared_steps)
            self.evaluations += evaluations
            yield Sampled(
                recipe=each.recipe,
                key=self._key(each.recipe, numerics),
                trajectory=trajectory,
                evaluations=evaluations,
                release=self._releaser(each.recipe),
            )

    # ------------------------------------------------------------------------------------------------- store and claims
    def _key(self, recipe: ResolvedRecipe, numerics: str) -> str:
        return recipe.key(self.flux.versions, numerics=numerics)

    def stored(self, recipe: ResolvedRecipe) -> Cell | None:
        """The cell of a resolved recipe in the store, None if there is none."""
        if self.store is None:
            return None
        # A sweep with a batch also accepts cells sampled one by one; a sweep without never accepts those of a batch.
        for numerics in dict.fromkeys((self.flux.numerics(), self.flux.numerics(self.batch))):
            key = self._key(recipe, numerics)
            found = self.store.get(key, recipe, numerics=numerics, trajectory=self.keep is not None)
            if found is not None:
                return found
        return None

    def claim_key(self, recipe: ResolvedRecipe) -> str:
        """Key of the claim: one for all schedules and batch sizes of a prompt and its noise."""
        return self._key(without_schedule(recipe), f"shared prefix, {self.flux.numerics()}")

    def _claim(self, recipe: ResolvedRecipe) -> bool:
        """Claim the group of a recipe, unless another process has the claim."""
        if self.store is None:
            return True
        key, held = self.claim_key(recipe), _Held()
        with self._mutex:
            if key in self._claims:  # for a cell that is not stored yet
                self._claims[key].uses += 1
                return True
            self._claims[key] = held  # before the claim, so that an interrupt does not leave it behind
        if held.claim.enter_context(self.store.claim(key)):
            return True
        self._release(key)
        return False

    def holder(self, recipe: ResolvedRecipe) -> str:
        """A description of the process that samples a recipe, empty if there is none."""
        return "" if self.store is None else self.store.holder(self.claim_key(recipe))

    def _release(self, key: str, *, all_uses: bool = False) -> None:
        """End one use of a claim, or all of them; the claim is released at the end of the last use."""
        with self._mutex:
            if (held := self._claims.get(key)) is None:
                return
            held.uses = 0 if all_uses else held.uses - 1
            if held.uses > 0:
                return
            del self._claims[key]
        held.claim.close()

    def _releaser(self, recipe: ResolvedRecipe) -> Callable[[], None]:
        """Use the claim of a sampled recipe until the returned function is called."""
        if self.store is None:
            return lambda: None
        key = self.claim_key(recipe)
        with self._mutex:
            self._claims[key].uses += 1
        return lambda: self._release(key)

    # -------------------------------------------------------------------------------------------- prompts and callbacks
    def _encoded(self, recipe: ResolvedRecipe) -> tuple[Encoded, float]:
        """The encoded prompt and the seconds it took. Recipes are mostly sorted by prompt, so few have to be cached."""
        key = prompt_key(recipe)
        if key not in self._prompts:
            started = time.perf_counter()
            encoded = self.flux.encode(recipe)
            self._prompts[key] = (encoded, time.perf_counter() - started)
            self.encodes += 1
            while len(self._prompts) > max(self.batch, PROMPTS):
                self._prompts.popitem(last=False)
        return self._prompts[key]

    def _step_callback(self, recipe: ResolvedRecipe) -> StepCallback | None:
        """The user's callback; a STOP that it returns is noted."""
        if (on_step := self.on_step) is None:
            return None

        def callback(step: Step, recipe: ResolvedRecipe) -> Any:
            result = on_step(step, recipe)
            self._stopped = self._stopped or result is STOP
            return result

        return callback


@dataclass(eq=False)
class _Held:
    """A claim of this runner.

    Arguments:
        claim: ends the claim when it is closed.
        uses: 1 while the group is sampled, and 1 for each of its cells that is not stored yet.
    """

    claim: ExitStack = field(default_factory=ExitStack)
    uses: int = 1


class _Looks:
    """Decides when a sweep looks for cells that other processes have stored; a context manager around each look."""

    def __init__(self) -> None:
        self._next = time.monotonic() + LOOK_INTERVAL

    def due(self) -> bool:
        """Whether it is time to look again."""
        return time.monotonic() >= self._next

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        now = time.monotonic()
        self._next = now + max(LOOK_INTERVAL, (now - self._started) / LOOK_SHARE)


class Waiting:
    """The pauses of a sweep between checks of cells that other processes sample."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._recipes: set[ResolvedRecipe] = set()
        self._displayed = -math.inf  # when the sentence was displayed last; -inf for no sentence

    def pause(self, recipes: Sequence[ResolvedRecipe]) -> None:
        """Wait before the next check of these recipes, and warn once no cell has been finished for long."""
        if set(recipes) != self._recipes:
            self._recipes, self._reported = set(recipes), False
            self._since, self._interval = time.monotonic(), POLL_INTERVALS[0]
            self._display("")
        if not recipes:
            return
        now = time.monotonic()
        if now - self._since > DISPLAY_AFTER and now - self._displayed > DISPLAY_AFTER:
            self._display(self._sentence(recipes))
        if not self._reported and now - self._since > REPORT_AFTER:
            self._reported = True
            warn_caller(f"{self._sentence(recipes)}; Ctrl-C stops waiting", StoreWarning)
        time.sleep(self._interval)
        self._interval = min(2 * self._interval, POLL_INTERVALS[1])

    def _sentence(self, recipes: Sequence[ResolvedRecipe]) -> str:
        holder = self._runner.holder(recipes[0]) or "another process"
        cells = "a cell" if len(recipes) == 1 else f"{len(recipes)} cells"
        return f"waiting for {cells} claimed by {holder}"

    def _display(self, sentence: str) -> None:
        if self._runner.on_wait is not None and (sentence or self._displayed > -math.inf):
            self._displayed = time.monotonic() if sentence else -math.inf
            self._runner.on_wait(sentence)


def shared_prefixes(recipes: Sequence[ResolvedRecipe]) -> list[SharedPrefix]:
    """Group recipes that differ in their schedule alone; groups of one prompt follow each other."""
    groups: dict[ResolvedRecipe, SharedPrefix] = {}
    order = {key: index for index, key in enumerate(dict.fromkeys(prompt_key(each) for each in recipes))}
    for recipe in sorted(recipes, key=lambda each: order[prompt_key(each)]):
        key = without_schedule(recipe)
        groups.setdefault(key, SharedPrefix(key, [])).recipes.append(recipe)
    return list(groups.values())


def without_schedule(recipe: ResolvedRecipe) -> ResolvedRecipe:
    """The recipe with the schedule of four steps, which recipes of all schedules of one prompt and noise become."""
    return dataclasses.replace(recipe, steps=4, sigmas=None, shift=None)


def prompt_key(recipe: ResolvedRecipe) -> tuple[Any, ...]:
    """The fields that determine the encoded prompt. Guidance determines whether the negative prompt is encoded."""
    guided = recipe.guidance is not None and recipe.guidance > 1.0
    return (recipe.prompt, recipe.negative if guided else None, recipe.max_sequence_length, guided)


def _batch_key(group: SharedPrefix) -> ResolvedRecipe:
    """What groups have in common that can be sampled in one call: everything except prompt and seed."""
    return dataclasses.replace(group.key, prompt="-", seed=0)


def _by_schedule(groups: Sequence[SharedPrefix]) -> Iterator[list[tuple[SharedPrefix, ResolvedRecipe]]]:
    """The recipes of a batch, schedule by schedule."""
    recipes = itertools.chain.from_iterable(group.recipes for group in groups)
    for schedule in dict.fromkeys(_schedule_key(recipe) for recipe in recipes):
        yield [(group, recipe) for group in groups for recipe in group.recipes if _schedule_key(recipe) == schedule]


def _schedule_key(recipe: ResolvedRecipe) -> tuple[Any, ...]:
    return (recipe.steps, recipe.sigmas, recipe.shift)
