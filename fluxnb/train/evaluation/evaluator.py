"""The evaluator: samples each setting of a model on the same inputs and measures its pictures."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.train.data.render import Renderer
from fluxnb.train.data.world import BACKGROUNDS, NAMES, Scene, draw_scene
from fluxnb.train.evaluation.features import BoxReader, RandomFeatures
from fluxnb.train.evaluation.sampling import Sampler, Samples, correctness, fixed_noise, fixed_scenes, render_scenes
from fluxnb.train.evaluation.statistics import Estimate, wilson
from fluxnb.train.metrics import alignment, entropy, frechet, gradient_energy, median_distance, vendi
from fluxnb.train.networks.judge import Attributes, Judge, classify

SPLITS = ("seen", "held_out")
HELLO = Scene(("cat",), "white", sign="hello world")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Size of an evaluation.

    Attributes:
        count: scenes per sampling seed and split.
        seeds: number of sampling seeds, from `first_seed` on.
        prompts: prompts of the diversity measurement.
        noises: pictures per prompt of the diversity measurement.
        first_seed: the first sampling seed.
    """

    count: int = 1700
    seeds: int = 3
    prompts: int = 64
    noises: int = 64
    first_seed: int = 7

    @property
    def all_seeds(self) -> range:
        """The sampling seeds."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def describe(self) -> str:
        """The size in words, for the caption of a table."""
        few = "" if self.count >= 10 * 128 else "; too few scenes for the FDs, which use 128 features"
        return (
            f"{self.count} seen and {self.count} held-out scenes from each of {self.seeds} sampling seeds; "
            f"diversity over {self.noises} pictures of each of {self.prompts} prompts; 95 % intervals{few}"
        )


@dataclasses.dataclass(frozen=True)
class Scores:
    """Measurements of the pictures of one setting, one sampling seed and one split.

    Attributes:
        correct: flags of `correctness`.
        numbers: distances, gradient energy and, for samples, the noise estimate's root mean square.
        mean, std: moments of each latent channel, (16,); empty for pictures without latents.
    """

    correct: dict[str, np.ndarray]
    numbers: dict[str, float]
    mean: np.ndarray
    std: np.ndarray


@dataclasses.dataclass(frozen=True)
class Diversity:
    """Variation over what captions leave open, one number per prompt; renders have no alignment."""

    entropy: np.ndarray
    vendi: np.ndarray
    align: np.ndarray | None


class Evaluator:
    """Samples and measures settings; what does not depend on a setting is computed once.

    Args:
        judge: reads the pictures.
        renderer: renders the reference pictures; its device is used.
        vae: decodes latents.
        config: size of the evaluation.
    """

    def __init__(self, judge: Judge, renderer: Renderer, vae: AutoencoderKL, config: EvalConfig):
        self.judge, self.renderer, self.vae, self.config = judge, renderer, vae, config
        self.random_features = RandomFeatures(renderer.device)
        self.scenes = {
            (seed, split): fixed_scenes(config.count, seed, held_out=split == "held_out")
            for seed in config.all_seeds
            for split in SPLITS
        }
        rng = random.Random("reference")
        others = [draw_scene(rng) for _ in range(3 * config.count)]
        rendered = render_scenes(renderer, others, rng)
        self.reference = classify(judge, rendered)[1], self.random_features(rendered)
        del rendered
        self.open_prompts = open_prompts(config.prompts)
        self.boxes = BoxReader(judge, renderer, min(512, 2 * config.count))
        true = self._open_renders()
        self.edges = self.boxes(true).view(config.prompts, config.noises, 3)
        self.edges = self.edges.quantile(torch.tensor((0.25, 0.5, 0.75), device=self.edges.device), dim=1)
        features = classify(judge, true)[1].view(config.prompts, config.noises, -1)
        self.widths = [median_distance(rows) for rows in features]

    def render(self, seed: int, split: str) -> Tensor:
        """Renders of the scenes of a seed."""
        return render_scenes(self.renderer, self.scenes[seed, split], random.Random(f"{seed}/{split}"))

    def sample(self, sampler: Sampler, seed: int, split: str) -> Samples:
        """Sample the scenes of a seed."""
        captions = [scene.caption() for scene in self.scenes[seed, split]]
        # Each split has its own noise, so that favorable noise does not count twice.
        return sampler(captions, fixed_noise(len(captions), 2 * seed + SPLITS.index(split)))

    def score(self, seed: int, split: str, samples: Samples | Tensor) -> Scores:
        """Measure samples, or pictures without latents, of the scenes of a seed."""
        pictures = samples if isinstance(samples, Tensor) else samples.pictures
        predicted, features = classify(self.judge, pictures)
        numbers = {
            "fd": frechet(features, self.reference[0]),
            "fd_untrained": frechet(self.random_features(pictures), self.reference[1]),
            "energy": float(gradient_energy(pictures).mean()),
        }
        correct = correctness(predicted, self.scenes[seed, split])
        if isinstance(samples, Tensor):
            return Scores(correct, numbers, np.empty(0), np.empty(0))
        numbers["noise_rms"] = float(samples.noise_rms.mean())
        moments = (samples.latents.mean((0, 2, 3)), samples.latents.std((0, 2, 3)))
        mean, std = (values.cpu().numpy() for values in moments)
        return Scores(correct, numbers, mean, std)

    def diversity(self, sampler: Sampler | None) -> Diversity:
        """Sample each open prompt with many noises and measure the variation; None measures renders instead."""
        prompts, noises = self.config.prompts, self.config.noises
        noise = fixed_noise(prompts * noises, 1_000 + self.config.first_seed)
        if sampler is None:
            pictures, align = self._open_renders(seed=1), None
        else:
            captions = [
                scene.caption(with_background=background) for scene, background in self.open_prompts
                for _ in range(noises)
            ]  # fmt: skip
            samples = sampler(captions, noise)
            pictures, latents = samples.pictures, samples.latents.cpu().view(prompts, noises, -1)
            align = alignment(noise.view(prompts, noises, -1), latents).numpy()
        predicted, features = classify(self.judge, pictures)
        boxes = self.boxes(pictures).view(prompts, noises, 3)
        features = features.view(prompts, noises, -1)
        entropies = [self._entropy(index, predicted, boxes[index]) for index in range(prompts)]
        scores = [vendi(rows, width) for rows, width in zip(features, self.widths, strict=True)]
        return Diversity(np.array(entropies), np.array(scores), align)

    def _entropy(self, index: int, predicted: Attributes, boxes: Tensor) -> float:
        """Entropy of what the open prompt `index` leaves open; boxes (noises, 3) are binned by quartiles of renders."""
        scene, background = self.open_prompts[index]
        rows = slice(index * self.config.noises, (index + 1) * self.config.noises)
        codes = [] if background else [predicted.background[rows]]
        if scene.relation == "and":
            codes.append(predicted.first[rows] == NAMES.index(scene.objects[0]))
        elif scene.sign is None:
            codes += list((boxes[:, :, None] > self.edges[:, index].T[None]).sum(2).unbind(1))
        return sum(entropy(code) for code in codes)

    def hello_world(self, sampler: Sampler, seeds: int = 16) -> Estimate:
        """Share of legible "hello world" signs with the noise of seeds 0, 1, ... of `fnb.run`."""
        noise = torch.cat([fixed_noise(1, seed) for seed in range(seeds)])
        predicted, _ = classify(self.judge, sampler([HELLO.caption(with_background=False)] * seeds, noise).pictures)
        right = correctness(predicted, [HELLO] * seeds)["sign"]
        return wilson(int(right.sum()), seeds)

    def _open_renders(self, seed: int = 0) -> Tensor:
        rng = random.Random(f"free/{seed}")
        scenes = [
            scene if background else dataclasses.replace(scene, background=rng.choice(_seen_backgrounds(scene)))
            for scene, background in self.open_prompts
            for _ in range(self.config.noises)
        ]
        return render_scenes(self.renderer, scenes, rng)


def open_prompts(count: int) -> list[tuple[Scene, bool]]:
    """Scenes whose captions leave something open, and whether the caption names the background.

    Four kinds alternate. Open are: the background if it is not named, position and size of a single object, and the
    order of two objects joined by "and".
    """
    rng, prompts = random.Random("free"), []
    for index in range(count):
        kind = index % 4
        while True:
            background = rng.choice(BACKGROUNDS)
            names = tuple(rng.sample(NAMES, 2 if kind == 2 else 1))
            scene = Scene(names, background, relation="and" if kind == 2 else None, sign="open" if kind == 3 else None)
            if not scene.held_out:
                break
        prompts.append((scene, kind == 1))
    return prompts


def _seen_backgrounds(scene: Scene) -> list[str]:
    return [place for place in BACKGROUNDS if not dataclasses.replace(scene, background=place).held_out]
