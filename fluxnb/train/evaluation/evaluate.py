"""How good a pocket model is: everything that is measured of every setting, with its interval.

A *setting* is a model, a number of steps and a guidance, named `student@4`. All settings get the same scenes and the
same noise, so differences between them are paired; `renders` and `reconstructions` (renders through the autoencoder)
stand beside them as what can be reached. A sampling seed is a fresh set of scenes with fresh noise: shares are pooled
over the seeds, where every picture is a trial of its own; a distance is one number per seed, so its interval is over
the seeds.
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
from fluxnb.train.evaluation.ask import Painter, painter, reconstruct
from fluxnb.train.evaluation.examiner import PARTS, Examiner, Freedom, Marks
from fluxnb.train.evaluation.kept import Kept, Reading
from fluxnb.train.evaluation.measure import Estimate, bootstrap, over_seeds, ratio, ratio_of_shares, wilson
from fluxnb.train.stages.objective import Denoiser

#: label of a setting -> name of a quantity -> its estimate.
Table = dict[str, dict[str, Estimate]]
RENDERS, RECONSTRUCTIONS = TRUE = "renders", "reconstructions"


def settings_of(
    models: dict[str, Denoiser], vae: AutoencoderKL, tokens: Tokens, device: torch.device, guidance: float
) -> tuple[dict[str, Painter], frozenset[str]]:
    """The settings to evaluate, and those that are asked for everything.

    Distilled models go without guidance at 1, 2, 4 and 8 steps. The teacher is guided, but for one step, where guidance
    only exaggerates a mean, and `teacher, unguided@4`, which costs as many evaluations as the student at 4; so does
    the guided teacher at 2.
    """
    batch = 512 if device.type == "cuda" else 32
    settings: dict[str, Painter] = {}

    def add(label: str, model: str, steps: int, strength: float) -> None:
        settings[label] = painter(models[model], vae, tokens, device, steps=steps, guidance=strength, batch=batch)

    for steps in (28, 4, 1, 2, 8):
        add(f"teacher@{steps}", "teacher", steps, guidance if steps > 1 else 1.0)
    add("teacher, unguided@4", "teacher", 4, 1.0)
    for model in sorted(models.keys() - {"teacher"}, reverse=True):
        for steps in (4, 1, 2, 8):
            add(f"{model}@{steps}", model, steps, 1.0)
    everything = {"teacher@28"} | {f"{model}@{steps}" for model in models for steps in (4, 1)}
    return settings, frozenset(everything)


def evaluate(
    examiner: Examiner,
    settings: dict[str, Painter],
    main: frozenset[str],
    *,
    teacher: str = "teacher@28",
    kept: Kept | None = None,
) -> Table:
    """Everything that is measured of every setting, beside renders and reconstructions.

    Arguments:
        settings: label to painter. `main` names those that are also asked for held-out scenes and for diversity;
            the others only lie on a curve.
        teacher: the setting that the others are held against, where it is among them.
        kept: readings of an evaluation that was cut off; what is read now is added to them.

    Returns:
        A table of estimates. `name/seen` and `name/held_out` are shares; `... : teacher` is the ratio to the teacher
        setting on the same scenes, `... : reconstructions` the ratio to the ceiling.
    """
    kept = kept or Kept(None)
    readings = {label: kept.reading(label, functools.partial(_true, examiner, label)) for label in TRUE}
    for label, paint in settings.items():
        began = time.perf_counter()
        readings[label] = kept.reading(label, functools.partial(_drawn, examiner, paint, label in main))
        print(f"{label}: {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
    marks = {label: reading.marks for label, reading in readings.items()}
    freedom = {label: reading.freedom for label, reading in readings.items() if reading.freedom is not None}
    table = {label: dict(_estimates(label, marks, freedom, teacher)) for label in marks}
    for label, reading in readings.items():
        if reading.hello is not None:
            table[label]["hello_world"] = reading.hello
            table[label]["fd_order"] = _same_order(table, list(settings))
    return table


def _true(examiner: Examiner, label: str) -> Reading:
    """What there is to be reached: renders, and what the autoencoder makes of them."""
    marks: dict[str, list[Marks]] = {part: [] for part in PARTS}
    for part in PARTS:
        for seed in examiner.asked.every_seed:
            real = examiner.render(seed, part)
            shown = real if label == RENDERS else reconstruct(examiner.vae, real)
            marks[part].append(examiner.marks(seed, part, shown))
    return Reading(marks, examiner.freedom(None) if label == RENDERS else None)


def _drawn(examiner: Examiner, paint: Painter, everything: bool) -> Reading:
    marks = {
        part: [examiner.marks(seed, part, examiner.draw(paint, seed, part)) for seed in examiner.asked.every_seed]
        for part in (PARTS if everything else PARTS[:1])
    }
    return Reading(marks, examiner.freedom(paint), examiner.hello(paint)) if everything else Reading(marks)


def _same_order(table: Table, labels: list[str]) -> Estimate:
    """Of the pairs of settings that the judge's distance tells apart, the share that the other one orders alike."""
    agree = []
    for one, other in itertools.combinations(labels, 2):
        near, far = sorted((table[one], table[other]), key=lambda row: row["fd"].value)
        if near["fd"].high < far["fd"].low:
            agree.append(near["fd_untrained"].value < far["fd_untrained"].value)
    return wilson(sum(agree), len(agree))


