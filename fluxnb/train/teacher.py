"""Train the teacher: a rectified flow from noise and words to the latents of scenes."""

from __future__ import annotations

import copy
import itertools
import random
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer, T5Tokenizer

from fluxnb.latents import pack, unpack
from fluxnb.train.autoencoder import encode
from fluxnb.train.build import build_text_encoder, build_text_encoder_2, build_transformer, count
from fluxnb.train.config import Preset, Sizes
from fluxnb.train.data import batches, draw_layouts
from fluxnb.train.loop import Average, Log, Pace, Rank, descend, optimiser
from fluxnb.train.objective import Denoiser, draw_sigmas, flow_loss
from fluxnb.train.render import Renderer
from fluxnb.train.tokens import clip_tokenizer, t5_tokenizer

UNSAID = 0.1  # share of captions left empty, so that the model can also be asked for no words: CFG (2207.12598)


class Tokens:
    """Captions as the two id tables that the encoders take, each (N, length)."""

    def __init__(self, clip: CLIPTokenizer, t5: T5Tokenizer):
        self.clip, self.t5, self.length = clip, t5, t5.model_max_length

    @staticmethod
    def of(sizes: Sizes) -> Tokens:
        """The tokenizers of the world."""
        return Tokens(clip_tokenizer(sizes.text_tokens), t5_tokenizer(sizes.text_tokens))

    def __call__(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """CLIP's and T5's ids, padded."""
        options = {"padding": "max_length", "max_length": self.length, "truncation": True, "return_tensors": "pt"}
        return self.clip(captions, **options).input_ids, self.t5(captions, **options).input_ids


def build_denoiser(sizes: Sizes) -> Denoiser:
    """An untrained teacher."""
    tokens = Tokens.of(sizes)
    return Denoiser(
        build_text_encoder(sizes, len(tokens.clip)),
        build_text_encoder_2(sizes, len(tokens.t5)),
        build_transformer(sizes),
    )


def train_teacher(
    preset: Preset, out: Path, rank: Rank, start: Path | None = None, mode: str = "reduce-overhead"
) -> Denoiser:
    """Train on latents cached on the device; saves the averaged weights under `out` as it goes.

    `mode` is torch.compile's. `start` continues from the denoiser saved in that folder instead of from nothing.
    """
    schedule, cuda = preset.teacher, rank.device.type == "cuda"
    torch.manual_seed(200 + rank.index)
    random.seed(rank.index)
    log, began = Log(out / "teacher.jsonl", rank), time.perf_counter()
    tokens = Tokens.of(preset.sizes)
    layouts, captions = draw_layouts(schedule.scenes, seed=3000 + rank.index)
    clip_ids, t5_ids = (ids.to(rank.device, torch.int16) for ids in tokens(captions))
    nothing_clip, nothing_t5 = (ids.to(rank.device, torch.int16) for ids in tokens([""]))
    vae = AutoencoderKL.from_pretrained(out / "vae").to(rank.device, memory_format=torch.channels_last).eval()
    latents = encode(vae, Renderer(rank.device), layouts.to(rank.device))
    del layouts, captions
    model = build_denoiser(preset.sizes).to(rank.device)
    if start is not None:
        model = load_denoiser(preset.sizes, start).train().to(rank.device)
    rank.same_weights(model)
    adam, average, pace = optimiser(model, schedule), Average(model, schedule.ema), Pace(schedule, rank)
    spread = latents[:4096].float().std().item()
    log(parameters=count(model), cached=len(latents), latent_std=spread, cache_seconds=time.perf_counter() - began)

    def loss_of(*batch: Tensor) -> Tensor:
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=cuda):
            return flow_loss(model, *batch)

    # CUDA graphs: without them a step is bound by launches, 33 ms at batch 512 and at 1024 alike on an H200.
    step = torch.compile(loss_of, mode=mode) if cuda else loss_of
    generator = torch.Generator(rank.device).manual_seed(rank.index)
    rows = batches(len(latents), schedule.batch, generator, rank.device)
    running = torch.zeros((), device=rank.device)
    for iteration in pace:
        row = next(rows)
        unsaid = torch.rand(len(row), 1, device=rank.device) < UNSAID
        clip = torch.where(unsaid, nothing_clip, clip_ids[row]).long()
        t5 = torch.where(unsaid, nothing_t5, t5_ids[row]).long()
        x0 = latents[row].float()
        if cuda:
            torch.compiler.cudagraph_mark_step_begin()
        loss = step(x0, clip, t5, draw_sigmas(len(row), rank.device), torch.randn_like(x0)).mean()
        norm = descend(loss, model, adam, pace.rate(iteration), rank)
        average.update()
        running = running + loss.detach()
        if (iteration + 1) % 250 == 0:
            mean = float(running) / 250
            log(iteration=iteration, total=pace.total, loss=mean, norm=float(norm), seconds=pace.seconds())
            running.zero_()
        if (iteration + 1) % 2000 == 0:
            keep(model, average, out, rank)
    keep(model, average, out, rank)
    log(iterations=pace.total, seconds=pace.seconds(), batch=schedule.batch * rank.world, devices=rank.world)
    average.swap()
    return model.eval()


