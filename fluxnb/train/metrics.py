"""Quality measures of pictures, features and samples, as pure functions of tensors."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture (B,), for pictures (B, 3, H, W) in [-1, 1]."""
    return -10 * ((output - target) / 2).square().mean((1, 2, 3)).log10()


def frechet(one: Tensor, other: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (N, d) (FID, 1706.08500); N well above d."""
    a, b = one.double().cpu().numpy(), other.double().cpu().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the square root of a product of two symmetric matrices, from eigenvalues only.
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def entropy(codes: Tensor) -> float:
    """Entropy in nats of the empirical distribution of codes (n,). Values are comparable at equal n only.

    >>> round(entropy(torch.tensor([0, 1, 0, 1])), 3)
    0.693
    """
    share = codes.unique(return_counts=True)[1].double() / len(codes)
    return float(-(share * share.log()).sum())


def vendi(features: Tensor, width: float) -> float:
    """Effective number of different pictures among n, from 1 to n (Vendi score, 2210.02410).

    Arguments:
        features: (n, d).
        width: standard deviation of the Gaussian kernel on feature distances. A cosine kernel would call any two
            pictures of one prompt nearly equal; use the median distance between renders of the same caption.
    """
    similarity = torch.exp(-0.5 * (torch.cdist(features.double(), features.double()) / width).square())
    values = torch.linalg.eigvalsh(similarity / len(features)).clamp(min=1e-12)
    return float(torch.exp(-(values * values.log()).sum()))


def median_distance(features: Tensor) -> float:
    """The median distance between the rows of features (n, d)."""
    return float(torch.pdist(features.float()).median())


def alignment(noise: Tensor, clean: Tensor) -> Tensor:
    """Mean cosine between each noise and the deviation of its picture from the prompt's mean picture, (P,).

    Both inputs are (P, n, ...): n noises for each of P prompts. A value near 0 means that the noise has no influence on
    the picture, as for a conditional mean. A positive value means that the map from noise to picture preserves
    directions, as an ODE does. A negative value means that it reverses them; several Euler steps, each of which adds
    the inferred noise back, then work against each other.
    """
    noise, clean = noise.flatten(2).float(), clean.flatten(2).float()
    return torch.cosine_similarity(noise, clean - clean.mean(1, keepdim=True), dim=2).mean(1)
