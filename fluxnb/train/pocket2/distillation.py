"""Distill the second teacher: sample its pairs, learn their straight lines, and train a student with LADD.

The methods are those of `fluxnb.train.stages`: reflow (2209.03003), then LADD (2403.12015). Here they train on pictures
of several shapes, and captions of several paddings, as the teacher did. Each rank samples pairs of its own and keeps
them in memory, so that the whole distillation is one command.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxnb.records.latents import pack
from fluxnb.train.config import Schedule
from fluxnb.train.data.layouts import Shape
from fluxnb.train.data.stream import draw_chunks
from fluxnb.train.data.vocabulary import CAPTION_TOKENS, Tokenizers
from fluxnb.train.networks.build import count_parameters
from fluxnb.train.networks.critic import Critic, draw_levels
from fluxnb.train.networks.denoiser import Denoiser, save_transformer, with_transformer
from fluxnb.train.pocket2.config import Preset
from fluxnb.train.pocket2.networks import load_denoiser
from fluxnb.train.pocket2.teacher import CLIP_USED, compile_blocks, sample, scene_counts
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, optimizer_step
from fluxnb.train.stages.optimizers import make_optimizer
from fluxnb.train.stages.pairs import Pairs
from fluxnb.train.stages.reflow import pair_alignment, points_on_lines, reflow_sigmas
from fluxnb.train.stages.student import Monitor, Rollouts, ladd_losses, ranking_accuracy, select_best

CHECK_EVERY = 20  # iterations between two checks whether to save a student
SEED = 4000  # of the captions and the noise of the pairs; each rank adds its index


@dataclasses.dataclass(frozen=True)
class Table:
    """The pairs of one shape on the device, packed: (N, tokens, 64)."""

    shape: Shape
    pairs: Pairs

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the packed tokens."""
        return self.shape.height // 16, self.shape.width // 16

    def batch(self, tokens: int) -> int:
        """The number of pictures, a multiple of 8, that have about `tokens` image and text tokens together."""
        return max(8, tokens // (self.shape.tokens + CAPTION_TOKENS) // 8 * 8)


def distill(
    preset: Preset, out: Path, rank: Rank, *, alone: bool = False, compiled: bool = True, monitor: Monitor | None = None
) -> Denoiser:
    """Train a student of `out`/teacher.safetensors on all ranks.

    Saves transformers in float16: `out`/warm.safetensors after the reflow, `out`/students/*.safetensors while LADD
    goes on, and the best of these as `out`/student.safetensors.

    Arguments:
        alone: LADD alone, as FLUX.1-schnell was made: from the teacher's weights, without reflow and without
            regression; saved as `out`/ladd.safetensors. The noise then need not lead to the teacher's picture.
        compiled: compile the blocks on a GPU.
        monitor: measures each saved student, so that the best can be selected; without it the last one is selected.
    """
    torch.manual_seed(600 + rank.index)
    log, began = Log(out / ("ladd.jsonl" if alone else "student.jsonl"), rank), time.perf_counter()
    teacher = load_denoiser(preset.sizes, out / "teacher.safetensors").to(rank.device).requires_grad_(False)
    student = load_denoiser(preset.sizes, out / "teacher.safetensors").to(rank.device).requires_grad_(False)
    student.transformer.requires_grad_(True)
    if compiled and rank.device.type == "cuda":
        compile_blocks(teacher, dynamic=True)
        compile_blocks(student, dynamic=True)
    tables = draw_pairs(teacher, preset, rank)
    log(
        pairs={f"{table.shape.height}x{table.shape.width}": len(table.pairs) * rank.world for table in tables},
        align_of_pairs=pair_alignment(tables[0].pairs),
        guidance=preset.distillation.guidance,
        seconds=time.perf_counter() - began,
    )
    if not alone:
        train_reflow(student, tables, preset, preset.distillation.warm, rank=rank, log=log)
        if rank.first:
            save_transformer(student.transformer, out / "warm.safetensors")
    train_ladd(student, teacher, tables, preset, out=out, rank=rank, alone=alone, log=log, monitor=monitor)
    return with_transformer(teacher, out / f"{'ladd' if alone else 'student'}.safetensors")


@torch.no_grad()
def draw_pairs(teacher: Denoiser, preset: Preset, rank: Rank) -> list[Table]:
    """Sample the teacher with guidance on training captions, without held-out combinations: this rank's pairs."""
    distillation, device = preset.distillation, rank.device
    counts = scene_counts(preset, max(1, distillation.pairs // rank.world))
    ids: dict[Shape, list[tuple[Tensor, Tensor]]] = {shape: [] for shape, _ in counts}
    for chunk in draw_chunks(counts, SEED + rank.index):
        ids[chunk.shape].append((chunk.clip_ids.to(device), chunk.t5_ids.to(device)))
    clip, t5 = (each.to(device) for each in Tokenizers()([""]))
    empty = (clip[:, :CLIP_USED], t5)
    generator = torch.Generator(device).manual_seed(SEED + rank.index)
    tables = []
    for shape, parts in ids.items():
        clip_ids, t5_ids = map(torch.cat, zip(*parts, strict=True))
        size = (len(clip_ids), preset.sizes.latent_channels, shape.height // 8, shape.width // 8)
        noise = torch.randn(size, generator=generator, device=device).half()  # as it is stored
        batch, clean = max(8, 2 * distillation.tokens // (shape.tokens + CAPTION_TOKENS)), []
        for rows in torch.arange(len(noise)).split(batch):
            prompts = clip_ids[rows, :CLIP_USED].long(), t5_ids[rows].long()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                latents = sample(
                    teacher,
                    *prompts,
                    noise[rows].float(),
                    distillation.teacher_steps,
                    guidance=distillation.guidance,
                    empty=empty,
                )
            clean.append(pack(latents).half())
        tables.append(Table(shape, Pairs(pack(noise), torch.cat(clean), clip_ids, t5_ids)))
    return tables


def draw_tables(tables: Sequence[Table], preset: Preset) -> Iterator[tuple[Table, int]]:
    """Endless pairs of a table and a padding, drawn with the shares of the preset; the same on all ranks."""
    shared, shapes, paddings = random.Random(0), dict(preset.shapes), dict(preset.paddings)
    shares = [shapes[table.shape] for table in tables]
    while True:
        (table,) = shared.choices(tables, shares)
        (padding,) = shared.choices(tuple(paddings), tuple(paddings.values()))
        yield table, padding


@torch.no_grad()
def encode(model: Denoiser, pairs: Pairs, rows: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """The prompt encodings of some pairs, with T5's tokens padded to `padding`."""
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.is_cuda):
        t5_ids = F.pad(pairs.t5_ids[rows], (0, padding - pairs.t5_ids.shape[1]))
        pooled, sequence = model.encode(pairs.clip_ids[rows, :CLIP_USED].long(), t5_ids.long())
    return pooled, sequence


def train_reflow(
    student: Denoiser, tables: Sequence[Table], preset: Preset, schedule: Schedule, *, rank: Rank, log: Log
) -> None:
    """Regress the velocity of the straight lines between noise and the teacher's latents; ends with the average."""
    device, cuda = rank.device, rank.device.type == "cuda"
    adam, average, pace = make_optimizer(student, schedule), Average(student, schedule.ema), Pace(schedule, rank)
    drawn = draw_tables(tables, preset)
    for iteration in pace:
        table, padding = next(drawn)
        rows = torch.randint(len(table.pairs), (table.batch(preset.distillation.tokens),), device=device)
        sigma, prompts = reflow_sigmas(len(rows), device), encode(student, table.pairs, rows, padding)
        x, target = points_on_lines(table.pairs, rows, sigma), velocities(table.pairs, rows)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            velocity = student(x, sigma, *prompts, table.grid)
        loss = (velocity.float() - target).square().mean()
        loss.backward()
        norm = optimizer_step(student, adam, pace.rate(iteration), rank)
        average.update()
        if (iteration + 1) % 250 == 0:
            log(iteration=iteration, total=pace.total, reflow=loss.item(), norm=float(norm), seconds=pace.seconds())
    average.swap()
    log(reflow_iterations=pace.total, seconds=pace.seconds(), compile_seconds=pace.compiling)


def velocities(pairs: Pairs, rows: Tensor) -> Tensor:
    """The velocities (B, tokens, 64) of the straight lines of some pairs."""
    return pairs.noise[rows].float() - pairs.clean[rows].float()


def train_ladd(
    student: Denoiser,
    teacher: Denoiser,
    tables: Sequence[Table],
    preset: Preset,
    *,
    out: Path,
    rank: Rank,
    alone: bool,
    log: Log,
    monitor: Monitor | None = None,
) -> None:
    """Train with the critic, and on the pairs' lines unless `alone`; saves the averaged students and the best."""
    settings, schedule, device = preset.distillation, preset.distillation.student, rank.device
    cuda, name = device.type == "cuda", "ladd" if alone else "student"
    full = (1.0, 0.0) if alone else (settings.adversarial_weight, settings.regression_weight)
    critic = Critic(teacher.transformer).to(device)
    rank.broadcast_weights(critic)
    adam = make_optimizer(student, schedule, betas=(0.0, 0.99))
    critic_adam = make_optimizer(critic, schedule, betas=(0.0, 0.99))
    average, pace = Average(student, schedule.ema), Pace(schedule, rank)
    rollouts = {table.shape: Rollouts(table.pairs, table.batch(settings.tokens), device) for table in tables}
    log(critic_parameters=count_parameters(critic), alone=alone)
    drawn, saved, next_save = draw_tables(tables, preset), dict[str, dict[str, float]](), settings.save_every
    for iteration in pace:
        table, padding = next(drawn)
        rollout = rollouts[table.shape]
        x, sigma, rows = rollout.next()
        level, noise = draw_levels(len(x), device), (torch.randn_like(x), torch.randn_like(x))
        ramp = min(1.0, max(0.0, iteration / settings.critic_only - 1))
        prompts = encode(student, table.pairs, rows, padding)
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            total, parts, logits, velocity = ladd_losses(
                student,
                teacher,
                critic,
                x=x,
                sigma=sigma,
                clean=table.pairs.clean[rows].float(),
                target=velocities(table.pairs, rows[1::2]),
                prompts=prompts,
                level=level,
                noise=noise,
                weights=torch.tensor((ramp * full[0], full[1]), device=device),
                grid=table.grid,
            )
        rollout.advance(x, sigma, velocity)
        total.backward()
        critic_norm = optimizer_step(critic, critic_adam, settings.critic_rate, rank)
        norm = optimizer_step(student, adam, pace.rate(iteration), rank)
        average.update()
        if (iteration + 1) % 100 == 0:
            losses = {"critic": float(parts[0]), "regression": float(parts[1])}
            norms = {"norm": float(norm), "critic_norm": float(critic_norm)}
            log(iteration=iteration, total=pace.total, **losses, **norms, **ranking_accuracy(logits, level))
        last = iteration + 1 == pace.total
        # A broadcast makes the processor wait for the GPU.
        if last or (iteration % CHECK_EVERY == 0 and rank.broadcast(pace.seconds()) > next_save):
            next_save += settings.save_every
            average.swap()
            number = f"{iteration + 1:06d}"
            saved[number] = {}
            if monitor and rank.first:
                with torch.compiler.set_stance("force_eager"):  # as in `validate`
                    saved[number] = monitor(student)
            log(iteration=iteration, seconds=pace.seconds(), **saved[number])
            if rank.first:
                save_transformer(student.transformer, out / f"{name}s" / f"{number}.safetensors")
            average.swap()
    if rank.first:
        best = select_best(saved)
        shutil.copyfile(out / f"{name}s" / f"{best}.safetensors", out / f"{name}.safetensors")
        log(chosen=best, iterations=pace.total, seconds=pace.seconds(), devices=rank.world, **saved[best])
    rank.broadcast(0.0)  # the other ranks wait for the file
