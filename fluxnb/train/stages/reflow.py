"""Reflow: learn the straight line between each noise and the picture that the teacher made of it.

Liu et al., 2209.03003. A road that is straight can be walked in one stride. Short, this is the start of LADD, which
fixes which noise becomes which picture; for as long as LADD takes, it is what LADD has to beat.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor

from fluxnb.flow import interpolate
from fluxnb.train.config import Preset, Schedule
from fluxnb.train.data.batches import batches
from fluxnb.train.evaluation.measure import alignment
from fluxnb.train.networks.files import load_denoiser, save_transformer, with_transformer
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, descend
from fluxnb.train.stages.objective import Denoiser
from fluxnb.train.stages.optimisers import optimiser
from fluxnb.train.stages.pairs import Pairs

#: Where the student is asked: the levels of four even steps.
GRID = (1.0, 0.75, 0.5, 0.25)


def on_the_line(pairs: Pairs, rows: Tensor, sigma: Tensor) -> Tensor:
    """The points (B, 64, 64) at sigma (B,) between the latents of some pairs and the noise that they came from."""
    return interpolate(pairs.clean[rows].float(), pairs.noise[rows].float(), sigma[:, None, None])


def reflow_sigmas(count: int, device: torch.device) -> Tensor:
    """Levels (count,): half uniform, half those at which the student will be asked."""
    uniform = torch.rand(count, device=device)
    asked = torch.tensor(GRID, device=device)[torch.randint(len(GRID), (count,), device=device)]
    return torch.where(torch.arange(count, device=device) % 2 == 0, uniform, asked)


def train_reflow(
    preset: Preset,
    out: Path,
    rank: Rank,
    name: str,
    schedule: Schedule,
    start: str = "",
    mode: str = "reduce-overhead",
) -> Denoiser:
    """Regress the straight line between each noise and its latents (2209.03003); saves the transformer as `name`.

    Begins from the teacher, or from the transformer `start` of the run. Short, it is LADD's warm start; for as
    long as LADD takes, it is what LADD has to beat.
    """
    device, cuda = rank.device, rank.device.type == "cuda"
    torch.manual_seed(500 + rank.index)
    log, began = Log(out / f"{name}.jsonl", rank), time.perf_counter()
    model = load_denoiser(preset.sizes, out).requires_grad_(False).to(device)
    if start:
        model = with_transformer(model, out / f"{start}.safetensors").to(device)
    model.transformer.requires_grad_(True)
    pairs = Pairs.load(out / "pairs.safetensors").to(device)
    pooled, sequence = pairs.embed(model)
    adam, average, pace = optimiser(model, schedule), Average(model, schedule.ema), Pace(schedule, rank)

    def loss_of(noise: Tensor, clean: Tensor, sigma: Tensor, *words: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            level = sigma[:, None, None]
            velocity = model((1 - level) * clean + level * noise, sigma, *words)
        return (velocity.float() - (noise - clean)).square().mean()

    step = torch.compile(loss_of, mode=mode) if cuda else loss_of
    rows = batches(len(pairs), min(schedule.batch, len(pairs)), torch.Generator(device).manual_seed(9), device)
    for iteration in pace:
        row = next(rows)
        if cuda:
            torch.compiler.cudagraph_mark_step_begin()
        sigma = reflow_sigmas(len(row), device)
        loss = step(pairs.noise[row].float(), pairs.clean[row].float(), sigma, pooled[row], sequence[row])
        norm = descend(loss, model, adam, pace.rate(iteration), rank)
        average.update()
        if (iteration + 1) % 250 == 0:
            log(iteration=iteration, total=pace.total, loss=float(loss), norm=float(norm), seconds=pace.seconds())
    average.swap()
    save_transformer(model.transformer, out / f"{name}.safetensors", rank)
    log(
        iterations=pace.total,
        seconds=pace.seconds(),
        batch=schedule.batch,
        align=align(model, pairs, pooled, sequence),
        align_of_pairs=align_of_pairs(pairs),
        whole_seconds=time.perf_counter() - began,
    )
    return model.eval()


@torch.no_grad()
def align(model: Denoiser, pairs: Pairs, pooled: Tensor, sequence: Tensor, prompts: int = 64, seeds: int = 16) -> float:
    """Mean cosine between noise and the one-step picture less its mean over seeds; below 0 the map has flipped."""
    prompts = min(prompts, len(pairs))
    noise = torch.randn(seeds, *pairs.noise.shape[1:], generator=torch.Generator().manual_seed(1)).to(pooled.device)
    one_step = []
    for row in range(prompts):
        words = (part[row].float().expand(seeds, *part[row].shape) for part in (pooled, sequence))
        one_step.append(noise - model(noise, torch.ones(seeds, device=noise.device), *words).float())
    return float(alignment(noise.expand(prompts, *noise.shape), torch.stack(one_step)).mean())


def align_of_pairs(pairs: Pairs) -> float:
    """The same cosine for the teacher's own pairs, less the mean picture of all captions."""
    clean = pairs.clean[:8192].float()
    noise = pairs.noise[:8192].float()
    return float(torch.cosine_similarity(noise.flatten(1), (clean - clean.mean(0)).flatten(1)).mean())
