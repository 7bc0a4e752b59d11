"""Train the autoencoder on scenes as they are drawn, at two sizes, and make its latents unit.

Latents of unit variance in every channel, because a rectified flow starts from unit noise.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.train.data.drawing import Renderer
from fluxnb.train.data.layouts import Layout
from fluxnb.train.data.stream import draw_chunks
from fluxnb.train.networks.build import count_parameters, whiten
from fluxnb.train.second.config import Preset, Shape
from fluxnb.train.second.networks import build_autoencoder
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, optimizer_step
from fluxnb.train.stages.losses import picture_loss
from fluxnb.train.stages.optimizers import make_adamw

KL = 2e-5  # of the mean KL beside a mean error: keeps the latents smooth, costs no picture quality
FRESH = 990_000  # seed of the scenes that no training sees
DRAWN = 1024  # pictures at a time: fewer are drawn no faster, because the kernels are many and short


def train_autoencoder(preset: Preset, out: Path, rank: Rank) -> AutoencoderKL:
    """Train on all ranks; save the averaged autoencoder as `out`/vae and its figures in `out`/autoencoder.jsonl."""
    schedule, cuda = preset.autoencoder, rank.device.type == "cuda"
    large, little = preset.autoencoder_sizes
    torch.manual_seed(rank.index)
    log = Log(out / "autoencoder.jsonl", rank)
    order = torch.channels_last if cuda else torch.contiguous_format
    renderer = Renderer(rank.device)
    vae = build_autoencoder(preset.sizes).to(rank.device, memory_format=order)
    rank.broadcast_weights(vae)
    adam, average = make_adamw(list(vae.parameters()), schedule.learning_rate, (0.9, 0.99)), Average(vae, schedule.ema)
    shapes = [
        (Shape(large, large, 0.75), schedule.scenes * 3 // 4),
        (Shape(little, little, 0.25), schedule.scenes // 4),
    ]
    tables = [draw_pictures(renderer, shape, n, 1000 + rank.index, preset) for shape, n in shapes]
    log(parameters=count_parameters(vae), scenes=[len(table) for table in tables])

    def loss_of(pictures: Tensor) -> Tensor:
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=cuda):
            posterior = vae.encode(pictures).latent_dist
            drawn = vae.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return picture_loss(drawn.float(), pictures) + KL * kl

    chosen = torch.Generator(rank.device).manual_seed(rank.index)
    pace = Pace(schedule, rank)
    for iteration in pace:
        small = iteration % 4 == 3
        table, size = tables[small], preset.autoencoder_sizes[small]
        batch = schedule.batch * large * large // (size * size)
        rows = torch.randint(len(table), (batch,), generator=chosen, device=rank.device)
        loss = loss_of((table[rows].float() / 127.5 - 1).contiguous(memory_format=order))
        loss.backward()
        norm = optimizer_step(vae, adam, pace.rate(iteration), rank)
        average.update()
        if iteration % 100 == 0:
            log(iteration=iteration, total=pace.total, loss=loss.item(), norm=float(norm), seconds=pace.seconds())
    average.swap()
    vae.eval()
    if rank.first:
        pictures = tables[0][:4096].float() / 127.5 - 1
        latents = torch.cat([encode_pictures(vae, part) for part in pictures.split(256)]).float()
        whiten(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
        figures = check(vae, renderer, preset, 2048 if cuda else 16)
        log(iterations=pace.total, seconds=pace.seconds(), **figures)
        vae.save_pretrained(out / "vae")
    rank.broadcast(0.0)  # the others wait for the file
    return vae


@torch.no_grad()
def draw_pictures(renderer: Renderer, shape: Shape, scenes: int, seed: int, preset: Preset) -> Tensor:
    """So many pictures (N, 3, height, width) uint8, on the renderer's device: drawing takes as long as a step."""
    table = torch.empty(scenes, 3, shape.height, shape.width, dtype=torch.uint8, device=renderer.device)
    start = 0
    for chunk in draw_chunks([(shape, scenes)], seed, preset.sizes):
        for part in torch.arange(len(chunk)).split(DRAWN):
            pictures = renderer(chunk.layout[part], shape.height, shape.width)
            table[start : start + len(part)] = pictures.add_(1).mul_(127.5).round_().to(torch.uint8)
            start += len(part)
    return table


@torch.no_grad()
def encode(vae: AutoencoderKL, renderer: Renderer, layouts: Layout, shape: Shape) -> Tensor:
    """Latents (N, 16, height / 8, width / 8) of scenes: the mean of the posterior, in float16."""
    parts = []
    for start in range(0, len(layouts), DRAWN):
        pictures = renderer(layouts[start : start + DRAWN], shape.height, shape.width)
        parts += [encode_pictures(vae, part) for part in pictures.split(256)]
    return torch.cat(parts)


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Latents (N, 16, height / 8, width / 8) of pictures: the mean of the posterior, in float16."""
    cuda = pictures.is_cuda
    pictures = pictures.contiguous(memory_format=torch.channels_last if cuda else torch.contiguous_format)
    with torch.autocast(pictures.device.type, torch.float16, enabled=cuda):
        return vae.encode(pictures).latent_dist.mean.half().contiguous()


@torch.no_grad()
def check(vae: AutoencoderKL, renderer: Renderer, preset: Preset, count: int) -> dict[str, float]:
    """PSNR in dB on fresh scenes in float32, by size (the mean of each picture's own), and the spread of latents."""
    found: dict[str, float] = {}
    for size in preset.autoencoder_sizes:
        shape = Shape(size, size, 1.0)
        (chunk,) = draw_chunks([(shape, count)], FRESH, preset.sizes, workers=1)
        values, latents, signs = [], [], ~torch.isnan(chunk.layout.sign[:, 0])
        for start in range(0, len(chunk), 64):
            pictures = renderer(chunk.layout[start : start + 64], size, size)
            z = vae.encode(pictures).latent_dist.mean
            values.append(psnr(vae.decode(z).sample.clamp(-1, 1), pictures))
            latents.append(z)
        each, spread = torch.cat(values).cpu(), torch.cat(latents).std((0, 2, 3))
        found |= {f"psnr_{size}": float(each.mean()), f"psnr_signs_{size}": float(each[signs].mean())}
        found |= {f"std_min_{size}": float(spread.min()), f"std_max_{size}": float(spread.max())}
    return found


def psnr(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures (B, 3, H, W) in [-1, 1], one number each (B,)."""
    return -10 * ((drawn - wanted) / 2).square().mean((1, 2, 3)).log10()
