"""The toy's truth: closed forms against what sampling says, and measures on clouds whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from fluxnb.train.toy import (
    CENTRES,
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
def test_the_exact_velocity_is_the_mean_over_all_lines_through_a_point(sigma):
    data, noise = draw_data(2_000_000, seeded()), torch.randn(2_000_000, 2, generator=seeded(1))
    x = (1 - sigma) * data + sigma * noise
    point = (1 - sigma) * CENTRES[0] + 0.1 * sigma
    near = (x - point).norm(dim=1) < 0.05
    assert near.sum() > 300
    sampled = (noise - data)[near].mean(0)
    error = (noise - data)[near].std(0) / near.sum() ** 0.5
    exact = exact_velocity(point[None], torch.tensor(sigma))[0]
    assert ((exact - sampled).abs() < 4 * error + 0.05).all()


def test_at_pure_noise_every_point_is_sent_to_the_mean_of_the_data():
    x = torch.randn(8, 2, generator=seeded())
    assert torch.allclose(exact_velocity(x, torch.tensor(1.0)), x, atol=1e-6)


def test_the_exact_flow_ends_on_the_data():
    ends = trajectory(exact_velocity, torch.randn(4096, 2, generator=seeded()), 100)[-1]
    count, spread, lost = blobs(ends)
    assert count > 7.9 and lost < 0.01 and spread == pytest.approx(SPREAD, rel=0.05)


@pytest.mark.parametrize("sigma", [0.0, 0.5, 1.0])
def test_the_density_holds_all_the_probability(sigma):
    axis = torch.linspace(-6, 6, 601)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).view(-1, 2)
    assert log_density(grid, sigma).exp().sum() * 0.02**2 == pytest.approx(1, abs=2e-3)


def test_every_step_count_begins_at_the_noise():
    noise = torch.randn(4, 2, generator=seeded())
    path = trajectory(Net(), noise, 3)
    assert path.shape == (4, 4, 2) and torch.equal(path[0], noise)


def test_a_straight_walk_is_straight_and_a_bent_one_is_not():
    straight = torch.linspace(0, 1, 5)[:, None, None] * torch.ones(1, 3, 2)
    bent = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]], [[1.0, 1.0]]])
    assert straightness(straight) == pytest.approx(0, abs=1e-10) and detour(straight) == pytest.approx(1)
    assert detour(bent) == pytest.approx(math.sqrt(2)) and straightness(bent) == pytest.approx(1)


def test_the_distance_of_a_moved_cloud_is_the_way_it_went_seen_edge_on():
    cloud = torch.randn(500, 2, generator=seeded())
    assert distance(cloud, cloud) == 0
    assert distance(cloud, cloud + torch.tensor([1.0, 0.0])) == pytest.approx(math.sqrt(0.5), rel=1e-3)


def test_blobs_are_counted_by_their_shares():
    assert blobs(CENTRES) == (pytest.approx(MODES), pytest.approx(0, abs=1e-6), 0.0)
    assert blobs(CENTRES[:1].repeat(5, 1))[0] == pytest.approx(1)
    assert blobs(torch.zeros(3, 2))[2] == 1.0


def test_alignment_knows_a_map_that_keeps_directions_from_one_turned_over():
    noise = torch.randn(1000, 2, generator=seeded())
    keeps, turns = (lambda x, s: 0.5 * x), (lambda x, s: 1.5 * x)
    assert align(keeps, noise) > 0.95 and align(turns, noise) < -0.95
