"""A rectified flow in two dimensions: data as points in the plane, their exact velocity, and a small network.

Any set of points can be the data, such as `fluxnb.canvas().points`. The points, with or without a Gaussian around each
of them, are a mixture of Gaussians at every noise level, so the optimal velocity is a weighted mean in closed form.
`CENTERS` and the functions that use them are one such mixture: eight blobs on a ring.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fluxnb.errors import InputError, shorten
from fluxnb.flow import interpolate, schedule, velocity_target

MODES, RADIUS, SPREAD = 8, 1.35, 0.12
_ANGLES = torch.arange(MODES) * 2 * math.pi / MODES
CENTERS = RADIUS * torch.stack((_ANGLES.cos(), _ANGLES.sin()), 1)

Points = Float[Tensor, "n 2"]
Levels = Float[Tensor, " n"] | Float[Tensor, ""]
#: points and their noise levels to velocities.
Velocity = Callable[[Tensor, Tensor], Tensor]


def draw_data(count: int, generator: torch.Generator | None = None) -> Points:
    """Draw points (n, 2) of the data: a random blob, and a Gaussian offset."""
    blob = torch.randint(MODES, (count,), generator=generator)
    return CENTERS[blob] + SPREAD * torch.randn(count, 2, generator=generator)


def log_density(x: Points, sigma: float, spread: float = SPREAD, weights: Tensor | None = None) -> Float[Tensor, " n"]:
    """The exact log density of (1 - sigma) data + sigma noise, for blobs with any spread and weights (8,)."""
    weights = torch.full((MODES,), 1 / MODES) if weights is None else weights / weights.sum()
    variance = (1 - sigma) ** 2 * spread**2 + sigma**2
    squares = torch.cdist(x, (1 - sigma) * CENTERS).square()
    return torch.logsumexp(weights.log() - squares / (2 * variance), 1) - math.log(2 * math.pi * variance)


def as_points(points: Any) -> Points:
    """Points (n, 2) of the plane as a float32 tensor, from a tensor, an array or lists.

    Raises:
        InputError: another shape, fewer than two points, or numbers that are not finite.
    """
    try:
        # A copy, since torch takes no array that is read-only, such as `fluxnb.canvas().points`.
        tensor = points.float() if isinstance(points, Tensor) else torch.from_numpy(np.array(points, dtype=np.float32))
    except (TypeError, ValueError, RuntimeError) as problem:
        raise InputError(f"points={shorten(points)}", "they are an (n, 2) array of numbers", _REMEDY) from problem
    given = f"points of the shape {tuple(tensor.shape)}"
    if tensor.ndim != 2 or tensor.shape[1] != 2:
        raise InputError(given, "the shape is (n, 2), one row for each point", _REMEDY)
    if len(tensor) < 2:
        raise InputError(given, "at least 2 points are needed", f"draw some more, or {_REMEDY}")
    if not bool(tensor.isfinite().all()):
        raise InputError(f"{given} with nan or infinity", "coordinates are finite numbers", _REMEDY)
    return tensor


_REMEDY = 'try points = fnb.widgets.shape("two moons")'


def posterior(points: Float[Tensor, "m 2"], x: Points, sigma: Levels, spread: float = 0.0) -> Float[Tensor, "n m"]:
    """The probability of each of m data points, given where n points x are at their noise levels.

    Arguments:
        points: the data (m, 2), equally likely.
        x: positions (n, 2).
        sigma: noise levels above 0; with a spread, 0 is possible too.
        spread: standard deviation of a Gaussian around each data point.
    """
    points, sigma = points.to(x.dtype), sigma.expand(len(x))[:, None]
    variance = (1 - sigma).square() * spread**2 + sigma.square()
    squares = x.square().sum(1, keepdim=True) - 2 * (1 - sigma) * (x @ points.T)
    squares = squares + (1 - sigma).square() * points.square().sum(1)
    return (-squares / (2 * variance)).softmax(1)


def optimal_velocity(points: Any, spread: float = 0.0) -> Velocity:
    """The velocity E[noise - data | x] of a set of data points, in closed form: no training is needed.

    It has the smallest possible loss of a rectified flow on these points. Noise levels are above 0, as those of
    `trajectory` are; with a spread, 0 is possible too.

    Arguments:
        points: the data, an (n, 2) array or tensor.
        spread: standard deviation of a Gaussian around each of them. With 0, every path ends at one of the points.

    Raises:
        InputError: points of another shape, too few of them, or numbers that are not finite.

    Example:
        >>> velocity = optimal_velocity([[1.0, 0.0], [3.0, 0.0]])
        >>> velocity(torch.zeros(1, 2), torch.tensor(1.0))  # at sigma 1 the estimate of the data is their mean, (2, 0)
        tensor([[-2., 0.]])
    """
    data = as_points(points)

    def velocity(x: Tensor, sigma: Tensor) -> Tensor:
        mean = posterior(data, x, sigma, spread) @ data.to(x.dtype)
        sigma = sigma.expand(len(x))[:, None]
        variance = (1 - sigma).square() * spread**2 + sigma.square()
        away = x - (1 - sigma) * mean  # the mean offset from the points at this level
        return (sigma / variance - (1 - sigma) * spread**2 / variance) * away - mean

    return velocity


def exact_velocity(x: Points, sigma: Levels) -> Points:
    """E[noise - data | x] of the eight blobs at the noise level of each point.

    >>> exact_velocity(torch.ones(1, 2), torch.tensor(1.0)).round(decimals=4)  # the mean of the blobs is 0
    tensor([[1., 1.]])
    """
    return optimal_velocity(CENTERS, SPREAD)(x, sigma)


class Net(nn.Module):
    """A velocity from a point and its noise level, with three hidden layers that can serve as critic features."""

    def __init__(self, width: int = 96):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(wide, width) for wide in (2 + 6, width, width))
        self.out = nn.Linear(width, 2)

    def hidden(self, x: Points, sigma: Levels) -> list[Tensor]:
        """Activations of the hidden layers, (n, width) each."""
        sigma = sigma.expand(len(x))[:, None]
        waves = [f(k * math.pi * sigma) for k in (1, 2) for f in (torch.sin, torch.cos)]
        h, activations = torch.cat((x, sigma, 1 - sigma, *waves), 1), []
        for layer in self.layers:
            h = F.silu(layer(h))
            activations.append(h)
        return activations

    def forward(self, x: Points, sigma: Levels) -> Points:
        """Velocities (n, 2)."""
        return self.out(self.hidden(x, sigma)[-1])


def train(
    points: Any, noise: Any = None, *, seed: int = 0, iterations: int = 1200, rate: float = 0.02, batch: int = 256
) -> Net:
    """Train a rectified flow on points of the plane; takes a few seconds on a CPU.

    Arguments:
        points: the data, an (n, 2) array or tensor.
        noise: the noise (n, 2) that belongs to each data point, for a reflow. None draws it independently.
        seed: of the weights, the pairs and the noise levels. On one machine the same seed gives the same network.
        iterations: number of gradient steps.
        rate: the highest learning rate, which is reached after a third of the iterations.
        batch: pairs in each gradient step.

    Raises:
        InputError: points of another shape, too few of them, or numbers that are not finite.

    Example:
        >>> flow = train(fnb.widgets.shape("ring"))                                 # doctest: +SKIP
        >>> noise = torch.randn(4096, 2)                                            # doctest: +SKIP
        >>> second = train(trajectory(flow, noise, 32)[-1], noise)  # one reflow    # doctest: +SKIP
    """
    data, paired = as_points(points), None if noise is None else as_points(noise)
    if paired is not None and len(paired) != len(data):
        raise InputError(
            f"noise of the shape {tuple(paired.shape)} for points of the shape {tuple(data.shape)}",
            "each data point has its own noise",
            "type train(points), or give as many rows of noise",
        )
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    pace = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, iterations)
    for _ in range(iterations):
        rows = torch.randint(len(data), (batch,), generator=draw)
        x0 = data[rows]
        x1 = torch.randn(batch, 2, generator=draw) if paired is None else paired[rows]
        sigma = torch.rand(batch, generator=draw)
        x = interpolate(x0, x1, sigma[:, None])
        loss = (net(x, sigma) - velocity_target(x0, x1)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pace.step()
    return net.requires_grad_(False)


@torch.no_grad()
def trajectory(velocity: Velocity, noise: Points, steps: int) -> Float[Tensor, "t n 2"]:
    """All states of an Euler trajectory from noise to data, `steps` + 1 of them."""
    path = [noise]
    for sigma, following in itertools.pairwise(schedule(steps)):
        path.append(path[-1] + (following - sigma) * velocity(path[-1], torch.tensor(sigma)))
    return torch.stack(path)


def straightness(path: Float[Tensor, "t n 2"]) -> float:
    """Mean squared deviation of the velocities from the chord, relative to its square; 0 is straight (2209.03003)."""
    steps = path.diff(dim=0) * (len(path) - 1)
    chord = path[-1] - path[0]
    return float((steps - chord).square().sum(2).mean() / chord.square().sum(1).mean())


def detours(path: Float[Tensor, "t n 2"]) -> Float[Tensor, " n"]:
    """Ratio of length to chord of each path; 1 is straight."""
    return path.diff(dim=0).norm(dim=2).sum(0) / (path[-1] - path[0]).norm(dim=1)


def detour(path: Float[Tensor, "t n 2"]) -> float:
    """Median ratio of path length to chord length; 1 is straight."""
    return float(detours(path).median())


def crossings(data: Points, noise: Points) -> float:
    """Share of the pairs of lines from noise to data that change sides, about 0.5 for data drawn independently.

    Row i of `data` and row i of `noise` are the ends of line i. Two lines change sides if their ends are in opposite
    order along the direction from one noise to the other. On a line these are the lines that cross. In the plane they
    are those that would be shorter, in the sum of squares, if the two exchanged their ends.
    """
    order = ((data[:, None] - data) * (noise[:, None] - noise)).sum(2)
    one, other = torch.triu_indices(len(data), len(data), 1)
    return float((order[one, other] < 0).float().mean())


def distance(one: Points, other: Points, directions: int = 64) -> float:
    """Sliced Wasserstein distance between two clouds of equally many points."""
    angles = torch.arange(directions) * math.pi / directions
    lines = torch.stack((angles.cos(), angles.sin()))
    return float(((one @ lines).sort(0).values - (other @ lines).sort(0).values).square().mean().sqrt())


def blobs(points: Points) -> tuple[float, float, float]:
    """Describe a cloud of points by the blobs it covers.

    Returns:
        The effective number of blobs (exponential of the entropy of their shares), the standard deviation within blobs,
        and the share of points outside all blobs.
    """
    far, nearest = torch.cdist(points, CENTERS).min(1)
    inside = far < 4 * SPREAD
    if not bool(inside.any()):
        return 0.0, math.nan, 1.0
    share = torch.bincount(nearest[inside], minlength=MODES) / inside.sum()
    count = torch.exp(-(share * share.clamp(min=1e-9).log()).sum())
    spread = (points - CENTERS[nearest])[inside].square().mean().sqrt()
    return float(count), float(spread), float(1 - inside.float().mean())


@torch.no_grad()
def align(velocity: Velocity, noise: Points) -> float:
    """Mean cosine between a noise and its one-step sample less the mean sample; below 0 the map reverses directions."""
    clean = noise - velocity(noise, torch.tensor(1.0))
    return float(F.cosine_similarity(noise, clean - clean.mean(0)).mean())
