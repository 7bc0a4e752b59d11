"""How straight, how long, how sure: measures of a walk and of a set of pictures.

All are pure functions of a Trajectory (or of several), in float64. On a walk of few steps they see a polygon of few
corners and nothing between; `coarseness` says how few.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.errors import InputError
from fluxnb.records import Step, Trajectory

__all__ = [
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


def straightness(trajectory: Trajectory) -> float:
    """How far the velocity is from the chord, as a share of the chord: 0 is a straight line walked evenly.

    S = sum_k (-dt_k) |c - v_k|^2 / |c|^2 with c = (x_T - x_end) / (sigma_T - sigma_end), the constant velocity that
    would have led to the same picture. The integral of Liu et al. 2209.03003 (section 3), over the steps taken and
    relative to the chord. Unit: none. The walk should go from sigma 1 to 0; another stretch is weighed by its length.
    """
    span = sum(-step.dt for step in trajectory.steps)
    even = (_start(trajectory) - _end(trajectory)) / span
    total = sum(-step.dt * float((even - step.v.double().flatten()).pow(2).sum()) for step in trajectory.steps)
    return total / span / _not_zero(float(even.pow(2).sum()))


def length(trajectory: Trajectory) -> float:
    """The length of the path, sum_k |x_{k+1} - x_k|. Unit: latent standard deviations, Euclidean over all numbers."""
    points = _points(trajectory)
    return float((points[1:] - points[:-1]).norm(dim=1).sum())


def chord(trajectory: Trajectory) -> float:
    """The distance from the first point to the last, |x_end - x_T|. Unit: as `length`."""
    points = _points(trajectory)
    return float((points[-1] - points[0]).norm())


def length_over_chord(trajectory: Trajectory) -> float:
    """The path's length by the straight distance: 1 is straight, more is a detour. Unit: none.

    One step is always exactly 1. Over many walks report the median: a tiny chord makes the mean meaningless.
    """
    return length(trajectory) / _not_zero(chord(trajectory))


def turning_angle(trajectory: Trajectory) -> tuple[float, ...]:
    """The angle between one step's velocity and the next, arccos(v_k . v_{k+1} / |v_k| |v_{k+1}|).

    Unit: degrees, 0 to 180, one number between each two steps. 0 everywhere is a straight line.
    """
    velocities = [step.v.double().flatten() for step in trajectory.steps]
    angles = []
    for one, other in itertools.pairwise(velocities):
        # atan2 of the two diagonals of the rhombus stays exact where arccos loses half its digits, near 0.
        a, b = one / _not_zero(float(one.norm())), other / _not_zero(float(other.norm()))
        angles.append(math.degrees(2 * math.atan2(float((a - b).norm()), float((a + b).norm()))))
    return tuple(angles)


def velocity_norm(trajectory: Trajectory) -> tuple[float, ...]:
    """The root mean square of the velocity at each step, |v_k| / sqrt(n).

    Unit: latent standard deviations per unit of sigma. For unit noise and unit data it is near sqrt(2) at first.
    Known for every step, also where tensors were not kept.
    """
    numbers = 64 * (trajectory.height // 16) * (trajectory.width // 16)
    return tuple(step.norms["v"] / math.sqrt(numbers) for step in trajectory.steps)


def drift(trajectory: Trajectory) -> tuple[float, ...]:
    """How much the clean estimate changes from one step to the next, rms of clean_{k+1} - clean_k.

    Unit: latent standard deviations; one number between each two steps. Sustained drift is a model still deciding.
    """
    clean = [step.clean.double() for step in trajectory.steps]
    return tuple(float((b - a).pow(2).mean().sqrt()) for a, b in itertools.pairwise(clean))


def distance_to_final(trajectory: Trajectory) -> tuple[float, ...]:
    """How far each clean estimate is from the end of the walk, rms of clean_k - x_end.

    Unit: latent standard deviations, one number per step that kept x and v. The last is 0 for Euler down to sigma 0.
    """
    final = _end(trajectory)
    return tuple(float((step.clean.double().flatten() - final).pow(2).mean().sqrt()) for step in _kept(trajectory))


def lock_in(trajectory: Trajectory, share: float = 0.1) -> int:
    """The first step from which on the clean estimate stays within `share` of the final picture's own spread.

    Step k locks in if rms(clean_j - x_end) <= share std(x_end) for all j >= k. Unit: a step index, 0 to steps - 1.
    Compare walks by `walk.steps[k].sigma`, not by k, where their step counts differ.
    """
    limit = share * float(_end(trajectory).std(correction=0))
    steps, distances = _kept(trajectory), distance_to_final(trajectory)
    far = [place for place, distance in enumerate(distances) if distance > limit]
    return steps[min(far[-1] + 1, len(steps) - 1)].index if far else steps[0].index


def principal_path(
    trajectory: Trajectory, count: int = 2
) -> tuple[Float[np.ndarray, "points count"], tuple[float, ...]]:
    """The points of the walk in the plane (or space) that holds most of it, and how much each axis holds.

    Principal components of x_T, ..., x_end about their mean. Returns (steps + 1, count) coordinates, in latent standard
    deviations, and each axis' share of the variance, 0 to 1. See `principal`.
    """
    return principal(_points(trajectory), count)


def principal(points: Points, count: int = 2) -> tuple[Float[np.ndarray, "points count"], tuple[float, ...]]:
    """Points in the directions in which they differ most, about their mean, and each direction's share of the variance.

    Principal component analysis (Pearson 1901). Signs are arbitrary there and fixed here: the first point lies on the
    negative side of each axis. Directions that the points do not have are filled with zeros.
    """
    centred = points.double() - points.double().mean(dim=0)
    # Through the small Gram matrix: at 1024 px a point has 262144 numbers, and there are a few dozen points.
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    coordinates = (vectors * values.sqrt())[:, :count]
    coordinates = coordinates * torch.where(coordinates[0] > 0, -1.0, 1.0)
    coordinates = torch.nn.functional.pad(coordinates, (0, max(0, count - coordinates.shape[1])))
    shares = [*(values[:count] / _not_zero(float(values.sum()))).tolist(), *([0.0] * count)][:count]
    return coordinates.numpy(), tuple(shares)


def diversity(pictures: Sequence[Trajectory | Image.Image | Tensor]) -> float:
    """How different a set is: the mean over all pairs of the rms difference.

    D = 2 / (n (n - 1)) sum_{i<j} rms(p_i - p_j). Of trajectories it compares the final latents (unit: latent standard
    deviations), of images the pixels (0 to 1), of tensors what they hold, features for example. Unlike the Vendi
    score (2210.02410) it does not grow with n, so sets of different size may be compared.
    """
    if len(pictures) < 2:
        raise InputError(f"{len(pictures)} pictures", "a difference needs at least 2", "give several seeds")
    rows = torch.stack([_row(picture) for picture in pictures])
    count = len(rows)
    pairs = [float((rows[i] - rows[i + 1 :]).pow(2).mean(dim=1).sqrt().sum()) for i in range(count - 1)]
    return 2 * sum(pairs) / (count * (count - 1))


def coarseness(trajectory: Trajectory) -> float:
    """The longest stretch of sigma that no measure can see into: the largest |dt|. 1 for one step, 0.25 for four."""
    return max(-step.dt for step in trajectory.steps)


def _row(picture: Trajectory | Image.Image | Tensor) -> Float[Tensor, "numbers"]:  # noqa: F821, UP037
    if isinstance(picture, Trajectory):
        return _end(picture)
    if isinstance(picture, Image.Image):
        return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float64).flatten() / 255)
    return picture.double().flatten()


def _start(trajectory: Trajectory) -> Tensor:
    return _some(trajectory).steps[0].x.double().flatten()


def _end(trajectory: Trajectory) -> Tensor:
    return _some(trajectory).steps[-1].x_next.double().flatten()


def _points(trajectory: Trajectory) -> Points:
    steps = _some(trajectory).steps
    return torch.stack([step.x.double().flatten() for step in steps] + [_end(trajectory)])


def _kept(trajectory: Trajectory) -> list[Step]:
    """The steps that kept x and v; where none did, the first one says how to keep them."""
    return [step for step in _some(trajectory).steps if step.kept] or [trajectory.steps[0]]


def _some(trajectory: Trajectory) -> Trajectory:
    if not trajectory.steps:
        raise InputError("a walk without steps", "measures need at least one", "run it again")
    return trajectory


def _not_zero(value: float) -> float:
    return value if value > 0 else math.inf
