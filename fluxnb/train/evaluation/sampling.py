"""Fixed scenes and noise for evaluations, and samplers from captions and noise to pictures."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.flow import schedule
from fluxnb.train.data.render import Renderer, lay_out
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.data.world import Scene, draw_scene
from fluxnb.train.networks.denoiser import Denoiser, sample
from fluxnb.train.networks.judge import Attributes, layout_attributes


@dataclasses.dataclass(frozen=True)
class Samples:
    """Pictures (N, 3, 128, 128) in [-1, 1] and latents (N, 16, 16, 16) of a model.

    `noise_rms` (N,) is the root mean square of the noise estimate before the last step; its correct value is 1.
    """

    pictures: Tensor
    latents: Tensor
    noise_rms: Tensor


#: captions (N) and noise (N, 16, 16, 16) to samples.
Sampler = Callable[[list[str], Tensor], Samples]


def make_sampler(
    model: Denoiser,
    vae: AutoencoderKL,
    tokens: Tokens,
    *,
    device: torch.device,
    steps: int,
    guidance: float = 1.0,
    batch: int = 512,
) -> Sampler:
    """A sampler that takes Euler steps of equal size; `guidance` 1 is none."""
    sigmas = schedule(steps)
    empty_clip, empty_t5 = (ids.to(device) for ids in tokens([""]))

    @torch.no_grad()
    def sampler(captions: list[str], noise: Tensor) -> Samples:
        parts = []
        for start in range(0, len(captions), batch):
            clip_ids, t5_ids = (ids.to(device) for ids in tokens(captions[start : start + batch]))
            x = noise[start : start + batch].to(device)
            options = {"guidance": guidance, "empty": (empty_clip, empty_t5)}
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                # The last step is separate, so that the noise estimate before it is available: noise = clean + v.
                x = sample(model, clip_ids, t5_ids, x, sigmas[:-1], **options)
                clean = sample(model, clip_ids, t5_ids, x, sigmas[-2:], **options)
            noise_estimate = clean.float() + (x.float() - clean.float()) / sigmas[-2]
            rms = noise_estimate.square().mean((1, 2, 3)).sqrt()
            parts.append(Samples(decode(vae, clean.float()), clean.float(), rms))
        return Samples(*(torch.cat([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Samples)))

    return sampler


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch: int = 256) -> Tensor:
    """Decode latents (N, 16, h, w) to pictures (N, 3, 8h, 8w) in [-1, 1]."""
    return torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in latents.split(batch)])


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor, batch: int = 256) -> Tensor:
    """Encode and decode pictures; the result bounds the quality of any model on these latents."""
    return torch.cat([decode(vae, vae.encode(part).latent_dist.mean) for part in pictures.split(batch)])


def fixed_scenes(count: int, seed: int, *, held_out: bool) -> list[Scene]:
    """The scenes of a seed, the same for every model."""
    rng = random.Random(f"ask/{seed}/{held_out}")
    return [draw_scene(rng, held_out=held_out) for _ in range(count)]


def fixed_noise(count: int, seed: int, channels: int = 16, side: int = 16) -> Tensor:
    """The initial noise of a seed (count, channels, side, side), the same for every model."""
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def render_scenes(renderer: Renderer, scenes: list[Scene], rng: random.Random, batch: int = 512) -> Tensor:
    """Render any number of scenes with random layouts."""
    layout = lay_out(scenes, rng)
    return torch.cat([renderer(layout[start : start + batch]) for start in range(0, len(scenes), batch)])


def correctness(predicted: Attributes, scenes: list[Scene]) -> dict[str, np.ndarray]:
    """Which attributes of the scenes the judge finds in the pictures.

    Returns:
        Boolean flags for each factor, one per scene that has the factor. `object` requires all named objects,
        `relation` the arrangement and the order of two objects, `sign` all letters and `everything` all factors;
        `letters` has one flag per letter.
    """
    target = layout_attributes(lay_out(scenes, random.Random(0)))  # used only for what a scene determines
    predicted = Attributes(*(getattr(predicted, f.name).cpu() for f in dataclasses.fields(Attributes)))
    target_pairs = torch.stack((target.first, target.second), 1).sort(1).values
    predicted_pairs = torch.stack((predicted.first, predicted.second), 1).sort(1).values
    objects = (target_pairs == predicted_pairs).all(1)
    background = predicted.background == target.background
    sign = torch.tensor([s.sign is not None for s in scenes])
    unordered = torch.tensor([s.relation == "and" for s in scenes])
    ordered = (predicted.first == target.first) & (predicted.arrangement == target.arrangement)
    relation = torch.where(unordered, predicted.arrangement == 1, ordered)
    related = torch.tensor([s.relation is not None for s in scenes])
    written = target.letters > 0
    spelled = (predicted.letters == target.letters).all(1)
    everything = objects & background & torch.where(related, relation, predicted.arrangement == target.arrangement)
    everything &= spelled | ~sign
    flags = {
        "object": objects,
        "background": background,
        "relation": relation[related],
        "letters": (predicted.letters == target.letters)[written],
        "sign": spelled[sign],
        "everything": everything,
    }
    return {name: flag.numpy() for name, flag in flags.items()}
