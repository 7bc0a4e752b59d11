"""Train the teacher: a rectified flow to the latents of scenes, conditioned on captions, for several picture shapes.

Latents are cached on the device, one table per shape. A batch has one shape and one padding, the same on all ranks. Its
number of pictures is such that every batch has about `Preset.tokens` tokens and takes about the same time.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.train.config import Preset
from fluxnb.train.data.drawing import Renderer
from fluxnb.train.data.layouts import Shape
from fluxnb.train.data.stream import Chunk, draw_chunks
from fluxnb.train.data.vocabulary import CAPTION_TOKENS, CLIP_TOKENS, CLIP_USED, Tokenizers
from fluxnb.train.networks.build import count_parameters
from fluxnb.train.networks.denoiser import Denoiser, build_denoiser, load_denoiser, save_denoiser
from fluxnb.train.stages.autoencoder import VALIDATION_SEED, encode
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, backward_and_step, optimizer_step
from fluxnb.train.stages.losses import Batch, draw_sigmas, flow_loss
from fluxnb.train.stages.optimizers import make_optimizer
from fluxnb.train.stages.text import difference_by_order

SCENES_SEED = 3000  # of the first rank; each further rank adds one
SAVE_SECONDS = 120.0  # between two checkpoints


@dataclasses.dataclass(frozen=True)
class Table:
    """Scenes of one shape on the device: latents (N, 16, h, w) and token ids of the captions, (N, length) each."""

    shape: Shape
    latents: Tensor
    clip_ids: Tensor
    t5_ids: Tensor


def train_teacher(
    preset: Preset,
    out: Path,
    rank: Rank,
    start: Path | None = None,
    compiled: str = "dynamic",
    *,
    seed: int = SCENES_SEED,
) -> Denoiser:
    """Train on all ranks; save the averaged weights as `out`/teacher.safetensors every two minutes and at the end.

    Arguments:
        start: file of pretrained weights; None starts from random weights.
        compiled: "dynamic" compiles the blocks once for all shapes, "static" once per shape, "none" does not compile.
        seed: of the scenes; a continued training should have another one, because it then has new scenes.
    """
    schedule, cuda = preset.teacher, rank.device.type == "cuda"
    torch.manual_seed(200 + seed + rank.index)
    log, started = Log(out / "teacher.jsonl", rank), time.perf_counter()
    model = (
        (build_denoiser(preset.sizes) if start is None else load_denoiser(preset.sizes, start)).train().to(rank.device)
    )
    rank.broadcast_weights(model)
    optimizer = make_optimizer(model, schedule)
    chunks = draw_chunks(scene_counts(preset, schedule.scenes), seed + rank.index)  # drawn while the blocks compile

    def loss_of(batch: Batch) -> Tensor:
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=cuda):
            return flow_loss(model, batch)

    if cuda and compiled != "none":
        compile_blocks(model, dynamic=compiled == "dynamic")
        for _, _, batches in random_batches(preset, rank):
            loss_of(next(batches)).mean().backward()
        optimizer.zero_grad()
    compiling = time.perf_counter() - started
    vae = AutoencoderKL.from_pretrained(out / "vae").to(rank.device).eval()
    renderer = Renderer(rank.device)
    tables = cache(vae, renderer, chunks)
    validation: list[Table] = []
    if rank.first:
        counts = scene_counts(preset, schedule.validation)
        validation = cache(vae, renderer, draw_chunks(counts, VALIDATION_SEED, workers=1))
    empty = tuple(ids.to(rank.device, torch.int16) for ids in Tokenizers()([""]))
    average = Average(model, schedule.ema, pretrained=start is not None)
    log(
        parameters={name: count_parameters(part) for name, part in model.named_children()},
        cached={f"{t.shape.height}x{t.shape.width}": len(t.latents) for t in tables},
        latent_std=float(tables[0].latents[:4096].float().std()),
        compile_seconds=compiling,
        cache_seconds=time.perf_counter() - started - compiling,
        start=None if start is None else start.name,
        seed=seed,
    )
    pace, batches = Pace(schedule, rank), draw_batches(tables, preset, rank, empty, seed=seed)
    running, pictures, saved = torch.zeros((), device=rank.device), 0, time.perf_counter()
    for iteration in pace:
        batch = next(batches)
        loss = loss_of(batch).mean()
        norm = backward_and_step(loss, model, optimizer, pace.rate(iteration), rank)
        average.update()
        running, pictures = running + loss.detach(), pictures + len(batch.sigmas) * rank.world
        if (iteration + 1) % 100 == 0:
            mean = float(running) / 100
            facts = {"loss": mean, "norm": float(norm), "pictures": pictures, "seconds": pace.seconds()}
            log(iteration=iteration, total=pace.total, **facts)
            running.zero_()
        last = iteration + 1 == pace.total
        if rank.first and ((iteration + 1) % schedule.validate_every == 0 or last):
            log(iteration=iteration, **validate(loss_of, validation, average), seconds=pace.seconds())
        if rank.first and (last or time.perf_counter() - saved > SAVE_SECONDS):
            average.swap()
            save_denoiser(model, out)
            average.swap()
            saved = time.perf_counter()
    average.swap()
    with torch.compiler.set_stance("force_eager"):  # as in `validate`
        order = difference_by_order(model.text_encoder_2)
    log(iterations=pace.total, pictures=pictures, seconds=pace.seconds(), devices=rank.world, order=order)
    return model.eval()


def compile_blocks(model: Denoiser, dynamic: bool) -> None:
    """Compile each kind of block, which takes far less time than compiling the network."""
    torch._dynamo.config.cache_size_limit = 128
    # The tiling analysis of torch 2.11 fails with an AssertionError on blocks with dynamic shapes.
    inductor.triton.coalesce_tiling_analysis = False
    blocks = [*model.transformer.transformer_blocks, *model.transformer.single_transformer_blocks]
    for block in [*blocks, *model.text_encoder_2.encoder.block]:
        block.compile(dynamic=dynamic)


def compile_steps(preset: Preset, rank: Rank, compiled: str) -> None:
    """Fill the compiler's disk cache for every shape, and print the duration of the first and of the fastest step.

    It takes a minute or two of CPU time and can run at the same time as the training of the autoencoder.
    """
    model = build_denoiser(preset.sizes).train().to(rank.device)
    optimizer = make_optimizer(model, preset.teacher)
    cuda = rank.device.type == "cuda"
    if cuda and compiled != "none":
        compile_blocks(model, dynamic=compiled == "dynamic")
    for padding, shape, batches in random_batches(preset, rank):
        seconds = []
        for batch in itertools.islice(batches, 5):
            started = time.perf_counter()
            with torch.autocast(rank.device.type, torch.bfloat16, enabled=cuda):
                flow_loss(model, batch).mean().backward()
            optimizer_step(model, optimizer, 0.0, rank)
            if cuda:
                torch.cuda.synchronize()
            seconds.append(round(time.perf_counter() - started, 4))
        facts = {"shape": [shape.height, shape.width], "padding": padding, "batch": len(batch.sigmas)}
        print(json.dumps(facts | {"first": seconds[0], "step": min(seconds)}), flush=True)


def random_batches(preset: Preset, rank: Rank) -> Iterator[tuple[int, Shape, Iterator[Batch]]]:
    """Padding, shape and endless batches of random latents, for the first and the last padding and every shape."""
    paddings = dict.fromkeys([preset.paddings[0][0], preset.paddings[-1][0]])
    for padding, shape in itertools.product(paddings, dict(preset.shapes)):
        table = Table(
            shape,
            torch.randn(8, preset.sizes.latent_channels, shape.height // 8, shape.width // 8, device=rank.device),
            torch.ones(8, CLIP_TOKENS, dtype=torch.int16, device=rank.device),
            torch.zeros(8, CAPTION_TOKENS, dtype=torch.int16, device=rank.device),
        )
        only = dataclasses.replace(preset, paddings=((padding, 1.0),))
        yield padding, shape, draw_batches([table], only, rank, (table.clip_ids[:1], table.t5_ids[:1]))


def cache(vae: AutoencoderKL, renderer: Renderer, chunks: Iterable[Chunk]) -> list[Table]:
    """Latents and token ids of scenes, one table per shape."""
    device = renderer.device
    found: dict[Shape, list[tuple[Tensor, Tensor, Tensor]]] = {}
    for chunk in chunks:
        latents = encode(vae, renderer, chunk.layout.to(device), chunk.shape)
        found.setdefault(chunk.shape, []).append((latents, chunk.clip_ids.to(device), chunk.t5_ids.to(device)))
    return [Table(shape, *map(torch.cat, zip(*parts, strict=True))) for shape, parts in found.items()]


def scene_counts(preset: Preset, scenes: int) -> list[tuple[Shape, int]]:
    """How many of `scenes` each shape has: its share of the pictures in batches of equally many tokens, at least 8."""
    used = {shape: share / (shape.tokens + CAPTION_TOKENS) for shape, share in preset.shapes}
    return [(shape, max(8, round(scenes * each / sum(used.values())))) for shape, each in used.items()]


def draw_batches(
    tables: list[Table], preset: Preset, rank: Rank, empty: tuple[Tensor, ...], *, seed: int = 0
) -> Iterator[Batch]:
    """Endless batches; all ranks have the same shape and padding, and each its own rows and noise.

    `empty` has the token ids (1, length) of the empty caption for both text encoders.
    """
    shared = random.Random(seed)
    own = torch.Generator(rank.device).manual_seed(500 + seed + rank.index)
    shape_shares = dict(preset.shapes)
    shares, paddings = [shape_shares[table.shape] for table in tables], preset.paddings
    while True:
        (table,) = shared.choices(tables, shares)
        ((padding, _),) = shared.choices(paddings, [share for _, share in paddings])
        size = max(1, preset.tokens // (table.shape.tokens + padding) // 8 * 8)
        rows = torch.randint(len(table.latents), (size,), generator=own, device=rank.device)
        dropped = torch.rand(size, 1, generator=own, device=rank.device) < preset.caption_dropout
        clip, t5 = (
            torch.where(dropped, empty_ids, ids[rows])
            for empty_ids, ids in zip(empty, (table.clip_ids, table.t5_ids), strict=True)
        )
        latents = table.latents[rows].float()
        sigmas = draw_sigmas(size, table.shape.tokens, rank.device, own)
        noise = torch.randn(latents.shape, generator=own, device=rank.device)
        yield Batch(latents, clip[:, :CLIP_USED].long(), F.pad(t5, (0, padding - t5.shape[1])).long(), sigmas, noise)


@torch.no_grad()
def validate(loss_of: Callable[[Batch], Tensor], tables: list[Table], average: Average) -> dict[str, float]:
    """Loss of the averaged weights on validation scenes by shape, with the same noise in every call.

    It runs without compilation, which for calls without gradients took 48 s on an H100.
    """
    found = {}
    average.swap()
    for table in tables:
        device, size = table.latents.device, table.latents.shape
        generator = torch.Generator().manual_seed(VALIDATION_SEED)
        noise = torch.randn(size, generator=generator).to(device)
        sigmas = draw_sigmas(len(noise), table.shape.tokens, torch.device("cpu"), generator).to(device)
        rows = (table.latents.float(), table.clip_ids[:, :CLIP_USED].long(), table.t5_ids.long(), sigmas, noise)
        with torch.compiler.set_stance("force_eager"):
            losses = [loss_of(Batch(*part)) for part in zip(*(each.split(256) for each in rows), strict=True)]
        found[f"validation_{table.shape.height}x{table.shape.width}"] = float(torch.cat(losses).mean())
    average.swap()
    return found
