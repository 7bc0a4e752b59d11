"""Ask a model for pictures of scenes, and say factor by factor whether they show what was asked."""

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
from fluxnb.train.evaluation.judge import Answers, truth
from fluxnb.train.stages.objective import Denoiser
from fluxnb.train.stages.teacher import sample


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a model answered: pictures (N, 3, 128, 128) in [-1, 1] and latents (N, 16, 16, 16).

    `noise_rms` (N,) is the size of the noise that the model believes to be left before its last step; 1 is right.
    """

    pictures: Tensor
    latents: Tensor
    noise_rms: Tensor


#: captions (N) and noise (N, 16, 16, 16) to what is drawn.
Painter = Callable[[list[str], Tensor], Drawn]


def painter(
    model: Denoiser,
    vae: AutoencoderKL,
    tokens: Tokens,
    device: torch.device,
    *,
    steps: int,
    guidance: float = 1.0,
    batch: int = 512,
) -> Painter:
    """Ask a denoiser for pictures of captions by Euler steps of equal size, `guidance` 1 for none."""
    sigmas = schedule(steps)
    nothing = tuple(ids.to(device) for ids in tokens([""]))

    @torch.no_grad()
    def paint(captions: list[str], noise: Tensor) -> Drawn:
        parts = []
        for start in range(0, len(captions), batch):
            words = tuple(ids.to(device) for ids in tokens(captions[start : start + batch]))
            x = noise[start : start + batch].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                # The last step alone, so that what was believed before it can be read: noise = clean + v.
                x = sample(model, *words, x, sigmas[:-1], guidance=guidance, nothing=nothing)
                clean = sample(model, *words, x, sigmas[-2:], guidance=guidance, nothing=nothing)
            believed = clean.float() + (x.float() - clean.float()) / sigmas[-2]
            rms = believed.square().mean((1, 2, 3)).sqrt()
            parts.append(Drawn(decode(vae, clean.float()), clean.float(), rms))
        return Drawn(*(torch.cat([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Drawn)))

    return paint


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch: int = 256) -> Tensor:
    """Latents (N, 16, h, w) as pictures (N, 3, 8h, 8w) in [-1, 1]."""
    return torch.cat([vae.decode(part).sample.clamp(-1, 1) for part in latents.split(batch)])


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pictures: Tensor, batch: int = 256) -> Tensor:
    """Pictures through the autoencoder and back: the best that any model in its latents can do."""
    return torch.cat([decode(vae, vae.encode(part).latent_dist.mean) for part in pictures.split(batch)])


def scenes_to_ask(count: int, seed: int, *, held_out: bool) -> list[Scene]:
    """The fixed scenes that every model is asked for."""
    rng = random.Random(f"ask/{seed}/{held_out}")
    return [draw_scene(rng, held_out=held_out) for _ in range(count)]


def noise_for(count: int, seed: int, channels: int = 16, side: int = 16) -> Tensor:
    """The fixed noise that every model starts from, (count, channels, side, side)."""
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def hits(answers: Answers, scenes: list[Scene]) -> dict[str, np.ndarray]:
    """Whether the judge sees what was asked, factor by factor, one flag per scene (per letter) that has the factor.

    `object` wants every named object; `relation` the arrangement and the order of two; `letters` counts letters and
    `sign` whole signs; `everything` is the strict one.
    """
    wanted = truth(lay_out(scenes, random.Random(0)))  # only what a scene fixes is read from it
    given = Answers(*(getattr(answers, f.name).cpu() for f in dataclasses.fields(Answers)))
    pairs_wanted = torch.stack((wanted.first, wanted.second), 1).sort(1).values
    pairs_given = torch.stack((given.first, given.second), 1).sort(1).values
    objects = (pairs_wanted == pairs_given).all(1)
    background = given.background == wanted.background
    sign = torch.tensor([s.sign is not None for s in scenes])
    free = torch.tensor([s.relation == "and" for s in scenes])
    ordered = (given.first == wanted.first) & (given.arrangement == wanted.arrangement)
    relation = torch.where(free, given.arrangement == 1, ordered)
    related = torch.tensor([s.relation is not None for s in scenes])
    there = wanted.letters > 0
    spelled = (given.letters == wanted.letters).all(1)
    everything = objects & background & torch.where(related, relation, given.arrangement == wanted.arrangement)
    everything &= spelled | ~sign
    flags = {
        "object": objects,
        "background": background,
        "relation": relation[related],
        "letters": (given.letters == wanted.letters)[there],
        "sign": spelled[sign],
        "everything": everything,
    }
    return {name: flag.numpy() for name, flag in flags.items()}


def render_scenes(renderer: Renderer, scenes: list[Scene], rng: random.Random, batch: int = 512) -> Tensor:
    """Pictures of any number of scenes."""
    layout = lay_out(scenes, rng)
    return torch.cat([renderer(layout[start : start + batch]) for start in range(0, len(scenes), batch)])
