"""Train the teacher: a rectified flow from noise and captions to the latents of scenes."""

from __future__ import annotations

import dataclasses
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from fluxnb.errors import InputError, StorageError
from fluxnb.train.config import Preset, Sizes
from fluxnb.train.data.dataset import batches, draw_chunks
from fluxnb.train.data.render import Renderer
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.networks.build import count_parameters
from fluxnb.train.networks.denoiser import (
    Denoiser,
    build_denoiser,
    find_autoencoder,
    load_denoiser,
    save_denoiser,
)
from fluxnb.train.stages.autoencoder import HELD_OUT_SEED, encode
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, backward_and_step
from fluxnb.train.stages.losses import draw_sigmas, flow_loss
from fluxnb.train.stages.optimizers import make_optimizer

CAPTION_DROPOUT = 0.1  # share of empty captions in training, for classifier-free guidance (2207.12598)
VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"

#: latents, CLIP ids, T5 ids, noise levels and noise of a batch to its loss, one number per scene.
Loss = Callable[..., Tensor]


def train_teacher(
    preset: Preset, out: Path, rank: Rank, start: Path | None = None, mode: str = "reduce-overhead"
) -> Denoiser:
    """Train on latents cached on the device; the averaged weights are saved to `out` every 2,000 iterations.

    Args:
        preset: sizes and schedule.
        out: folder of the run; it holds the autoencoder, or `start` does.
        rank: this process.
        start: a run's folder or a shipped folder whose denoiser is trained further. The warm-up is then short, since
            optimizer state is not saved.
        mode: of `torch.compile`.
    """
    schedule, cuda = preset.teacher, rank.device.type == "cuda"
    torch.manual_seed(200 + rank.index)
    random.seed(rank.index)
    log, began = Log(out / "teacher.jsonl", rank), time.perf_counter()
    model = build_denoiser(preset.sizes) if start is None else load_start(preset.sizes, start)
    if start is not None:
        schedule = dataclasses.replace(schedule, warmup=min(schedule.warmup, schedule.resume_warmup))
    model.to(rank.device)
    adam = make_optimizer(model, schedule)  # before the data, which takes minutes, so that its errors come early
    copy_prerequisites(start, out, rank)
    vae = AutoencoderKL.from_pretrained(out / "vae").to(rank.device, memory_format=torch.channels_last).eval()
    renderer = Renderer(rank.device)
    latents, clip_ids, t5_ids = cache_latents(vae, renderer, preset, seed=3000 + rank.index)
    empty_clip, empty_t5 = (ids.to(rank.device, torch.int16) for ids in Tokens.of(preset.sizes)([""]))
    validation = Validation(vae, renderer, preset.sizes, count=schedule.validation, batch=schedule.batch)
    rank.broadcast_weights(model)
    average = Average(model, schedule.ema, pretrained=start is not None)
    facts = {"optimizer": schedule.optimizer} | ({"start": start.name} if start is not None else {})
    log(
        parameters=count_parameters(model),
        cached=len(latents),
        latent_std=latents[:4096].float().std().item(),
        **facts,
        cache_seconds=time.perf_counter() - began,
    )

    def loss_of(x0: Tensor, clip: Tensor, t5: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=cuda):
            return flow_loss(model, x0, (clip, t5), sigma, noise)

    # With CUDA graphs: without them kernel launches limit the speed, 33 ms at batch 512 as at 1024 on an H200.
    step = torch.compile(loss_of, mode=mode) if cuda else loss_of
    generator = torch.Generator(rank.device).manual_seed(rank.index)
    rows = batches(len(latents), schedule.batch, generator, rank.device)
    pace = Pace(schedule, rank)
    running = torch.zeros((), device=rank.device)
    for iteration in pace:
        row = next(rows)
        dropped = torch.rand(len(row), 1, device=rank.device) < CAPTION_DROPOUT
        clip = torch.where(dropped, empty_clip, clip_ids[row]).long()
        t5 = torch.where(dropped, empty_t5, t5_ids[row]).long()
        x0 = latents[row].float()
        if cuda:
            torch.compiler.cudagraph_mark_step_begin()
        loss = step(x0, clip, t5, draw_sigmas(len(row), rank.device), torch.randn_like(x0)).mean()
        norm = backward_and_step(loss, model, adam, pace.rate(iteration), rank)
        average.update()
        running = running + loss.detach()
        if (iteration + 1) % 250 == 0:
            mean = float(running) / 250
            log(iteration=iteration, total=pace.total, loss=mean, norm=float(norm), seconds=pace.seconds())
            running.zero_()
        if rank.first and ((iteration + 1) % schedule.validate_every == 0 or iteration + 1 == pace.total):
            seconds, losses = pace.seconds(), validate(validation, loss_of, average)
            log(iteration=iteration, **losses, optimizer=schedule.optimizer, seconds=seconds)
        if (iteration + 1) % 2000 == 0:
            save_average(model, average, out, rank)
    save_average(model, average, out, rank)
    log(
        iterations=pace.total,
        seconds=pace.seconds(),
        compile_seconds=pace.compiling,
        batch=schedule.batch * rank.world,
        devices=rank.world,
        **facts,
    )
    average.swap()
    return model.eval()


