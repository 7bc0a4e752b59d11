"""Train the autoencoder on rendered scenes of two sizes, and normalize its latents.

Each latent channel gets mean 0 and variance 1, because the noise of the rectified flow has unit variance.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.train.config import Preset
from fluxnb.train.data.drawing import Renderer
from fluxnb.train.data.layouts import Layout, Shape
from fluxnb.train.data.stream import draw_chunks
from fluxnb.train.metrics import psnr
from fluxnb.train.networks.build import build_autoencoder, count_parameters, whiten
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, backward_and_step
from fluxnb.train.stages.losses import picture_loss
from fluxnb.train.stages.optimizers import make_optimizer

KL = 2e-5  # weight of the mean KL divergence; the latents become smoother without a loss of quality
VALIDATION_SEED = 990_000  # of the scenes that are not in the training data
RENDER_BATCH = 1024  # pictures; smaller batches take as long, because the kernels are many and short


def train_autoencoder(preset: Preset, out: Path, rank: Rank, start: Path | None = None) -> AutoencoderKL:
    """Train on all ranks; save the averaged autoencoder as `out`/vae and the log as `out`/autoencoder.jsonl.

    Arguments:
        start: folder of an autoencoder whose decoder is trained further. Its encoder stays as it is, and with it the
            latents, so that a teacher which was trained on them remains valid. None trains both from random weights.
    """
    schedule, cuda = preset.autoencoder, rank.device.type == "cuda"
    large, small = preset.autoencoder_sizes
    torch.manual_seed(rank.index)
    log = Log(out / "autoencoder.jsonl", rank)
    order = torch.channels_last if cuda else torch.contiguous_format
    renderer = Renderer(rank.device)
    vae = build_autoencoder(preset.sizes).train()
    if start is not None:
        vae.load_state_dict(AutoencoderKL.from_pretrained(start).state_dict())
    vae = vae.to(rank.device, memory_format=order)
    rank.broadcast_weights(vae)
    if start is not None:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    adam = make_optimizer(vae, schedule, betas=(0.9, 0.99))
    average = Average(vae, schedule.ema, pretrained=start is not None)
    shapes = [
        (Shape(large, large), schedule.scenes * 3 // 4),
        (Shape(small, small), schedule.scenes // 4),
    ]
    tables = [draw_pictures(renderer, shape, n, 1000 + rank.index) for shape, n in shapes]
    log(parameters=count_parameters(vae), scenes=[len(table) for table in tables])

    def loss_of(pictures: Tensor) -> Tensor:
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=cuda):
            with torch.set_grad_enabled(start is None):
                posterior = vae.encode(pictures).latent_dist
            decoded = vae.decode(posterior.sample() if start is None else posterior.mean).sample
        if start is not None:
            return picture_loss(decoded.float(), pictures)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        return picture_loss(decoded.float(), pictures) + KL * kl

    generator = torch.Generator(rank.device).manual_seed(rank.index)
    pace = Pace(schedule, rank)
    for iteration in pace:
        index = int(iteration % 4 == 3)
        table, size = tables[index], preset.autoencoder_sizes[index]
        batch = schedule.batch * large * large // (size * size)
        rows = torch.randint(len(table), (batch,), generator=generator, device=rank.device)
        loss = loss_of((table[rows].float() / 127.5 - 1).contiguous(memory_format=order))
        norm = backward_and_step(loss, vae, adam, pace.rate(iteration), rank)
        average.update()
        if iteration % 100 == 0:
            log(iteration=iteration, total=pace.total, loss=loss.item(), norm=float(norm), seconds=pace.seconds())
    average.swap()
    vae.eval()
    if rank.first:
        if start is None:
            pictures = tables[0][:4096].float() / 127.5 - 1
            latents = torch.cat([encode_pictures(vae, part) for part in pictures.split(256)]).float()
            whiten(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
        quality = evaluate(vae, renderer, preset, 2048 if cuda else 16)
        log(iterations=pace.total, seconds=pace.seconds(), **quality)
        vae.save_pretrained(out / "vae")
    rank.broadcast(0.0)  # the other ranks wait for the file
    return vae


@torch.no_grad()
def draw_pictures(renderer: Renderer, shape: Shape, scenes: int, seed: int) -> Tensor:
    """Render scenes once, (N, 3, height, width) uint8; rendering a batch takes as long as a training step."""
    table = torch.empty(scenes, 3, shape.height, shape.width, dtype=torch.uint8, device=renderer.device)
    start = 0
    for chunk in draw_chunks([(shape, scenes)], seed):
        for part in torch.arange(len(chunk)).split(RENDER_BATCH):
            pictures = renderer(chunk.layout[part], shape.height, shape.width)
            table[start : start + len(part)] = pictures.add_(1).mul_(127.5).round_().to(torch.uint8)
            start += len(part)
    return table


@torch.no_grad()
def encode(vae: AutoencoderKL, renderer: Renderer, layouts: Layout, shape: Shape) -> Tensor:
    """Latents (N, 16, height / 8, width / 8) of layouts in float16: the means of the posterior."""
    parts = []
    for start in range(0, len(layouts), RENDER_BATCH):
        pictures = renderer(layouts[start : start + RENDER_BATCH], shape.height, shape.width)
        parts += [encode_pictures(vae, part) for part in pictures.split(256)]
    return torch.cat(parts)


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Latents (N, 16, height / 8, width / 8) of pictures in float16: the means of the posterior."""
    cuda = pictures.is_cuda
    pictures = pictures.contiguous(memory_format=torch.channels_last if cuda else torch.contiguous_format)
    with torch.autocast(pictures.device.type, torch.float16, enabled=cuda):
        return vae.encode(pictures).latent_dist.mean.half().contiguous()


@torch.no_grad()
def evaluate(vae: AutoencoderKL, renderer: Renderer, preset: Preset, count: int) -> dict[str, float]:
    """Mean PSNR in dB of validation scenes in float32, and range of the latents' standard deviations, by size."""
    found: dict[str, float] = {}
    for size in preset.autoencoder_sizes:
        shape = Shape(size, size)
        (chunk,) = draw_chunks([(shape, count)], VALIDATION_SEED, workers=1)
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
