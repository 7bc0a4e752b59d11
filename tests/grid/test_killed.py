"""A grid survives SIGKILL at twenty random moments."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fluxnb as fnb
from tests.grid.killed_process import GRID

ROOT = Path(__file__).parents[2]
KILLS = 20

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, see QUARANTINES.md")]


@pytest.fixture
def start_child(toy_folder, tmp_path):
    """A function that starts a process which fills the store `tmp_path / "store"` and returns its process ID."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.grid.killed_process", toy_folder, tmp_path / "store", tmp_path / "log"]
    process = subprocess.Popen(
        [str(each) for each in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT
    )

    def start() -> int:
        process.stdin.write("go\n")
        process.stdin.flush()
        return int(process.stdout.readline())

    assert process.stdout.readline().strip() == "ready"
    yield start
    process.stdin.close()
    process.wait(20)


def finished(store: Path) -> dict[str, int]:
    """The complete cells and the times of their writing."""
    return {path.stem: path.stat().st_mtime_ns for path in store.glob("*/*.json")}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_grid_killed_twenty_times_samples_each_cell_once(start_child, toy_folder, tmp_path):
    store, log, rng = tmp_path / "store", tmp_path / "log", random.Random(5)
    kills, before = 0, {}
    for _ in range(KILLS):
        child = start_child()
        goal, deadline = len(before) + rng.randint(0, 3), time.monotonic() + 60
        while len(finished(store)) < goal and alive(child) and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.08)  # during an evaluation, decoding, writing or claiming
        kills += alive(child)
        os.kill(child, signal.SIGKILL)
        while alive(child):
            time.sleep(0.002)
        now = finished(store)
        assert now.items() >= before.items(), "a finished cell was written again"
        before = now
    logged = log.read_text().split()
    assert kills == KILLS and 0 < len(before) < 48
    assert len(logged) == len(set(logged)), "a cell was sampled twice"

    flux = fnb.load(toy_folder)
    missing = fnb.plan_sweep(flux, **GRID, store=store).missing
    assert missing == 48 - len(before)
    grid = fnb.sweep(flux, **GRID, store=store)
    assert sum(cell.made for cell in grid) == missing
    assert {cell.key for cell in grid if not cell.made} == set(before)
    assert [cell.image.tobytes() for cell in grid] == [cell.image.tobytes() for cell in fnb.sweep(flux, **GRID)]
    assert not list(store.rglob("*.lock"))


def test_locks_of_killed_processes_do_not_block_another(start_child, toy_folder, tmp_path):
    both, store = [start_child(), start_child()], tmp_path / "store"
    while len(finished(store)) < 6:
        time.sleep(0.002)
    for child in both:
        os.kill(child, signal.SIGKILL)
    while any(alive(child) for child in both):
        time.sleep(0.002)
    before = finished(store)
    grid = fnb.sweep(fnb.load(toy_folder), **GRID, store=store)
    assert grid.finished and sum(cell.made for cell in grid) == 48 - len(before)
