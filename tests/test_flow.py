from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxnb import flow

levels = st.floats(0, 1)
seeds = st.integers(0, 2**32)


def pair(seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(2, 4, 6, generator=rng, dtype=torch.float64).unbind()


@given(seeds, levels)
def test_both_ends_follow_from_any_point_of_the_line(seed, sigma):
    x0, noise = pair(seed)
    x, v = flow.interpolate(x0, noise, sigma), flow.velocity_target(x0, noise)
    torch.testing.assert_close(flow.clean_estimate(x, v, sigma), x0)
    torch.testing.assert_close(flow.noise_estimate(x, v, sigma), noise)


@given(seeds, levels)
def test_a_point_is_the_mixture_of_its_estimates_whatever_the_velocity(seed, sigma):
    x, v = pair(seed)
    mixed = flow.interpolate(flow.clean_estimate(x, v, sigma), flow.noise_estimate(x, v, sigma), sigma)
    torch.testing.assert_close(mixed, x)


@pytest.mark.moderate
@given(seeds, st.integers(1, 20))
def test_euler_steps_along_a_straight_field_end_at_the_data(seed, steps):
    x0, noise = pair(seed)
    x, levels = noise, flow.schedule(steps)
    for sigma, following in itertools.pairwise(levels):
        x = flow.euler_step(x, flow.velocity_target(x0, noise), sigma, following)
    torch.testing.assert_close(x, x0)


def test_estimates_of_bfloat16_are_float32():
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    assert flow.clean_estimate(x, x, 0.3).dtype == torch.float32


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 28, 50])
@pytest.mark.parametrize("shift", [1.0, 3.0, 3.1, 0.5])
def test_the_schedule_is_that_of_diffusers_to_the_bit(steps, shift):
    import numpy as np
    from diffusers import FlowMatchEulerDiscreteScheduler

    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    assert flow.schedule(steps, shift=shift) == tuple(theirs.sigmas.tolist())


def test_own_sigmas_pass_through_the_shift():
    assert flow.schedule(2, [1.0, 0.5], shift=3.0) == (1.0, 0.75, 0.0)


def test_the_dynamic_shift_is_that_of_flux_dev():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    for tokens in (64, 256, 1024, 4096):
        assert flow.dynamic_shift(tokens) == pytest.approx(math.exp(calculate_shift(tokens)))


def test_step_counts_share_their_first_evaluation_and_no_other():
    counts = [1, 2, 3, 4]
    assert flow.shared_evaluations([flow.schedule(n) for n in counts]) == (7, 10)
    assert flow.shared_evaluations([flow.schedule(n) for n in range(1, 9)]) == (29, 36)
    assert flow.share_prefixes([flow.schedule(n) for n in (4, 8)]) == ((-1, 0), (0, 1))


def test_own_schedules_share_their_equal_beginning():
    plan = flow.share_prefixes([(1.0, 0.5, 0.2, 0.0), (1.0, 0.5, 0.0), (0.9, 0.5, 0.0), (1.0, 0.5, 0.2, 0.1, 0.0)])
    assert plan == ((-1, 0), (0, 2), (-1, 0), (0, 3))


@given(
    st.lists(
        st.lists(st.sampled_from([1.0, 0.8, 0.5, 0.2]), min_size=1, max_size=4, unique=True), min_size=1, max_size=6
    )
)
def test_sharing_costs_one_evaluation_per_different_beginning(given):
    schedules = [(*sorted(each, reverse=True), 0.0) for each in given]
    beginnings = {each[:length] for each in schedules for length in range(1, len(each))}
    assert flow.shared_evaluations(schedules)[0] == len(beginnings)


def test_tensors_of_different_shape_are_refused_under_the_shape_checks():
    with pytest.raises(Exception, match=r"shape|type"):
        flow.velocity_target(torch.zeros(2, 3), torch.zeros(4, 5))
