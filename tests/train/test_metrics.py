"""Quality measures compared with values known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from fluxnb.train.metrics import alignment, entropy, frechet, vendi


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_frechet_distance_to_itself_is_zero_and_to_a_shifted_set_the_squared_shift():
    features = torch.randn(4000, 8, generator=seeded())
    assert frechet(features, features) == pytest.approx(0, abs=1e-6)
    assert frechet(features, features + 2) == pytest.approx(8 * 4, rel=1e-6)


def test_the_frechet_distance_of_two_gaussians_agrees_with_the_formula():
    narrow = torch.randn(200_000, 2, generator=seeded())
    wide = 3 * torch.randn(200_000, 2, generator=seeded(1))
    assert frechet(narrow, wide) == pytest.approx(2 * (3 - 1) ** 2, rel=0.02)


def test_entropy_of_a_uniform_and_of_a_constant_distribution():
    assert entropy(torch.arange(16)) == pytest.approx(math.log(16))
    assert entropy(torch.zeros(9)) == 0


def test_the_vendi_score_counts_distinct_rows():
    far = 1000 * torch.eye(6)
    assert vendi(far, 1.0) == pytest.approx(6, rel=1e-3)
    assert vendi(far[[0, 0, 0, 1, 1, 1]], 1.0) == pytest.approx(2, rel=1e-3)
    assert vendi(torch.zeros(6, 6), 1.0) == pytest.approx(1, rel=1e-3)


def test_alignment_of_pictures_that_follow_reverse_or_ignore_their_noise():
    noise = torch.randn(2, 64, 300, generator=seeded())
    assert alignment(noise, 5 + 0.1 * noise).min() > 0.98
    assert alignment(noise, 5 - 0.1 * noise).max() < -0.98
    independent = torch.randn(2, 64, 300, generator=seeded(1))
    assert alignment(noise, independent).abs().max() < 0.05
