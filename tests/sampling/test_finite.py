from __future__ import annotations

import math

import pytest
import torch

import fluxnb as fnb
from fluxnb.sampling.sampler import FiniteCheck
from tests.conftest import toy_pipeline
from tests.trajectories import resolved

GOOD = torch.zeros(2, 4, 64)
BAD = GOOD.index_fill(0, torch.tensor(1), math.inf)
ASKED = {"seed": 1, "steps": 3, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def trajectory():
    return fnb.run(fnb.load(toy_pipeline()), "a fox", **ASKED)


@pytest.fixture
def numbers():
    return FiniteCheck([resolved(prompt="a fox", dtype="float16"), resolved(prompt="a cat", dtype="bfloat16")])


def test_numbers_pass(numbers, trajectory):
    for late in (True, False, True):
        numbers.check(GOOD, lambda item: trajectory.steps[0], late=late)
    numbers.settle()


def test_at_once_the_step_itself_is_told(numbers, trajectory):
    with pytest.raises(fnb.RunError, match="step 1 "):
        numbers.check(BAD, lambda item: trajectory.steps[1], late=False)


def test_late_the_next_step_tells_of_the_one_before(numbers, trajectory):
    numbers.check(BAD, lambda item: trajectory.steps[1], late=True)
    with pytest.raises(fnb.RunError, match="step 1 "):
        numbers.check(GOOD, lambda item: trajectory.steps[2], late=True)


def test_the_last_step_is_told_when_the_walk_is_settled(numbers, trajectory):
    numbers.check(BAD, lambda item: trajectory.steps[2], late=True)
    with pytest.raises(fnb.RunError, match="step 2 "):
        numbers.settle()


def test_what_is_told_is_not_told_again(numbers, trajectory):
    numbers.check(BAD, lambda item: trajectory.steps[2], late=True)
    with pytest.raises(fnb.RunError):
        numbers.settle()
    numbers.settle()


def test_the_picture_that_broke_is_the_one_that_is_asked_for(numbers, trajectory):
    asked = []
    with pytest.raises(fnb.RunError, match="bfloat16"):
        numbers.check(BAD, lambda item: asked.append(item) or trajectory.steps[0], late=False)
    assert asked == [1]


@pytest.mark.moderate
def test_a_walk_stopped_by_hand_shows_no_picture_of_no_numbers(monkeypatch):
    flux, made = fnb.load(toy_pipeline()), []

    def spoil(module, given, out):
        made.append(1)
        if len(made) == 2:
            raise KeyboardInterrupt
        return (out[0] * math.nan,)

    check = FiniteCheck.check
    monkeypatch.setattr(FiniteCheck, "check", lambda self, v, step, late: check(self, v, step, late=True))
    flux.pipe.transformer.register_forward_hook(spoil)
    with pytest.raises(fnb.RunError, match="step 0 "):
        fnb.run(flux, "a fox", **ASKED)
