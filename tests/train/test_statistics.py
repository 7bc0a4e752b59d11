"""Confidence intervals of the evaluation: coverage, bounds and edge cases."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fluxnb.train.evaluation.statistics import bootstrap, ratio, ratio_of_shares, wilson


@given(st.integers(1, 5000), st.data())
def test_wilsons_interval_contains_the_share_and_stays_within_0_and_1(n, data):
    hit = data.draw(st.integers(0, n))
    share = wilson(hit, n)
    assert 0 <= share.low <= share.value <= share.high <= 1 and share.low < share.high


def test_the_share_of_no_trials_is_nan():
    assert math.isnan(wilson(0, 0).value)


def test_wilsons_interval_has_95_percent_coverage():
    rng, n, p = np.random.default_rng(0), 60, 0.9
    drawn = [wilson(int(hit), n) for hit in rng.binomial(n, p, 2000)]
    assert 0.93 < np.mean([share.low <= p <= share.high for share in drawn]) < 0.98


def test_the_bootstrap_keeps_pairs_together():
    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.5
    paired = bootstrap(ratio, np.stack((first, first), 1))
    unpaired = bootstrap(ratio, np.stack((first, rng.permutation(first)), 1))
    assert paired.low == paired.high == 1.0 and unpaired.high - unpaired.low > 0.1


def test_the_interval_of_few_trials_without_a_miss_is_not_a_point():
    few, many = (ratio_of_shares(np.ones((n, 2), bool)) for n in (36, 5000))
    assert few.value == many.value == 1.0
    assert few.low < 0.95 < 0.998 < many.low


def test_the_interval_of_a_ratio_of_shares_has_95_percent_coverage():
    rng, covered = np.random.default_rng(0), []
    for _ in range(300):
        second = rng.random(300) < 0.9
        first = np.where(
            rng.random(300) < 0.9, second, rng.random(300) < 0.5
        )  # a share of 0.86, correlated with the other
        found = ratio_of_shares(np.stack((first, second), 1))
        covered.append(found.low <= 0.86 / 0.9 <= found.high)
    assert 0.9 < np.mean(covered) < 0.99


def test_a_ratio_to_zero_is_nan():
    assert (
        math.isnan(ratio_of_shares(np.zeros((4, 2))).value)
        and math.isnan(ratio(np.zeros((4, 2))))
        and math.isnan(ratio(np.zeros((0, 2))))
    )
