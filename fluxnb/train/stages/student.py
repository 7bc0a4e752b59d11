"""Distill the teacher with LADD: an adversarial student that samples in one to four steps.

Sauer et al. 2024, 2403.12015. A critic on the teacher's features distinguishes the student's latents from the guided
teacher's. The adversarial loss alone does not fix which noise becomes which picture, and it loses details that the
critic ignores, such as lettering. The student therefore starts from a reflow (Liu et al., 2209.03003). Half of each
batch stays on the straight lines of the teacher's pairs; the other half is on the student's own trajectories.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call

from fluxnb.flow import interpolate
from fluxnb.train.config import Preset
from fluxnb.train.networks.build import count_parameters
from fluxnb.train.networks.critic import Critic, block_features, critic_loss, draw_levels
from fluxnb.train.networks.denoiser import Denoiser, load_denoiser, save_transformer, with_transformer
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, optimizer_step
from fluxnb.train.stages.optimizers import make_optimizer
from fluxnb.train.stages.pairs import Pairs
from fluxnb.train.stages.reflow import STUDENT_SIGMAS, one_step_alignment, pair_alignment, points_on_lines

# Probabilities of a trajectory. With these values the four noise levels make up 33, 21, 25 and 21 % of the batches.
CONTINUE = 0.85  # a trajectory takes another step
SKIP = 0.25  # the first step goes straight to 0.5, as in a trajectory of two steps

#: a denoiser to the figures of its pictures that are logged.
Monitor = Callable[[Denoiser], dict[str, float]]


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
        """The next inputs: x (B, 64, 64), sigma (B,) and the rows of the pairs (B,) that hold the captions."""
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
    grid: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The losses of student and critic in one pass over a batch of B rows.

    Args:
        student, teacher, critic: the networks; the teacher's weights get no gradient.
        x: the student's input, packed, (B, tokens, 64).
        sigma: its noise level, (B,).
        clean: guided latents of the teacher for the same captions, like x.
        target: the velocity of the odd rows, (B // 2, tokens, 64).
        prompts: pooled (B, d) and sequence (B, L, e).
        level: the renoise level (B,), the same for fake and real latents.
        noise: one for the fake and one for the real latents, each like x.
        weights: adversarial weight and regression weight, (2,).
        grid: rows and columns of the tokens; None for a square picture.

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


def train_student(
    preset: Preset,
    out: Path,
    rank: Rank,
    *,
    start: str = "warm",
    monitor: Monitor | None = None,
    mode: str = "reduce-overhead",
) -> Denoiser:
    """Train a student; saves `students/*.safetensors` and the best of them as `student.safetensors`.

    Args:
        preset: sizes and schedules.
        out: folder of the run, with its teacher, its pairs and the reflow `start`.
        rank: this process.
        start: name of the transformer to start from.
        monitor: measures each saved student, so that the best can be selected; without it the last one is selected.
        mode: of `torch.compile`.
    """
    distillation, schedule, device = preset.distillation, preset.distillation.student, rank.device
    cuda = device.type == "cuda"
    torch.manual_seed(600 + rank.index)
    log = Log(out / "student.jsonl", rank)
    teacher = load_denoiser(preset.sizes, out).to(device).requires_grad_(False)
    student = with_transformer(teacher, out / f"{start}.safetensors").to(device)
    student.transformer.requires_grad_(True)
    critic = Critic(teacher.transformer).to(device)
    rank.broadcast_weights(critic)
    pairs = Pairs.load(out / "pairs.safetensors").to(device)
    pooled, sequence = pairs.embed(teacher)
    adam = make_optimizer(student, schedule, betas=(0.0, 0.99))
    critic_adam = make_optimizer(critic, schedule, betas=(0.0, 0.99))
    average, pace = Average(student, schedule.ema), Pace(schedule, rank)
    log(critic_parameters=count_parameters(critic), pairs=len(pairs), align_of_pairs=pair_alignment(pairs))

    def losses(**batch: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            return ladd_losses(student, teacher, critic, **batch)

    step = torch.compile(losses, mode=mode) if cuda else losses
    rollouts = Rollouts(pairs, schedule.batch, device)
    saved: dict[str, dict[str, float]] = {}
    next_check = distillation.monitor_every
    for iteration in pace:
        x, sigma, rows = rollouts.next()
        clean, line = pairs.clean[rows].float(), rows[1::2]
        level, noise = draw_levels(len(x), device), (torch.randn_like(x), torch.randn_like(x))
        target = pairs.noise[line].float() - clean[1::2]
        ramp = min(1.0, max(0.0, iteration / distillation.critic_only - 1))
        weights = torch.tensor((ramp * distillation.adversarial_weight, distillation.regression_weight), device=device)
        if cuda:
            torch.compiler.cudagraph_mark_step_begin()
        total, parts, logits, velocity = step(
            x=x,
            sigma=sigma,
            clean=clean,
            target=target,
            prompts=(pooled[rows], sequence[rows]),
            level=level,
            noise=noise,
            weights=weights,
        )
        rollouts.advance(x, sigma, velocity)
        total.backward()
        critic_norm = optimizer_step(critic, critic_adam, distillation.critic_rate, rank)
        norm = optimizer_step(student, adam, pace.rate(iteration), rank)
        average.update()
        if (iteration + 1) % 250 == 0:
            log(
                iteration=iteration,
                total=pace.total,
                critic=float(parts[0]),
                regression=float(parts[1]),
                norm=float(norm),
                critic_norm=float(critic_norm),
                **ranking_accuracy(logits, level),
                seconds=pace.seconds(),
            )
        if pace.seconds() > next_check or iteration + 1 == pace.total:
            next_check = pace.seconds() + distillation.monitor_every
            average.swap()
            name = f"{iteration + 1:06d}"
            facts = {"align": one_step_alignment(student, pairs, (pooled, sequence))}
            facts |= monitor(student) if monitor else {}
            log(iteration=iteration, **facts)
            if rank.first:
                save_transformer(student.transformer, out / "students" / f"{name}.safetensors")
            average.swap()
            saved[name] = facts
    best = select_best(saved)
    if rank.first:
        shutil.copyfile(out / "students" / f"{best}.safetensors", out / "student.safetensors")
    log(chosen=best, iterations=pace.total, seconds=pace.seconds(), batch=schedule.batch, **saved[best])
    return with_transformer(teacher, out / "student.safetensors")


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
