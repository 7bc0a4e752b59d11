"""Calls in the foreground beside an explorer that fills and a lab that samples, all of one pipeline.

Every picture has the bytes that it has alone, no call raises, and every cell arrives.
"""

from __future__ import annotations

import itertools
import random
import threading
import traceback
import warnings

import pytest
import torch

import fluxnb as fnb
from fluxnb.widgets import explorer
from fluxnb.widgets import lab as lab_module
from tests.conftest import toy_pipeline
from tests.sampling.test_shared_pipelines import call, digest

pytestmark = pytest.mark.long

CALLS = 200  # plain ones, and as many recorded ones
ROUNDS = 8  # of the explorer and the lab
LIMIT = 600.0  # seconds after which a widget counts as stuck
SIZE = {"height": 32, "width": 48}
PROMPTS, STEPS = ("a red dog", "a fox", "a cat in snow"), (1, 2, 3)
GRID = {**SIZE, "prompts": ["a fox", "a cat"], "seeds": range(6), "steps": [1, 2, 3], "keep": fnb.Keep()}
ATTENTION = fnb.Keep(attention="all")


@pytest.fixture(autouse=True)
def cells_of_a_notebook(monkeypatch):
    """Each thread stands for a cell of its own; where a host names no cells, new work on a model stops earlier work."""
    for module in (explorer, lab_module):
        monkeypatch.setattr(module, "current_cell", lambda: threading.current_thread().name)


@pytest.fixture(params=["as given", "lean"])
def flux(request, toy_folder):
    if request.param != "as given":
        flux = fnb.load(toy_folder, preset=request.param)
    else:
        flux = fnb.load(toy_pipeline())
    flux.pipe.set_progress_bar_config(disable=True)
    return flux


def cells_of(grid):
    """What decides and what is in each cell of a grid: prompt, seed, steps, picture and last tokens."""
    return {
        (cell.recipe.prompt, cell.recipe.seed, cell.recipe.steps): (
            digest(cell.image.tobytes()),
            digest(cell.trajectory.final.numpy().tobytes()),
        )
        for cell in grid
    }


def recorded_call(flux, prompt, steps, seed):
    """A recorded call; returns a digest of its picture, and of the tensors of its record."""
    with fnb.recording(flux, keep=ATTENTION) as recorder:
        picture = call(flux.pipe, prompt, seed=seed, steps=steps)
    (trajectory,) = recorder.trajectories
    assert trajectory.finished and len(trajectory) == steps
    return picture, digest(trajectory.final.numpy().tobytes()), digest(trajectory[-1].attention.numpy().tobytes())


class Widgets:
    """A thread that fills explorers and runs labs, one after the other, until the calls are over."""

    def __init__(self, flux, expected):
        self._flux, self._expected, self._over = flux, expected, threading.Event()
        self.wrong, self.problems, self.rounds = 0, [], 0
        self._threads = [threading.Thread(target=self._repeat, args=(each,)) for each in (self._explore, self._lab)]

    def __enter__(self):
        # Once in this thread: the import hook of the tests parses modules, which Python 3.11 cannot do in two threads.
        assert cells_of(self._explore()) == cells_of(self._lab()) == self._expected
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive(), "a widget is stuck"

    def _repeat(self, fill):
        try:
            while not self._over.is_set() or self.rounds < ROUNDS:
                self.wrong += cells_of(fill()) != self._expected
                self.rounds += 1
        except BaseException:
            self.problems.append(traceback.format_exc())

    def _explore(self):
        return fnb.explore(fnb.stream(self._flux, **GRID)).wait(LIMIT).grid

    def _lab(self):
        cells = []
        for prompt in GRID["prompts"]:
            lab = fnb.lab(self._flux, prompt=prompt, keep=fnb.Keep())
            lab.generate(seeds="0-5", steps="1, 2, 3", height="32", width="48")
            cells += lab.wait(LIMIT).grid.cells
        return cells


def test_two_hundred_plain_and_recorded_calls_beside_an_explorer_and_a_lab(flux, record_property):
    requests = list(itertools.product(PROMPTS, STEPS, (0, 1)))
    plain = {request: call(flux.pipe, request[0], steps=request[1], seed=request[2]) for request in requests}
    records = {request: recorded_call(flux, *request) for request in requests}
    grid = fnb.sweep(flux, **GRID)
    assert all(records[request][0] == plain[request] for request in requests) and len(grid) == 36
    threads, draw = torch.get_num_threads(), random.Random(0)
    order = ["plain"] * CALLS + ["recorded"] * CALLS
    draw.shuffle(order)
    wrong = errors = 0
    with warnings.catch_warnings(), Widgets(flux, cells_of(grid)) as widgets:
        warnings.simplefilter("error", fnb.RecordingWarning)
        for kind in order:
            request = draw.choice(requests)
            try:
                if kind == "plain":
                    wrong += call(flux.pipe, request[0], steps=request[1], seed=request[2]) != plain[request]
                else:
                    wrong += recorded_call(flux, *request) != records[request]
            except Exception:
                errors += 1
    record_property("rounds of the widgets", widgets.rounds)
    assert (wrong, errors, widgets.wrong, widgets.problems) == (0, 0, 0, [])
    assert torch.get_num_threads() == threads and widgets.rounds >= ROUNDS
