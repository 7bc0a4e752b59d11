"""The examiner: asks every setting of a model the same, and reads from its pictures all that can be read."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.train.data.render import Renderer
from fluxnb.train.data.world import BACKGROUNDS, NAMES, Scene, draw_scene
from fluxnb.train.evaluation.ask import Drawn, Painter, hits, noise_for, render_scenes, scenes_to_ask
from fluxnb.train.evaluation.features import Places, Untrained
from fluxnb.train.evaluation.judge import Judge, read
from fluxnb.train.evaluation.measure import (
    Estimate,
    alignment,
    entropy,
    frechet,
    gradient_energy,
    usual_distance,
    vendi,
    wilson,
)

PARTS = ("seen", "held_out")
HELLO = Scene(("cat",), "white", sign="hello world")


@dataclasses.dataclass(frozen=True)
class Asked:
    """How much is asked: `count` scenes per sampling seed and part; `prompts` of `noises` pictures for diversity."""

    count: int = 1700
    seeds: int = 3
    prompts: int = 64
    noises: int = 64
    first_seed: int = 7

    @property
    def every_seed(self) -> range:
        """The sampling seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def words(self) -> str:
        """How much was asked, for the reader of a table."""
        few = "" if self.count >= 10 * 128 else "; too few scenes for the FDs, whose features are 128"
        return (
            f"{self.count} scenes, seen and held out each, from each of {self.seeds} sampling seeds; "
            f"diversity over {self.noises} pictures of each of {self.prompts} prompts; 95 % intervals{few}"
        )


@dataclasses.dataclass(frozen=True)
class Marks:
    """What is read from the pictures of one setting, one sampling seed and one part.

    `mean` and `std` are those of each latent channel, (16,), and empty for pictures that no model drew.
    """

    hits: dict[str, np.ndarray]
    numbers: dict[str, float]
    mean: np.ndarray
    std: np.ndarray


@dataclasses.dataclass(frozen=True)
class Freedom:
    """What a setting does with what a caption leaves open, one number per prompt: entropy, Vendi score, alignment."""

    entropy: np.ndarray
    vendi: np.ndarray
    align: np.ndarray | None


