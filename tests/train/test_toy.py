"""The two-dimensional flow: closed forms compared with sampling, and measures of clouds with known values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fluxnb.errors import InputError
from fluxnb.train.toy import (
    CENTERS,
    MODES,
    SPREAD,
    Net,
    align,
    as_points,
    blobs,
    crossings,
    detour,
    detours,
    distance,
    draw_data,
    exact_velocity,
    log_density,
    optimal_velocity,
    posterior,
    straightness,
    train,
    trajectory,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sigma", [0.2, 0.5, 0.9])
def test_the_exact_velocity_is_the_mean_over_sampled_lines_through_a_point(sigma):
    data, noise = draw_data(2_000_000, seeded()), torch.randn(2_000_000, 2, generator=seeded(1))
    x = (1 - sigma) * data + sigma * noise
    point = (1 - sigma) * CENTERS[0] + 0.1 * sigma
    near = (x - point).norm(dim=1) < 0.05
    assert near.sum() > 300
    sampled = (noise - data)[near].mean(0)
    error = (noise - data)[near].std(0) / near.sum() ** 0.5
    exact = exact_velocity(point[None], torch.tensor(sigma))[0]
    assert ((exact - sampled).abs() < 4 * error + 0.05).all()


def test_at_pure_noise_the_velocity_points_away_from_the_mean_of_the_data():
    x = torch.randn(8, 2, generator=seeded())
    assert torch.allclose(exact_velocity(x, torch.tensor(1.0)), x, atol=1e-6)


def test_the_exact_velocity_of_doubles_is_double():
    x = torch.randn(8, 2, generator=seeded()).double()
    exact = exact_velocity(x, torch.tensor(0.5))
    assert exact.dtype == torch.float64
    assert torch.allclose(exact.float(), exact_velocity(x.float(), torch.tensor(0.5)), atol=1e-4)


@pytest.mark.moderate
def test_the_exact_flow_samples_the_data_distribution():
    ends = trajectory(exact_velocity, torch.randn(4096, 2, generator=seeded()), 100)[-1]
    count, spread, lost = blobs(ends)
    assert count > 7.9 and lost < 0.01 and spread == pytest.approx(SPREAD, rel=0.05)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_the_density_integrates_to_one(sigma):
    axis = torch.linspace(-6, 6, 601)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
    assert log_density(grid, sigma).exp().sum() * 0.02**2 == pytest.approx(1, abs=2e-3)


def test_a_trajectory_starts_at_the_noise_and_has_one_state_more_than_steps():
    noise = torch.randn(4, 2, generator=seeded())
    path = trajectory(Net(), noise, 3)
    assert path.shape == (4, 4, 2) and torch.equal(path[0], noise)


def test_straightness_and_detour_of_straight_and_bent_paths():
    straight = torch.linspace(0, 1, 5)[:, None, None] * torch.ones(1, 3, 2)
    bent = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 1.0]]])
    assert straightness(straight) == pytest.approx(0, abs=1e-10) and detour(straight) == pytest.approx(1)
    assert detour(bent) == pytest.approx(math.sqrt(2)) and straightness(bent) == pytest.approx(1)


def test_the_distance_to_a_shifted_cloud_is_the_projected_shift():
    cloud = torch.randn(500, 2, generator=seeded())
    assert distance(cloud, cloud) == 0
    assert distance(cloud, cloud + torch.tensor([1.0, 0.0])) == pytest.approx(math.sqrt(0.5), rel=1e-3)


def test_blobs_counts_covered_blobs_and_lost_points():
    assert blobs(CENTERS) == (pytest.approx(MODES), pytest.approx(0, abs=1e-6), 0.0)
    assert blobs(CENTERS[:1].repeat(5, 1))[0] == pytest.approx(1)
    assert blobs(torch.zeros(3, 2))[2] == 1.0


def test_alignment_is_positive_for_preserved_and_negative_for_reversed_directions():
    noise = torch.randn(1000, 2, generator=seeded())
    preserves, reverses = (lambda x, s: 0.5 * x), (lambda x, s: 1.5 * x)
    assert align(preserves, noise) > 0.95 and align(reverses, noise) < -0.95


# ----------------------------------------------------------------------------------------------- any points as the data
def cross(count: int = 200) -> torch.Tensor:
    """Points on the two diagonals of a square, off the center."""
    position = torch.linspace(-1, 1, count // 2)[:, None]
    return torch.cat((position * torch.tensor([1.0, 1.0]), position * torch.tensor([1.0, -1.0]))) + 0.3


def test_the_posterior_of_two_points_is_the_ratio_of_their_densities():
    points, x, sigma = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([[0.2, 0.7]]), torch.tensor(0.5)
    density = [math.exp(-((0.2 - 0.5 * side) ** 2) / (2 * 0.5**2)) for side in (1, -1)]
    assert posterior(points, x, sigma)[0, 0] == pytest.approx(density[0] / sum(density), rel=1e-5)


@pytest.mark.parametrize("sigma", [0.3, 0.7])
def test_the_optimal_velocity_of_points_is_the_mean_of_the_directions_of_their_lines(sigma):
    points, x, level = cross(), torch.tensor([[0.4, -0.2]]), torch.tensor(sigma)
    noise = (x - (1 - sigma) * points) / sigma  # of the line from each data point through x
    weights = torch.exp(-noise.square().sum(1) / 2)
    expected = ((noise - points) * weights[:, None]).sum(0) / weights.sum()
    assert torch.allclose(optimal_velocity(points)(x, level)[0], expected, atol=1e-4)


def test_one_optimal_step_from_any_noise_ends_at_the_mean_of_the_points():
    points = cross()
    ends = trajectory(optimal_velocity(points), torch.randn(64, 2, generator=seeded()), 1)[-1]
    assert torch.allclose(ends, points.mean(0).expand(64, 2), atol=1e-5)


def test_many_optimal_steps_end_at_the_points():
    points = cross(20)
    ends = trajectory(optimal_velocity(points), torch.randn(64, 2, generator=seeded()), 100)[-1]
    assert torch.cdist(ends, points).min(1).values.max() < 0.02


def test_the_optimal_velocity_with_a_spread_is_that_of_the_blobs():
    x, sigma = torch.randn(32, 2, generator=seeded()), torch.rand(32, generator=seeded(1))
    assert torch.allclose(optimal_velocity(CENTERS, SPREAD)(x, sigma), exact_velocity(x, sigma), atol=1e-5)


def test_the_median_of_the_detours_is_the_detour():
    bent = torch.tensor([[[0.0, 0.0]] * 3, [[1.0, 0.0]] * 3, [[1.0, 1.0], [2.0, 0.0], [1.0, 2.0]]])
    assert detours(bent).tolist() == pytest.approx([math.sqrt(2), 1, 3 / math.sqrt(5)])
    assert detour(bent) == pytest.approx(3 / math.sqrt(5))


def test_lines_of_a_monotone_map_do_not_cross_and_those_of_its_reverse_all_do():
    noise = torch.randn(50, 2, generator=seeded())
    assert crossings(2 * noise + 1, noise) == 0 and crossings(-noise, noise) == 1


def test_half_of_the_lines_between_independent_points_cross():
    data, noise = cross(400), torch.randn(400, 2, generator=seeded())
    assert crossings(data, noise) == pytest.approx(0.5, abs=0.06)


def read_only(points: torch.Tensor) -> np.ndarray:
    """An array as a canvas has it."""
    array = points.numpy().copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("convert", [lambda p: p.double(), lambda p: p.numpy(), lambda p: p.tolist(), read_only])
def test_points_are_accepted_as_tensors_arrays_and_lists(convert):
    assert torch.equal(as_points(convert(cross())), cross())


@pytest.mark.parametrize(
    "points",
    [[[1.0, 2.0, 3.0]] * 3, [1.0, 2.0], [], np.zeros((0, 2)), [[0.0, 0.0]], [[0.0, math.nan]] * 2, "ring", None],
)
def test_points_that_are_no_data_are_refused_in_three_parts(points):
    for function in (as_points, optimal_velocity, train):
        with pytest.raises(InputError) as caught:
            function(points)
        assert caught.value.given and caught.value.possible and caught.value.remedy


def test_noise_without_a_row_for_each_point_is_refused():
    with pytest.raises(InputError, match="its own noise"):
        train(cross(20), torch.zeros(19, 2))


@pytest.mark.moderate
def test_training_is_deterministic_by_its_seed_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    one, same, other = (train(cross(), seed=seed, iterations=3) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.out.weight, other.out.weight)


@pytest.mark.moderate
def test_a_trained_flow_follows_the_optimal_one_and_its_reflow_is_straight():
    points, noise = cross(), torch.randn(1024, 2, generator=seeded())
    flow, exact = train(points, iterations=600), optimal_velocity(points)
    x = 0.5 * points[torch.arange(1024) % 200] + 0.5 * noise
    level = torch.tensor(0.5)
    error = (flow(x, level) - exact(x, level)).square().mean() / exact(x, level).square().mean()
    assert error.sqrt() < 0.25
    path = trajectory(flow, noise, 50)
    assert detour(path) == pytest.approx(detour(trajectory(exact, noise, 50)), rel=0.1)
    second = trajectory(train(path[-1], noise, iterations=400), noise, 50)
    assert straightness(second) < straightness(path) / 20 and detour(second) < 1.02
