"""Sweeps of several processes survive signals, wrong clocks, restarts, PID namespaces and a full disk."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

import fluxnb as fnb
from fluxnb.grid.store import Store
from tests.grid.killed_process import GRID

ROOT = Path(__file__).parents[2]
KILLS = 20
QUIET = 5.0  # seconds that a sweep may wait without a message

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, see QUARANTINES.md"),
]
trials = pytest.mark.parametrize("trials", [2, pytest.param(40, marks=pytest.mark.long)])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


class Server:
    """The server of `tests.grid.killed_process`."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.folder, self.numbers = folder, itertools.count()
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.grid.killed_process", str(model)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            cwd=ROOT,
        )
        assert self.process.stdout.readline().strip() == "ready"
        alone = self.start().report()
        self.expected, self.seconds = alone["pictures"], alone["seconds"]

    def start(self, **options) -> Child:
        report = self.folder / f"{next(self.numbers)}.report"
        self.process.stdin.write(json.dumps({**options, "report": str(report)}) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        if not pid:
            pytest.skip("PID namespaces may not be made, see QUARANTINES.md")
        return Child(pid, report)


@dataclass
class Child:
    """A process that fills a store."""

    pid: int
    path: Path

    def signal(self, number: int) -> None:
        if alive(self.pid):
            os.kill(self.pid, number)

    def end(self) -> dict | None:
        """Wait for the end of the process; its report, None if it was killed."""
        deadline = time.monotonic() + 60
        while alive(self.pid):
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError("a process does not end")
            time.sleep(0.005)
        return json.loads(self.path.read_text()) if self.path.exists() else None

    def report(self) -> dict:
        """The report of a process that must have come to its end."""
        report = self.end()
        assert report is not None, "a process ended without a report"
        return report


class Trials:
    """Counts what goes wrong in stores that two processes fill."""

    def __init__(self, server: Server, folder: Path, seed: str) -> None:
        self.server, self.folder, self.random = server, folder, random.Random(seed)
        self.counts, self.longest = Counter(), 0.0

    def places(self) -> dict[str, str]:
        """The options for a new store."""
        number = self.counts["trials"]
        self.counts["trials"] += 1
        return {"store": str(self.folder / f"store{number}"), "log": str(self.folder / f"log{number}")}

    def moment(self) -> None:
        """Let two processes sample, decode, write and claim for a random time, at most until they are nearly done."""
        time.sleep(self.random.random() * 0.5 * self.server.seconds)

    def check(self, places: dict[str, str], *reports: dict, first: dict | None = None) -> None:
        """Compare the reports and the store with what a single process samples.

        Arguments:
            places: of the store.
            reports: of processes that must have finished all cells.
            first: report of a process that got a signal and may have ended before.
        """
        self.counts["hit"] += first is None or first["pictures"].keys() != self.server.expected.keys()
        for report in [*reports, *([] if first is None else [first])]:
            self.counts["lost"] += report is not first and report["pictures"].keys() != self.server.expected.keys()
            self.counts["damaged"] += not report["pictures"].items() <= self.server.expected.items()
            self.counts["errors"] += report["error"] not in (None, "interrupt")
            self.counts["silent"] += report["seconds"] > QUIET and not report["warnings"]
            self.longest = max(self.longest, report["seconds"])
        log = Path(places["log"])
        logged = log.read_text().split() if log.exists() else []
        self.counts["twice"] += len(logged) - len(set(logged))
        again = self.server.start(**places, background=True).report()
        self.counts["lost"] += again["made"]
        self.counts["damaged"] += again["pictures"] != self.server.expected
        self.counts["left"] += len(list(Path(places["store"]).rglob("*.lock")))

    def good(self, *, twice: bool = False, left: bool = False) -> bool:
        """Whether nothing went wrong.

        Arguments:
            twice: allow cells that two machines have sampled.
            left: allow the lock of a killed process that is valid for its lease, where no cell waits for it.
        """
        print(dict(self.counts), f"longest sweep {self.longest:.2f} s")
        wrong = Counter(self.counts)
        del wrong["trials"], wrong["hit"]
        if twice:
            del wrong["twice"]
        if left:
            del wrong["left"]
        return not wrong.total()


@pytest.fixture
def run(server, tmp_path, request):
    return Trials(server, tmp_path, request.node.name)


# ------------------------------------------------------------------------------------------------------------- signals
@trials
@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT"])
@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
def test_a_signal_loses_no_cell_of_another_process(server, run, name, flock, trials):
    for number in range(trials):
        places = run.places()
        options = {**places, "background": number % 2 == 0, "flock": flock}
        first, second = server.start(**options), server.start(**options)
        run.moment()
        first.signal(getattr(signal, name))
        run.check(places, second.report(), first=first.end())
    assert run.good() and run.counts["hit"] >= trials / 2


@trials
@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
def test_a_stopped_process_keeps_its_claim_on_one_machine(server, run, flock, trials):
    for number in range(trials):
        places = run.places()
        options = {**places, "lease": 0.2, "background": number % 2 == 0, "flock": flock}
        first, second = server.start(**options), server.start(**options)
        run.moment()
        first.signal(signal.SIGSTOP)
        time.sleep(0.6)
        first.signal(signal.SIGCONT)
        run.check(places, first.report(), second.report())
    assert run.good()


@trials
def test_a_stopped_process_of_another_machine_loses_its_claim_and_damages_nothing(server, run, trials):
    for number in range(trials):
        places = run.places()
        options = {**places, "lease": 0.2, "background": number % 2 == 0, "flock": number % 4 < 2}
        first, second = server.start(**options, machine="a"), server.start(**options, machine="b")
        run.moment()
        first.signal(signal.SIGSTOP)
        finished = second.report()
        first.signal(signal.SIGCONT)
        run.check(places, first.report(), finished)
    assert run.good(twice=True)


@pytest.mark.long
def test_a_sweep_that_waits_for_a_stopped_process_reports_it_within_five_seconds(server, run):
    places = run.places()
    first = server.start(**places)
    while not list(Path(places["store"]).rglob("*.lock")):
        time.sleep(0.001)
    first.signal(signal.SIGSTOP)
    second = server.start(**places)
    time.sleep(QUIET)
    first.signal(signal.SIGCONT)
    first.end()
    report = second.report()
    if report["seconds"] > 4:  # unless the first process was stopped between two claims
        assert f"claimed by process {first.pid} of this machine" in report["warnings"][0]
    run.check(places, report)
    assert run.good()


# ---------------------------------------------------------------------------------------- clocks, restarts, containers
@trials
@pytest.mark.parametrize("stamps", [False, True], ids=["clock of the server", "clock of the client"])
def test_a_clock_that_is_ahead_neither_ends_nor_prolongs_claims(server, run, stamps, trials):
    for number in range(trials):
        places = run.places()
        options = {**places, "lease": 2.0, "background": number % 2 == 0}
        first = server.start(**options, machine="a", clock=90, stamps=stamps)
        second = server.start(**options, machine="b")
        run.moment()
        if number % 2:
            first.signal(signal.SIGKILL)
        run.check(places, second.report(), first=first.end())
    assert run.good()


@trials
@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
def test_a_restarted_process_with_the_same_pid_does_not_wait_for_itself(server, run, flock, trials):
    for number in range(trials):
        places = run.places()
        # Without `flock`, the claim of another PID namespace is valid for its lease.
        options = {**places, "namespace": True, "flock": flock, "lease": 60 if flock else 2}
        first = server.start(**options, background=number % 2 == 0)
        run.moment()
        first.signal(signal.SIGKILL)
        killed = first.end()
        second = server.start(**options).report()
        assert second["pid"] == 1 and (killed is None or killed["pid"] == 1)
        run.check(places, second, first=killed)
    assert run.good(left=not flock) and run.longest < QUIET


@trials
def test_processes_of_two_pid_namespaces_sample_each_cell_once(server, run, trials):
    for number in range(trials):
        places = run.places()
        options = {**places, "namespace": True, "background": number % 2 == 0}
        first, second = server.start(**options), server.start(**options)
        run.moment()
        if number % 2:
            first.signal(signal.SIGKILL)
        run.check(places, second.report(), first=first.end())
    assert run.good() and run.longest < QUIET


# ------------------------------------------------------------------------------------------------------------ full disk
@pytest.fixture
def disk(tmp_path):
    """A function that sets the size of the file system at `tmp_path / "disk"` in KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size: int, *options: str) -> None:
        remount = ["-o", f"remount,size={size}k"] if os.path.ismount(folder) else ["-o", f"size={size}k"]
        command = ["mount", "-t", "tmpfs", *remount, "fluxnb-test", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("file systems may not be mounted, see QUARANTINES.md")

    yield resize
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


@trials
def test_a_full_disk_loses_no_finished_cell(server, run, disk, tmp_path, trials):
    full = 0
    for number in range(trials):
        disk(run.random.randrange(8, 96, 4))
        places = {**run.places(), "store": str(tmp_path / "disk" / str(number))}
        options = {**places, "background": number % 2 == 0}
        children = [server.start(**options), server.start(**options)]
        reports = [child.report() for child in children]
        full += any("is full" in (report["error"] or "") for report in reports)
        assert all(report["error"] is None or "is full" in report["error"] for report in reports), reports
        complete = {path.stem for path in Path(places["store"]).glob("*/*.json")}
        assert not list(tmp_path.glob("disk/**/*.part")) and not list(tmp_path.glob("disk/**/*.lock"))
        disk(4096)
        last = server.start(**options).report()
        assert last["made"] == len(server.expected) - len(complete)
        run.check(places, last)
        subprocess.run(["umount", str(tmp_path / "disk")], check=True)
    assert run.good() and full > trials / 2


# --------------------------------------------------------------------------------------------------------- twenty kills
def finished(store: Path) -> dict[str, int]:
    """The complete cells and the times of their writing."""
    return {path.stem: path.stat().st_mtime_ns for path in store.glob("*/*.json")}


@pytest.mark.long
def test_a_grid_killed_twenty_times_samples_each_cell_once(server, toy_folder, tmp_path):
    store, log, rng = tmp_path / "store", tmp_path / "log", random.Random(5)
    kills, before = 0, {}
    for _ in range(KILLS):
        child = server.start(store=str(store), log=str(log), grid=True).pid
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


@pytest.mark.long
def test_locks_of_killed_processes_do_not_block_another(server, toy_folder, tmp_path):
    store = tmp_path / "store"
    both = [server.start(store=str(store), grid=True).pid for _ in range(2)]
    while len(finished(store)) < 6:
        time.sleep(0.002)
    for child in both:
        os.kill(child, signal.SIGKILL)
    while any(alive(child) for child in both):
        time.sleep(0.002)
    before = finished(store)
    grid = fnb.sweep(fnb.load(toy_folder), **GRID, store=Store(store, lease=60))
    assert grid.finished and sum(cell.made for cell in grid) == 48 - len(before)
