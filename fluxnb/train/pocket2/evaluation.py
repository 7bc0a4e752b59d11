"""Evaluate teacher and students of the second pocket against the distribution of their training data.

What a caption specifies is read from the pictures by the judge. What it leaves open has a known distribution
(`chances`), so that the diversity of a model within a prompt, and its planted shares, are compared with it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from fluxnb.train.data import captions, chances
from fluxnb.train.data.drawing import Renderer
from fluxnb.train.data.emoji import GENDERS, STYLES, TONES
from fluxnb.train.data.layouts import Shape, lay_out, spell
from fluxnb.train.data.nouns import NOUNS, PEOPLE
from fluxnb.train.data.scenes import BACKDROPS, COLORS, Scene, Thing, complete
from fluxnb.train.data.stream import draw_pairs
from fluxnb.train.data.vocabulary import Tokenizers
from fluxnb.train.evaluation.statistics import Estimate, bootstrap, ratio_of_shares, wilson
from fluxnb.train.metrics import entropy, frechet, median_distance, vendi
from fluxnb.train.networks.denoiser import Denoiser, with_transformer
from fluxnb.train.pocket2 import judge as reading
from fluxnb.train.pocket2.config import Preset
from fluxnb.train.pocket2.figure import evaluation_figure
from fluxnb.train.pocket2.judge import Attributes, classify, load_judge, read_layouts
from fluxnb.train.pocket2.networks import load_denoiser
from fluxnb.train.pocket2.teacher import CLIP_USED, sample
from fluxnb.train.stages.loop import Rank

SPLITS = ("seen", "held_out")
ATTRIBUTES = ("object", "style", "color", "count", "place", "time", "relation", "sign", "look", "everything")
RENDERS = "renders"  # the setting of the upper bound
TEACHER = "teacher-28"
GUIDANCES = (1.0, 1.5, 2.5)  # at which the teacher's planted shares are measured
BATCH = 256
DISTANCE_DRAWS = 100  # of the bootstrap of Fréchet distances, each of which takes a tenth of a second
Job = Callable[[], dict[str, np.ndarray]]
_RELATIONS = {  # relation -> arrangement, and whether the first thing of the caption is the second one of the picture
    "left of": ("side by side", False),
    "right of": ("side by side", True),
    "above": ("stacked", False),
    "below": ("stacked", True),
}


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
    woman = 1 + GENDERS.index("woman")
    return places + [
        Planted(f"{noun}: women", Scene((Thing(noun),)), "gender", woman, NOUNS[noun].women or 0.0)
        for noun in dict.fromkeys(chosen)
    ]


def open_prompts(count: int) -> list[Scene]:
    """Scenes of one noun that specify nothing else; the nouns are spread over the whole vocabulary."""
    names = tuple(NOUNS)
    chosen = ["cat", *(names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count))]
    return [Scene((Thing(noun),)) for noun in list(dict.fromkeys(chosen))[:count]]


def correctness(scenes: Iterable[Scene], read: Attributes) -> dict[str, np.ndarray]:
    """Whether each picture has what its caption specifies: 1, 0, or NaN where the caption does not specify it.

    Returns:
        The names of `ATTRIBUTES`, with an array (N,) each; `look` is gender, skin tone and direction together.
    """
    columns = {field.name: getattr(read, field.name).cpu() for field in dataclasses.fields(Attributes)}
    rows = []
    for index, scene in enumerate(scenes):
        found = _correct_attributes(scene, {name: column[index] for name, column in columns.items()})
        rows.append([*found.values(), float(all(value != 0.0 for value in found.values()))])
    table = np.array(rows, dtype=np.float64).reshape(-1, len(ATTRIBUTES))
    return dict(zip(ATTRIBUTES, table.T, strict=True))


def _correct_attributes(scene: Scene, read: Mapping[str, Tensor]) -> dict[str, float]:
    """The flags for one picture, in the order of `ATTRIBUTES` without `everything`."""
    things, arrangement = scene.things, reading.ARRANGEMENTS[int(read["arrangement"])]
    nouns = [int(read["first"]), int(read["second"])]
    colors = [int(read["first_color"]), int(read["second_color"])]
    requested = [reading.NAMES.index(thing.noun) for thing in things]
    places = [nouns.index(noun) if noun in nouns else -1 for noun in requested]
    if len(things) == 1:  # a second noun, or a first one elsewhere, is a mistake
        places = [0 if nouns == [requested[0], reading.NO_NOUN] else -1]
    found = dict.fromkeys(ATTRIBUTES[:-1], math.nan)
    found["object"] = float(min(places) >= 0)
    painted = [(place, thing.color) for place, thing in zip(places, things, strict=True) if thing.color in COLORS]
    if painted:
        palette = list(COLORS)
        found["color"] = float(all(p >= 0 and colors[p] == palette.index(str(c)) for p, c in painted))
    if scene.style is not None:
        found["style"] = float(int(read["style"]) == STYLES.index(scene.style))
    if scene.backdrop is not None:
        found["place"] = float(int(read["backdrop"]) == BACKDROPS.index(scene.backdrop))
    if scene.time:
        found["time"] = float(reading.DAYTIMES[int(read["time"])] == scene.time)
    if len(things) == 2:
        kind, swapped = _RELATIONS.get(str(scene.relation), ("", False))
        right = arrangement in ("side by side", "stacked") if not kind else arrangement == kind
        found["relation"] = float(right and (not kind or places == ([1, 0] if swapped else [0, 1])))
    elif scene.sign is None:
        count = int(read["count"]) + 1
        found["count"] = float(count > 1 if things[0].count is None else count == things[0].count)
    if scene.sign is not None:
        letters = torch.tensor(spell(scene.sign)).flatten()
        found["sign"] = float(arrangement == "sign" and torch.equal(read["letters"], letters))
    if len(things) == 1 and (looks := _looks(things[0])):
        found["look"] = float(all(int(read[name]) == value for name, value in looks.items()))
    return found


def _looks(thing: Thing) -> dict[str, int]:
    looks = {}
    if thing.gender:
        looks["gender"] = 1 + GENDERS.index(thing.gender)
    if thing.tone:
        looks["tone"] = 1 + tuple(TONES).index(thing.tone)
    if thing.facing:
        looks["facing"] = reading.FACINGS.index(thing.facing)
    return looks


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


def _frechet(one: np.ndarray, other: np.ndarray) -> float:
    return frechet(torch.from_numpy(one), torch.from_numpy(other))


# --------------------------------------------------------------------------------------------------------- the report
@dataclasses.dataclass(frozen=True)
class Row:
    """A target with its measurement.

    Attributes:
        name: what is compared with what.
        value: with its interval.
        at_least, at_most: the target.
    """

    name: str
    value: Estimate
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the value itself, not its interval, meets the target."""
        if self.at_most is not None:
            return self.value.value <= self.at_most
        return self.at_least is not None and self.value.value >= self.at_least


