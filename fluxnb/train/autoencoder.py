"""Train the autoencoder on scenes as they are drawn, then give it unit latents."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL

from fluxnb.train.build import build_autoencoder, whiten
from fluxnb.train.config import Preset
from fluxnb.train.data import batches, draw_layouts
from fluxnb.train.loop import Average, Log, Pace, Rank, descend
from fluxnb.train.objective import picture_loss
from fluxnb.train.optimisers import optimiser
from fluxnb.train.render import Layout, Renderer

KL = 2e-5  # of the mean KL beside a mean error: keeps the latents smooth, costs no picture quality
FRESH = 990_000  # seed of the scenes that no training sees


def train_autoencoder(preset: Preset, out: Path, rank: Rank) -> AutoencoderKL:
    """Returns the averaged, whitened autoencoder and saves it under `out`."""
    schedule = preset.autoencoder
    torch.manual_seed(rank.index)
    log = Log(out / "autoencoder.jsonl", rank)
    layouts, _ = draw_layouts(schedule.scenes, seed=1000 + rank.index)
    layouts = layouts.to(rank.device)
    renderer = Renderer(rank.device)
    vae = build_autoencoder(preset.sizes).to(rank.device, memory_format=torch.channels_last)
    rank.same_weights(vae)
    adam, average, pace = optimiser(vae, schedule, betas=(0.9, 0.99)), Average(vae, schedule.ema), Pace(schedule, rank)

    def loss_of(pictures: torch.Tensor) -> torch.Tensor:
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=rank.device.type == "cuda"):
            posterior = vae.encode(pictures).latent_dist
            drawn = vae.decode(posterior.sample()).sample
        return picture_loss(drawn.float(), pictures) + KL * posterior.kl().mean() / posterior.mean[0].numel()

    step = torch.compile(loss_of) if rank.device.type == "cuda" else loss_of
    generator = torch.Generator(rank.device).manual_seed(rank.index)
    rows = batches(len(layouts), schedule.batch, generator, rank.device)
    for iteration in pace:
        pictures = renderer(layouts[next(rows)]).contiguous(memory_format=torch.channels_last)
        loss = step(pictures)
        norm = descend(loss, vae, adam, pace.rate(iteration), rank)
        average.update()
        if iteration % 250 == 0:
            log(iteration=iteration, total=pace.total, loss=loss.item(), norm=float(norm), seconds=pace.seconds())
    average.swap()
    vae.eval()
    whiten(vae, *latent_moments(vae, renderer, layouts[: min(len(layouts), 8192)]))
    if rank.first:
        log(iterations=pace.total, seconds=pace.seconds(), **check_autoencoder(vae, renderer))
        vae.save_pretrained(out / "vae")
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, renderer: Renderer, layouts: Layout, batch: int = 512) -> torch.Tensor:
    """Latents (N, 16, 16, 16) of scenes, the mean of the posterior; on the renderer's device, in its half type."""
    device = renderer.device
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    # What a GPU's convolutions want; a CPU's group norm loses three digits in it.
    order = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    out = torch.empty(len(layouts), vae.config.latent_channels, 16, 16, dtype=dtype, device=device)
    for start in range(0, len(layouts), batch):
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            pictures = renderer(layouts[start : start + batch]).contiguous(memory_format=order)
            out[start : start + batch] = vae.encode(pictures).latent_dist.mean
    return out


def latent_moments(vae: AutoencoderKL, renderer: Renderer, layouts: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each latent channel over scenes."""
    latents = encode(vae, renderer, layouts).float()
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


@torch.no_grad()
def check_autoencoder(vae: AutoencoderKL, renderer: Renderer, count: int = 2048) -> dict[str, float]:
    """PSNR in dB on fresh scenes, in float32 (the mean over pictures, each against its own), and latent spreads."""
    layouts, _ = draw_layouts(count, seed=FRESH)
    psnr, lettering, latents = [], [], []
    for start in range(0, count, 64):
        part = layouts[start : start + 64]
        pictures = renderer(part)
        z = vae.encode(pictures).latent_dist.mean
        error = ((vae.decode(z).sample.clamp(-1, 1) - pictures) / 2).square().mean((1, 2, 3))
        psnr.append(-10 * error.log10())
        lettering.append(psnr[-1][~torch.isnan(part.sign[:, 0]).to(error.device)])
        latents.append(z)
    spread = torch.cat(latents).std((0, 2, 3))
    return {
        "psnr": float(torch.cat(psnr).mean()),
        "psnr_signs": float(torch.cat(lettering).mean()),
        "latent_std_min": float(spread.min()),
        "latent_std_max": float(spread.max()),
    }
