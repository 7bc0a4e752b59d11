"""Train the autoencoder on scenes as they are drawn: for latents of its own, made unit, or for those of another."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.errors import StorageError
from fluxnb.train.config import Preset
from fluxnb.train.data.batches import batches, draw_layouts
from fluxnb.train.data.render import Layout, Renderer
from fluxnb.train.evaluation.measure import gradient_energy
from fluxnb.train.networks.build import build_autoencoder, whiten
from fluxnb.train.networks.files import find_autoencoder
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, descend
from fluxnb.train.stages.objective import picture_loss
from fluxnb.train.stages.optimisers import optimiser

KL = 2e-5  # of the mean KL beside a mean error: keeps the latents smooth, costs no picture quality
SPREAD = 0.01  # of the log variances' error, which span some units where the latents span one
FRESH = 990_000  # seed of the scenes that no training sees


def train_autoencoder(preset: Preset, out: Path, rank: Rank, like: Path | None = None) -> AutoencoderKL:
    """Returns the averaged autoencoder and saves it under `out`.

    `like` is a folder with another one, a run's or a shipped one's: its latents are learned, so that what was trained
    on them stays right, with an encoder and a decoder of the preset's widths. Without it, latents are whitened.
    """
    schedule = preset.autoencoder
    torch.manual_seed(rank.index)
    log = Log(out / "autoencoder.jsonl", rank)
    theirs = None if like is None else open_autoencoder(like).requires_grad_(False).to(rank.device)
    layouts, _ = draw_layouts(schedule.scenes, seed=1000 + rank.index)
    layouts = layouts.to(rank.device)
    renderer = Renderer(rank.device)
    vae = build_autoencoder(preset.sizes).to(rank.device, memory_format=torch.channels_last)
    rank.same_weights(vae)
    adam, average, pace = optimiser(vae, schedule, betas=(0.9, 0.99)), Average(vae, schedule.ema), Pace(schedule, rank)

    def loss_of(pictures: Tensor) -> Tensor:
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=rank.device.type == "cuda"):
            return own_latents(vae, pictures) if theirs is None else others_latents(vae, theirs, pictures)

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
    if theirs is None:
        whiten(vae, *latent_moments(vae, renderer, layouts[: min(len(layouts), 8192)]))
    if rank.first:
        facts = {} if like is None else {"like": like.name}
        log(iterations=pace.total, seconds=pace.seconds(), **facts, **check_autoencoder(vae, renderer, theirs=theirs))
        vae.save_pretrained(out / "vae")
    return vae


def own_latents(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """The loss of an autoencoder (1312.6114): pictures as they were, latents as smooth as that leaves them."""
    posterior = vae.encode(pictures).latent_dist
    drawn = vae.decode(posterior.sample()).sample
    return picture_loss(drawn.float(), pictures) + KL * posterior.kl().mean() / posterior.mean[0].numel()


def others_latents(vae: AutoencoderKL, theirs: AutoencoderKL, pictures: Tensor) -> Tensor:
    """The same for latents that exist: the encoder learns what the other says, the decoder draws from what it said.

    The two share no weights, so neither's error pulls at the other.
    """
    with torch.no_grad():
        posterior = theirs.encode(pictures).latent_dist
        latents = posterior.sample()
    learned = vae.encode(pictures).latent_dist
    spread = F.mse_loss(learned.logvar.float(), posterior.logvar.float())
    encoded = F.mse_loss(learned.mean.float(), posterior.mean.float()) + SPREAD * spread
    return encoded + picture_loss(vae.decode(latents).sample.float(), pictures)


def open_autoencoder(place: Path) -> AutoencoderKL:
    """The autoencoder of a run's folder or of a shipped one's `base/`, in float32 and frozen in evaluation."""
    vae = find_autoencoder(place)
    if vae is None:
        raise StorageError(
            f"no autoencoder in {place}",
            "a run's folder holds vae/, a shipped one base/vae/",
            "type --like fluxnb/pocket, or leave --like out for latents of its own",
        )
    return AutoencoderKL.from_pretrained(vae).float().eval()


@torch.no_grad()
def encode(vae: AutoencoderKL, renderer: Renderer, layouts: Layout, batch: int = 512) -> Tensor:
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


def latent_moments(vae: AutoencoderKL, renderer: Renderer, layouts: Layout) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent channel over scenes."""
    latents = encode(vae, renderer, layouts).float()
    return latents.mean((0, 2, 3)), latents.std((0, 2, 3))


@torch.no_grad()
def check_autoencoder(
    vae: AutoencoderKL, renderer: Renderer, count: int = 2048, theirs: AutoencoderKL | None = None
) -> dict[str, float]:
    """PSNR in dB on fresh scenes, in float32 (the mean over pictures, each against its own), sharpness, latent spreads.

    With `theirs`, also the share of its latents' variance that the encoder misses, and the PSNR of decoding them.
    """
    layouts, _ = draw_layouts(count, seed=FRESH)
    kept: dict[str, list[Tensor]] = {}
    for start in range(0, count, 64):
        part = layouts[start : start + 64]
        pictures, signs = renderer(part), ~torch.isnan(part.sign[:, 0]).to(renderer.device)
        z = vae.encode(pictures).latent_dist.mean
        drawn = vae.decode(z).sample.clamp(-1, 1)
        found = {"z": z, "psnr": psnr(drawn, pictures), "energy": gradient_energy(drawn)}
        found |= {"wanted": gradient_energy(pictures), "psnr_signs": found["psnr"][signs]}
        if theirs is not None:
            wanted = theirs.encode(pictures).latent_dist.mean
            found["psnr_theirs"] = psnr(vae.decode(wanted).sample.clamp(-1, 1), pictures)
            found["missed"] = (z - wanted).square().mean((1, 2, 3)) / wanted.square().mean()
        for name, values in found.items():
            kept.setdefault(name, []).append(values)
    whole = {name: torch.cat(parts) for name, parts in kept.items()}
    spread = whole["z"].std((0, 2, 3))
    means = ("psnr", "psnr_signs", "psnr_theirs", "missed")
    return {
        **{name: float(whole[name].mean()) for name in means if name in whole},
        "sharpness": float(whole["energy"].mean() / whole["wanted"].mean()),
        "latent_std_min": float(spread.min()),
        "latent_std_max": float(spread.max()),
    }


def psnr(drawn: Tensor, wanted: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of pictures (B, 3, H, W) in [-1, 1], one number each (B,)."""
    return -10 * ((drawn - wanted) / 2).square().mean((1, 2, 3)).log10()
