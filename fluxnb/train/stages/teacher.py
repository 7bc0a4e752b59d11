"""Train the teacher: a rectified flow from noise and words to the latents of scenes."""

from __future__ import annotations

import dataclasses
import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.records.latents import pack, unpack
from fluxnb.train.config import Preset
from fluxnb.train.data.batches import batches, draw_chunks
from fluxnb.train.data.render import Renderer
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.networks.build import count
from fluxnb.train.networks.files import build_denoiser, save_denoiser
from fluxnb.train.stages.autoencoder import encode
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, descend
from fluxnb.train.stages.objective import Denoiser, draw_sigmas, flow_loss
from fluxnb.train.stages.optimisers import optimiser
from fluxnb.train.stages.start import bring, open_start
from fluxnb.train.stages.validation import Validation

UNSAID = 0.1  # share of captions left empty, so that the model can also be asked for no words: CFG (2207.12598)


def train_teacher(
    preset: Preset, out: Path, rank: Rank, start: Path | None = None, mode: str = "reduce-overhead"
) -> Denoiser:
    """Train on latents cached on the device; saves the averaged weights under `out` as it goes.

    `mode` is torch.compile's. `start` goes on from the denoiser of that folder, a run's or a shipped one's, instead of
    from nothing: with a short warm-up, since no optimiser keeps its state on disk.
    """
    schedule, cuda = preset.teacher, rank.device.type == "cuda"
    torch.manual_seed(200 + rank.index)
    random.seed(rank.index)
    log, began = Log(out / "teacher.jsonl", rank), time.perf_counter()
    model = build_denoiser(preset.sizes) if start is None else open_start(preset.sizes, start)
    if start is not None:
        schedule = dataclasses.replace(schedule, warmup=min(schedule.warmup, schedule.rewarm))
    model.to(rank.device)
    adam = optimiser(model, schedule)  # before the minutes that the data takes: what cannot be says so at once
    bring(start, out, rank)
    vae = AutoencoderKL.from_pretrained(out / "vae").to(rank.device, memory_format=torch.channels_last).eval()
    renderer = Renderer(rank.device)
    latents, clip_ids, t5_ids = cache(vae, renderer, preset, seed=3000 + rank.index)
    nothing_clip, nothing_t5 = (ids.to(rank.device, torch.int16) for ids in Tokens.of(preset.sizes)([""]))
    validation = Validation(vae, renderer, preset.sizes, schedule.validation, schedule.batch)
    rank.same_weights(model)
    average = Average(model, schedule.ema, known=start is not None)
    spread = latents[:4096].float().std().item()
    facts = {"optimizer": schedule.optimizer} | ({"start": start.name} if start is not None else {})
    log(
        parameters=count(model),
        cached=len(latents),
        latent_std=spread,
        **facts,
        cache_seconds=time.perf_counter() - began,
    )

    def loss_of(*batch: Tensor) -> Tensor:
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=cuda):
            return flow_loss(model, *batch)

    # CUDA graphs: without them a step is bound by launches, 33 ms at batch 512 and at 1024 alike on an H200.
    step = torch.compile(loss_of, mode=mode) if cuda else loss_of
    generator = torch.Generator(rank.device).manual_seed(rank.index)
    rows = batches(len(latents), schedule.batch, generator, rank.device)
    pace = Pace(schedule, rank)
    running = torch.zeros((), device=rank.device)
    for iteration in pace:
        row = next(rows)
        unsaid = torch.rand(len(row), 1, device=rank.device) < UNSAID
        clip = torch.where(unsaid, nothing_clip, clip_ids[row]).long()
        t5 = torch.where(unsaid, nothing_t5, t5_ids[row]).long()
        x0 = latents[row].float()
        if cuda:
            torch.compiler.cudagraph_mark_step_begin()
        loss = step(x0, clip, t5, draw_sigmas(len(row), rank.device), torch.randn_like(x0)).mean()
        norm = descend(loss, model, adam, pace.rate(iteration), rank)
        average.update()
        running = running + loss.detach()
        if (iteration + 1) % 250 == 0:
            mean = float(running) / 250
            log(iteration=iteration, total=pace.total, loss=mean, norm=float(norm), seconds=pace.seconds())
            running.zero_()
        if rank.first and ((iteration + 1) % schedule.validate_every == 0 or iteration + 1 == pace.total):
            seconds, found = pace.seconds(), look(validation, loss_of, average)
            log(iteration=iteration, **found, optimizer=schedule.optimizer, seconds=seconds)
        if (iteration + 1) % 2000 == 0:
            keep(model, average, out, rank)
    keep(model, average, out, rank)
    log(
        iterations=pace.total,
        seconds=pace.seconds(),
        compile_seconds=pace.compiling,
        batch=schedule.batch * rank.world,
        devices=rank.world,
        **facts,
    )
    average.swap()
    return model.eval()


def cache(vae: AutoencoderKL, renderer: Renderer, preset: Preset, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (N, 16, 16, 16) and captions' ids, (N, length) each, on the device: it renders what workers draw."""
    parts = [
        (encode(vae, renderer, chunk.layout.to(renderer.device)), chunk.clip_ids, chunk.t5_ids)
        for chunk in draw_chunks(preset.teacher.scenes, seed, preset.sizes)
    ]
    latents, clip_ids, t5_ids = (torch.cat(part).to(renderer.device) for part in zip(*parts, strict=True))
    return latents, clip_ids, t5_ids


def look(
    validation: Callable[[Callable[..., Tensor]], float], loss_of: Callable[..., Tensor], average: Average
) -> dict[str, float]:
    """The validation loss of the averaged weights, which ship, and of the live ones."""
    live = validation(loss_of)
    average.swap()
    mean = validation(loss_of)
    average.swap()
    return {"validation": mean, "validation_live": live}


def keep(model: Denoiser, average: Average, out: Path, rank: Rank) -> None:
    """Save the averaged weights in half precision, as they ship; whole or not at all."""
    if rank.first:
        average.swap()
        save_denoiser(model, out)
        average.swap()


@torch.no_grad()
def sample(
    model: Denoiser,
    clip_ids: Tensor,
    t5_ids: Tensor,
    noise: Tensor,
    sigmas: tuple[float, ...],
    *,
    guidance: float = 1.0,
    nothing: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Latents (B, 16, h, w) by Euler along `sigmas`, with classifier-free guidance above 1; all on one device."""
    side = noise.shape[-1] * 8
    pooled, sequence = model.encode(clip_ids, t5_ids)
    if guidance > 1 and nothing is not None:
        empty_pooled, empty = (e.expand(len(noise), *e.shape[1:]) for e in model.encode(*nothing))
        pooled, sequence = torch.cat((pooled, empty_pooled)), torch.cat((sequence, empty))
    x = pack(noise)
    for sigma, following in itertools.pairwise(sigmas):
        double = torch.cat((x, x)) if guidance > 1 else x
        velocity = model(double, torch.full((len(double),), sigma, device=x.device), pooled, sequence).float()
        if guidance > 1:
            said, unsaid = velocity.chunk(2)
            velocity = unsaid + guidance * (said - unsaid)
        x = x + (following - sigma) * velocity
    return unpack(x, side, side)
