"""Reflow (Liu et al., 2209.03003): learn the straight line between each noise and the teacher's latents from it.

A straight trajectory can be sampled in one step. A short reflow is the start of LADD, and fixes which noise becomes
which picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fluxnb.flow import interpolate
from fluxnb.train.config import Preset, Schedule
from fluxnb.train.networks.denoiser import Denoiser
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, backward_and_step
from fluxnb.train.stages.optimizers import make_optimizer
from fluxnb.train.stages.pairs import Pairs, PairTable, draw_tables, encode_captions

#: The noise levels at which the student is evaluated: those of four equal steps.
STUDENT_SIGMAS = (1.0, 0.75, 0.5, 0.25)


def points_on_lines(pairs: Pairs, rows: Tensor, sigma: Tensor) -> Tensor:
    """Points (B, tokens, 64) at sigma (B,) on the straight lines between latents and noise of some pairs."""
    return interpolate(pairs.clean[rows].float(), pairs.noise[rows].float(), sigma[:, None, None])


def reflow_sigmas(count: int, device: torch.device) -> Tensor:
    """Noise levels (count,): half are uniform, a quarter is 1, where one step starts, a quarter of `STUDENT_SIGMAS`."""
    sigmas = torch.rand(count, device=device)
    sigmas[1::4] = 1.0
    sigmas[3::4] = torch.tensor(STUDENT_SIGMAS, device=device)[torch.randint(4, sigmas[3::4].shape, device=device)]
    return sigmas


def velocities(pairs: Pairs, rows: Tensor) -> Tensor:
    """The velocities (B, tokens, 64) of the straight lines of some pairs."""
    return pairs.noise[rows].float() - pairs.clean[rows].float()


def train_reflow(
    student: Denoiser, tables: Sequence[PairTable], preset: Preset, schedule: Schedule, *, rank: Rank, log: Log
) -> None:
    """Regress the velocity of the straight lines between noise and the teacher's latents; ends with the average."""
    device, cuda = rank.device, rank.device.type == "cuda"
    adam, average, pace = make_optimizer(student, schedule), Average(student, schedule.ema), Pace(schedule, rank)
    drawn = draw_tables(tables, preset)
    for iteration in pace:
        table, padding = next(drawn)
        rows = torch.randint(len(table.pairs), (table.batch(preset.distillation.tokens),), device=device)
        sigma, prompts = reflow_sigmas(len(rows), device), encode_captions(student, table.pairs, rows, padding)
        x, target = points_on_lines(table.pairs, rows, sigma), velocities(table.pairs, rows)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            velocity = student(x, sigma, *prompts, table.grid)
        loss = (velocity.float() - target).square().mean()
        norm = backward_and_step(loss, student, adam, pace.rate(iteration), rank)
        average.update()
        if (iteration + 1) % 250 == 0:
            log(iteration=iteration, total=pace.total, reflow=loss.item(), norm=float(norm), seconds=pace.seconds())
    average.swap()
    log(reflow_iterations=pace.total, seconds=pace.seconds(), compile_seconds=pace.compiling)
