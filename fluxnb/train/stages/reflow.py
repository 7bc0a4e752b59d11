"""Reflow (Liu et al., 2209.03003): learn the straight line between each noise and the teacher's latents from it.

A straight trajectory can be sampled in one step. A short reflow is the start of LADD, and fixes which noise becomes
which picture. A reflow as long as LADD is the baseline for it.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from fluxnb.flow import interpolate
from fluxnb.train.config import Preset, Schedule
from fluxnb.train.data.dataset import batches
from fluxnb.train.metrics import alignment
from fluxnb.train.networks.denoiser import Denoiser, load_denoiser, save_transformer, with_transformer
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, backward_and_step
from fluxnb.train.stages.optimizers import make_optimizer
from fluxnb.train.stages.pairs import Pairs

#: The noise levels at which the student is evaluated: those of four equal steps.
STUDENT_SIGMAS = (1.0, 0.75, 0.5, 0.25)


def points_on_lines(pairs: Pairs, rows: Tensor, sigma: Tensor) -> Tensor:
    """Points (B, 64, 64) at sigma (B,) on the straight lines between latents and noise of some pairs."""
    return interpolate(pairs.clean[rows].float(), pairs.noise[rows].float(), sigma[:, None, None])


def reflow_sigmas(count: int, device: torch.device) -> Tensor:
    """Noise levels (count,): half of them uniform, a quarter 1, where one step starts, a quarter from `STUDENT_SIGMAS`."""
    sigmas = torch.rand(count, device=device)
    sigmas[1::4] = 1.0
    sigmas[3::4] = torch.tensor(STUDENT_SIGMAS, device=device)[torch.randint(4, sigmas[3::4].shape, device=device)]
    return sigmas


def train_reflow(
    preset: Preset,
    out: Path,
    rank: Rank,
    *,
    name: str,
    schedule: Schedule,
    start: str = "",
    mode: str = "reduce-overhead",
) -> Denoiser:
    """Regress the velocity of the straight lines (2209.03003); saves the transformer as `name`.safetensors.

    Args:
        preset: sizes of the networks.
        out: folder of the run, with its teacher and its pairs.
        rank: this process.
        name: of the transformer's file and of the log.
        schedule: length and learning rate.
        start: name of the transformer to start from; the teacher's if empty.
        mode: of `torch.compile`.
    """
    device, cuda = rank.device, rank.device.type == "cuda"
    torch.manual_seed(500 + rank.index)
    log, began = Log(out / f"{name}.jsonl", rank), time.perf_counter()
    model = load_denoiser(preset.sizes, out).requires_grad_(False).to(device)
    if start:
        model = with_transformer(model, out / f"{start}.safetensors").to(device)
    model.transformer.requires_grad_(True)
    pairs = Pairs.load(out / "pairs.safetensors").to(device)
    prompts = pairs.embed(model)
    adam, average, pace = make_optimizer(model, schedule), Average(model, schedule.ema), Pace(schedule, rank)

    def loss_of(noise: Tensor, clean: Tensor, sigma: Tensor, pooled: Tensor, sequence: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            level = sigma[:, None, None]
            velocity = model((1 - level) * clean + level * noise, sigma, pooled, sequence)
        return (velocity.float() - (noise - clean)).square().mean()

    step = torch.compile(loss_of, mode=mode) if cuda else loss_of
    rows = batches(len(pairs), min(schedule.batch, len(pairs)), torch.Generator(device).manual_seed(9), device)
    for iteration in pace:
        row = next(rows)
        if cuda:
            torch.compiler.cudagraph_mark_step_begin()
        sigma = reflow_sigmas(len(row), device)
        loss = step(pairs.noise[row].float(), pairs.clean[row].float(), sigma, *(part[row] for part in prompts))
        norm = backward_and_step(loss, model, adam, pace.rate(iteration), rank)
        average.update()
        if (iteration + 1) % 250 == 0:
            log(iteration=iteration, total=pace.total, loss=float(loss), norm=float(norm), seconds=pace.seconds())
    average.swap()
    if rank.first:
        save_transformer(model.transformer, out / f"{name}.safetensors")
    log(
        iterations=pace.total,
        seconds=pace.seconds(),
        batch=schedule.batch,
        align=one_step_alignment(model, pairs, prompts),
        align_of_pairs=pair_alignment(pairs),
        total_seconds=time.perf_counter() - began,
    )
    return model.eval()


@torch.no_grad()
def one_step_alignment(
    model: Denoiser, pairs: Pairs, prompts: tuple[Tensor, Tensor], *, count: int = 64, seeds: int = 16
) -> float:
    """Mean `alignment` of one-step samples over the first `count` prompts, with `seeds` noises each."""
    pooled, sequence = prompts
    count = min(count, len(pairs))
    noise = torch.randn(seeds, *pairs.noise.shape[1:], generator=torch.Generator().manual_seed(1)).to(pooled.device)
    one_step = []
    for row in range(count):
        prompt = (part[row].float().expand(seeds, *part[row].shape) for part in (pooled, sequence))
        one_step.append(noise - model(noise, torch.ones(seeds, device=noise.device), *prompt).float())
    return float(alignment(noise.expand(count, *noise.shape), torch.stack(one_step)).mean())


def pair_alignment(pairs: Pairs) -> float:
    """Mean cosine between the teacher's noise and latents, less the mean latents over all captions."""
    clean = pairs.clean[:8192].float()
    noise = pairs.noise[:8192].float()
    return float(torch.cosine_similarity(noise.flatten(1), (clean - clean.mean(0)).flatten(1)).mean())
