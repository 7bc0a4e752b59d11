"""Distil the teacher: reflow on its pairs, and from there LADD, the adversarial student that draws in 1 to 4 steps.

Sauer et al. 2024, 2403.12015: the student learns to be taken for the guided teacher by a critic that looks through
the teacher's own eyes. That alone does not fix which noise becomes which picture, and it lets go of what the critic
overlooks: lettering. So the student starts from a regression on the teacher's pairs (reflow, Liu et al., 2209.03003),
half of its rows stay on their lines, and the other half is its own walk so far.
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
from fluxnb.train.networks.build import count
from fluxnb.train.networks.critic import Critic, critic_loss, draw_levels, features
from fluxnb.train.networks.files import load_denoiser, save_transformer, with_transformer
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, step_with
from fluxnb.train.stages.objective import Denoiser
from fluxnb.train.stages.optimisers import optimiser
from fluxnb.train.stages.pairs import Pairs
from fluxnb.train.stages.reflow import GRID, align, align_of_pairs, on_the_line

ONWARD = 0.85  # share of walks that take another step: with the leaps, levels are met as 33, 21, 25 and 21 %
LEAP = 0.25  # share of first steps that go straight to 0.5, as a walk of two steps does

#: a denoiser to what is worth logging about its pictures.
Look = Callable[[Denoiser], dict[str, float]]


class Walks:
    """What the student is fed: points on the straight lines of the teacher's pairs, and its own Euler walk, in turn.

    The odd rows lie on lines, so their velocity is known; the even ones walk. A row keeps its caption while it
    walks. The next state of a walk is what the student answered in the last iteration, so walking costs nothing.
    """

    def __init__(self, pairs: Pairs, batch: int, device: torch.device):
        self.pairs, self.grid = pairs, torch.tensor((*GRID, 0.0), device=device)
        self.at = torch.randint(len(pairs), (batch,), device=device)
        self.index = torch.zeros(batch, dtype=torch.long, device=device)
        self.state = torch.randn(batch, *pairs.noise.shape[1:], device=device)

    def next(self) -> tuple[Tensor, Tensor, Tensor]:
        """What to ask: x (B, 64, 64), its sigma (B,) and the rows of the pairs (B,) whose captions it is for."""
        sigma = self.grid[self.index]
        x = self.state.clone()
        x[1::2] = on_the_line(self.pairs, self.at[1::2], sigma[1::2])
        return x, sigma, self.at

    def take(self, x: Tensor, sigma: Tensor, velocity: Tensor) -> None:
        """Go on from what the student answered, or begin anew with another caption."""
        chance = torch.rand(len(sigma), device=sigma.device)
        leap = (self.index == 0) & (chance < ONWARD * LEAP)
        onward = (self.index < len(GRID) - 1) & (chance < ONWARD)
        index = torch.where(onward, self.index + 1 + leap, 0)
        moved = x + (self.grid[index] - sigma)[:, None, None] * velocity
        self.state = torch.where(onward[:, None, None], moved, torch.randn_like(x))
        self.at = torch.where(onward, self.at, torch.randint_like(self.at, len(self.pairs)))
        self.index = index


def ladd_losses(
    student: Denoiser,
    teacher: Denoiser,
    critic: Critic,
    x: Tensor,
    sigma: Tensor,
    clean: Tensor,
    target: Tensor,
    words: tuple[Tensor, Tensor],
    level: Tensor,
    noise: tuple[Tensor, Tensor],
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both sides of the game in one pass over a batch of B rows.

    Args:
        student, teacher, critic: who plays; the teacher's weights get no gradient.
        x: what the student is fed, (B, 64, 64); sigma: its level (B,).
        clean: guided latents of the teacher for the same words, (B, 64, 64).
        target: the velocity of the odd rows' straight lines, (B // 2, 64, 64).
        words: pooled (B, d) and sequence (B, L, e).
        level: the renoise level (B,), the same for the teacher's and the student's; noise: one for each, (B, 64, 64).
        weights: push, of the critic's word, and pull, of the straight lines, (2,).

    Returns:
        The sum of both sides' losses, of which the student's weights feel only the one and the critic's only the
        other; (critic's loss, error on the lines); mean logits (2, B) of real and fake; the student's velocity.
    """
    pooled, sequence = words
    velocity = student(x, sigma, pooled, sequence).float()
    guess = x - sigma[:, None, None] * velocity
    at = level[:, None, None]
    seen = features(teacher.transformer, interpolate(guess, noise[0], at), level, pooled, sequence)
    # Right pictures under the words of other rows: without them the critic may forget to read.
    few = max(1, len(x) // 4)
    with torch.no_grad():
        renoised = interpolate(clean, noise[1], at)
        both = features(
            teacher.transformer,
            torch.cat((renoised, renoised[:few])),
            torch.cat((level, level[:few])),
            torch.cat((pooled, pooled.roll(1, 0)[:few])),
            torch.cat((sequence, sequence.roll(1, 0)[:few])),
        )
    real, wrong = [part[: len(x)] for part in both], [part[len(x) :] for part in both]
    # The student is judged by heads that feel nothing of it, the heads learn from features that pass nothing on.
    frozen = {name: tensor.detach() for name, tensor in critic.named_parameters()}
    persuaded = functional_call(critic, frozen, (seen, level, pooled))
    on_real, on_fake = critic(real, level, pooled), critic([part.detach() for part in seen], level, pooled)
    on_wrong = critic(wrong, level[:few], pooled.roll(1, 0)[:few])
    against = critic_loss(on_real, on_fake, on_wrong)
    astray = (velocity[1::2] - target).square().mean()
    total = against - weights[0] * persuaded.mean() + weights[1] * astray
    logits = torch.stack((on_real.mean((1, 2)), on_fake.mean((1, 2))))
    return total, torch.stack((against, astray)).detach(), logits.detach(), velocity.detach()


def train_student(
    preset: Preset, out: Path, rank: Rank, start: str = "warm", look: Look | None = None, mode: str = "reduce-overhead"
) -> Denoiser:
    """LADD from the transformer `start` of the run; keeps `students/*.safetensors` and the best as `student`.

    `look` is asked for the figures of each that is kept; without it the last one is the best.
    """
    distillation, schedule, device = preset.distillation, preset.distillation.student, rank.device
    cuda = device.type == "cuda"
    torch.manual_seed(600 + rank.index)
    log = Log(out / "student.jsonl", rank)
    teacher = load_denoiser(preset.sizes, out).to(device).requires_grad_(False)
    student = with_transformer(teacher, out / f"{start}.safetensors").to(device)
    student.transformer.requires_grad_(True)
    critic = Critic(teacher.transformer).to(device)
    rank.same_weights(critic)
    pairs = Pairs.load(out / "pairs.safetensors").to(device)
    pooled, sequence = pairs.embed(teacher)
    adam = optimiser(student, schedule, betas=(0.0, 0.99))
    critic_adam = optimiser(critic, schedule, betas=(0.0, 0.99))
    average, pace = Average(student, schedule.ema), Pace(schedule, rank)
    log(critic_parameters=count(critic), pairs=len(pairs), align_of_pairs=align_of_pairs(pairs))

    def losses(*batch: object) -> tuple[Tensor, ...]:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            return ladd_losses(student, teacher, critic, *batch)  # type: ignore[arg-type]

    step = torch.compile(losses, mode=mode) if cuda else losses
    trajectories = Walks(pairs, schedule.batch, device)
    kept: dict[str, dict[str, float]] = {}
    next_look = distillation.look_every
    for iteration in pace:
        x, sigma, rows = trajectories.next()
        clean, line = pairs.clean[rows].float(), rows[1::2]
        level, noise = draw_levels(len(x), device), (torch.randn_like(x), torch.randn_like(x))
        target = pairs.noise[line].float() - clean[1::2]
        heard = min(1.0, max(0.0, iteration / distillation.critic_first - 1))
        weights = torch.tensor((heard * distillation.push, distillation.pull), device=device)
        if cuda:
            torch.compiler.cudagraph_mark_step_begin()
        total, parts, logits, velocity = step(
            x, sigma, clean, target, (pooled[rows], sequence[rows]), level, noise, weights
        )
        trajectories.take(x, sigma, velocity)
        total.backward()
        critic_norm = step_with(critic, critic_adam, distillation.critic_rate, rank)
        norm = step_with(student, adam, pace.rate(iteration), rank)
        average.update()
        if (iteration + 1) % 250 == 0:
            log(
                iteration=iteration,
                total=pace.total,
                critic=float(parts[0]),
                astray=float(parts[1]),
                norm=float(norm),
                critic_norm=float(critic_norm),
                **accuracy(logits, level),
                seconds=pace.seconds(),
            )
        if pace.seconds() > next_look or iteration + 1 == pace.total:
            next_look = pace.seconds() + distillation.look_every
            average.swap()
            name = f"{iteration + 1:06d}"
            facts = {"align": align(student, pairs, pooled, sequence), **(look(student) if look else {})}
            log(iteration=iteration, **facts)
            save_transformer(student.transformer, out / "students" / f"{name}.safetensors", rank)
            average.swap()
            kept[name] = facts
    best = choose(kept)
    if rank.first:
        shutil.copyfile(out / "students" / f"{best}.safetensors", out / "student.safetensors")
    log(chosen=best, iterations=pace.total, seconds=pace.seconds(), batch=schedule.batch, **kept[best])
    return with_transformer(teacher, out / "student.safetensors")


def accuracy(logits: Tensor, level: Tensor) -> dict[str, float]:
    """How often the critic ranks a real row above the fake of the same words and level, of logits (2, B): 0.5 is blind.

    By quarter of the level too, `right_1` the least noisy one; and the mean distance between the logits.
    """
    right = (logits[0] > logits[1]).float()
    facts = {"right": float(right.mean()), "gap": float((logits[0] - logits[1]).mean())}
    for quarter in range(4):
        inside = (level * 4).long().clamp(max=3) == quarter
        if bool(inside.any()):
            facts[f"right_{quarter + 1}"] = float(right[inside].mean())
    return facts


def choose(kept: dict[str, dict[str, float]]) -> str:
    """The student with the smallest distance at 4 steps among those within a point of the best adherence there."""
    names = [name for name, facts in kept.items() if {"fd_4", "everything_4"} <= set(facts)]
    if not names:
        return list(kept)[-1]
    floor = max(kept[name]["everything_4"] for name in names) - 0.01
    return min((n for n in names if kept[n]["everything_4"] >= floor), key=lambda n: kept[n]["fd_4"])
