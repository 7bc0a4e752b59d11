r"""The mathematics of a rectified flow, as pure functions on tensors.

The path from noise to data is a straight line, sigma its clock, from 1 (noise) down to 0 (data):

    x_sigma = (1 - sigma) x0 + sigma noise        Liu et al., 2209.03003; FLUX and SD3 (2403.03206) use this sign
    v       = dx/dsigma = noise - x0              what the network is trained to give

so that from any x and v, at any sigma, both ends of the line follow:

    clean = x - sigma v          noise = x + (1 - sigma) v          x = (1 - sigma) clean + sigma noise
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fluxnb.errors import InputError

__all__ = [
    "clean_estimate",
    "dynamic_shift",
    "euler_step",
    "interpolate",
    "noise_estimate",
    "schedule",
    "share_prefixes",
    "shared_evaluations",
    "velocity_target",
]

Array = Float[Tensor, "*shape"]
Level = float | int | Float[Tensor, "*#shape"]


def schedule(steps: int, sigmas: Sequence[float] | None = None, shift: float = 1.0) -> tuple[float, ...]:
    """The noise levels a run visits, steps + 1 of them, from (usually) 1 to exactly 0, as diffusers computes them.

    Without own `sigmas` the levels are even, 1, (n-1)/n, ..., 1/n, as `FluxPipeline` passes them; `shift` then bends
    them, shift s / (1 + (shift - 1) s) (SD3, 2403.03206, eq. 23), spending more steps at high noise when above 1.
    The numbers are float32, bit for bit those of `FlowMatchEulerDiscreteScheduler.set_timesteps`.

    Example:
        >>> schedule(4)
        (1.0, 0.75, 0.5, 0.25, 0.0)
    """
    if steps < 1:
        raise InputError(f"steps={steps}", "at least 1 is needed", "try steps=4")
    given = np.linspace(1.0, 1 / steps, steps) if sigmas is None else np.array(sigmas)
    levels = given.astype(np.float32)
    levels = shift * levels / (1 + (shift - 1) * levels)
    return (*levels.astype(np.float32).tolist(), 0.0)


def dynamic_shift(tokens: int, *, base: float = 0.5, top: float = 1.15, few: int = 256, many: int = 4096) -> float:
    """The shift that FLUX.1-dev uses for a picture of so many image tokens: e**mu, mu linear in the token count.

    256 tokens (256 px) give e**0.5, 4096 tokens (1024 px) e**1.15; from black-forest-labs/flux `sampling.py`.

    Example:
        >>> round(dynamic_shift(4096), 3)
        3.158
    """
    return math.exp(base + (top - base) * (tokens - few) / (many - few))


def interpolate(x0: Array, noise: Array, sigma: Level) -> Array:
    """The point of the straight line at sigma: (1 - sigma) x0 + sigma noise. Any shape; sigma broadcasts."""
    return (1 - sigma) * x0 + sigma * noise


def velocity_target(x0: Array, noise: Array) -> Array:
    """What the network should answer anywhere on the line from x0 to noise: noise - x0."""
    return noise - x0


def euler_step(x: Array, v: Array, sigma: float, sigma_next: float) -> Array:
    """One straight step along the velocity: x + (sigma_next - sigma) v, in the dtype of x.

    The run itself lets diffusers' scheduler do this, whose rounding in bfloat16 differs; this one is for reading,
    for teaching and for training.
    """
    return x + (sigma_next - sigma) * v


def clean_estimate(x: Array, v: Array, sigma: Level) -> Array:
    """The picture the model already has in mind, x - sigma v, in float32 at least; any shape."""
    return _wide(x) - sigma * _wide(v)


def noise_estimate(x: Array, v: Array, sigma: Level) -> Array:
    """The noise the model believes is in x, x + (1 - sigma) v, in float32 at least; any shape."""
    return _wide(x) + (1 - sigma) * _wide(v)


def share_prefixes(schedules: Sequence[Sequence[float]]) -> tuple[tuple[int, int], ...]:
    """For runs from the same noise and prompt: from whom each may take its first evaluations, and how many.

    Two runs see the same x and sigma, and so get the same velocity, as long as all their levels so far are equal.
    Even schedules of different step counts agree only on sigma 1, so they share exactly one evaluation.

    Returns:
        One (donor, count) per schedule, where the donor is an earlier index; (-1, 0) for a run that starts alone.

    Example:
        >>> share_prefixes([schedule(4), schedule(2), schedule(1)])
        ((-1, 0), (0, 1), (0, 1))
    """
    plan: list[tuple[int, int]] = []
    for index, levels in enumerate(schedules):
        best = (-1, 0)
        for donor in range(index):
            count = 0
            # The last level is the end of the walk and never evaluated.
            for mine, theirs in zip(levels[:-1], schedules[donor][:-1], strict=False):
                if mine != theirs:
                    break
                count += 1
            if count > best[1]:
                best = (donor, count)
        plan.append(best)
    return tuple(plan)


def shared_evaluations(schedules: Sequence[Sequence[float]]) -> tuple[int, int]:
    """How many evaluations the runs need with sharing and without, from one noise and prompt.

    Example:
        >>> shared_evaluations([schedule(n) for n in (1, 2, 3, 4)])
        (7, 10)
    """
    alone = sum(len(levels) - 1 for levels in schedules)
    return alone - sum(count for _, count in share_prefixes(schedules)), alone


def _wide(x: Tensor) -> Tensor:
    # Below float32 the difference of two near-equal numbers would be mostly rounding.
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