class Report:
    """The results of an evaluation, from the files of `Evaluator.run`."""

    def __init__(self, out: Path):
        complete = [path for path in sorted((out / "evaluation").glob("*.npz")) if ".part." not in path.name]
        self.files = {path.name.removesuffix(".npz"): path for path in complete}
        self.names = list(dict.fromkeys(name.split(".seen.")[0] for name in self.files if ".seen." in name))

    def correct(self, setting: str, split: str, attribute: str) -> np.ndarray:
        """The flags of `correctness` for all seeds, (N,), NaN where a caption does not specify the attribute."""
        prefix = f"{setting}.{split}."
        return np.concatenate(
            [np.load(path)[attribute] for name, path in self.files.items() if name.startswith(prefix)]
        )

    def share(self, setting: str, split: str, attribute: str) -> Estimate:
        """The share of correct pictures."""
        flags = self.correct(setting, split, attribute)
        flags = flags[~np.isnan(flags)]
        return wilson(int(flags.sum()), len(flags))

    def relative(self, setting: str, to: str, split: str, attribute: str) -> Estimate:
        """The share of correct pictures divided by that of another setting on the same captions."""
        pairs = np.stack([self.correct(each, split, attribute) for each in (setting, to)], 1)
        return ratio_of_shares(pairs[~np.isnan(pairs).any(1)])

    def distance(self, setting: str) -> float:
        """The Fréchet distance of the pictures of the seen captions to renders of the same captions."""
        return _frechet(self._features(setting), self._features(RENDERS, "others"))

    def relative_distance(self, setting: str, to: str) -> Estimate:
        """The Fréchet distance divided by that of another setting; the interval is a bootstrap over captions."""
        columns = [self._features(setting), self._features(to), self._features(RENDERS, "others")]

        def statistic(rows: np.ndarray) -> float:
            one, other, renders = np.split(rows, 3, axis=1)
            return _frechet(one, renders) / _frechet(other, renders)

        return bootstrap(statistic, np.concatenate(columns, 1), draws=DISTANCE_DRAWS)

    def _features(self, setting: str, field: str = "features") -> np.ndarray:
        prefix = f"{setting}.seen."
        return np.concatenate([np.load(path)[field] for name, path in self.files.items() if name.startswith(prefix)])

    def diversity(self, setting: str) -> dict[str, np.ndarray]:
        """By prompt: entropy of style and backdrop in nats, and the effective number of pictures (Vendi score)."""
        found, renders = (np.load(self.files[f"{who}.open"]) for who in (setting, RENDERS))
        codes = found["style"] * len(BACKDROPS) + found["backdrop"]
        widths = [median_distance(torch.from_numpy(rows)) for rows in renders["features"]]
        features = map(torch.from_numpy, found["features"])
        return {
            "entropy": np.array([entropy(torch.from_numpy(row)) for row in codes]),
            "vendi": np.array([vendi(rows, width) for rows, width in zip(features, widths, strict=True)]),
        }

    def relative_diversity(self, setting: str, to: str) -> Estimate:
        """The mean effective number of pictures within a prompt, divided by that of another setting."""
        pairs = np.stack([self.diversity(each)["vendi"] for each in (setting, to)], 1)
        return bootstrap(lambda rows: float(rows[:, 0].mean() / rows[:, 1].mean()), pairs)

    @functools.cached_property
    def rows(self) -> list[Row]:
        """The targets of teacher and student."""
        rows = []
        floors = {"object": 0.95, "style": 0.95, "color": 0.9, "count": 0.9, "place": 0.97, "sign": 0.95}
        for attribute, floor in floors.items():
            name = f"{TEACHER}, seen, {attribute} against renders"
            rows.append(Row(name, self.relative(TEACHER, RENDERS, "seen", attribute), at_least=floor))
        held_out = self.relative(TEACHER, RENDERS, "held_out", "object")
        rows.append(Row(f"{TEACHER}, held out, object against renders", held_out, at_least=0.88))
        for setting, floor in (("student-4", 0.96), ("student-1", 0.88)):
            if setting not in self.names:
                continue
            for attribute in floors:
                value = self.relative(setting, TEACHER, "seen", attribute)
                rows.append(Row(f"{setting}, seen, {attribute} against {TEACHER}", value, at_least=floor))
            value = self.relative_distance(setting, TEACHER)
            rows.append(Row(f"{setting}, Fréchet distance against {TEACHER}", value, at_most=1.25))
            rows.append(
                Row(
                    f"{setting}, diversity within a prompt against {TEACHER}",
                    self.relative_diversity(setting, TEACHER),
                    at_least=0.9,
                )
            )
        return rows

    def shares(self) -> dict[str, list[dict[str, object]]]:
        """Planted shares by setting, and the measured shares with their intervals."""
        found: dict[str, list[dict[str, object]]] = {}
        for name, path in self.files.items():
            if name.endswith(".planted"):
                counts = np.load(path)
                entries: list[dict[str, object]] = []
                for prompt, hits, n in zip(planted(), counts["hits"], counts["n"], strict=True):
                    share = wilson(int(hits), int(n))
                    bounds = {"low": share.low, "high": share.high}
                    entries.append({"name": prompt.name, "planted": prompt.share, "share": share.value, **bounds})
                found[name.removesuffix(".planted")] = entries
        return found

    def to_json(self) -> dict[str, object]:
        """Everything, as JSON values."""
        return {
            "shares": {
                setting: {
                    split: {each: dataclasses.asdict(self.share(setting, split, each)) for each in ATTRIBUTES}
                    for split in SPLITS
                }
                for setting in self.names
            },
            "frechet": {setting: self.distance(setting) for setting in self.names},
            "diversity": {
                setting: {name: float(values.mean()) for name, values in self.diversity(setting).items()}
                for setting in self.names
            },
            "planted": self.shares(),
            "targets": [{**dataclasses.asdict(row), "met": row.met} for row in self.rows],
        }

    def table(self) -> str:
        """The shares of correct pictures as a Markdown table, in percent, and the targets below it."""
        lines = ["| setting | captions | " + " | ".join(ATTRIBUTES) + " |", "| --- " * (len(ATTRIBUTES) + 2) + "|"]
        for setting in self.names:
            for split in SPLITS:
                cells = [f"{100 * self.share(setting, split, each).value:.1f}" for each in ATTRIBUTES]
                lines.append(f"| {setting} | {split.replace('_', ' ')} | " + " | ".join(cells) + " |")
        lines += ["", "| target | measured | required | met |", "| --- | --- | --- | --- |"]
        for row in self.rows:
            required = f"at most {row.at_most}" if row.at_most is not None else f"at least {row.at_least}"
            value = f"{row.value.value:.3f} ({row.value.low:.3f} to {row.value.high:.3f})"
            lines.append(f"| {row.name} | {value} | {required} | {'yes' if row.met else 'no'} |")
        return "\n".join(lines)


def evaluate(preset: Preset, out: Path, rank: Rank, size: Size) -> None:
    """Measure all settings of a run on all ranks; writes evaluation.json, evaluation.md and evaluation.png to `out`."""
    Evaluator(preset, out, size, rank.device).run(rank)
    if rank.first:
        report = Report(out)
        facts = report.to_json() | {"size": dataclasses.asdict(size)}
        (out / "evaluation.json").write_text(json.dumps(facts, indent=1))
        evaluation_figure(facts).savefig(out / "evaluation.png")
        (out / "evaluation.md").write_text(report.table() + "\n")
        print(report.table(), flush=True)