def _estimates(
    label: str, marks: dict[str, dict[str, list[Marks]]], freedom: dict[str, Freedom], teacher: str
) -> Iterator[tuple[str, Estimate]]:
    mine, theirs = marks[label], marks.get(teacher, {})
    for part, runs in mine.items():
        for name in runs[0].hits:
            found = _flags(runs, name)
            if name == "letters":  # those of one sign stand or fall together, so they are no trials of their own
                yield from _letters(runs, part, marks, teacher)
                continue
            yield f"{name}/{part}", wilson(int(found.sum()), len(found))
            for other in (teacher, RECONSTRUCTIONS):
                if part in marks.get(other, {}):
                    word = "teacher" if other == teacher else other
                    pairs = np.stack((found, _flags(marks[other][part], name)), 1)
                    yield f"{name}/{part} : {word}", ratio_of_shares(pairs)
    if "held_out" in mine and "held_out" in theirs:
        both = [
            np.stack((_flags(mine[part], "everything"), _flags(theirs[part], "everything")), 1)
            for part in ("held_out", "seen")
        ]
        yield "everything/held_out : seen", ratio_of_shares(*both)
    runs, real, again = mine["seen"], marks[RENDERS]["seen"], marks[RECONSTRUCTIONS]["seen"]
    for name in runs[0].numbers:
        yield name, over_seeds([run.numbers[name] for run in runs])
    yield "sharpness", over_seeds([_per(run, one, "energy") for run, one in zip(runs, real, strict=True)])
    yield "sharpness : reconstructions", over_seeds([_per(a, b, "energy") for a, b in zip(runs, again, strict=True)])
    model, _, steps = label.rpartition("@")
    for other, word in ((teacher, "teacher"), (f"teacher@{steps}", "same steps"), (f"{model}@1", "one step")):
        held = marks.get(other, {}).get("seen", [])
        for name in ("fd", "fd_untrained") if held else ():
            yield f"{name} : {word}", over_seeds([_per(run, one, name) for run, one in zip(runs, held, strict=True)])
    if len(runs[0].mean) and theirs:
        drift = [_drift(run, one) for run, one in zip(runs, theirs["seen"], strict=True)]
        yield "channel_mean", over_seeds([mean for mean, _ in drift])
        yield "channel_std", over_seeds([std for _, std in drift])
    if label in freedom:
        yield from _free_estimates(freedom[label], freedom.get(teacher))


def _letters(
    runs: list[Marks], part: str, marks: dict[str, dict[str, list[Marks]]], teacher: str
) -> Iterator[tuple[str, Estimate]]:
    shares = [_share(run, "letters") for run in runs]
    found = over_seeds(shares)
    yield f"letters/{part}", dataclasses.replace(found, low=max(0.0, found.low), high=min(1.0, found.high))
    for other, word in ((teacher, "teacher"), (RECONSTRUCTIONS, RECONSTRUCTIONS)):
        held = [_share(run, "letters") for run in marks.get(other, {}).get(part, [])]
        if held:
            yield f"letters/{part} : {word}", over_seeds([_over(a, b) for a, b in zip(shares, held, strict=True)])


def _free_estimates(mine: Freedom, teacher: Freedom | None) -> Iterator[tuple[str, Estimate]]:
    yield "entropy", bootstrap(np.mean, mine.entropy)
    yield "vendi", bootstrap(np.mean, mine.vendi)
    if teacher is not None:
        sure = teacher.entropy > 0.05  # where the teacher has no choice either there is nothing to lose
        for name, shares in (
            ("entropy", mine.entropy[sure] / teacher.entropy[sure]),
            ("vendi", mine.vendi / teacher.vendi),
        ):
            if len(shares):
                yield f"{name} : teacher", bootstrap(np.median, shares)
                yield f"{name}, worst decile : teacher", bootstrap(lambda s: float(np.percentile(s, 10)), shares)
    if mine.align is not None:
        yield "align", bootstrap(np.mean, mine.align)
        yield "align, least", Estimate(float(mine.align.min()), math.nan, math.nan, len(mine.align), "bootstrap")
        yield "align, above 0", wilson(int((mine.align > 0).sum()), len(mine.align))
        if teacher is not None and teacher.align is not None:
            yield "align : teacher", bootstrap(ratio, np.stack((mine.align, teacher.align), 1))


def _flags(runs: list[Marks], name: str) -> np.ndarray:
    return np.concatenate([run.hits[name] for run in runs])


def _share(run: Marks, name: str) -> float:
    return _over(float(run.hits[name].sum()), float(len(run.hits[name])))


def _over(one: float, other: float) -> float:
    return one / other if other else math.nan


def _per(run: Marks, other: Marks, name: str) -> float:
    return _over(run.numbers[name], other.numbers[name])


def _drift(run: Marks, other: Marks) -> tuple[float, float]:
    """The worst channel's shift of the mean, in standard deviations, and of the spread, as a share."""
    return (
        float((np.abs(run.mean - other.mean) / other.std).max()),
        float(np.abs(run.std / other.std - 1).max()),
    )
