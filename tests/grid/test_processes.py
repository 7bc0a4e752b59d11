"""Processes that share a grid: as many evaluations as one, the same bytes, and nothing lost when they are killed."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

import fluxnb as fnb
from fluxnb.grid.runner import GridRunner, shared_prefixes
from fluxnb.grid.store import Store
from fluxnb.planning.processes import Processes
from tests.grid.test_killed import Server, alive

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, see QUARANTINES.md")

GRID = {"prompts": ["a fox", "a cat"], "seeds": list(range(8)), "steps": [1, 2, 3, 4], "height": 32, "width": 32}
EVALUATIONS = 112  # 2 prompts x 8 seeds x (1 + 1 + 2 + 3)
LARGE = {**GRID, "prompts": ["a fox", "a cat", "a dog", "a red fox"], "seeds": list(range(16))}
LONGEST_CLAIM = 5.0  # seconds that the claim of a killed process may last


# ------------------------------------------------------------------------------------------------------ no claim twice
def pictures(server, **options) -> dict[str, str]:
    return server.start(background=True, **options).report()["pictures"]


@pytest.mark.slow
@pytest.mark.parametrize("count", [8, *(pytest.param(count, marks=pytest.mark.long) for count in (2, 4))])
def test_processes_make_each_evaluation_once_and_the_bytes_of_one_process(server, tmp_path, count):
    places = {"store": str(tmp_path / "store"), "log": str(tmp_path / "log"), "evaluated": str(tmp_path / "evaluated")}
    children = [server.start(axes=GRID, background=True, rank=rank, count=count, **places) for rank in range(count)]
    reports = [child.report() for child in children]
    assert sum(report["evaluations"] for report in reports) == EVALUATIONS
    assert (tmp_path / "evaluated").stat().st_size == EVALUATIONS
    assert sum(report["made"] for report in reports) == 64 and all(report["made"] for report in reports)
    assert len(set((tmp_path / "log").read_text().split())) == 64
    alone = pictures(server, axes=GRID)
    assert len(alone) == 64 and all(report["pictures"] == alone for report in reports)
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.slow
def test_processes_of_two_machines_make_each_evaluation_once(server, tmp_path):
    places = {"store": str(tmp_path / "store"), "evaluated": str(tmp_path / "evaluated")}
    # On a shared file system the machines may see neither the process IDs nor the `flock` of each other.
    machines = [{"machine": "a", "flock": True}, {"machine": "b", "flock": False}]
    children = [
        server.start(axes=GRID, background=True, rank=rank, count=2, **machines[rank], **places) for rank in range(2)
    ]
    reports = [child.report() for child in children]
    assert (tmp_path / "evaluated").stat().st_size == EVALUATIONS
    assert [len(report["pictures"]) for report in reports] == [64, 64]
    assert all(20 < report["made"] < 44 for report in reports)


# --------------------------------------------------------------------------------------------------------------- kills
class Killed:
    """A grid that several processes sample while random ones are killed and started again."""

    def __init__(self, server: Server, folder: Path, axes: dict, count: int) -> None:
        self.server, self.store, self.log, self.axes = server, folder / "store", folder / "log", axes
        self.children = {rank: self.start(rank, count) for rank in range(count)}
        self.orphans: dict[str, tuple[int, float]] = {}  # locks of killed processes: their process ID and time
        self.kills, self.longest, self.random = 0, 0.0, random.Random(3)

    def start(self, rank: int, count: int):
        options = {"store": str(self.store), "log": str(self.log), "background": True}
        return self.server.start(axes=self.axes, rank=rank, count=count, **options)

    def holders(self) -> dict[str, int]:
        """The process IDs in the locks of the store."""
        holders = {}
        for lock in self.store.glob("*/*.lock"):
            try:
                holders[lock.name] = json.loads(lock.read_text())["pid"]
            except (OSError, ValueError):
                continue  # released, or replaced at this moment
        return holders

    def working(self) -> bool:
        """Whether a process is still sampling."""
        return any(alive(child.pid) for child in self.children.values())

    def stored(self) -> int:
        """The number of cells in the store."""
        return len(self.log.read_text().split()) if self.log.exists() else 0

    def watch(self, seconds: float) -> None:
        """Measure for how long the locks of killed processes last."""
        until = time.monotonic() + seconds
        while True:
            holders, now = self.holders(), time.monotonic()
            for name, (pid, since) in list(self.orphans.items()):
                self.longest = max(self.longest, now - since)
                if holders.get(name) != pid:
                    del self.orphans[name]
            if now >= until:
                return
            time.sleep(0.01)

    def kill(self) -> None:
        rank = self.random.choice(sorted(self.children))
        pid = self.children[rank].pid
        if not alive(pid):
            return
        os.kill(pid, signal.SIGKILL)
        while alive(pid):
            time.sleep(0.002)
        self.kills += 1
        now = time.monotonic()
        self.orphans |= {name: (pid, now) for name, holder in self.holders().items() if holder == pid}
        self.children[rank] = self.start(rank, len(self.children))

    def reports(self) -> list[dict]:
        while self.working():
            self.watch(0.1)
        return [child.report() for child in self.children.values()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("axes", "kills"),
    [
        pytest.param({**GRID, "seeds": [0, 1, 2, 3]}, 4, id="4 kills"),
        pytest.param(LARGE, 20, id="20 kills", marks=pytest.mark.long),
    ],
)
def test_killed_processes_lose_no_cell_make_none_twice_and_leave_no_claim(server, tmp_path, axes, kills):
    killed = Killed(server, tmp_path, axes, 4)
    cells = len(axes["prompts"]) * len(axes["seeds"]) * 4
    while killed.kills < kills and killed.working():
        # By what is stored, and a random moment more: the grid must not be finished before the last kill.
        while killed.stored() < cells * killed.kills / (kills + 1) and killed.working():
            killed.watch(0.01)
        killed.watch(0.1 * killed.random.random())
        killed.kill()
    reports = killed.reports()
    counts = Counter(killed.log.read_text().split())
    print(f"{killed.kills} kills, {len(counts)} of {cells} cells, longest claim of a killed {killed.longest:.2f} s")
    assert killed.kills == kills, "the grid was finished before the last kill"
    assert all(len(report["pictures"]) == cells for report in reports), "a cell was lost"
    assert max(counts.values()) == 1, "a cell was stored twice"
    assert killed.longest < LONGEST_CLAIM and not list(killed.store.rglob("*.lock"))
    assert all(report["pictures"] == pictures(server, axes=axes) for report in reports[:1])


# ------------------------------------------------------------------------------------------------------------ balancing
def in_place(monkeypatch, rank, count):
    place = Processes(rank=rank, count=count, local_rank=rank, local_count=count)
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)


def ordered(flux, tmp_path, **axes):
    recipes = [flux.resolve(recipe) for recipe in fnb.Axes.of(**{**GRID, **axes})]
    groups = GridRunner(flux=flux, store=Store(tmp_path))._ordered(shared_prefixes(recipes))
    return [(group.key.prompt, group.key.seed, group.key.height) for group in groups]


def test_launched_processes_sample_the_longest_groups_first(toy, tmp_path, monkeypatch):
    axes = {"seeds": [0, 1], "height": [32, 64], "prompts": "a fox"}
    assert [height for *_, height in ordered(toy, tmp_path, **axes)] == [32, 64, 32, 64]
    in_place(monkeypatch, 0, 2)
    assert [height for *_, height in ordered(toy, tmp_path, **axes)] == [64, 64, 32, 32]


def test_launched_processes_begin_at_different_prompts(toy, tmp_path, monkeypatch):
    firsts = []
    for rank in range(4):
        in_place(monkeypatch, rank, 4)
        firsts.append(ordered(toy, tmp_path)[0][0])
    assert firsts == ["a fox", "a fox", "a cat", "a cat"]


def test_a_launched_process_claims_its_part_of_the_groups_as_a_batch(toy, tmp_path, monkeypatch):
    sizes = []
    hook = toy.pipe.transformer.register_forward_hook(lambda *given: sizes.append(len(given[-1][0])))
    in_place(monkeypatch, 0, 4)
    fnb.sweep(toy, prompts="a fox", seeds=range(8), steps=1, height=32, width=32, batch=8, store=tmp_path)
    hook.remove()
    assert sizes[0] == 2 and sum(sizes) == 8


def test_launched_processes_without_a_store_are_warned_about(toy, monkeypatch):
    in_place(monkeypatch, 0, 8)
    with pytest.warns(fnb.StoreWarning, match="8 processes were launched"):
        fnb.sweep(toy, prompts="a fox", steps=1, height=32, width=32)


# ----------------------------------------------------------------------------------------------------- what is claimed
@pytest.mark.moderate
def test_a_sweep_holds_one_claim_for_all_step_counts_of_a_seed(toy, tmp_path):
    claims = []

    def note(step):
        claims.append([lock.name for lock in tmp_path.rglob("*.lock")])

    fnb.sweep(toy, prompts="a fox", seeds=[0, 1], steps=[1, 2, 3], height=32, width=32, store=tmp_path, on_step=note)
    seeds = [claims[:4], claims[4:]]  # 1 + 1 + 2 evaluations each
    assert all(len(each) == 1 for each in claims)
    assert all(each == seed[0] for seed in seeds for each in seed) and seeds[0][0] != seeds[1][0]


def test_all_step_counts_of_a_seed_have_one_claim(toy, tmp_path):
    def recipe(**fields):
        return toy.resolve(fnb.Recipe(prompt="a fox", height=32, width=32, **fields))

    runner = GridRunner(flux=toy, store=Store(tmp_path))
    [key] = {runner.claim_key(each) for each in (recipe(steps=1), recipe(steps=7), recipe(sigmas=(1.0, 0.5)))}
    assert runner.claim_key(recipe(seed=1)) != key
    with runner.store.claim(key):
        assert not runner._claimed(shared_prefixes([recipe(steps=3)]))


@pytest.mark.moderate
def test_a_cell_that_another_process_stores_arrives_before_the_end(toy, tmp_path, monkeypatch):
    from fluxnb.grid import runner

    monkeypatch.setattr(runner, "LOOK_INTERVAL", 0.0)
    axes = {"prompts": "a fox", "seeds": range(4), "steps": 1, "height": 32, "width": 32, "store": tmp_path}
    seen = []
    for cell in fnb.stream(toy, **axes):
        if not seen:
            fnb.sweep(toy, **{**axes, "seeds": 3})
        seen.append((cell.recipe.seed, cell.made))
    assert seen.index((3, False)) < 3 and len(seen) == 4
