from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from fluxnb import flow, metrics
from fluxnb.errors import InputError
from tests.trajectories import noise, sample_trajectory

EVEN = flow.schedule(4)
DATA = noise(1)


def straight(sigmas=EVEN):
    start = noise(0)
    return sample_trajectory(lambda x, s: start - DATA, start, sigmas)


def test_a_constant_field_is_straight():
    trajectory = straight()
    assert metrics.straightness(trajectory) == pytest.approx(0, abs=1e-20)
    assert metrics.length_over_chord(trajectory) == pytest.approx(1)
    assert metrics.turning_angle(trajectory) == pytest.approx((0, 0, 0), abs=1e-6)
    assert metrics.drift(trajectory) == pytest.approx((0, 0, 0), abs=1e-12)
    assert metrics.lock_in(trajectory) == 0


def test_length_and_chord_of_a_right_angle():
    a, b = torch.zeros(2, 4, 64, dtype=torch.float64).unbind()
    a[0, 0], b[0, 1] = 6.0, 8.0
    trajectory = sample_trajectory(
        lambda x, s: a if s == 1 else b, torch.zeros(4, 64, dtype=torch.float64), (1.0, 0.5, 0.0)
    )
    assert metrics.length(trajectory) == pytest.approx(7)  # half of 6 and half of 8
    assert metrics.chord(trajectory) == pytest.approx(5)
    assert metrics.turning_angle(trajectory) == pytest.approx((90,))
    # even = (3, 4) * 1; |even - a|^2 = 9 + 16, |even - b|^2 = 9 + 16, both half the time, over |even|^2 = 25
    assert metrics.straightness(trajectory) == pytest.approx(1.0)


def test_an_exponential_field_has_the_straightness_of_the_closed_form():
    # dx/dsigma = x from sigma 1 to 0: v = x(1) e^(sigma-1), chord velocity x(1) (1 - 1/e).
    start = noise(2)
    trajectory = sample_trajectory(lambda x, s: x, start, flow.schedule(1000))
    c = 1 - math.exp(-1)
    integral = (1 - math.exp(-2)) / 2 - 2 * c * (1 - math.exp(-1)) + c * c
    assert metrics.straightness(trajectory) == pytest.approx(integral / c**2, rel=5e-3)
    assert metrics.length_over_chord(trajectory) == pytest.approx(1)


def test_a_reversal_is_a_turn_of_180_degrees():
    trajectory = sample_trajectory(lambda x, s: noise(3) if s > 0.5 else -noise(3), noise(0), (1.0, 0.5, 0.0))
    assert metrics.turning_angle(trajectory) == pytest.approx((180,))


def test_one_step_is_always_straight():
    trajectory = straight((1.0, 0.0))
    assert metrics.length_over_chord(trajectory) == pytest.approx(1)
    assert metrics.turning_angle(trajectory) == () and metrics.drift(trajectory) == ()
    assert metrics.coarseness(trajectory) == 1.0


def test_the_velocity_norm_is_a_root_mean_square():
    trajectory = sample_trajectory(lambda x, s: torch.full((4, 64), 2.0, dtype=torch.float64), noise(0), EVEN)
    assert metrics.velocity_norm(trajectory) == pytest.approx((2, 2, 2, 2))


def test_lock_in_is_where_the_clean_estimate_stops_changing():
    start = noise(0)
    goals = {1.0: noise(5), 0.75: noise(6), 0.5: DATA, 0.25: DATA}
    trajectory = sample_trajectory(lambda x, s: (x - goals[s]) / s, start, EVEN)
    assert metrics.lock_in(trajectory) == 2
    assert metrics.distance_to_final(trajectory)[2:] == pytest.approx((0, 0), abs=1e-12)
    assert metrics.drift(trajectory)[1] > 0.5 and metrics.drift(trajectory)[2] == pytest.approx(0, abs=1e-12)


def test_a_straight_trajectory_lies_on_one_principal_axis():
    coordinates, shares = metrics.principal_path(straight())
    assert shares == pytest.approx((1, 0), abs=1e-12)
    assert coordinates.shape == (5, 2) and coordinates[-1, 0] > coordinates[0, 0]


def test_the_first_point_is_on_the_negative_side_of_each_axis_and_missing_axes_are_zero():
    coordinates, shares = metrics.principal(torch.stack([noise(i).flatten() for i in range(3)]), count=4)
    assert (coordinates[0] <= 0).all() and sum(shares) == pytest.approx(1)
    assert (coordinates[:, 3] == 0).all() and shares[3] == 0


def test_only_steps_with_tensors_are_measured():
    trajectory = straight()
    bare = tuple(replace(step, tensors={}) if step.index % 2 else step for step in trajectory.steps[:3])
    some = replace(trajectory, steps=(*bare, trajectory.steps[3]))
    assert len(metrics.distance_to_final(some)) == 3 and metrics.lock_in(some) == 0
    nothing = replace(trajectory, steps=tuple(replace(s, tensors={"x_next": s.x_next}) for s in trajectory))
    with pytest.raises(InputError, match="keep"):
        metrics.distance_to_final(nothing)


def test_principal_coordinates_keep_the_distances_of_a_planar_trajectory():
    trajectory = sample_trajectory(lambda x, s: noise(3) if s > 0.5 else noise(4), noise(0), (1.0, 0.5, 0.0))
    coordinates, _ = metrics.principal_path(trajectory)
    assert float(torch.tensor(coordinates[2] - coordinates[0]).norm()) == pytest.approx(metrics.chord(trajectory))


def test_equal_pictures_have_no_diversity_and_opposite_ones_the_most():
    black, white = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), "white")
    assert metrics.diversity([black, black, black]) == 0
    assert metrics.diversity([black, white]) == 1
    assert metrics.diversity([black, black, white]) == pytest.approx(2 / 3)


def test_diversity_does_not_grow_with_the_count():
    few = metrics.diversity([noise(i) for i in range(4)])
    many = metrics.diversity([noise(i) for i in range(40)])
    assert many == pytest.approx(few, rel=0.05)
    assert few == pytest.approx(math.sqrt(2), rel=0.05)


def test_diversity_of_one_is_refused():
    with pytest.raises(InputError, match="at least 2"):
        metrics.diversity([noise()])
