"""A flow in two dimensions: eight blobs on a ring, whose exact velocity is known, and a network small enough to watch.

Everything that a rectified flow does to pictures it does here to points, where the truth can be written down: the data
are Gaussians, so at every noise level they are Gaussians still, and the best velocity is a weighted mean.
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
CENTRES = RADIUS * torch.stack((_ANGLES.cos(), _ANGLES.sin()), 1)

Points = Float[Tensor, "n 2"]
Levels = Float[Tensor, " n"] | Float[Tensor, ""]
#: points and their noise level to velocities.
Velocity = Callable[[Tensor, Tensor], Tensor]


def draw_data(count: int, generator: torch.Generator | None = None) -> Points:
    """Points of the data: a blob by chance, and a place in it."""
    blob = torch.randint(MODES, (count,), generator=generator)
    return CENTRES[blob] + SPREAD * torch.randn(count, 2, generator=generator)


def log_density(x: Points, sigma: float, spread: float = SPREAD, weights: Tensor | None = None) -> Float[Tensor, " n"]:
    """The exact log density of (1 - sigma) data + sigma noise, for blobs of any spread and weights (8,)."""
    weights = torch.full((MODES,), 1 / MODES) if weights is None else weights / weights.sum()
    variance = (1 - sigma) ** 2 * spread**2 + sigma**2
    squares = torch.cdist(x, (1 - sigma) * CENTRES).square()
    return torch.logsumexp(weights.log() - squares / (2 * variance), 1) - math.log(2 * math.pi * variance)


def exact_velocity(x: Points, sigma: Levels) -> Points:
    """E[noise - data | x] at each point's own level: each blob's straight line, weighted by how likely it is.

    >>> exact_velocity(torch.ones(1, 2), torch.tensor(1.0))  # at pure noise the best guess of the data is their mean, 0
    tensor([[1., 1.]])
    """
    sigma = sigma.expand(len(x))[:, None]
    away = x[:, None] - (1 - sigma)[..., None] * CENTRES  # (n, 8, 2), from each blob's centre at this level
    variance = (1 - sigma).square() * SPREAD**2 + sigma.square()
    likely = (-away.square().sum(2) / (2 * variance)).softmax(1)
    clean = CENTRES + ((1 - sigma) * SPREAD**2 / variance)[..., None] * away
    noise = (sigma / variance)[..., None] * away
    return (likely[..., None] * (noise - clean)).sum(1)


class Net(nn.Module):
    """A velocity from a point and its level: three hidden layers, which the critic later looks through."""

    def __init__(self, width: int = 96):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(wide, width) for wide in (2 + 6, width, width))
        self.out = nn.Linear(width, 2)

    def hidden(self, x: Points, sigma: Levels) -> list[Tensor]:
        """What each hidden layer answers, (n, width)."""
        sigma = sigma.expand(len(x))[:, None]
        waves = [f(k * math.pi * sigma) for k in (1, 2) for f in (torch.sin, torch.cos)]
        h, answers = torch.cat((x, sigma, 1 - sigma, *waves), 1), []
        for layer in self.layers:
            h = F.silu(layer(h))
            answers.append(h)
        return answers

    def forward(self, x: Points, sigma: Levels) -> Points:
        """Velocities."""
        return self.out(self.hidden(x, sigma)[-1])


@torch.no_grad()
def trajectory(velocity: Velocity, noise: Points, steps: int) -> Float[Tensor, "t n 2"]:
    """Every state of an Euler walk from noise to data, `steps` + 1 of them."""
    path = [noise]
    for sigma, following in itertools.pairwise(schedule(steps)):
        path.append(path[-1] + (following - sigma) * velocity(path[-1], torch.tensor(sigma)))
    return torch.stack(path)


def straightness(path: Float[Tensor, "t n 2"]) -> float:
    """Mean square of a walk's velocities less its chord, over that of the chord; 0 is straight (2209.03003)."""
    steps = path.diff(dim=0) * (len(path) - 1)
    chord = path[-1] - path[0]
    return float((steps - chord).square().sum(2).mean() / chord.square().sum(1).mean())


def detour(path: Float[Tensor, "t n 2"]) -> float:
    """The median over points of a path's length over its chord's; 1 is straight."""
    length = path.diff(dim=0).norm(dim=2).sum(0)
    return float((length / (path[-1] - path[0]).norm(dim=1)).median())


def distance(one: Points, other: Points, directions: int = 64) -> float:
    """Sliced Wasserstein distance between two clouds of as many points: how far they are apart, seen edge-on."""
    angles = torch.arange(directions) * math.pi / directions
    lines = torch.stack((angles.cos(), angles.sin()))
    return float(((one @ lines).sort(0).values - (other @ lines).sort(0).values).square().mean().sqrt())


def blobs(points: Points) -> tuple[float, float, float]:
    """How many of the eight blobs a cloud has (by the entropy of its shares), their spread, and the share in none."""
    far, nearest = torch.cdist(points, CENTRES).min(1)
    inside = far < 4 * SPREAD
    if not bool(inside.any()):
        return 0.0, math.nan, 1.0
    share = torch.bincount(nearest[inside], minlength=MODES) / inside.sum()
    count = torch.exp(-(share * share.clamp(min=1e-9).log()).sum())
    spread = (points - CENTRES[nearest])[inside].square().mean().sqrt()
    return float(count), float(spread), float(1 - inside.float().mean())


@torch.no_grad()
def align(velocity: Velocity, noise: Points) -> float:
    """Mean cosine between a noise and where one step takes it, less the mean of all; below 0 the map is turned over."""
    clean = noise - velocity(noise, torch.tensor(1.0))
    return float(F.cosine_similarity(noise, clean - clean.mean(0)).mean())