class Examiner:
    """Asks and reads; everything that does not depend on a setting is drawn once.

    Arguments:
        judge, renderer, vae: what reads, what draws the truth, and what a latent is decoded with.
        asked: how much.
    """

    def __init__(self, judge: Judge, renderer: Renderer, vae: AutoencoderKL, asked: Asked):
        self.judge, self.renderer, self.vae, self.asked = judge, renderer, vae, asked
        self.untrained = Untrained(renderer.device)
        self.scenes = {
            (seed, part): scenes_to_ask(asked.count, seed, held_out=part == "held_out")
            for seed in asked.every_seed
            for part in PARTS
        }
        rng = random.Random("reference")
        others = [draw_scene(rng) for _ in range(3 * asked.count)]
        rendered = render_scenes(renderer, others, rng)
        self.reference = self._features(rendered)
        del rendered
        self.questions = free_questions(asked.prompts)
        self.places = Places(judge, renderer, min(512, 2 * asked.count))
        true = self._free_renders()
        self.edges = self.places(true).view(asked.prompts, asked.noises, 3)
        self.edges = self.edges.quantile(torch.tensor((0.25, 0.5, 0.75), device=self.edges.device), dim=1)
        features = read(judge, true)[1].view(asked.prompts, asked.noises, -1)
        self.widths = [usual_distance(rows) for rows in features]

    def render(self, seed: int, part: str) -> Tensor:
        """The pictures that a model would have to draw."""
        return render_scenes(self.renderer, self.scenes[seed, part], random.Random(f"{seed}/{part}"))

    def marks(self, seed: int, part: str, drawn: Drawn | Tensor) -> Marks:
        """Read the pictures that were drawn for the scenes of a seed."""
        pictures = drawn if isinstance(drawn, Tensor) else drawn.pictures
        answers, features = read(self.judge, pictures)
        numbers = {
            "fd": frechet(features, self.reference[0]),
            "fd_untrained": frechet(self.untrained(pictures), self.reference[1]),
            "energy": float(gradient_energy(pictures).mean()),
        }
        found = hits(answers, self.scenes[seed, part])
        if isinstance(drawn, Tensor):
            return Marks(found, numbers, np.empty(0), np.empty(0))
        numbers["noise_rms"] = float(drawn.noise_rms.mean())
        mean, std = (stat.cpu().numpy() for stat in (drawn.latents.mean((0, 2, 3)), drawn.latents.std((0, 2, 3))))
        return Marks(found, numbers, mean, std)

    def draw(self, paint: Painter, seed: int, part: str) -> Drawn:
        """Ask a setting for the scenes of a seed."""
        captions = [scene.caption() for scene in self.scenes[seed, part]]
        # The parts have noise of their own, or a lucky noise would count twice.
        return paint(captions, noise_for(len(captions), 2 * seed + PARTS.index(part)))

    def freedom(self, paint: Painter | None) -> Freedom:
        """Ask for each prompt from many noises; None reads renders instead."""
        prompts, noises = self.asked.prompts, self.asked.noises
        noise = noise_for(prompts * noises, 1_000 + self.asked.first_seed)
        if paint is None:
            pictures, align = self._free_renders(seed=1), None
        else:
            drawn = paint([scene.caption(say_background=said) for scene, said in self.questions for _ in range(noises)],
                          noise)  # fmt: skip
            pictures = drawn.pictures
            align = alignment(noise.view(prompts, noises, -1), drawn.latents.cpu().view(prompts, noises, -1)).numpy()
        answers, features = read(self.judge, pictures)
        boxes = self.places(pictures).view(prompts, noises, 3)
        features = features.view(prompts, noises, -1)
        spread = []
        for index, (scene, said) in enumerate(self.questions):
            here = slice(index * noises, (index + 1) * noises)
            codes = [] if said else [answers.background[here]]
            if scene.relation == "and":
                codes.append(answers.first[here] == NAMES.index(scene.objects[0]))
            elif scene.sign is None:
                codes += list((boxes[index][:, :, None] > self.edges[:, index].T[None]).sum(2).unbind(1))
            spread.append(sum(entropy(code) for code in codes))
        scores = [vendi(rows, width) for rows, width in zip(features, self.widths, strict=True)]
        return Freedom(np.array(spread), np.array(scores), align)

    def hello(self, paint: Painter, seeds: int = 16) -> Estimate:
        """How often the words of a sign can be read, from the noises that the seeds 0, 1, ... mean in `fnb.run`."""
        noise = torch.cat([noise_for(1, seed) for seed in range(seeds)])
        answers, _ = read(self.judge, paint([HELLO.caption(say_background=False)] * seeds, noise).pictures)
        right = hits(answers, [HELLO] * seeds)["sign"]
        return wilson(int(right.sum()), seeds)

    def _features(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        return read(self.judge, pictures)[1], self.untrained(pictures)

    def _free_renders(self, seed: int = 0) -> Tensor:
        rng = random.Random(f"free/{seed}")
        scenes = [
            scene if said else dataclasses.replace(scene, background=rng.choice(_seen_backgrounds(scene)))
            for scene, said in self.questions
            for _ in range(self.asked.noises)
        ]
        return render_scenes(self.renderer, scenes, rng)


def free_questions(prompts: int) -> list[tuple[Scene, bool]]:
    """Scenes whose caption leaves something open, and whether it says the background; four kinds in turn.

    Open are: the background where it is unsaid; place and size of a single object; who stands left in "and".
    """
    rng, questions = random.Random("free"), []
    for index in range(prompts):
        kind = index % 4
        while True:
            background = rng.choice(BACKGROUNDS)
            names = tuple(rng.sample(NAMES, 2 if kind == 2 else 1))
            scene = Scene(names, background, relation="and" if kind == 2 else None, sign="open" if kind == 3 else None)
            if not scene.held_out:
                break
        questions.append((scene, kind == 1))
    return questions


def _seen_backgrounds(scene: Scene) -> list[str]:
    return [place for place in BACKGROUNDS if not dataclasses.replace(scene, background=place).held_out]
