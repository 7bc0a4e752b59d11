"""Trajectories through velocity fields with known solutions, without a model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from fluxnb.records import Step, Trajectory
from fluxnb.records.recipe import ResolvedRecipe


def sample_trajectory(
    field: Callable[[torch.Tensor, float], torch.Tensor], start: torch.Tensor, sigmas: Any, **other: Any
) -> Trajectory:
    """Euler steps along a velocity field from `start`, tokens (4, 64) of a 32 x 32 picture."""
    x, steps = start, []
    for index, (sigma, following) in enumerate(itertools.pairwise(sigmas)):
        v = field(x, sigma)
        x_next = x + (following - sigma) * v
        norms = {"x": float(x.norm()), "v": float(v.norm())}
        tensors = {"x": x, "v": v, "x_next": x_next}
        steps.append(
            Step(
                index=index,
                sigma=sigma,
                dt=following - sigma,
                height=32,
                width=32,
                tensors=tensors,
                norms=norms,
                seconds=0.5,
            )
        )
        x = x_next
    values: dict[str, Any] = {
        "image": Image.new("RGB", (32, 32), (10, 200, 30)),
        "recipe": resolved(seed=7, steps=len(steps)),
        "finished": True,
        "sigmas": tuple(sigmas),
        "steps": tuple(steps),
        "height": 32,
        "width": 32,
        "seconds": {"encode": 0.1, "denoise": 2.0, "decode": 0.2},
        "versions": {"torch": "x"},
        "model": "toy",
        "preset": "cpu",
    }
    return Trajectory(**{**values, **other})


def resolved(**fields: Any) -> ResolvedRecipe:
    """A resolved recipe of a 32 x 32 picture, with some fields changed."""
    values: dict[str, Any] = {"prompt": "a fox", "height": 32, "width": 32, "max_sequence_length": 48}
    values |= {"model": "toy", "revision": "0", "dtype": "float32"}
    return ResolvedRecipe(**{**values, **fields})


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 64, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
