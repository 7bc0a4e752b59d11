"""The training data of the distillation: captions, initial noise, and the latents that the teacher sampled from it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxnb.records.latents import pack
from fluxnb.train.config import Preset
from fluxnb.train.data.layouts import Shape
from fluxnb.train.data.stream import draw_chunks
from fluxnb.train.data.vocabulary import CAPTION_TOKENS, CLIP_USED, Tokenizers
from fluxnb.train.metrics import alignment
from fluxnb.train.networks.denoiser import Denoiser, sample
from fluxnb.train.stages.loop import Rank
from fluxnb.train.stages.teacher import scene_counts

SEED = 4000  # of the captions and the noise of the pairs; each rank adds its index


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Noise and the teacher's latents from it, packed, (N, tokens, 64) each, with the captions' token ids.

    The noise is stored because a student that reproduces the teacher's map from noise to picture needs both ends of it
    (2209.03003, section 2.3).
    """

    noise: Tensor
    clean: Tensor
    clip_ids: Tensor
    t5_ids: Tensor

    def __len__(self) -> int:
        return len(self.noise)


@dataclasses.dataclass(frozen=True)
class PairTable:
    """The pairs of one shape on the device."""

    shape: Shape
    pairs: Pairs

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the packed tokens."""
        return self.shape.height // 16, self.shape.width // 16

    def batch(self, tokens: int) -> int:
        """The number of pictures, a multiple of 8, that have about `tokens` image and text tokens together."""
        return max(8, tokens // (self.shape.tokens + CAPTION_TOKENS) // 8 * 8)


@torch.no_grad()
def sample_pairs(teacher: Denoiser, preset: Preset, rank: Rank) -> list[PairTable]:
    """Sample the teacher with guidance on training captions, without held-out combinations: this rank's pairs."""
    distillation, device = preset.distillation, rank.device
    counts = scene_counts(preset, max(1, distillation.pairs // rank.world))
    ids: dict[Shape, list[tuple[Tensor, Tensor]]] = {shape: [] for shape, _ in counts}
    for chunk in draw_chunks(counts, SEED + rank.index):
        ids[chunk.shape].append((chunk.clip_ids.to(device), chunk.t5_ids.to(device)))
    clip, t5 = (each.to(device) for each in Tokenizers()([""]))
    empty = (clip[:, :CLIP_USED], t5)
    generator = torch.Generator(device).manual_seed(SEED + rank.index)
    tables = []
    for shape, parts in ids.items():
        clip_ids, t5_ids = map(torch.cat, zip(*parts, strict=True))
        size = (len(clip_ids), preset.sizes.latent_channels, shape.height // 8, shape.width // 8)
        noise = torch.randn(size, generator=generator, device=device).half()  # as it is stored
        batch, clean = max(8, 2 * distillation.tokens // (shape.tokens + CAPTION_TOKENS)), []
        for rows in torch.arange(len(noise)).split(batch):
            prompts = clip_ids[rows, :CLIP_USED].long(), t5_ids[rows].long()
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                latents = sample(
                    teacher,
                    *prompts,
                    noise[rows].float(),
                    distillation.teacher_steps,
                    guidance=distillation.guidance,
                    empty=empty,
                )
            clean.append(pack(latents).half())
        tables.append(PairTable(shape, Pairs(pack(noise), torch.cat(clean), clip_ids, t5_ids)))
    return tables


def draw_tables(tables: Sequence[PairTable], preset: Preset) -> Iterator[tuple[PairTable, int]]:
    """Endless pairs of a table and a padding, drawn with the shares of the preset; the same on all ranks."""
    shared, shapes, paddings = random.Random(0), dict(preset.shapes), dict(preset.paddings)
    shares = [shapes[table.shape] for table in tables]
    while True:
        (table,) = shared.choices(tables, shares)
        (padding,) = shared.choices(tuple(paddings), tuple(paddings.values()))
        yield table, padding


@torch.no_grad()
def encode_captions(model: Denoiser, pairs: Pairs, rows: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """The prompt encodings of some pairs, with T5's tokens padded to `padding`."""
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.is_cuda):
        t5_ids = F.pad(pairs.t5_ids[rows], (0, padding - pairs.t5_ids.shape[1]))
        pooled, sequence = model.encode(pairs.clip_ids[rows, :CLIP_USED].long(), t5_ids.long())
    return pooled, sequence


def pair_alignment(pairs: Pairs) -> float:
    """Mean cosine between the teacher's noise and latents, less the mean latents over all captions."""
    return float(alignment(pairs.noise[None, :8192], pairs.clean[None, :8192]))