def keep(model: Denoiser, average: Average, out: Path, rank: Rank) -> None:
    """Save the averaged weights in half precision, as they ship; whole or not at all."""
    if rank.first:
        average.swap()
        save_denoiser(model, out)
        average.swap()


def save_denoiser(model: Denoiser, out: Path) -> None:
    """`transformer.safetensors` and `text.safetensors` under `out`, float16."""
    half = {name: tensor.detach().half().cpu().contiguous() for name, tensor in model.state_dict().items()}
    for part, belongs in (("transformer", True), ("text", False)):
        named = {name: tensor for name, tensor in half.items() if name.startswith("transformer.") == belongs}
        save_file(named, out / f"{part}.part")
        (out / f"{part}.part").rename(out / f"{part}.safetensors")


def load_denoiser(sizes: Sizes, out: Path) -> Denoiser:
    """What `save_denoiser` saved, in float32, ready to evaluate or to train on."""
    model = build_denoiser(sizes)
    state = load_file(out / "transformer.safetensors") | load_file(out / "text.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    return model.eval()


def with_transformer(model: Denoiser, path: Path) -> Denoiser:
    """A copy of the denoiser whose transformer is the saved one; the text encoders are shared."""
    transformer = copy.deepcopy(model.transformer)
    transformer.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return Denoiser(model.text_encoder, model.text_encoder_2, transformer).eval()


def save_transformer(transformer: FluxTransformer2DModel, path: Path, rank: Rank) -> None:
    """One file in half precision, as it ships; whole or not at all."""
    if rank.first:
        path.parent.mkdir(parents=True, exist_ok=True)
        half = {name: t.detach().half().cpu().contiguous() for name, t in transformer.state_dict().items()}
        save_file(half, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)


@torch.no_grad()
def sample(
    model: Denoiser,
    clip_ids: Tensor,
    t5_ids: Tensor,
    noise: Tensor,
    sigmas: tuple[float, ...],
    *,
    guidance: float = 1.0,
    nothing: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Latents (B, 16, h, w) by Euler along `sigmas`, with classifier-free guidance above 1; all on one device."""
    side = noise.shape[-1] * 8
    pooled, sequence = model.encode(clip_ids, t5_ids)
    if guidance > 1 and nothing is not None:
        empty_pooled, empty = (e.expand(len(noise), *e.shape[1:]) for e in model.encode(*nothing))
        pooled, sequence = torch.cat((pooled, empty_pooled)), torch.cat((sequence, empty))
    x = pack(noise)
    for sigma, following in itertools.pairwise(sigmas):
        double = torch.cat((x, x)) if guidance > 1 else x
        velocity = model(double, torch.full((len(double),), sigma, device=x.device), pooled, sequence).float()
        if guidance > 1:
            said, unsaid = velocity.chunk(2)
            velocity = unsaid + guidance * (said - unsaid)
        x = x + (following - sigma) * velocity
    return unpack(x, side, side)
