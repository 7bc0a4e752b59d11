"""Solvers of second order, "heun" and "midpoint", which evaluate the velocity twice in a step; and steps from 0 upward.

A scheduler of diffusers takes one evaluation a step. Here its list of levels names the level of every evaluation, so
that the pipeline's own loop runs once for each of them, and a recorder sees every velocity:

    heun       s0, s1, s1, s2, s2, ..., 0     at s1: the step from s0 again, with the mean of both velocities
    midpoint   s0, m0, s1, m1, s2, ..., 0     at m0: the step from s0 again, with the velocity of the middle

The last step of Heun to 0 is an Euler step (Karras et al., 2206.00364, algorithm 1): no network is trained at 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["levels_of_evaluations", "take_two_stages", "turn_upward"]


def levels_of_evaluations(levels: Tensor, sampler: str) -> Tensor:
    """The level of each evaluation, and the final one, from the levels of the steps (steps + 1).

    Example:
        >>> levels_of_evaluations(torch.tensor([1.0, 0.5, 0.0]), "midpoint").tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if sampler == "heun":
        return torch.cat((levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]))
    middle = (levels[:-1] + levels[1:]) / 2
    return torch.cat((torch.stack((levels[:-1], middle), 1).flatten(), levels[-1:]))


def take_two_stages(scheduler: Any, sampler: str) -> None:
    """Make a FlowMatchEulerDiscreteScheduler, which no other call uses, take steps of two evaluations.

    Its own `step` computes the first stage, which is an Euler step, and ends the second one.
    """
    scheduler.set_timesteps = _set_timesteps(scheduler, scheduler.set_timesteps, sampler)
    scheduler.step = _step(scheduler, scheduler.step, sampler)


def turn_upward(scheduler: Any) -> None:
    """Make a FlowMatchEulerDiscreteScheduler, which no other call uses, step from the last level to the first.

    Each step evaluates at its upper level, as the step downward that it inverts does: x + h v(x, upper) is one
    fixed-point iteration of y = x + h v(y, upper). At sigma 0 the velocity of a clean picture holds no noise at all.
    """
    original = scheduler.set_timesteps

    @functools.wraps(original)
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        scheduler.sigmas = scheduler.sigmas.flip(0)
        scheduler.timesteps = scheduler.sigmas[1:] * scheduler.config.num_train_timesteps

    scheduler.set_timesteps = set_timesteps


def _set_timesteps(scheduler: Any, original: Callable[..., Any], sampler: str) -> Callable[..., Any]:
    @functools.wraps(original)  # the pipelines read its parameters
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        scheduler.sigmas = levels_of_evaluations(scheduler.sigmas, sampler)
        scheduler.timesteps = scheduler.sigmas[:-1] * scheduler.config.num_train_timesteps
        scheduler.num_inference_steps = len(scheduler.timesteps)

    return set_timesteps


def _step(scheduler: Any, original: Callable[..., Any], sampler: str) -> Callable[..., Any]:
    start: Sequence[Tensor] = ()  # x and v at the beginning of the step

    @functools.wraps(original)
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal start
        index = scheduler.step_index or 0
        if index % 2 == 0:
            start = (sample, model_output)
            return original(model_output, timestep, sample, *args, **kwargs)
        x, v = start
        # Where this velocity, or the mean of both, leads from the start of the step to the level of this evaluation;
        # the scheduler's own step goes on from there, by a length of 0 for Heun.
        slope = (v.float() + model_output.float()) / 2 if sampler == "heun" else model_output.float()
        moved = x.float() + (scheduler.sigmas[index] - scheduler.sigmas[index - 1]) * slope
        start = ()
        return original(model_output, timestep, moved, *args, **kwargs)

    return step
