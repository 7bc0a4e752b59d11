"""The arithmetic of an evaluation: distances, diversity and sharpness as pure functions, and intervals around them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

#: Student's t for a 95 % interval, by degrees of freedom.
_T95 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value, low, high: the estimate and its interval; NaN where a single run gives none.
        n: how many pictures, prompts or runs it rests on.
        how: "wilson" for a share, "jeffreys" for a ratio of shares, "seeds" for a mean over sampling seeds (Student's
            t), "bootstrap" over prompts.
    """

    value: float
    low: float
    high: float
    n: int
    how: str


def wilson(hits: int, n: int) -> Estimate:
    """A share with Wilson's interval, which stays inside 0 and 1 and is honest near both (Wilson, 1927).

    >>> share = wilson(256, 256)
    >>> share.value, round(share.low, 3)
    (1.0, 0.985)
    """
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, "wilson")
    z, share = 1.96, hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half)), n, "wilson")


def over_seeds(values: Sequence[float]) -> Estimate:
    """The mean over sampling seeds with Student's t interval; three seeds give a wide one, and that is the truth."""
    mean, n = float(np.mean(values)), len(values)
    if n == 1:
        return Estimate(mean, math.nan, math.nan, 1, "seeds")
    half = _T95[min(n - 1, len(_T95) - 1)] * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n, "seeds")


def bootstrap(statistic: Callable[..., float], *samples: np.ndarray, draws: int = 1000) -> Estimate:
    """A statistic of samples with its percentile interval; rows are drawn again, so what is paired stays paired."""
    rng, value = np.random.default_rng(0), float(statistic(*samples))
    again = [statistic(*(s[rng.integers(len(s), size=len(s))] for s in samples)) for _ in range(draws)]
    again = [a for a in again if not math.isnan(a)]
    low, high = np.percentile(again, (2.5, 97.5)) if again and not math.isnan(value) else (math.nan, math.nan)
    return Estimate(value, float(low), float(high), sum(len(s) for s in samples), "bootstrap")


def ratio(pairs: np.ndarray) -> float:
    """The mean of the first column over the mean of the second, of (n, 2); NaN over nothing."""
    first, second = pairs.mean(0) if len(pairs) else (math.nan, math.nan)
    return float(first / second) if second else math.nan


def ratio_of_shares(pairs: np.ndarray, over: np.ndarray | None = None) -> Estimate:
    """The ratio of two shares of the same trials, (n, 2) flags; with `over`, that ratio over the one of other trials.

    The interval is drawn from what the counts of the four outcomes leave open (a Dirichlet with Jeffreys' halves), so
    that no miss in few trials is not taken for certainty, as drawing the trials again would.
    """
    value = ratio(pairs) if over is None else ratio(pairs) / (ratio(over) or math.nan)
    rng = np.random.default_rng(0)
    drawn = _ratios(pairs, rng) if over is None else _ratios(pairs, rng) / _ratios(over, rng)
    n = len(pairs) + (0 if over is None else len(over))
    if math.isnan(value):
        return Estimate(value, math.nan, math.nan, n, "jeffreys")
    low, high = (float(end) for end in np.percentile(drawn, (2.5, 97.5)))
    return Estimate(value, min(low, value), max(high, value), n, "jeffreys")


def _ratios(pairs: np.ndarray, rng: np.random.Generator, draws: int = 4000) -> np.ndarray:
    first, second = pairs.astype(bool).T
    cells = [(first & second).sum(), (first & ~second).sum(), (~first & second).sum(), (~first & ~second).sum()]
    both, one, other, _ = rng.dirichlet(np.array(cells) + 0.5, draws).T
    return (both + one) / (both + other)


def frechet(one: Tensor, other: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (N, d) (FID, 1706.08500); N well above d."""
    a, b = one.double().cpu().numpy(), other.double().cpu().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the root of a product of two symmetric matrices, from eigenvalues alone.
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def entropy(codes: Tensor) -> float:
    """Entropy in nats of how often each value occurs among codes (n,); compare it at the same n only.

    >>> round(entropy(torch.tensor([0, 1, 0, 1])), 3)
    0.693
    """
    share = codes.unique(return_counts=True)[1].double() / len(codes)
    return float(-(share * share.log()).sum())


def vendi(features: Tensor, width: float) -> float:
    """How many different pictures there are among n, from 1 to n (Vendi score, 2210.02410); features (n, d).

    Likeness is a Gaussian of the distance between features. A cosine would call any two pictures of one prompt
    nearly equal, so the width has to be set by what varies: give the usual distance between renders of a caption.
    """
    alike = torch.exp(-0.5 * (torch.cdist(features.double(), features.double()) / width).square())
    values = torch.linalg.eigvalsh(alike / len(features)).clamp(min=1e-12)
    return float(torch.exp(-(values * values.log()).sum()))


def usual_distance(features: Tensor) -> float:
    """The median distance between the rows of features (n, d)."""
    return float(torch.pdist(features.float()).median())


def gradient_energy(pictures: Tensor) -> Tensor:
    """Mean square of the differences between neighbouring pixels, one number per picture (B,): what blur takes away."""
    across, down = pictures.diff(dim=3).square().mean((1, 2, 3)), pictures.diff(dim=2).square().mean((1, 2, 3))
    return across + down


def alignment(noise: Tensor, clean: Tensor) -> Tensor:
    """How far pictures follow their own noise: the mean cosine between a noise and its picture's deviation, (P,).

    Both are (P, n, ...), n noises for each of P prompts; the deviation is from the prompt's mean picture. Near 0 the
    noise has no say in the picture (a conditional mean); above it, the map from noise to picture keeps directions as
    an ODE does; below it, the map is turned over, and several Euler steps, which put back the noise they infer,
    work against each other.
    """
    noise, clean = noise.flatten(2).float(), clean.flatten(2).float()
    return torch.cosine_similarity(noise, clean - clean.mean(1, keepdim=True), dim=2).mean(1)
