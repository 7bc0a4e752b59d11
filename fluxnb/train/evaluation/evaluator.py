"""Measure teacher and students against the distribution of their training data.

What a caption specifies is read from the pictures by the judge. What it leaves open has a known distribution
(`chances`), so that the diversity of a model within a prompt, and its planted shares, are compared with it. `report`
computes the results.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.train.config import Preset
from fluxnb.train.data import captions, chances
from fluxnb.train.data.drawing import Renderer
from fluxnb.train.data.layouts import Shape, lay_out
from fluxnb.train.data.nouns import NOUNS, PEOPLE
from fluxnb.train.data.scenes import BACKDROPS, Scene, Thing, complete
from fluxnb.train.data.stream import draw_pairs
from fluxnb.train.data.vocabulary import CLIP_USED, Tokenizers
from fluxnb.train.metrics import frechet
from fluxnb.train.networks.denoiser import Denoiser, load_denoiser, sample, with_transformer
from fluxnb.train.networks.judge import GENDERS, Attributes, classify, correctness, load_judge, read_layouts
from fluxnb.train.stages.loop import Rank

SPLITS = ("seen", "held_out")
RENDERS = "renders"  # the setting of the upper bound
TEACHER = "teacher-28"
GUIDANCES = (1.0, 1.5, 2.5)  # at which the teacher's planted shares are measured
BATCH = 256
Job = Callable[[], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model with its number of steps.

    Attributes:
        name: in tables and files.
        transformer: name of a student's file; None for the teacher.
        steps, guidance: of the sampling.
    """

    name: str
    transformer: str | None
    steps: int
    guidance: float = 1.0


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of an evaluation.

    Attributes:
        count: captions per sampling seed and split.
        seeds: number of sampling seeds.
        prompts, noises: of the diversity within a prompt.
        shares: pictures of each prompt with a planted share.
    """

    count: int = 1700
    seeds: int = 3
    prompts: int = 32
    noises: int = 64
    shares: int = 64


@dataclasses.dataclass(frozen=True)
class Planted:
    """A prompt whose pictures have a planted distribution: `share` of them have the class `value` of `attribute`."""

    name: str
    scene: Scene
    attribute: str
    value: int
    share: float


def planted() -> list[Planted]:
    """Typical places, and the women among twelve professions from the lowest to the highest share."""
    places = [
        Planted(f"{noun}: {place}", Scene((Thing(noun),)), "backdrop", BACKDROPS.index(place), share)
        for noun, (place, share) in chances.PLANTED_PLACES.items()
    ]
    people = sorted((noun for noun in PEOPLE if Thing(noun).gendered), key=lambda noun: (NOUNS[noun].women or 0, noun))
    chosen = [people[round(index * (len(people) - 1) / 11)] for index in range(12)]
    woman = GENDERS.index("woman")
    return places + [
        Planted(f"{noun}: women", Scene((Thing(noun),)), "gender", woman, NOUNS[noun].women or 0.0)
        for noun in dict.fromkeys(chosen)
    ]


def open_prompts(count: int) -> list[Scene]:
    """Scenes of one noun that specify nothing else; the nouns are spread over the whole vocabulary."""
    names = tuple(NOUNS)
    chosen = ["cat", *(names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count))]
    return [Scene((Thing(noun),)) for noun in list(dict.fromkeys(chosen))[:count]]


class Sampler:
    """Samples pictures of captions at the default size, on one device.

    Arguments:
        teacher: with the text encoders of all settings.
        vae: decodes the latents.
        shape: of the pictures.
    """

    def __init__(self, teacher: Denoiser, vae: AutoencoderKL, shape: Shape):
        self.teacher, self.vae, self.shape = teacher, vae, shape
        self.device = next(teacher.parameters()).device
        self.tokenizers = Tokenizers()

    @torch.no_grad()
    def __call__(self, model: Denoiser, scenes: list[Scene], seed: int, *, steps: int, guidance: float) -> Tensor:
        """Pictures (N, 3, height, width) in [-1, 1], on the CPU, of the canonical captions; noise by the seed."""
        cuda, ids = self.device.type == "cuda", self.tokenizers([captions.caption(scene) for scene in scenes])
        empty_clip, empty_t5 = (each.to(self.device) for each in self.tokenizers([""]))
        size = (len(scenes), 16, self.shape.height // 8, self.shape.width // 8)
        noise = torch.randn(size, generator=torch.Generator().manual_seed(seed))
        pictures = []
        for rows in torch.arange(len(scenes)).split(BATCH):
            clip, t5, z = (each[rows].to(self.device) for each in (*ids, noise))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=cuda):
                empty = (empty_clip[:, :CLIP_USED], empty_t5)
                latents = sample(model, clip[:, :CLIP_USED], t5, z, steps, guidance=guidance, empty=empty)
            decoded = [self.vae.decode(part.float()).sample for part in latents.split(64)]
            pictures.append(torch.cat(decoded).clamp(-1, 1).cpu())
        return torch.cat(pictures)


class Evaluator:
    """Measures settings; every measurement is a file in `out`/evaluation, and one that exists is not repeated.

    Arguments:
        preset: sizes of the networks.
        out: folder of the run, with vae, teacher, judge and students.
        size: of the evaluation.
        device: that computes.
    """

    def __init__(self, preset: Preset, out: Path, size: Size, device: torch.device):
        self.preset, self.out, self.size, self.device = preset, out, size, device
        side = preset.sizes.default_size
        self.shape, self.renderer = Shape(side, side), Renderer(device)
        self.judge = load_judge(out / "judge.safetensors", preset, device)
        self.teacher = load_denoiser(preset.sizes, out / "teacher.safetensors").to(device)
        vae = AutoencoderKL.from_pretrained(out / "vae").eval().to(device)
        self.sampler = Sampler(self.teacher, vae, self.shape)
        self.models: dict[str | None, Denoiser] = {None: self.teacher}
        (out / "evaluation").mkdir(exist_ok=True)

    def settings(self) -> list[Setting]:
        """The teacher, and each student that the folder has."""
        guidance = self.preset.distillation.guidance
        found = [Setting(TEACHER, None, 28, guidance), Setting("teacher-4", None, 4, guidance)]
        for name in ("student", "ladd", "warm"):
            if (self.out / f"{name}.safetensors").exists():
                found += [Setting(f"{name}-{steps}", name, steps) for steps in (4, 1)]
        return found

    def jobs(self) -> list[tuple[str, Job]]:
        """All measurements by name; they do not depend on each other."""
        seeds, settings = [(seed, split) for seed in range(self.size.seeds) for split in SPLITS], self.settings()
        jobs: list[tuple[str, Job]] = [
            (f"{RENDERS}.open", partial(self.openness, None)),
            (f"{RENDERS}.planted", partial(self.planted, None)),
        ]
        for setting in (None, *settings):
            name = RENDERS if setting is None else setting.name
            jobs += [(f"{name}.{split}.{seed}", partial(self.adherence, setting, seed, split)) for seed, split in seeds]
        for setting in settings:
            jobs.append((f"{setting.name}.open", partial(self.openness, setting)))
            jobs.append((f"{setting.name}.planted", partial(self.planted, setting)))
        for guidance in GUIDANCES:
            setting = Setting(f"{TEACHER} at {guidance}", None, 28, guidance)
            jobs.append((f"{setting.name}.planted", partial(self.planted, setting)))
        return jobs

    def run(self, rank: Rank) -> None:
        """Measure this rank's part of the jobs."""
        for name, job in self.jobs()[rank.index :: rank.world]:
            path = self.out / "evaluation" / f"{name}.npz"
            if not path.exists():
                np.savez(path.with_suffix(".part.npz"), **job())  # type: ignore[arg-type]
                path.with_suffix(".part.npz").rename(path)
        rank.broadcast(0.0)

    def adherence(self, setting: Setting | None, seed: int, split: str) -> dict[str, np.ndarray]:
        """Flags of `correctness` and features for the pictures of one seed and split; without a setting, of renders."""
        scenes, _, layout = draw_pairs(self.shape, 70_000 + seed, 0, self.size.count, split == "held_out")
        if setting is None:
            read, features = read_layouts(self.judge, self.renderer, layout)
            others = self._rendered(scenes, seed)[1]  # further pictures of the captions, for the Fréchet distance
            return correctness(scenes, read) | {"features": _array(features), "others": _array(others)}
        read, features = self._read(setting, scenes, seed)
        return correctness(scenes, read) | {"features": _array(features)}

    def openness(self, setting: Setting | None) -> dict[str, np.ndarray]:
        """Style, backdrop and features of many pictures of prompts that specify only a noun: (prompts, noises, ...)."""
        scenes = [scene for scene in open_prompts(self.size.prompts) for _ in range(self.size.noises)]
        read, features = self._rendered(scenes, 5) if setting is None else self._read(setting, scenes, 9)
        found = {"style": _array(read.style), "backdrop": _array(read.backdrop), "features": _array(features)}
        return {name: values.reshape(-1, self.size.noises, *values.shape[1:]) for name, values in found.items()}

    def planted(self, setting: Setting | None) -> dict[str, np.ndarray]:
        """For each prompt of `planted`, how many of its pictures have the planted value; without a setting, renders."""
        prompts = planted()
        scenes = [prompt.scene for prompt in prompts for _ in range(self.size.shares)]
        read, _ = self._rendered(scenes, 6) if setting is None else self._read(setting, scenes, 11)
        hits = []
        for index, prompt in enumerate(prompts):
            rows = slice(index * self.size.shares, (index + 1) * self.size.shares)
            hits.append(int((getattr(read, prompt.attribute)[rows] == prompt.value).sum()))
        return {"hits": np.array(hits), "n": np.full(len(hits), self.size.shares)}

    def monitor(self, model: Denoiser, count: int = 512) -> dict[str, float]:
        """Adherence at 4 steps and at one, and the Fréchet distance at 4, on a few captions; to select a student."""
        scenes, _, layout = draw_pairs(self.shape, 69_000, 0, count, held_out=False)
        found: dict[str, float] = {}
        for steps in (4, 1):
            pictures = self.sampler(model, scenes, 3, steps=steps, guidance=1.0)
            read, features = self._classify(pictures)
            found[f"everything_{steps}"] = float(correctness(scenes, read)["everything"].mean())
            if steps == 4:
                found["fd_4"] = frechet(features, read_layouts(self.judge, self.renderer, layout)[1])
        return found

    def _rendered(self, scenes: list[Scene], seed: int) -> tuple[Attributes, Tensor]:
        rng = random.Random(seed)
        layout = lay_out([complete(scene, rng) for scene in scenes], rng, self.shape)
        return read_layouts(self.judge, self.renderer, layout)

    def _read(self, setting: Setting, scenes: list[Scene], seed: int) -> tuple[Attributes, Tensor]:
        if setting.transformer not in self.models:
            path = self.out / f"{setting.transformer}.safetensors"
            self.models[setting.transformer] = with_transformer(self.teacher, path).to(self.device)
        model = self.models[setting.transformer]
        return self._classify(self.sampler(model, scenes, seed, steps=setting.steps, guidance=setting.guidance))

    def _classify(self, pictures: Tensor) -> tuple[Attributes, Tensor]:
        read = [classify(self.judge, part.to(self.device)) for part in pictures.split(BATCH)]
        return Attributes.cat([each for each, _ in read]), torch.cat([features for _, features in read])


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()