def cache_latents(vae: AutoencoderKL, renderer: Renderer, preset: Preset, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (N, 16, 16, 16) and token ids of the captions, (N, length) each, on the renderer's device."""
    parts = [
        (encode(vae, renderer, chunk.layout.to(renderer.device)), chunk.clip_ids, chunk.t5_ids)
        for chunk in draw_chunks(preset.teacher.scenes, seed, preset.sizes)
    ]
    latents, clip_ids, t5_ids = (torch.cat(part).to(renderer.device) for part in zip(*parts, strict=True))
    return latents, clip_ids, t5_ids


def save_average(model: Denoiser, average: Average, out: Path, rank: Rank) -> None:
    """Save the averaged weights in half precision."""
    if rank.first:
        average.swap()
        save_denoiser(model, out)
        average.swap()


# ------------------------------------------------------------------------------------------------------- validation
class Validation:
    """The teacher's loss on fixed scenes that no training uses.

    Scenes, noise and noise levels are drawn on the CPU from fixed seeds, so they are the same in every run and on every
    device, and runs are comparable. The training loss is not: each batch has other noise levels, a tenth of its
    captions is empty, and its scenes repeat.

    Args:
        vae, renderer, sizes: encode the scenes and their captions.
        count: number of scenes.
        batch: batch size; the mean does not depend on it.
    """

    def __init__(self, vae: AutoencoderKL, renderer: Renderer, sizes: Sizes, *, count: int, batch: int):
        device, generator = renderer.device, torch.Generator().manual_seed(HELD_OUT_SEED)
        chunks = list(draw_chunks(count, HELD_OUT_SEED, sizes, workers=1))
        latents = torch.cat([encode(vae, renderer, chunk.layout.to(device)) for chunk in chunks])
        noise = torch.randn(latents.shape, generator=generator).to(device)
        sigmas = draw_sigmas(count, torch.device("cpu"), generator).to(device)
        clip, t5 = (torch.cat([getattr(chunk, name) for chunk in chunks]).to(device) for name in ("clip_ids", "t5_ids"))
        self.rows = (latents.float(), clip.long(), t5.long(), sigmas, noise)
        self.count, self.batch = count, batch

    @torch.no_grad()
    def __call__(self, loss_of: Loss) -> float:
        """The mean of `loss_of(latents, clip_ids, t5_ids, sigmas, noise)`, which returns one number per scene.

        Pass the function that is not compiled: compiling another graph takes longer than all validations together.
        """
        losses = [loss_of(*part) for part in zip(*(rows.split(self.batch) for rows in self.rows), strict=True)]
        return float(torch.cat(losses).mean())


def validate(validation: Callable[[Loss], float], loss_of: Loss, average: Average) -> dict[str, float]:
    """The validation loss of the averaged weights, which ship, and of the live weights."""
    live = validation(loss_of)
    average.swap()
    mean = validation(loss_of)
    average.swap()
    return {"validation": mean, "validation_live": live}


# ---------------------------------------------------------------------------------------- continuing from a training
def load_start(sizes: Sizes, start: Path) -> Denoiser:
    """Load the denoiser of a run's folder or of a shipped folder in float32, in training mode."""
    if (start / "base" / "transformer").is_dir():
        return _load_shipped(sizes, start / "base").train()
    if (start / "transformer.safetensors").exists() and (start / "text.safetensors").exists():
        return load_denoiser(sizes, start).train()
    raise StorageError(
        f"no denoiser in {start}",
        "a run's folder holds transformer.safetensors and text.safetensors, a shipped one base/transformer",
        "type --pretrained fluxnb/pocket, or leave --pretrained out to begin from random weights",
    )


def copy_prerequisites(start: Path | None, out: Path, rank: Rank) -> None:
    """Copy the autoencoder and the judge of `start` to a run that has none.

    Raises:
        StorageError: if neither folder holds an autoencoder, or if theirs differ by more than half-precision rounding.
    """
    if rank.first and start is not None:
        vae = find_autoencoder(start)
        if vae is not None and (out / "vae").is_dir():
            _require_same_autoencoder(vae, out / "vae")
        elif vae is not None:
            shutil.copytree(vae, out / "vae.part", dirs_exist_ok=True)
            (out / "vae.part").rename(out / "vae")
        if (start / "judge.safetensors").exists() and not (out / "judge.safetensors").exists():
            shutil.copyfile(start / "judge.safetensors", out / "judge.safetensors")
    rank.broadcast(0.0)  # the other ranks wait for the copies
    if not (out / "vae").is_dir():
        raise StorageError(
            f"no autoencoder in {out}",
            "a teacher learns the latents of the autoencoder in vae/, which --pretrained copies if it is given",
            f"train it: python -m fluxnb.train autoencoder --out {out}",
        )


def _require_same_autoencoder(one: Path, other: Path) -> None:
    first, second = load_file(one / VAE_WEIGHTS), load_file(other / VAE_WEIGHTS)
    if first.keys() != second.keys() or not all(torch.equal(first[k].half(), second[k].half()) for k in first):
        raise StorageError(
            f"two autoencoders, in {one} and in {other}",
            "a teacher continues on the latents it was trained on",
            "type another --out",
        )


def _load_shipped(sizes: Sizes, base: Path) -> Denoiser:
    """Load a denoiser stored in half precision in diffusers' layout."""
    shipped = Denoiser(
        CLIPTextModel.from_pretrained(base / "text_encoder"),
        T5EncoderModel.from_pretrained(base / "text_encoder_2"),
        FluxTransformer2DModel.from_pretrained(base / "transformer"),
    ).float()
    model = build_denoiser(sizes)  # as all later stages build it
    if _shapes(model) != _shapes(shipped):
        raise InputError(
            f"weights of other sizes in {base}",
            "a training continues with the sizes of its preset",
            "type the --preset that the weights were trained with, pocket for fluxnb/pocket",
        )
    model.load_state_dict(shipped.state_dict())
    return model


def _shapes(model: Denoiser) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}
