"""Train the autoencoder on renders: with latents of its own, or with the latents of another autoencoder."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.errors import StorageError
from fluxnb.train.config import Preset
from fluxnb.train.data.dataset import batches, draw_layouts
from fluxnb.train.data.render import Layout, Renderer
from fluxnb.train.metrics import gradient_energy, psnr
from fluxnb.train.networks.build import build_autoencoder, whiten
from fluxnb.train.networks.denoiser import find_autoencoder
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, backward_and_step
from fluxnb.train.stages.losses import picture_loss
from fluxnb.train.stages.optimizers import make_optimizer

KL_WEIGHT = 2e-5  # of the mean KL divergence; keeps the latents smooth without a cost in picture quality
LOGVAR_WEIGHT = 0.01  # of the error of log variances, whose range is several times that of the latents
HELD_OUT_SEED = 990_000  # seed of scenes that no training uses


def train_autoencoder(preset: Preset, out: Path, rank: Rank, like: Path | None = None) -> AutoencoderKL:
    """Train an autoencoder, save its averaged weights to `out` and return it.

    Args:
        preset: sizes and schedule.
        out: folder of the run.
        rank: this process.
        like: a run's folder or a shipped folder whose autoencoder defines the latents. The new encoder learns the same
            latents with the preset's widths, so that a transformer trained on them stays valid. Without it, the
            latents are new and are whitened at the end.
    """
    schedule = preset.autoencoder
    torch.manual_seed(rank.index)
    log = Log(out / "autoencoder.jsonl", rank)
    reference = None if like is None else open_autoencoder(like).requires_grad_(False).to(rank.device)
    layouts, _ = draw_layouts(schedule.scenes, seed=1000 + rank.index)
    layouts = layouts.to(rank.device)
    renderer = Renderer(rank.device)
    vae = build_autoencoder(preset.sizes).to(rank.device, memory_format=torch.channels_last)
    rank.broadcast_weights(vae)
    adam = make_optimizer(vae, schedule, betas=(0.9, 0.99))
    average, pace = Average(vae, schedule.ema), Pace(schedule, rank)

    def loss_of(pictures: Tensor) -> Tensor:
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=rank.device.type == "cuda"):
            return vae_loss(vae, pictures) if reference is None else matching_loss(vae, reference, pictures)

    step = torch.compile(loss_of) if rank.device.type == "cuda" else loss_of
    generator = torch.Generator(rank.device).manual_seed(rank.index)
    rows = batches(len(layouts), schedule.batch, generator, rank.device)
    for iteration in pace:
        pictures = renderer(layouts[next(rows)]).contiguous(memory_format=torch.channels_last)
        loss = step(pictures)
        norm = backward_and_step(loss, vae, adam, pace.rate(iteration), rank)
        average.update()
        if iteration % 250 == 0:
            log(iteration=iteration, total=pace.total, loss=loss.item(), norm=float(norm), seconds=pace.seconds())
    average.swap()
    vae.eval()
    if reference is None:
        whiten(vae, *latent_moments(vae, renderer, layouts[: min(len(layouts), 8192)]))
    if rank.first:
        facts = {} if like is None else {"like": like.name}
        count = min(2048, max(64, len(layouts)))  # a trial training is measured on few scenes as well
        measured = check_autoencoder(vae, renderer, count, reference=reference)
        log(iterations=pace.total, seconds=pace.seconds(), **facts, **measured)
        vae.save_pretrained(out / "vae")
    return vae


def vae_loss(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Loss of a variational autoencoder (1312.6114): reconstruction error and weighted KL divergence."""
    posterior = vae.encode(pictures).latent_dist
    decoded = vae.decode(posterior.sample()).sample
    return picture_loss(decoded.float(), pictures) + KL_WEIGHT * posterior.kl().mean() / posterior.mean[0].numel()


