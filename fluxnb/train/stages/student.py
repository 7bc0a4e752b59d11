"""Distill the teacher with LADD: an adversarial student that samples in one to four steps.

Sauer et al. 2024, 2403.12015. A critic on the teacher's features distinguishes the student's latents from the guided
teacher's. The adversarial loss alone does not fix which noise becomes which picture, and it loses details that the
critic ignores, such as lettering. The student therefore starts from a reflow (Liu et al., 2209.03003). Half of each
batch stays on the straight lines of the teacher's pairs; the other half is on the student's own trajectories.

The pictures have several shapes, and the captions several paddings, as in the training of the teacher. Each rank
samples pairs of its own and keeps them in memory, so that the whole distillation is one command.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call

from fluxnb.flow import interpolate
from fluxnb.train.config import Preset
from fluxnb.train.networks.build import count_parameters
from fluxnb.train.networks.critic import Critic, block_features, critic_loss, draw_levels
from fluxnb.train.networks.denoiser import Denoiser, load_denoiser, with_transformer
from fluxnb.train.networks.weights import save_weights
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, optimizer_step
from fluxnb.train.stages.optimizers import make_optimizer
from fluxnb.train.stages.pairs import Pairs, PairTable, draw_tables, encode_captions, pair_alignment, sample_pairs
from fluxnb.train.stages.reflow import STUDENT_SIGMAS, points_on_lines, train_reflow, velocities
from fluxnb.train.stages.teacher import compile_blocks

CHECK_EVERY = 20  # iterations between two checks whether to save a student
# Probabilities of a trajectory. With these values the four noise levels make up 33, 21, 25 and 21 % of the batches.
CONTINUE = 0.85  # a trajectory takes another step
SKIP = 0.25  # the first step goes straight to 0.5, as in a trajectory of two steps

#: a denoiser to the figures of its pictures that are logged.
Monitor = Callable[[Denoiser], dict[str, float]]


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
    tables = sample_pairs(teacher, preset, rank)
    log(
        pairs={f"{table.shape.height}x{table.shape.width}": len(table.pairs) * rank.world for table in tables},
        align_of_pairs=pair_alignment(tables[0].pairs),
        guidance=preset.distillation.guidance,
        seconds=time.perf_counter() - began,
    )
    if not alone:
        train_reflow(student, tables, preset, preset.distillation.warm, rank=rank, log=log)
        if rank.first:
            save_weights(student.transformer, out / "warm.safetensors")
    train_ladd(student, teacher, tables, preset, out=out, rank=rank, alone=alone, log=log, monitor=monitor)
    return with_transformer(teacher, out / f"{'ladd' if alone else 'student'}.safetensors")


def train_ladd(
    student: Denoiser,
    teacher: Denoiser,
    tables: Sequence[PairTable],
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
        prompts = encode_captions(student, table.pairs, rows, padding)
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
                save_weights(student.transformer, out / f"{name}s" / f"{number}.safetensors")
            average.swap()
    if rank.first:
        best = select_best(saved)
        shutil.copyfile(out / f"{name}s" / f"{best}.safetensors", out / f"{name}.safetensors")
        log(chosen=best, iterations=pace.total, seconds=pace.seconds(), devices=rank.world, **saved[best])
    rank.broadcast(0.0)  # the other ranks wait for the file


class Rollouts:
    """The student's inputs: odd rows on the straight lines of pairs, even rows on the student's own trajectories.

    The velocity of an odd row is known. An even row keeps its caption until its trajectory ends, and its next state
    follows from the velocity of the training step itself, so sampling costs no extra evaluation.
    """

    def __init__(self, pairs: Pairs, batch: int, device: torch.device):
        self.pairs, self.sigmas = pairs, torch.tensor((*STUDENT_SIGMAS, 0.0), device=device)
        self.rows = torch.randint(len(pairs), (batch,), device=device)
        self.index = torch.zeros(batch, dtype=torch.long, device=device)
        self.state = torch.randn(batch, *pairs.noise.shape[1:], device=device)

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """The next inputs: x (B, tokens, 64), sigma (B,) and the rows of the pairs (B,) that hold the captions."""
        sigma = self.sigmas[self.index]
        x = self.state.clone()
        x[1::2] = points_on_lines(self.pairs, self.rows[1::2], sigma[1::2])
        return x, sigma, self.rows

    def advance(self, x: Tensor, sigma: Tensor, velocity: Tensor) -> None:
        """Take an Euler step with the student's velocity, or start a new trajectory with another caption."""
        chance = torch.rand(len(sigma), device=sigma.device)
        skip = (self.index == 0) & (chance < CONTINUE * SKIP)
        onward = (self.index < len(STUDENT_SIGMAS) - 1) & (chance < CONTINUE)
        index = torch.where(onward, self.index + 1 + skip, 0)
        moved = x + (self.sigmas[index] - sigma)[:, None, None] * velocity
        self.state = torch.where(onward[:, None, None], moved, torch.randn_like(x))
        self.rows = torch.where(onward, self.rows, torch.randint_like(self.rows, len(self.pairs)))
        self.index = index


