"""The noise levels of ComfyUI's schedulers, as levels before the time shift, which is how a recipe holds them.

A model of ComfyUI has a table of levels i/N, i = 1..N, each passed through the time shift s:
sigma = s t / (1 + (s - 1) t). FLUX.1 dev is described there by mu, where s is exp(mu).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["SCHEDULERS", "Table", "levels"]


@dataclass(frozen=True)
class Table:
    """The levels that a model of ComfyUI has.

    Arguments:
        size: number of levels, 1000 for schnell and 10,000 for dev.
        shift: the time shift.
    """

    size: int
    shift: float

    def shifted(self, t: float) -> float:
        """The level of an unshifted level."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def unshifted(self, sigma: float) -> float:
        """The inverse of `shifted`."""
        return sigma / (self.shift - (self.shift - 1) * sigma)

    @property
    def lowest(self) -> float:
        """The lowest level of the table."""
        return self.shifted(1 / self.size)


def levels(scheduler: str, steps: int, table: Table) -> list[float]:
    """The levels of a scheduler before the shift, without the final zero.

    Raises:
        KeyError: an unknown scheduler.
        ZeroDivisionError: a scheduler that does not support this number of steps.

    Example:
        >>> levels("simple", 3, Table(1000, 1.0))
        [1.0, 0.667, 0.334]
    """
    return SCHEDULERS[scheduler](steps, table)


def _simple(steps: int, table: Table) -> list[float]:
    return [(table.size - int(index * (table.size / steps))) / table.size for index in range(steps)]


def _ddim_uniform(steps: int, table: Table) -> list[float]:
    stride = max(table.size // steps, 1)
    return [(index + 1) / table.size for index in range(1, table.size, stride)][::-1]


def _normal(steps: int, table: Table) -> list[float]:
    return _even(1.0, table.lowest, steps)


def _sgm_uniform(steps: int, table: Table) -> list[float]:
    return _even(1.0, table.lowest, steps + 1)[:-1]


def _beta(steps: int, table: Table) -> list[float]:
    found: list[float] = []
    for index in range(steps):
        row = round(beta_quantile(1 - index / steps, 0.6) * (table.size - 1))
        level = (row + 1) / table.size
        found += [level] if not found or found[-1] != level else []
    return found


def _karras(steps: int, table: Table) -> list[float]:
    ends = (1.0, table.lowest ** (1 / 7))
    return [table.unshifted(root**7) for root in _even(*ends, steps)]


def _exponential(steps: int, table: Table) -> list[float]:
    return [table.unshifted(math.exp(log)) for log in _even(0.0, math.log(table.lowest), steps)]


def _kl_optimal(steps: int, table: Table) -> list[float]:
    low, high = math.atan(table.lowest), math.atan(1.0)
    shares = [index / (steps - 1) for index in range(steps)]
    return [table.unshifted(math.tan(share * low + (1 - share) * high)) for share in shares]


def _linear_quadratic(steps: int, table: Table) -> list[float]:
    """Half of the steps fall evenly to 0.975, the others along a parabola to 0, with no jump in the slope."""
    if steps == 1:
        return [1.0]
    threshold, linear = 0.025, steps // 2
    quadratic = steps - linear
    excess = linear - threshold * steps
    square = excess / (linear * quadratic**2)
    slope = threshold / linear - 2 * excess / quadratic**2
    start = square * linear**2
    fallen = [index * threshold / linear for index in range(linear)]
    fallen += [square * index**2 + slope * index + start for index in range(linear, steps)]
    return [table.unshifted(1.0 - each) for each in fallen]


def _even(first: float, last: float, count: int) -> list[float]:
    return [first] if count == 1 else [first + (last - first) * index / (count - 1) for index in range(count)]


SCHEDULERS: Mapping[str, Callable[[int, Table], list[float]]] = {
    "simple": _simple,
    "sgm_uniform": _sgm_uniform,
    "normal": _normal,
    "beta": _beta,
    "ddim_uniform": _ddim_uniform,
    "karras": _karras,
    "exponential": _exponential,
    "kl_optimal": _kl_optimal,
    "linear_quadratic": _linear_quadratic,
}


# ---------------------------------------------------------------------------------------------------- beta distribution
def beta_quantile(share: float, a: float) -> float:
    """The quantile of the symmetric beta distribution with both parameters `a`, by bisection to 1e-15.

    Example:
        >>> beta_quantile(0.5, 0.6)
        0.5
    """
    if share <= 0.0 or share >= 1.0:
        return min(max(share, 0.0), 1.0)
    if share > 0.5:
        return 1.0 - beta_quantile(1.0 - share, a)
    low, high = 0.0, 0.5
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta_cdf(middle, a) < share else (low, middle)
    return high if high == 0.5 else (low + high) / 2


def _beta_cdf(x: float, a: float) -> float:
    """The regularized incomplete beta function I_x(a, a) for x up to 1/2, as a power series in x."""
    log_front = a * math.log(x) + math.lgamma(2 * a) - 2 * math.lgamma(a)
    term, total = 1.0, 1.0 / a
    for n in range(1, 200):
        term *= (n - a) / n * x  # of (1 - x)^(a - 1)
        total += term / (a + n)
        if term < 1e-18:
            break
    return math.exp(log_front) * total
