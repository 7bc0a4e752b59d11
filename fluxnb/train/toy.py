"""A rectified flow in two dimensions: eight Gaussian blobs on a ring with a known exact velocity, and a small network.

The data are a mixture of Gaussians, and so is their distribution at every noise level. The optimal velocity is
therefore a weighted mean in closed form.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fluxnb.flow import schedule

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


def exact_velocity(x: Points, sigma: Levels) -> Points:
    """E[noise - data | x] at the noise level of each point: the mean over blobs, weighted by their posterior.

    >>> exact_velocity(torch.ones(1, 2), torch.tensor(1.0))  # at sigma 1 the estimate of the data is their mean, 0
    tensor([[1., 1.]])
    """
    sigma = sigma.expand(len(x))[:, None]
    away = x[:, None] - (1 - sigma)[..., None] * CENTERS  # (n, 8, 2), offset from each blob's center at this level
    variance = (1 - sigma).square() * SPREAD**2 + sigma.square()
    likely = (-away.square().sum(2) / (2 * variance)).softmax(1)
    clean = CENTERS + ((1 - sigma) * SPREAD**2 / variance)[..., None] * away
    noise = (sigma / variance)[..., None] * away
    return (likely[..., None] * (noise - clean)).sum(1)


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


def detour(path: Float[Tensor, "t n 2"]) -> float:
    """Median ratio of path length to chord length; 1 is straight."""
    length = path.diff(dim=0).norm(dim=2).sum(0)
    return float((length / (path[-1] - path[0]).norm(dim=1)).median())


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