def ladd_losses(
    student: Denoiser,
    teacher: Denoiser,
    critic: Critic,
    *,
    x: Tensor,
    sigma: Tensor,
    clean: Tensor,
    target: Tensor,
    prompts: tuple[Tensor, Tensor],
    level: Tensor,
    noise: tuple[Tensor, Tensor],
    weights: Tensor,
    grid: tuple[int, int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The losses of student and critic in one pass over a batch of B rows.

    Arguments:
        student, teacher, critic: the networks; the teacher's weights get no gradient.
        x: the student's input, packed, (B, tokens, 64).
        sigma: its noise level, (B,).
        clean: guided latents of the teacher for the same captions, like x.
        target: the velocity of the odd rows, (B // 2, tokens, 64).
        prompts: pooled (B, d) and sequence (B, L, e).
        level: the renoise level (B,), the same for fake and real latents.
        noise: one for the fake and one for the real latents, each like x.
        weights: adversarial weight and regression weight, (2,).
        grid: rows and columns of the tokens.

    Returns:
        The sum of both losses, in which each network gets the gradient of its own loss only; critic loss and
        regression error, (2,); mean logits of real and fake latents, (2, B); the student's velocity.
    """
    pooled, sequence = prompts
    velocity = student(x, sigma, pooled, sequence, grid).float()
    guess = x - sigma[:, None, None] * velocity
    at = level[:, None, None]
    fake = block_features(teacher.transformer, interpolate(guess, noise[0], at), level, pooled, sequence, grid=grid)
    # Real latents with the captions of other rows: without them the critic may ignore the captions.
    few = max(1, len(x) // 4)
    with torch.no_grad():
        renoised = interpolate(clean, noise[1], at)
        both = block_features(
            teacher.transformer,
            torch.cat((renoised, renoised[:few])),
            torch.cat((level, level[:few])),
            torch.cat((pooled, pooled.roll(1, 0)[:few])),
            torch.cat((sequence, sequence.roll(1, 0)[:few])),
            grid=grid,
        )
    real, mismatched = [part[: len(x)] for part in both], [part[len(x) :] for part in both]
    # The student's loss uses detached heads; the critic's loss uses detached features.
    frozen = {name: tensor.detach() for name, tensor in critic.named_parameters()}
    adversarial = functional_call(critic, frozen, (fake, level, pooled, grid))
    on_real = critic(real, level, pooled, grid)
    on_fake = critic([part.detach() for part in fake], level, pooled, grid)
    on_mismatched = critic(mismatched, level[:few], pooled.roll(1, 0)[:few], grid)
    loss_of_critic = critic_loss(on_real, on_fake, on_mismatched)
    regression = (velocity[1::2] - target).square().mean()
    total = loss_of_critic - weights[0] * adversarial.mean() + weights[1] * regression
    logits = torch.stack((on_real.mean((1, 2)), on_fake.mean((1, 2))))
    return total, torch.stack((loss_of_critic, regression)).detach(), logits.detach(), velocity.detach()


def ranking_accuracy(logits: Tensor, level: Tensor) -> dict[str, float]:
    """How well the critic ranks real latents above fake ones, from logits (2, B) of real and fake.

    Returns:
        `right`, the share of rows in which the real logit is larger (0.5 is chance); `right_1` to `right_4`, the same
        by quarter of the renoise level, least noisy first; `gap`, the mean difference of the logits.
    """
    right = (logits[0] > logits[1]).float()
    facts = {"right": float(right.mean()), "gap": float((logits[0] - logits[1]).mean())}
    for quarter in range(4):
        inside = (level * 4).long().clamp(max=3) == quarter
        if bool(inside.any()):
            facts[f"right_{quarter + 1}"] = float(right[inside].mean())
    return facts


def select_best(saved: dict[str, dict[str, float]]) -> str:
    """The student with the smallest FD at 4 steps among those within 0.01 of the best prompt adherence at 4 steps."""
    names = [name for name, facts in saved.items() if {"fd_4", "everything_4"} <= set(facts)]
    if not names:
        return list(saved)[-1]
    floor = max(saved[name]["everything_4"] for name in names) - 0.01
    return min((n for n in names if saved[n]["everything_4"] >= floor), key=lambda n: saved[n]["fd_4"])