def matching_loss(vae: AutoencoderKL, reference: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Loss for the latents of a reference: its posterior for the encoder, decoding of its samples for the decoder.

    The encoder and the decoder share no weights, so the two terms do not interfere.
    """
    with torch.no_grad():
        posterior = reference.encode(pictures).latent_dist
        latents = posterior.sample()
    learned = vae.encode(pictures).latent_dist
    logvar_error = F.mse_loss(learned.logvar.float(), posterior.logvar.float())
    encoder_error = F.mse_loss(learned.mean.float(), posterior.mean.float()) + LOGVAR_WEIGHT * logvar_error
    return encoder_error + picture_loss(vae.decode(latents).sample.float(), pictures)


def open_autoencoder(folder: Path) -> AutoencoderKL:
    """Load the autoencoder of a run's folder or of a shipped folder in float32, in evaluation mode."""
    vae = find_autoencoder(folder)
    if vae is None:
        raise StorageError(
            f"no autoencoder in {folder}",
            "a run's folder holds vae/, a shipped one base/vae/",
            "type --like fluxnb/pocket, or leave --like out to learn new latents",
        )
    return AutoencoderKL.from_pretrained(vae).float().eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, renderer: Renderer, layouts: Layout, batch: int = 512) -> Tensor:
    """Latents (N, 16, 16, 16) of rendered scenes, the posterior's mean; float16 on a GPU, float32 on a CPU."""
    device = renderer.device
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    # Channels last is faster on a GPU; on a CPU, group norm loses three digits in it.
    memory_format = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    out = torch.empty(len(layouts), vae.config.latent_channels, 16, 16, dtype=dtype, device=device)
    for start in range(0, len(layouts), batch):
        with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
            pictures = renderer(layouts[start : start + batch]).contiguous(memory_format=memory_format)
            out[start : start + batch] = vae.encode(pictures).latent_dist.mean
    return out


def latent_moments(vae: AutoencoderKL, renderer: Renderer, layouts: Layout) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel over scenes, (16,) each."""
    latents = encode(vae, renderer, layouts).float()
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


@torch.no_grad()
def check_autoencoder(
    vae: AutoencoderKL, renderer: Renderer, count: int = 2048, reference: AutoencoderKL | None = None
) -> dict[str, float]:
    """Measure an autoencoder in float32 on `count` scenes that no training uses.

    Returns:
        `psnr` and `psnr_signs` (mean over pictures, in dB), `sharpness` relative to the renders, and the smallest and
        largest standard deviation of a latent channel. With a `reference`, also `psnr_reference`, the PSNR of decoding
        its latents, and `latent_error`, the encoder's squared error as a share of the variance of those latents.
    """
    layouts, _ = draw_layouts(count, seed=HELD_OUT_SEED)
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, count, 64):
        part = layouts[start : start + 64]
        pictures, signs = renderer(part), ~torch.isnan(part.sign[:, 0]).to(renderer.device)
        z = vae.encode(pictures).latent_dist.mean
        decoded = vae.decode(z).sample.clamp(-1, 1)
        values = {"z": z, "psnr": psnr(decoded, pictures), "energy": gradient_energy(decoded)}
        values |= {"render_energy": gradient_energy(pictures), "psnr_signs": values["psnr"][signs]}
        if reference is not None:
            target = reference.encode(pictures).latent_dist.mean
            values["psnr_reference"] = psnr(vae.decode(target).sample.clamp(-1, 1), pictures)
            values["latent_error"] = (z - target).square().mean((1, 2, 3)) / target.square().mean()
        for name, rows in values.items():
            parts.setdefault(name, []).append(rows)
    measured = {name: torch.cat(rows) for name, rows in parts.items()}
    channel_std = measured["z"].std((0, 2, 3))
    means = ("psnr", "psnr_signs", "psnr_reference", "latent_error")
    return {
        **{name: float(measured[name].mean()) for name in means if name in measured},
        "sharpness": float(measured["energy"].mean() / measured["render_energy"].mean()),
        "latent_std_min": float(channel_std.min()),
        "latent_std_max": float(channel_std.max()),
    }
