"""Ctrl-C at any moment of a sweep loses no picture that was requested, and the same call requests only the rest."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time

import pytest

import fluxnb as fnb
from tests.interrupts import Lines, Signals, chosen

SEEDS = range(24)
GRID = {"prompts": "a fox", "seeds": SEEDS, "width": 64, "height": 64}
NAMES = ("schnell@hf-inference", "schnell@fal-ai")


@contextlib.contextmanager
def ctrl_c(double, request: int, after: float = 0.0, again: float = 0.0):
    """Run the handler of Ctrl-C some seconds after a request for a picture arrived, and again after some more.

    Arguments:
        request: number of the request; 0 for the begin of the block.
    """

    def handler(*_):
        if left:
            left.pop()
            signal.setitimer(signal.ITIMER_REAL, again if left else 0)
            raise KeyboardInterrupt

    def on_request(count):
        if count == request and left:
            signal.setitimer(signal.ITIMER_REAL, max(after, 1e-5))

    left = [None] * (2 if again else 1)
    before = signal.signal(signal.SIGALRM, handler)
    double.on_request = on_request
    try:
        on_request(0)
        yield
    except KeyboardInterrupt:
        pass
    finally:
        left.clear()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        double.on_request = lambda count: None


def settled(timeout: float = 10.0) -> None:
    """Wait for the threads of a sweep that was interrupted twice."""
    end = time.monotonic() + timeout
    while any(thread.name == "fluxnb-remote" for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.005)


def stopped_and_completed(double, name, store, interrupt) -> int:
    """Interrupt a sweep and run it again; returns how many pictures the first run requested."""
    double.requests.clear()
    remote, first = fnb.Remote(name), None
    with interrupt:
        first = fnb.sweep(remote, **GRID, store=store)
    settled()
    requested = double.seeds
    assert len(set(requested)) == len(requested)
    # What was requested is in the store, or on the handle.
    stored = fnb.sweep(remote, prompts="a fox", seeds=requested, width=64, height=64, store=store) if requested else ()
    assert (len(stored), double.seeds) == (len(requested), requested)
    if first is not None:
        assert len(first) <= len(requested) and (not first.finished or len(first) == len(SEEDS))
    grid = fnb.sweep(remote, **GRID, store=store)
    assert (len(grid), grid.finished, double.seeds) == (len(SEEDS), True, list(SEEDS))
    assert not remote.undelivered
    return len(requested)


def trials(double, folder, count: int, *, twice: bool = False) -> list[int]:
    generator, found = random.Random(f"{count} times Ctrl-C"), []
    for trial in range(count):
        request, after = generator.randrange(len(SEEDS) + 1), generator.uniform(0, 0.01)
        interrupt = ctrl_c(double, request, after, generator.uniform(0.0001, 0.02) if twice else 0.0)
        found.append(stopped_and_completed(double, NAMES[trial % 2], folder / str(trial), interrupt))
    return found


@pytest.mark.moderate
def test_ctrl_c_loses_no_picture_and_repeats_no_request(double, tmp_path):
    found = trials(double, tmp_path, 8)
    assert any(0 < count < len(SEEDS) for count in found)


@pytest.mark.long
def test_ctrl_c_loses_no_picture_and_repeats_no_request_in_many_trials(double, tmp_path):
    found = trials(double, tmp_path, 400)
    assert len(set(found)) > 20


@pytest.mark.long
def test_a_second_ctrl_c_loses_no_picture_and_repeats_no_request(double, tmp_path):
    assert len(set(trials(double, tmp_path, 200, twice=True))) > 15


def test_ctrl_c_while_pictures_are_drawn_waits_for_them_and_returns_them(double, tmp_path):
    double.delay = 0.2
    with ctrl_c(double, request=2, after=0.05):
        grid = fnb.sweep(fnb.Remote("schnell@fal-ai"), **GRID, store=tmp_path)
    assert [len(grid), grid.finished, double.seeds] == [2, False, [0, 1]]


def test_ctrl_c_without_a_store_returns_what_was_requested(double):
    remote = fnb.Remote("schnell@fal-ai")
    with ctrl_c(double, request=7):
        grid = fnb.sweep(remote, **GRID)
    assert 0 < len(grid) < len(SEEDS)
    assert sorted(cell.recipe.seed for cell in grid) == double.seeds and not remote.undelivered


def test_ctrl_c_ends_the_wait_for_a_busy_provider(double, tmp_path):
    from tests.remote.double import status

    double.faults["request"] = [status(429, Retry_After="30")] * 2
    started = time.perf_counter()
    with ctrl_c(double, request=2, after=0.1):
        grid = fnb.sweep(fnb.Remote("schnell@fal-ai"), **GRID, store=tmp_path)
    assert time.perf_counter() - started < 5 and len(grid) == 0


def interrupted_at(double, kind, index, store) -> list:
    """The places that a sweep passes, interrupted at the one with this index."""
    double.requests.clear()
    remote, places = fnb.Remote("schnell@hf-inference"), kind(index)
    grid = {**GRID, "seeds": range(2)}
    with contextlib.suppress(KeyboardInterrupt), places:
        fnb.sweep(remote, **grid, store=store)
    settled()
    requested = double.seeds
    assert len(set(requested)) == len(requested)
    assert fnb.sweep(remote, **grid, store=store).finished
    assert double.seeds == [0, 1], places.places[index]
    return places.places


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Lines, Signals])
def test_an_interrupt_at_any_place_of_the_main_thread_repeats_no_request(double, tmp_path, kind):
    fnb.sweep(fnb.Remote("schnell@hf-inference"), **{**GRID, "seeds": range(2)}, store=tmp_path / "warm")
    places = interrupted_at(double, kind, -1, tmp_path / "none")
    own = [index for index in chosen(places) if "remote_runner" in places[index][0]]
    others = chosen(places, every=300)
    for trial, index in enumerate(sorted({*own, *others})):
        interrupted_at(double, kind, index, tmp_path / str(trial))
