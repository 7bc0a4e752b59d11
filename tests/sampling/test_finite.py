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


def test_an_immediate_check_reports_the_step_itself(numbers, trajectory):
    with pytest.raises(fnb.RunError, match="step 1 "):
        numbers.check(BAD, lambda item: trajectory.steps[1], late=False)


def test_a_late_check_reports_the_previous_step_at_the_next_one(numbers, trajectory):
    numbers.check(BAD, lambda item: trajectory.steps[1], late=True)
    with pytest.raises(fnb.RunError, match="step 1 "):
        numbers.check(GOOD, lambda item: trajectory.steps[2], late=True)


@pytest.mark.parametrize("late", [True, False])
def test_large_numbers_whose_sum_overflows_pass(numbers, trajectory, late):
    numbers.check(torch.full((2, 4, 64), 3e38), lambda item: trajectory.steps[0], late=late)
    numbers.settle()


def test_a_late_check_is_that_of_the_velocity_before_it_was_overwritten(numbers, trajectory):
    v = BAD.clone()  # as the output of a CUDA graph, which the next evaluation overwrites
    numbers.check(v, lambda item: trajectory.steps[1], late=True)
    v.zero_()
    with pytest.raises(fnb.RunError, match="step 1 "):
        numbers.settle()


def test_the_last_step_is_reported_when_the_check_is_settled(numbers, trajectory):
    numbers.check(BAD, lambda item: trajectory.steps[2], late=True)
    with pytest.raises(fnb.RunError, match="step 2 "):
        numbers.settle()


def test_a_failure_is_reported_once(numbers, trajectory):
    numbers.check(BAD, lambda item: trajectory.steps[2], late=True)
    with pytest.raises(fnb.RunError):
        numbers.settle()
    numbers.settle()


def test_the_step_of_the_affected_picture_is_requested(numbers, trajectory):
    requested = []
    with pytest.raises(fnb.RunError, match="bfloat16"):
        numbers.check(BAD, lambda item: requested.append(item) or trajectory.steps[0], late=False)
    assert requested == [1]


@pytest.mark.moderate
def test_an_interrupted_trajectory_that_is_not_finite_has_no_picture(monkeypatch):
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
