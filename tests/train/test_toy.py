"""The two-dimensional flow: closed forms compared with sampling, and measures of clouds with known values."""

from __future__ import annotations

import math

import pytest
import torch

from fluxnb.train.toy import (
    CENTERS,
    MODES,
    SPREAD,
    Net,
    align,
    blobs,
    detour,
    distance,
    draw_data,
    exact_velocity,
    log_density,
    straightness,
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
