"""Noise levels of ComfyUI's schedulers, against values that ComfyUI 0.3.64 computed."""

from __future__ import annotations

import itertools
import math

import pytest

from fluxnb.io.comfy_levels import SCHEDULERS, Table, beta_quantile, levels

# Levels after the shift: 5 steps of a table of 1000 with shift 3, and 4 steps of FLUX.1 dev at mu 1.15.
COMFYUI = {
    "simple": ([1.0, 0.923077, 0.818182, 0.666667, 0.428571], [1.0, 0.904531, 0.759511, 0.512844]),
    "sgm_uniform": ([1.0, 0.923342, 0.818923, 0.668327, 0.432225], [1.0, 0.904567, 0.759626, 0.51316]),
    "normal": ([1.0, 0.900359, 0.751121, 0.502985, 0.008929], [1.0, 0.863376, 0.612492, 0.000997]),
    "beta": ([1.0, 0.955338, 0.840949, 0.630939, 0.298077], [1.0, 0.936776, 0.759584, 0.402498]),
    "ddim_uniform": ([0.923963, 0.819419, 0.668514, 0.431624, 0.005976], [0.904623, 0.759657, 0.513111, 0.000631]),
    "karras": ([1.0, 0.34509, 0.098361, 0.021288, 0.002994], [1.0, 0.163505, 0.014118, 0.000316]),
    "exponential": ([1.0, 0.233918, 0.054718, 0.012799, 0.002994], [1.0, 0.068095, 0.004637, 0.000316]),
    "kl_optimal": ([1.0, 0.669262, 0.415969, 0.201248, 0.002994], [1.0, 0.577491, 0.268175, 0.000316]),
    "linear_quadratic": ([1.0, 0.9875, 0.975, 0.858333, 0.533333], [1.0, 0.9875, 0.975, 0.725]),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_levels_are_those_of_comfyui(scheduler):
    for table, expected in zip((Table(1000, 3.0), Table(10_000, math.exp(1.15))), COMFYUI[scheduler], strict=True):
        found = [table.shifted(level) for level in levels(scheduler, len(expected), table)]
        assert found == pytest.approx(expected, abs=6e-7)


@pytest.mark.parametrize(("steps", "apart"), [(1, 1e-7), (2, 1e-7), (4, 1e-7), (8, 1e-7), (20, 1e-7), (3, 7e-4)])
def test_simple_is_the_even_schedule_rounded_to_thousandths(steps, apart):
    found, even = levels("simple", steps, Table(1000, 1.0)), [1 - index / steps for index in range(steps)]
    assert max(abs(a - b) for a, b in zip(found, even, strict=True)) == pytest.approx(apart, rel=0.1, abs=1e-7)


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    [(name, steps) for name in SCHEDULERS for steps in (1, 2, 3, 7, 28, 200) if (name, steps) != ("kl_optimal", 1)],
)
def test_levels_fall_strictly_and_stay_above_zero(scheduler, steps):
    found = levels(scheduler, steps, Table(1000, 1.0))
    assert all(a > b for a, b in itertools.pairwise(found)) and 0 < found[-1] <= found[0] <= 1


def test_the_quantile_is_that_of_the_beta_distribution():
    scipy = [
        (0.0, 0.0),
        (1e-06, 1.86e-10),
        (0.01, 0.000861238822),
        (0.1, 0.039584405589),
        (0.25, 0.175680378653),
        (0.4, 0.362700990753),
        (0.5, 0.5),
        (0.75, 0.824319621347),
        (0.999, 0.999981441261),
        (1.0, 1.0),
    ]
    for share, quantile in scipy:
        assert beta_quantile(share, 0.6) == pytest.approx(quantile, abs=1e-11)
