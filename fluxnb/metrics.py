"""Measures of a trajectory and of a set of images: straightness, length, convergence, diversity; counts with intervals.

All are pure functions, computed in float64. A trajectory of few steps is a polygon of few corners, and nothing between
them is measured; `coarseness` is the longest gap.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError
from fluxnb.records import Step, Trajectory

__all__ = [
    "Count",
    "chord",
    "coarseness",
    "distance_to_final",
    "diversity",
    "drift",
    "length",
    "length_over_chord",
    "lock_in",
    "principal",
    "principal_path",
    "straightness",
    "turning_angle",
    "velocity_norm",
]

Points = Float[Tensor, "points numbers"]
Z95 = 1.959964  # the standard normal quantile of a two-sided 95 % interval


@entry_point(hits="hits=18", trials="trials=24")
@dataclass(frozen=True)
class Count:
    """A number of hits among independent trials, with the 95 % interval of the share.

    The interval is that of Wilson (1927), the score interval: it stays within 0 and 1 and is valid for small numbers.

    Arguments:
        hits: 0 to trials.
        trials: at least 0; without trials the share is not defined, and the interval is 0 to 1.

    Raises:
        InputError: hits outside of 0 to trials.

    Example:
        >>> Count(18, 24)
        18 of 24 (55 to 88 %)
        >>> Count.of([True, False, True]).share
        0.6666666666666666
    """

    hits: int
    trials: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.trials:
            raise InputError(
                f"{self.hits} hits in {self.trials} trials", "hits are 0 to trials", "type Count(hits=18, trials=24)"
            )

    @classmethod
    def of(cls, outcomes: Iterable[object]) -> Count:
        """The count of the outcomes that are true."""
        flags = [bool(outcome) for outcome in outcomes]
        return cls(sum(flags), len(flags))

    @property
    def share(self) -> float:
        """Hits divided by trials; NaN without trials."""
        return self.hits / self.trials if self.trials else math.nan

    @property
    def low(self) -> float:
        """The lower end of the 95 % interval of the share."""
        return 0.0 if self.hits == 0 else max(0.0, min(self.share, self._middle - self._half))

    @property
    def high(self) -> float:
        """The upper end of the 95 % interval of the share."""
        return 1.0 if self.hits == self.trials else min(1.0, max(self.share, self._middle + self._half))

    @property
    def _middle(self) -> float:
        return (self.hits + Z95**2 / 2) / (self.trials + Z95**2)

    @property
    def _half(self) -> float:
        spread = self.hits * (self.trials - self.hits) / self.trials + Z95**2 / 4
        return Z95 * math.sqrt(spread) / (self.trials + Z95**2)

    def __add__(self, other: Count) -> Count:
        return Count(self.hits + other.hits, self.trials + other.trials) if isinstance(other, Count) else NotImplemented

    def __repr__(self) -> str:
        if not self.trials:
            return "0 of 0"
        return f"{self.hits} of {self.trials} ({100 * self.low:.0f} to {100 * self.high:.0f} %)"


@entry_point("trajectory")
def straightness(trajectory: Trajectory) -> float:
    """The mean squared deviation of the velocity from the chord, relative to the chord: 0 for a straight line.

    S = sum_k (-dt_k) |c - v_k|^2 / |c|^2 with c = (x_T - x_end) / (sigma_T - sigma_end), the constant velocity between
    the same ends. It is the integral of Liu et al. 2209.03003 (section 3) over the steps taken, divided by the squared
    chord and by the range of sigma. Unit: none.
    """
    span = sum(-step.dt for step in trajectory.steps)
    even = (_start(trajectory) - _end(trajectory)) / span
    total = sum(-step.dt * float((even - step.v.double().flatten()).pow(2).sum()) for step in trajectory.steps)
    return total / span / _not_zero(float(even.pow(2).sum()))


@entry_point("trajectory")
def length(trajectory: Trajectory) -> float:
    """The length of the path, sum_k |x_{k+1} - x_k|. Unit: latent standard deviations, Euclidean over all numbers."""
    points = _points(trajectory)
    return float((points[1:] - points[:-1]).norm(dim=1).sum())


@entry_point("trajectory")
def chord(trajectory: Trajectory) -> float:
    """The distance from the first point to the last, |x_end - x_T|. Unit: as `length`."""
    points = _points(trajectory)
    return float((points[-1] - points[0]).norm())


@entry_point("trajectory")
def length_over_chord(trajectory: Trajectory) -> float:
    """The length of the path divided by the distance of its ends: 1 for a straight line. Unit: none.

    A trajectory of one step has exactly 1. Report the median over several: a short chord dominates the mean.
    """
    return length(trajectory) / _not_zero(chord(trajectory))


@entry_point("trajectory")
def turning_angle(trajectory: Trajectory) -> tuple[float, ...]:
    """The angle between the velocities of consecutive steps, arccos(v_k . v_{k+1} / |v_k| |v_{k+1}|).

    Unit: degrees, 0 to 180; one number per pair of steps. A straight line has 0 everywhere.
    """
    velocities = [step.v.double().flatten() for step in trajectory.steps]
    angles = []
    for one, other in itertools.pairwise(velocities):
        # 2 atan2(|a - b|, |a + b|) keeps all digits near 0, where arccos loses half of them.
        a, b = one / _not_zero(float(one.norm())), other / _not_zero(float(other.norm()))
        angles.append(math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm()))))
    return tuple(angles)


@entry_point("trajectory")
def velocity_norm(trajectory: Trajectory) -> tuple[float, ...]:
    """The root mean square of the velocity at each step, |v_k| / sqrt(n).

    Unit: latent standard deviations per unit of sigma. Near sqrt(2) at first for unit noise and unit data. Needs no
    kept tensors.
    """
    numbers = 64 * (trajectory.height // 16) * (trajectory.width // 16)
    return tuple(step.norms["v"] / math.sqrt(numbers) for step in trajectory.steps)


@entry_point("trajectory")
def drift(trajectory: Trajectory) -> tuple[float, ...]:
    """The change of the clean estimate between consecutive steps, rms of clean_{k+1} - clean_k.

    Unit: latent standard deviations; one number per pair of steps.
    """
    clean = [step.clean.double() for step in trajectory.steps]
    return tuple(float((b - a).pow(2).mean().sqrt()) for a, b in itertools.pairwise(clean))


@entry_point("trajectory")
def distance_to_final(trajectory: Trajectory) -> tuple[float, ...]:
    """The distance of each clean estimate from the end of the trajectory, rms of clean_k - x_end.

    Unit: latent standard deviations, one number per step that kept x and v. With Euler steps to sigma 0 the last is 0.
    """
    final = _end(trajectory)
    return tuple(float((step.clean.double().flatten() - final).pow(2).mean().sqrt()) for step in _kept(trajectory))


@entry_point("trajectory", share="share=0.1")
def lock_in(trajectory: Trajectory, share: float = 0.1) -> int:
    """The first step from which the clean estimate stays within `share` of the spread of the final latents.

    The smallest k with rms(clean_j - x_end) <= share std(x_end) for all j >= k. Unit: a step index, 0 to steps - 1.
    Compare trajectories of different step counts by `trajectory.steps[k].sigma`.
    """
    limit = share * float(_end(trajectory).std(correction=0))
    steps, distances = _kept(trajectory), distance_to_final(trajectory)
    far = [place for place, distance in enumerate(distances) if distance > limit]
    return steps[min(far[-1] + 1, len(steps) - 1)].index if far else steps[0].index


@entry_point("trajectory", count="count=2")
def principal_path(
    trajectory: Trajectory, count: int = 2
) -> tuple[Float[np.ndarray, "points count"], tuple[float, ...]]:
    """The points of a trajectory in its first `count` principal components.

    Returns:
        Coordinates (steps + 1, count) of x_T, ..., x_end about their mean, in latent standard deviations, and the share
        of the variance on each axis, 0 to 1. See `principal`.
    """
    return principal(_points(trajectory), count)


@entry_point(points="points=torch.stack([step.x.flatten() for step in trajectory])", count="count=2")
def principal(points: Points, count: int = 2) -> tuple[Float[np.ndarray, "points count"], tuple[float, ...]]:
    """Principal component analysis (Pearson 1901) of points, about their mean.

    Signs are chosen so that the first point is on the negative side of each axis. Missing components are zeros.

    Returns:
        Coordinates (points, count), and the share of the variance on each axis, 0 to 1.

    Raises:
        InputError: points that are not finite.
    """
    if not bool(points.isfinite().all()):
        bad = int((~points.isfinite()).sum())
        raise InputError(
            f"points of which {bad:,} numbers are not finite",
            "principal components need finite numbers",
            'run again with a float32 model: fnb.load(..., dtype="float32")',
        )
    centered = points.double() - points.double().mean(dim=0)
    # The Gram matrix is small: there are a few dozen points of up to 262144 numbers (1024 px).
    values, vectors = torch.linalg.eigh(centered @ centered.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    coordinates = (vectors * values.sqrt())[:, :count]
    coordinates = coordinates * torch.where(coordinates[0] > 0, -1.0, 1.0)
    coordinates = torch.nn.functional.pad(coordinates, (0, max(0, count - coordinates.shape[1])))
    shares = [*(values[:count] / _not_zero(float(values.sum()))).tolist(), *([0.0] * count)][:count]
    return coordinates.numpy(), tuple(shares)


@entry_point(pictures="pictures=[cell.image for cell in sweep]")
def diversity(pictures: Sequence[Trajectory | Image.Image | Tensor]) -> float:
    """The mean rms difference over all pairs of a set, D = 2 / (n (n - 1)) sum_{i<j} rms(p_i - p_j).

    Unlike the Vendi score (2210.02410) it does not grow with n, so sets of different size can be compared.

    Arguments:
        pictures: at least two trajectories (compared by final latents, in latent standard deviations), images (pixels,
            0 to 1) or tensors (such as features).

    Raises:
        InputError: fewer than two.
    """
    if len(pictures) < 2:
        raise InputError(f"{len(pictures)} pictures", "at least 2 are needed", "run several seeds")
    flat = [_row(picture) for picture in pictures]
    if len({len(row) for row in flat}) > 1:
        raise InputError(
            f"pictures of {' and '.join(str(len(row)) for row in flat[:4])} numbers",
            "all must be of one kind and size",
            "run them again with the same height= and width=",
        )
    rows = torch.stack(flat)
    count = len(rows)
    pairs = [float((rows[i] - rows[i + 1 :]).pow(2).mean(dim=1).sqrt().sum()) for i in range(count - 1)]
    return 2 * sum(pairs) / (count * (count - 1))


@entry_point("trajectory")
def coarseness(trajectory: Trajectory) -> float:
    """The largest |dt|, the longest range of sigma without an evaluation: 1 for one step, 0.25 for four even ones."""
    return max(abs(step.dt) for step in trajectory.steps)


def _row(picture: Trajectory | Image.Image | Tensor) -> Float[Tensor, "numbers"]:  # noqa: F821, UP037
    if isinstance(picture, Trajectory):
        return _end(picture)
    if isinstance(picture, Image.Image):
        return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float64).flatten() / 255)
    return picture.double().flatten()


def _start(trajectory: Trajectory) -> Tensor:
    return _with_steps(trajectory).steps[0].x.double().flatten()


def _end(trajectory: Trajectory) -> Tensor:
    return _with_steps(trajectory).steps[-1].x_next.double().flatten()


def _points(trajectory: Trajectory) -> Points:
    steps = _with_steps(trajectory).steps
    return torch.stack([step.x.double().flatten() for step in steps] + [_end(trajectory)])


def _kept(trajectory: Trajectory) -> list[Step]:
    """The steps that kept x and v; if none did, the first, whose properties raise an error with the remedy."""
    return [step for step in _with_steps(trajectory).steps if step.kept] or [trajectory.steps[0]]


def _with_steps(trajectory: Trajectory) -> Trajectory:
    if not trajectory.steps:
        raise InputError("a trajectory without steps", "measures need at least one", "run it again")
    return trajectory


def _not_zero(value: float) -> float:
    return value if value > 0 else math.inf
