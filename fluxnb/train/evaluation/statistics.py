"""Estimates with 95 % confidence intervals."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from fluxnb.metrics import Count


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % confidence interval.

    Attributes:
        value, low, high: the estimate and its interval; NaN if it cannot be computed, as for no trials.
        n: number of pictures or prompts.
        how: "wilson" for a share, "jeffreys" for a ratio of shares, "bootstrap" over captions or prompts.
    """

    value: float
    low: float
    high: float
    n: int
    how: str


def wilson(hits: int, n: int) -> Estimate:
    """A share with Wilson's interval, which stays within 0 and 1 and is accurate near both (Wilson, 1927).

    >>> share = wilson(256, 256)
    >>> share.value, round(share.low, 3)
    (1.0, 0.985)
    """
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, "wilson")
    count = Count(hits, n)
    return Estimate(count.share, count.low, count.high, n, "wilson")


def bootstrap(statistic: Callable[..., float], *samples: np.ndarray, draws: int = 1000) -> Estimate:
    """A statistic with its percentile bootstrap interval. Rows are resampled, so columns stay paired."""
    rng, value = np.random.default_rng(0), float(statistic(*samples))
    resampled = [statistic(*(s[rng.integers(len(s), size=len(s))] for s in samples)) for _ in range(draws)]
    resampled = [number for number in resampled if not math.isnan(number)]
    low, high = np.percentile(resampled, (2.5, 97.5)) if resampled and not math.isnan(value) else (math.nan, math.nan)
    return Estimate(value, float(low), float(high), sum(len(s) for s in samples), "bootstrap")


def ratio(pairs: np.ndarray) -> float:
    """The mean of the first column over the mean of the second, of (n, 2); NaN if the second is 0."""
    first, second = pairs.mean(0) if len(pairs) else (math.nan, math.nan)
    return float(first / second) if second else math.nan


def ratio_of_shares(pairs: np.ndarray) -> Estimate:
    """The ratio of two shares of the same trials, from flags (n, 2).

    The interval is that of the posterior of the four outcomes' probabilities, a Dirichlet distribution with Jeffreys'
    prior. Unlike a bootstrap, it does not collapse to a point if few trials contain no miss.
    """
    value = ratio(pairs)
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan, len(pairs), "jeffreys")
    low, high = (float(end) for end in np.percentile(_ratios(pairs), (2.5, 97.5)))
    return Estimate(value, min(low, value), max(high, value), len(pairs), "jeffreys")


def _ratios(pairs: np.ndarray, draws: int = 4000) -> np.ndarray:
    first, second = pairs.astype(bool).T
    cells = [(first & second).sum(), (first & ~second).sum(), (~first & second).sum(), (~first & ~second).sum()]
    both, one, other, _ = np.random.default_rng(0).dirichlet(np.array(cells) + 0.5, draws).T
    return (both + one) / (both + other)
