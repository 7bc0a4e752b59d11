"""Evaluate a pocket model: estimates with confidence intervals for each setting.

A *setting* is a model with a number of steps and a guidance, labeled as in `student@4`. All settings get the same
scenes and noise, so differences between them are paired. `renders` and `reconstructions` (renders encoded and decoded
by the autoencoder) are upper bounds. A sampling seed is a new set of scenes with new noise. Shares are pooled over the
seeds, since each picture is one trial; a distance is one number per seed, and its interval is over the seeds.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import sys
import time
from collections.abc import Iterator

import numpy as np
import torch
from diffusers import AutoencoderKL

from fluxnb.train.data.tokens import Tokens
from fluxnb.train.evaluation.cache import Measurement, MeasurementCache
from fluxnb.train.evaluation.evaluator import SPLITS, Diversity, Evaluator, Scores
from fluxnb.train.evaluation.sampling import Sampler, make_sampler, reconstruct
from fluxnb.train.evaluation.statistics import Estimate, bootstrap, over_seeds, ratio, ratio_of_shares, wilson
from fluxnb.train.networks.denoiser import Denoiser

#: label of a setting -> name of a quantity -> its estimate.
Table = dict[str, dict[str, Estimate]]
#: scores by setting and split, one per sampling seed.
AllScores = dict[str, dict[str, list[Scores]]]
RENDERS, RECONSTRUCTIONS = UPPER_BOUNDS = "renders", "reconstructions"


def make_settings(
    models: dict[str, Denoiser], vae: AutoencoderKL, tokens: Tokens, device: torch.device, guidance: float
) -> tuple[dict[str, Sampler], frozenset[str]]:
    """The samplers of all settings by label, and the labels of the settings that are measured in full.

    Distilled models run without guidance at 1, 2, 4 and 8 steps. The teacher is guided, with two exceptions: at one
    step, where guidance only amplifies a mean, and in `teacher, unguided@4`, which costs as many evaluations as the
    student at 4 steps (as does the guided teacher at 2).
    """
    batch = 512 if device.type == "cuda" else 32
    settings: dict[str, Sampler] = {}

    def add(label: str, model: str, steps: int, strength: float) -> None:
        settings[label] = make_sampler(
            models[model], vae, tokens, device=device, steps=steps, guidance=strength, batch=batch
        )

    for steps in (28, 4, 1, 2, 8):
        add(f"teacher@{steps}", "teacher", steps, guidance if steps > 1 else 1.0)
    add("teacher, unguided@4", "teacher", 4, 1.0)
    for model in sorted(models.keys() - {"teacher"}, reverse=True):
        for steps in (4, 1, 2, 8):
            add(f"{model}@{steps}", model, steps, 1.0)
    full = {"teacher@28"} | {f"{model}@{steps}" for model in models for steps in (4, 1)}
    return settings, frozenset(full)


def evaluate(
    evaluator: Evaluator,
    settings: dict[str, Sampler],
    full: frozenset[str],
    *,
    teacher: str = "teacher@28",
    cache: MeasurementCache | None = None,
) -> Table:
    """Measure all settings, and renders and reconstructions.

    Args:
        evaluator: samples and measures.
        settings: label to sampler.
        full: labels that are also measured on held-out scenes and for diversity; the others are points of a curve.
        teacher: label of the setting that the others are compared with, if it is among them.
        cache: measurements of an interrupted evaluation; new ones are added.

    Returns:
        A table of estimates. `name/seen` and `name/held_out` are shares; `... : teacher` is the ratio to the teacher
        on the same scenes, and `... : reconstructions` the ratio to the reconstructions.
    """
    cache = cache or MeasurementCache(None)
    measured = {label: cache.get(label, functools.partial(_upper_bound, evaluator, label)) for label in UPPER_BOUNDS}
    for label, sampler in settings.items():
        began = time.perf_counter()
        measured[label] = cache.get(label, functools.partial(_measure, evaluator, sampler, label in full))
        print(f"{label}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    scores = {label: each.scores for label, each in measured.items()}
    diversity = {label: each.diversity for label, each in measured.items() if each.diversity is not None}
    table = {label: dict(_estimates(label, scores, diversity, teacher)) for label in scores}
    for label, each in measured.items():
        if each.hello_world is not None:
            table[label]["hello_world"] = each.hello_world
            table[label]["fd_order"] = _order_agreement(table, list(settings))
    return table


def _upper_bound(evaluator: Evaluator, label: str) -> Measurement:
    """Measure renders or reconstructions."""
    scores: dict[str, list[Scores]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for seed in evaluator.config.all_seeds:
            renders = evaluator.render(seed, split)
            pictures = renders if label == RENDERS else reconstruct(evaluator.vae, renders)
            scores[split].append(evaluator.score(seed, split, pictures))
    return Measurement(scores, evaluator.diversity(None) if label == RENDERS else None)


def _measure(evaluator: Evaluator, sampler: Sampler, in_full: bool) -> Measurement:
    """Measure the samples of a setting."""
    seeds = evaluator.config.all_seeds
    scores = {
        split: [evaluator.score(seed, split, evaluator.sample(sampler, seed, split)) for seed in seeds]
        for split in (SPLITS if in_full else SPLITS[:1])
    }
    if not in_full:
        return Measurement(scores)
    return Measurement(scores, evaluator.diversity(sampler), evaluator.hello_world(sampler))


def _order_agreement(table: Table, labels: list[str]) -> Estimate:
    """Among pairs of settings with separate FD intervals, the share that the FD of random features orders alike."""
    agree = []
    for one, other in itertools.combinations(labels, 2):
        near, far = sorted((table[one], table[other]), key=lambda row: row["fd"].value)
        if near["fd"].high < far["fd"].low:
            agree.append(near["fd_untrained"].value < far["fd_untrained"].value)
    return wilson(sum(agree), len(agree))


def _estimates(
    label: str, scores: AllScores, diversity: dict[str, Diversity], teacher: str
) -> Iterator[tuple[str, Estimate]]:
    """All estimates of one setting by name."""
    for split in scores[label]:
        yield from _shares(label, split, scores, teacher)
    own, reference = scores[label], scores.get(teacher, {})
    if "held_out" in own and "held_out" in reference:
        both = [
            np.stack((_flags(own[split], "everything"), _flags(reference[split], "everything")), 1)
            for split in ("held_out", "seen")
        ]
        yield "everything/held_out : seen", ratio_of_shares(*both)
    yield from _distances(label, scores, teacher)
    if label in diversity:
        yield from _diversity_estimates(diversity[label], diversity.get(teacher))


def _shares(label: str, split: str, scores: AllScores, teacher: str) -> Iterator[tuple[str, Estimate]]:
    """Shares of correct pictures, and their ratios to the teacher and to reconstructions."""
    runs = scores[label][split]
    for name in runs[0].correct:
        flags = _flags(runs, name)
        if name == "letters":  # the letters of one sign are not independent trials
            yield from _letters(runs, split, scores, teacher)
            continue
        yield f"{name}/{split}", wilson(int(flags.sum()), len(flags))
        for other, word in ((teacher, "teacher"), (RECONSTRUCTIONS, RECONSTRUCTIONS)):
            if split in scores.get(other, {}):
                pairs = np.stack((flags, _flags(scores[other][split], name)), 1)
                yield f"{name}/{split} : {word}", ratio_of_shares(pairs)


def _letters(runs: list[Scores], split: str, scores: AllScores, teacher: str) -> Iterator[tuple[str, Estimate]]:
    """The share of correct letters, with an interval over the seeds."""
    shares = [_share(run, "letters") for run in runs]
    share = over_seeds(shares)
    yield f"letters/{split}", dataclasses.replace(share, low=max(0.0, share.low), high=min(1.0, share.high))
    for other, word in ((teacher, "teacher"), (RECONSTRUCTIONS, RECONSTRUCTIONS)):
        reference = [_share(run, "letters") for run in scores.get(other, {}).get(split, [])]
        if reference:
            ratios = [_divide(a, b) for a, b in zip(shares, reference, strict=True)]
            yield f"letters/{split} : {word}", over_seeds(ratios)


def _distances(label: str, scores: AllScores, teacher: str) -> Iterator[tuple[str, Estimate]]:
    """Distances, sharpness and moments of the latents on seen scenes, and their ratios to other settings."""
    runs = scores[label]["seen"]
    for name in runs[0].numbers:
        yield name, over_seeds([run.numbers[name] for run in runs])
    for name, other in (("sharpness", RENDERS), ("sharpness : reconstructions", RECONSTRUCTIONS)):
        yield name, over_seeds(_ratios(runs, scores[other]["seen"], "energy"))
    model, _, steps = label.rpartition("@")
    for other, word in ((teacher, "teacher"), (f"teacher@{steps}", "same steps"), (f"{model}@1", "one step")):
        reference = scores.get(other, {}).get("seen", [])
        for name in ("fd", "fd_untrained") if reference else ():
            yield f"{name} : {word}", over_seeds(_ratios(runs, reference, name))
    if len(runs[0].mean) and teacher in scores:
        drifts = [_drift(run, one) for run, one in zip(runs, scores[teacher]["seen"], strict=True)]
        yield "channel_mean", over_seeds([mean for mean, _ in drifts])
        yield "channel_std", over_seeds([std for _, std in drifts])


def _diversity_estimates(own: Diversity, teacher: Diversity | None) -> Iterator[tuple[str, Estimate]]:
    """Entropy, Vendi score and alignment over prompts, and their ratios to the teacher."""
    yield "entropy", bootstrap(np.mean, own.entropy)
    yield "vendi", bootstrap(np.mean, own.vendi)
    if teacher is not None:
        varied = teacher.entropy > 0.05  # without variation in the teacher's pictures the ratio is undefined
        for name, ratios in (
            ("entropy", own.entropy[varied] / teacher.entropy[varied]),
            ("vendi", own.vendi / teacher.vendi),
        ):
            if len(ratios):
                yield f"{name} : teacher", bootstrap(np.median, ratios)
                yield f"{name}, worst decile : teacher", bootstrap(lambda s: float(np.percentile(s, 10)), ratios)
    if own.align is not None:
        yield "align", bootstrap(np.mean, own.align)
        yield "align, least", Estimate(float(own.align.min()), math.nan, math.nan, len(own.align), "bootstrap")
        yield "align, above 0", wilson(int((own.align > 0).sum()), len(own.align))
        if teacher is not None and teacher.align is not None:
            yield "align : teacher", bootstrap(ratio, np.stack((own.align, teacher.align), 1))


def _flags(runs: list[Scores], name: str) -> np.ndarray:
    return np.concatenate([run.correct[name] for run in runs])


def _share(run: Scores, name: str) -> float:
    return _divide(float(run.correct[name].sum()), float(len(run.correct[name])))


def _divide(one: float, other: float) -> float:
    return one / other if other else math.nan


def _ratios(runs: list[Scores], others: list[Scores], name: str) -> list[float]:
    """The ratio of a number to that of another setting, for each seed."""
    return [_divide(run.numbers[name], other.numbers[name]) for run, other in zip(runs, others, strict=True)]


def _drift(run: Scores, other: Scores) -> tuple[float, float]:
    """The largest shift of a channel's mean, in standard deviations, and the largest relative change of its spread."""
    return (
        float((np.abs(run.mean - other.mean) / other.std).max()),
        float(np.abs(run.std / other.std - 1).max()),
    )
