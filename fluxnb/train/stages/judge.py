"""Train the judge on renders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxnb.train.config import Preset
from fluxnb.train.data.drawing import Renderer
from fluxnb.train.data.layouts import Layout, Shape
from fluxnb.train.data.stream import draw_chunks
from fluxnb.train.networks.judge import (
    ARRANGEMENTS,
    SIDE,
    Attributes,
    Judge,
    build_judge,
    layout_attributes,
    load_judge,
    read_layouts,
)
from fluxnb.train.networks.weights import save_weights
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, backward_and_step
from fluxnb.train.stages.losses import attribute_loss
from fluxnb.train.stages.optimizers import make_optimizer

CHECK_SEED = 991_000  # of the renders on which the accuracy is measured


def train_judge(preset: Preset, out: Path, rank: Rank, start: Path | None = None) -> Judge:
    """Train on renders of all combinations, the held-out ones included; saves `out`/judge.safetensors.

    Arguments:
        start: file of a judge whose training continues; None starts from random weights.
    """
    schedule, shape = preset.judge, Shape(SIDE, SIDE)
    torch.manual_seed(100 + rank.index)
    log, renderer = Log(out / "judge.jsonl", rank), Renderer(rank.device)
    judge = (build_judge(preset) if start is None else load_judge(start, preset)).train().to(rank.device)
    rank.broadcast_weights(judge)
    chunks = list(draw_chunks([(shape, schedule.scenes)], 2000 + rank.index, held_out=None))
    layouts = Layout.cat([chunk.layout for chunk in chunks]).to(rank.device)
    log(scenes=len(layouts), start=None if start is None else start.name)
    adam, pace = make_optimizer(judge, schedule), Pace(schedule, rank)
    average = Average(judge, schedule.ema, pretrained=start is not None)
    generator = torch.Generator(rank.device).manual_seed(rank.index)
    for iteration in pace:
        rows = torch.randint(len(layouts), (schedule.batch,), generator=generator, device=rank.device)
        part = layouts[rows]
        pictures = augment(renderer(part, SIDE, SIDE))
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=rank.device.type == "cuda"):
            logits, _ = judge(pictures)
        loss = attribute_loss(logits, layout_attributes(part))
        backward_and_step(loss, judge, adam, pace.rate(iteration), rank)
        average.update()
        if iteration % 250 == 0:
            log(iteration=iteration, total=pace.total, loss=loss.item(), seconds=pace.seconds())
    average.swap()
    judge.eval()
    if rank.first:
        accuracy = accuracy_on_renders(judge, renderer, min(4096, schedule.scenes))
        log(iterations=pace.total, seconds=pace.seconds(), **accuracy)
        save_weights(judge, out / "judge.safetensors")
    rank.broadcast(0.0)  # the other ranks wait for the file
    return judge


def augment(pictures: Tensor) -> Tensor:
    """Blur or add noise of random strength, so that the judge does not rely on details that only renders have."""
    strength = torch.rand(len(pictures), 1, 1, 1, device=pictures.device)
    blurred = F.avg_pool2d(pictures, 3, 1, 1)
    coin = torch.rand_like(strength)
    pictures = torch.where(coin < 0.3, pictures + (blurred - pictures) * strength, pictures)
    return torch.where(coin > 0.6, pictures + 0.12 * strength * torch.randn_like(pictures), pictures)


def accuracy_on_renders(judge: Judge, renderer: Renderer, count: int) -> dict[str, float]:
    """The accuracy of each attribute on new renders; `sign` is the share of signs that are read without an error."""
    (chunk,) = draw_chunks([(Shape(SIDE, SIDE), min(count, 2048))], CHECK_SEED, held_out=None, workers=1)
    predicted = read_layouts(judge, renderer, chunk.layout)[0]
    target = layout_attributes(chunk.layout)
    names = [field.name for field in dataclasses.fields(Attributes)]
    hits = dict(
        zip(names, (p.cpu() == t for p, t in zip(predicted.columns(), target.columns(), strict=True)), strict=True)
    )
    signs = target.arrangement == ARRANGEMENTS.index("sign")
    letters = hits.pop("letters")
    facts = {name: float(flags.float().mean()) for name, flags in hits.items()}
    return facts | ({"sign": float(letters[signs].all(1).float().mean())} if bool(signs.any()) else {})
