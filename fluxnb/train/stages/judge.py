"""Train the judge on renders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxnb.train.config import Preset
from fluxnb.train.data.dataset import batches, draw_layouts
from fluxnb.train.data.render import Renderer
from fluxnb.train.networks.judge import Attributes, Judge, classify, layout_attributes, save_judge
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, backward_and_step
from fluxnb.train.stages.optimizers import make_optimizer


def judge_loss(logits: Attributes, target: Attributes) -> Tensor:
    """Cross entropy, summed over the attributes."""
    loss = torch.zeros((), device=logits.first.device)
    for field in dataclasses.fields(Attributes):
        predicted, right = getattr(logits, field.name), getattr(target, field.name)
        loss = loss + F.cross_entropy(predicted.flatten(0, -2).float(), right.flatten(), label_smoothing=0.02)
    return loss


def augment(pictures: Tensor) -> Tensor:
    """Blur or add noise of random strength, so that the judge does not rely on details that only renders have."""
    strength = torch.rand(len(pictures), 1, 1, 1, device=pictures.device)
    blurred = F.avg_pool2d(pictures, 3, 1, 1)
    coin = torch.rand_like(strength)
    pictures = torch.where(coin < 0.3, pictures + (blurred - pictures) * strength, pictures)
    return torch.where(coin > 0.6, pictures + 0.12 * strength * torch.randn_like(pictures), pictures)


def train_judge(preset: Preset, out: Path, rank: Rank) -> Judge:
    """Train on renders of all combinations, including held-out ones; saves the averaged weights to `out`."""
    schedule = preset.judge
    torch.manual_seed(100 + rank.index)
    log = Log(out / "judge.jsonl", rank)
    layouts, _ = draw_layouts(schedule.scenes, seed=2000 + rank.index, held_out=None)
    layouts = layouts.to(rank.device)
    renderer, judge = Renderer(rank.device), Judge().to(rank.device)
    rank.broadcast_weights(judge)
    adam, average, pace = make_optimizer(judge, schedule), Average(judge, schedule.ema), Pace(schedule, rank)

    def loss_of(pictures: Tensor, target: Attributes) -> Tensor:
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=rank.device.type == "cuda"):
            logits, _ = judge(pictures)
        return judge_loss(logits, target)

    rows = batches(len(layouts), schedule.batch, torch.Generator(rank.device).manual_seed(rank.index), rank.device)
    for iteration in pace:
        part = layouts[next(rows)]
        loss = loss_of(augment(renderer(part)), layout_attributes(part))
        backward_and_step(loss, judge, adam, pace.rate(iteration), rank)
        average.update()
        if iteration % 250 == 0:
            log(iteration=iteration, total=pace.total, loss=loss.item(), seconds=pace.seconds())
    average.swap()
    judge.eval()
    if rank.first:
        fresh, _ = draw_layouts(min(4096, schedule.scenes), seed=991_000, held_out=None)
        predicted, _ = classify(judge, renderer(fresh))
        facts = attribute_accuracy(predicted, layout_attributes(fresh.to(rank.device)))
        log(iterations=pace.total, seconds=pace.seconds(), **facts)
        save_judge(judge, out / "judge.safetensors")
    return judge


def attribute_accuracy(predicted: Attributes, target: Attributes) -> dict[str, float]:
    """Accuracy of each attribute; `letters` counts only letters that exist, and `sign` whole signs."""
    hits = {f.name: getattr(predicted, f.name) == getattr(target, f.name) for f in dataclasses.fields(Attributes)}
    written = target.letters > 0
    accuracy = {name: float(flags.float().mean()) for name, flags in hits.items() if name != "letters"}
    if bool(written.any()):
        accuracy["letters"] = float(hits["letters"][written].float().mean())
        signs = written.any(1)
        accuracy["sign"] = float(hits["letters"][signs].all(1).float().mean())
    return accuracy
