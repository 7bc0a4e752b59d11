"""What all trainings share: weight averages, learning rates, and the number of iterations."""

from __future__ import annotations

import time

import pytest
import torch

from fluxnb.train.config import Schedule
from fluxnb.train.stages import loop
from fluxnb.train.stages.loop import Average, Pace, Rank

CPU = Rank(0, 1, torch.device("cpu"))


def test_the_average_converges_to_constant_weights():
    layer = torch.nn.Linear(1, 1, bias=False)
    average = Average(layer, 0.9)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    for _ in range(200):
        average.update()
    assert average.mean[0].item() == pytest.approx(3.0, abs=1e-3)


def test_the_average_of_pretrained_weights_starts_at_them():
    layer = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(layer.weight)
    average = Average(layer, 0.9, pretrained=True)
    torch.nn.init.ones_(layer.weight)
    average.update()
    assert average.mean[0].item() == pytest.approx(0.1)


def test_the_learning_rate_warms_up_and_decays_to_zero():
    pace = Pace(Schedule(seconds=0.0, iterations=1000, batch=1, learning_rate=1.0, warmup=10), CPU)
    assert pace.rate(0) == pytest.approx(0.1) and pace.rate(500) == 1.0 and pace.rate(999) < 0.01


def test_a_pause_for_monitoring_does_not_shorten_a_schedule_in_seconds(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    for iteration in (pace := Pace(Schedule(seconds=10.0, batch=1, learning_rate=1.0, cooldown=0.5), CPU, trial=100)):
        clock[0] += 0.01 if iteration != 450 else 1.0  # within the last hundred iterations used for planning
    assert pace.seconds() == pytest.approx(10.0, rel=0.15)


def test_a_schedule_in_seconds_takes_about_that_long():
    pace = Pace(Schedule(seconds=0.3, batch=1, learning_rate=1.0), CPU, trial=5)
    for _ in pace:
        time.sleep(0.002)
    assert 0.2 < pace.seconds() < 1.0
