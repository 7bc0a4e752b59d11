"""The training data of the distillation: captions, initial noise, and the latents that the teacher sampled from it."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxnb.flow import schedule
from fluxnb.records.latents import pack
from fluxnb.train.config import Preset
from fluxnb.train.data.dataset import draw_chunks
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.networks.denoiser import Denoiser, load_denoiser, sample
from fluxnb.train.stages.loop import Log, Rank


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Noise (N, 64, 64) and the teacher's latents from it (N, 64, 64), both packed, with the captions' token ids.

    The noise is stored because a student that reproduces the teacher's map from noise to picture needs both ends of it
    (2209.03003, section 2.3).
    """

    noise: Tensor
    clean: Tensor
    clip_ids: Tensor
    t5_ids: Tensor

    def __len__(self) -> int:
        return len(self.noise)

    def to(self, device: torch.device) -> Pairs:
        """The same pairs on a device."""
        return Pairs(*(getattr(self, f.name).to(device) for f in dataclasses.fields(self)))

    def save(self, path: Path) -> None:
        """Write to one file, atomically."""
        part = path.with_suffix(".part")
        save_file({f.name: getattr(self, f.name).cpu().contiguous() for f in dataclasses.fields(self)}, part)
        part.rename(path)

    @staticmethod
    def load(path: Path) -> Pairs:
        """Read what `save` wrote."""
        return Pairs(**load_file(path))

    @torch.no_grad()
    def embed(self, model: Denoiser, batch: int = 4096) -> tuple[Tensor, Tensor]:
        """Encode all captions: pooled (N, d) and sequence (N, L, e), on the pairs' device, in bfloat16 on a GPU.

        The text encoders are frozen during the distillation, so this is done once.
        """
        cuda = self.noise.is_cuda
        parts = []
        for start in range(0, len(self), batch):
            rows = slice(start, start + batch)
            with torch.autocast(self.noise.device.type, torch.bfloat16, enabled=cuda):
                encoded = model.encode(self.clip_ids[rows].long(), self.t5_ids[rows].long())
            parts.append(tuple(part.to(torch.bfloat16 if cuda else torch.float32) for part in encoded))
        pooled, sequence = zip(*parts, strict=True)
        return torch.cat(pooled), torch.cat(sequence)


@torch.no_grad()
def draw_pairs(preset: Preset, out: Path, rank: Rank) -> Pairs:
    """Sample the teacher in `out` with guidance on training captions; saves `pairs.safetensors`.

    Held-out combinations are excluded, since a student trained on them could only show that it copies.
    """
    distillation, device = preset.distillation, rank.device
    log, began = Log(out / "pairs.jsonl", rank), time.perf_counter()
    tokens = Tokens.of(preset.sizes)
    captions = out / "words.safetensors"  # stored, since drawing the captions takes longer than sampling
    if not captions.exists():
        chunks = list(draw_chunks(distillation.pairs, 4000 + rank.index, preset.sizes))
        ids = {name: torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("clip_ids", "t5_ids")}
        save_file(ids, captions)
    clip_ids, t5_ids = (load_file(captions)[name].to(device).int() for name in ("clip_ids", "t5_ids"))
    empty_clip, empty_t5 = (ids.to(device) for ids in tokens([""]))
    model = load_denoiser(preset.sizes, out).to(device)
    if device.type == "cuda":
        model.compile()
    log(captions=len(clip_ids), seconds=time.perf_counter() - began)
    sigmas = schedule(distillation.teacher_steps)
    generator = torch.Generator(device).manual_seed(5000 + rank.index)
    noises, cleans = [], []
    batch = min(distillation.teacher_batch, len(clip_ids))
    for start in range(0, len(clip_ids) - batch + 1, batch):  # full batches only: one shape to compile
        rows = slice(start, start + batch)
        noise = torch.randn(batch, 16, 16, 16, generator=generator, device=device).half()  # as it is stored
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            clean = sample(
                model,
                clip_ids[rows],
                t5_ids[rows],
                noise.float(),
                sigmas,
                guidance=distillation.guidance,
                empty=(empty_clip, empty_t5),
            )
        noises.append(pack(noise))
        cleans.append(pack(clean).half())
    count = len(noises) * batch
    pairs = Pairs(torch.cat(noises), torch.cat(cleans), clip_ids[:count].short(), t5_ids[:count].short())
    if rank.first:
        pairs.save(out / "pairs.safetensors")
    log(pairs=count, steps=len(sigmas) - 1, guidance=distillation.guidance, seconds=time.perf_counter() - began)
    return pairs
