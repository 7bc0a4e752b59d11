r"""The mathematics of a rectified flow, as pure functions on tensors.

The path from noise to data is a straight line, parametrized by sigma from 1 (noise) down to 0 (data):

    x_sigma = (1 - sigma) x0 + sigma noise        Liu et al., 2209.03003; FLUX and SD3 (2403.03206) use this sign
    v       = dx/dsigma = noise - x0              the target of the network

Both ends of the line follow from x and v at any sigma:

    clean = x - sigma v          noise = x + (1 - sigma) v          x = (1 - sigma) clean + sigma noise
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fluxnb.arguments import entry_point
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

F = TypeVar("F", bound=Callable[..., Any])


def _on_tensors(function: F) -> F:
    """Check the types of the arguments, except in compiled code, which the check would interrupt."""
    names = inspect.signature(function).parameters
    examples = {name: f"{name}=0.5" if "sigma" in name else f"{name}=trajectory.final" for name in names}
    checked = entry_point(**examples)(function)
    function.__no_type_check__ = False  # type: ignore[attr-defined]  # the tests compare the shapes too

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (function if torch.compiler.is_compiling() else checked)(*args, **kwargs)

    return cast(F, call)


@entry_point("steps", sigmas="sigmas=(1.0, 0.5)", shift="shift=3.0")
def schedule(steps: int, sigmas: Sequence[float] | None = None, shift: float = 1.0) -> tuple[float, ...]:
    """The steps + 1 noise levels of a run, from (usually) 1 to exactly 0.

    They are the float32 numbers of `FlowMatchEulerDiscreteScheduler.set_timesteps`, bit for bit.

    Arguments:
        steps: at least 1.
        sigmas: own levels before the shift; by default 1, (n-1)/n, ..., 1/n, as in `FluxPipeline`.
        shift: s becomes shift s / (1 + (shift - 1) s) (SD3, 2403.03206, eq. 23); above 1 more steps have high noise.

    Raises:
        InputError: fewer than one step.

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


@entry_point(tokens="tokens=4096", base="base=0.5", top="top=1.15", few="few=256", many="many=4096")
def dynamic_shift(tokens: int, *, base: float = 0.5, top: float = 1.15, few: int = 256, many: int = 4096) -> float:
    """The shift of FLUX.1-dev for an image of `tokens` tokens: e**mu with mu linear in the number of tokens.

    256 tokens (256 px) give e**0.5, 4096 tokens (1024 px) e**1.15 (black-forest-labs/flux, `sampling.py`). A run takes
    the shift of its own scheduler, see `fluxnb/pipeline/schedule.py`; this function is for comparison.

    Example:
        >>> round(dynamic_shift(4096), 3)
        3.158
    """
    return math.exp(base + (top - base) * (tokens - few) / (many - few))


@_on_tensors
def interpolate(x0: Array, noise: Array, sigma: Level) -> Array:
    """The point at sigma on the line from x0 to noise, (1 - sigma) x0 + sigma noise; sigma broadcasts."""
    return (1 - sigma) * x0 + sigma * noise


@_on_tensors
def velocity_target(x0: Array, noise: Array) -> Array:
    """The target velocity anywhere on the line from x0 to noise: noise - x0."""
    return noise - x0


@_on_tensors
def euler_step(x: Array, v: Array, sigma: float | int, sigma_next: float | int) -> Array:
    """One Euler step, x + (sigma_next - sigma) v, in the dtype of x.

    Sampling uses the scheduler of diffusers, which rounds differently in bfloat16.
    """
    return x + (sigma_next - sigma) * v


@_on_tensors
def clean_estimate(x: Array, v: Array, sigma: Level) -> Array:
    """The estimate of x0, x - sigma v, in float32 or wider; any shape."""
    return _wide(x) - sigma * _wide(v)


@_on_tensors
def noise_estimate(x: Array, v: Array, sigma: Level) -> Array:
    """The estimate of the noise in x, x + (1 - sigma) v, in float32 or wider; any shape."""
    return _wide(x) + (1 - sigma) * _wide(v)


@entry_point(schedules="schedules=[flow.schedule(4), flow.schedule(2)]")
def share_prefixes(schedules: Sequence[Sequence[float]]) -> tuple[tuple[int, int], ...]:
    """The evaluations that runs from the same noise and prompt can share.

    As long as all levels so far are equal, so are x and the velocity. Even schedules of different step counts have only
    sigma 1 in common, so they share exactly one evaluation.

    Returns:
        For each schedule a pair (donor, count): the index of an earlier schedule, and the number of evaluations at the
        start that both have in common; (-1, 0) if there is none.

    Example:
        >>> share_prefixes([schedule(4), schedule(2), schedule(1)])
        ((-1, 0), (0, 1), (0, 1))
    """
    plan: list[tuple[int, int]] = []
    for index, levels in enumerate(schedules):
        best = (-1, 0)
        for donor in range(index):
            count = 0
            # The last level is never evaluated.
            for mine, theirs in zip(levels[:-1], schedules[donor][:-1], strict=False):
                if mine != theirs:
                    break
                count += 1
            if count > best[1]:
                best = (donor, count)
        plan.append(best)
    return tuple(plan)


@entry_point(schedules="schedules=[flow.schedule(4), flow.schedule(2)]")
def shared_evaluations(schedules: Sequence[Sequence[float]]) -> tuple[int, int]:
    """The number of evaluations with shared prefixes and without, for runs from the same noise and prompt.

    Example:
        >>> shared_evaluations([schedule(n) for n in (1, 2, 3, 4)])
        (7, 10)
    """
    alone = sum(len(levels) - 1 for levels in schedules)
    return alone - sum(count for _, count in share_prefixes(schedules)), alone


def _wide(x: Tensor) -> Tensor:
    # In bfloat16 the difference of two nearly equal numbers is mostly rounding error.
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
