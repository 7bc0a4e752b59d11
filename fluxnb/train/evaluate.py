"""How good a pocket model is, by the judge, with the ceiling beside every figure."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.flow import schedule
from fluxnb.train import world
from fluxnb.train.judge import Answers, Judge, read, truth
from fluxnb.train.objective import Denoiser
from fluxnb.train.render import Renderer, lay_out
from fluxnb.train.teacher import Tokens, sample
from fluxnb.train.world import Scene, draw_scene

#: captions (N) and noise (N, 16, 16, 16) to pictures (N, 3, 128, 128) in [-1, 1].
Painter = Callable[[list[str], Tensor], Tensor]


def painter(
    model: Denoiser,
    vae: AutoencoderKL,
    tokens: Tokens,
    device: torch.device,
    *,
    steps: int,
    guidance: float,
    batch: int = 512,
) -> Painter:
    """Ask a denoiser for pictures of captions; the plain way of saying each."""
    sigmas = schedule(steps)
    nothing = tuple(ids.to(device) for ids in tokens([""]))

    @torch.no_grad()
    def paint(captions: list[str], noise: Tensor) -> Tensor:
        pictures = []
        for start in range(0, len(captions), batch):
            clip, t5 = (ids.to(device) for ids in tokens(captions[start : start + batch]))
            part = noise[start : start + batch].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                latents = sample(model, clip, t5, part, sigmas, guidance=guidance, nothing=nothing)
            pictures.append(vae.decode(latents.float()).sample.clamp(-1, 1))
        return torch.cat(pictures)

    return paint


def scenes_to_ask(count: int, seed: int, *, held_out: bool) -> list[Scene]:
    """The fixed scenes that every model is asked for."""
    rng = random.Random(f"ask/{seed}/{held_out}")
    return [draw_scene(rng, held_out=held_out) for _ in range(count)]


def noise_for(count: int, seed: int, channels: int = 16, side: int = 16) -> Tensor:
    """The fixed noise that every model starts from, (count, channels, side, side)."""
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


@dataclasses.dataclass(frozen=True)
class Score:
    """Share of pictures, each with its 95 % half-width, in which something is as asked.

    `object` wants every named object; `relation` wants the arrangement and the order of two;
    `letters` counts letters and `sign` whole signs; `everything` is the strict one.
    """

    n: int
    object: float
    background: float
    relation: float
    letters: float
    sign: float
    everything: float
    half_width: dict[str, float]


def score(answers: Answers, scenes: list[Scene]) -> Score:
    """Compare what the judge sees with what was asked, factor by factor."""
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
    shares = {
        "object": objects,
        "background": background,
        "relation": relation[related],
        "letters": (given.letters == wanted.letters)[there],
        "sign": spelled[sign],
        "everything": everything,
    }
    values = {name: float(hits.float().mean()) if len(hits) else float("nan") for name, hits in shares.items()}
    widths = {
        name: 1.96 * (values[name] * (1 - values[name]) / max(1, len(hits))) ** 0.5 for name, hits in shares.items()
    }
    return Score(n=len(scenes), half_width=widths, **values)


def frechet(one: Tensor, other: Tensor) -> float:
    """Fréchet distance between Gaussians fitted to two sets of features (N, d) (FID, 1706.08500); N well above d."""
    a, b = one.double().cpu().numpy(), other.double().cpu().numpy()
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The trace of the root of a product of two symmetric matrices, from eigenvalues alone.
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ cov_b @ root).clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def evaluate(judge: Judge, renderer: Renderer, paint: dict[str, Painter], *, count: int = 2048, seed: int = 7) -> dict:
    """Scores of every painter on seen and held-out scenes, beside renders and their own distance.

    Every painter gets the same captions and the same noise, so differences between them are paired.
    """
    table: dict[str, dict] = {}
    asked = {"seen": scenes_to_ask(count, seed, held_out=False), "held_out": scenes_to_ask(count, seed, held_out=True)}
    noise = noise_for(count, seed)
    rng = random.Random(seed)
    real = {name: renderer(lay_out(scenes, rng)) for name, scenes in asked.items()}
    again = read(judge, renderer(lay_out(asked["seen"], rng)))[1]
    reference = {}
    rows: dict[str, Any] = {}
    for name, scenes in asked.items():
        answers, reference[name] = read(judge, real[name])
        rows[name] = dataclasses.asdict(score(answers, scenes))
    table["renders"] = {**rows, "fd": frechet(again, reference["seen"])}
    for label, painted in paint.items():
        rows = {}
        for name, scenes in asked.items():
            answers, features = read(judge, painted([scene.caption() for scene in scenes], noise))
            rows[name] = dataclasses.asdict(score(answers, scenes))
            if name == "seen":
                rows["fd"] = frechet(features, reference["seen"])
        table[label] = rows
    return table


def by_object(answers: Answers, scenes: list[Scene]) -> dict[str, float]:
    """Object accuracy of each name over scenes of one object, to find the weak ones."""
    hits: dict[str, list[bool]] = {name: [] for name in world.NAMES}
    for scene, first in zip(scenes, answers.first.tolist(), strict=True):
        if len(scene.objects) == 1:
            hits[scene.objects[0]].append(world.NAMES[first] == scene.objects[0])
    return {name: sum(h) / len(h) for name, h in hits.items() if h}
