"""load_pair(): a teacher and its student, with one text encoder and one VAE for both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fluxnb.arguments import entry_point
from fluxnb.checkpoints import sources as weights
from fluxnb.checkpoints.checksums import read_json
from fluxnb.checkpoints.hub import download_pipeline
from fluxnb.checkpoints.validation import check_model
from fluxnb.errors import InputError, shorten
from fluxnb.families.defaults import defaults_of
from fluxnb.families.registry import pair_of
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.load import device_of, load, remember
from fluxnb.planning.model_facts import known_defaults
from fluxnb.planning.model_size import model_size_of, named_size
from fluxnb.planning.pairs import HOLDINGS, plan_pair
from fluxnb.planning.plan import Plan, convert_out_of_memory
from fluxnb.records import Pair
from fluxnb.runtime.exclusive import protect
from fluxnb.runtime.streaming import WeightReader, build_without_memory, load_weights
from fluxnb.runtime.swapping import swap

__all__ = ["LoadedPair", "load_pair"]

OWN = ("transformer", "scheduler")  # what each model of a pair has for itself
# Entries of configurations that depend on how a model was saved. The shared parts are loaded from the student's folder.
OF_SAVING = ("transformers_version", "dtype", "torch_dtype")


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedPair:
    """A teacher and its student, ready to run.

    Arguments:
        teacher, student: handles as `fnb.load` returns them.
        pair: their names, and what the distillation keeps.
        plan: how both are held.

    Example:
        >>> pair = load_pair("klein")                                               # doctest: +SKIP
        >>> fnb.compare([fnb.run(flux, "a fox", seed=3) for flux in pair])          # doctest: +SKIP
    """

    teacher: Flux
    student: Flux
    pair: Pair
    plan: Plan

    def __iter__(self) -> Iterator[Flux]:
        return iter((self.teacher, self.student))

    def __repr__(self) -> str:
        return f"LoadedPair({self.teacher.model!r} -> {self.student.model!r}, {self.plan.preset})\n{self.pair}"


@entry_point(model='model="klein"', teacher='teacher="models/klein-base"', preset='preset="auto"')
def load_pair(model: str | Path = "pocket", teacher: str | Path | None = None, *, preset: str = "auto") -> LoadedPair:
    """A teacher and its student with shared parts, held as the machine allows.

    Arguments:
        model: the name of either model of a pair: "pocket", "klein", "z-image-turbo" and their teachers; or a folder
            or hub id of a student.
        teacher: the folder or hub id of the teacher; left out for a name.
        preset: "both" or "swapped", each also with "-text-by-layer"; "auto" takes the first that fits.

    Raises:
        InputError: a model without a known partner, or two models that do not share their text encoder and VAE.
        StorageError, RunError: as `fnb.load`.

    Example:
        >>> teacher, student = load_pair("pocket")                                  # doctest: +SKIP
        >>> teacher.defaults.steps, student.defaults.steps                          # doctest: +SKIP
        (28, 4)
    """
    student_of, teacher_of, pair = _names(model, teacher)
    student_source, teacher_source = weights.locate(student_of), weights.locate(teacher_of)
    family = student_source.family
    if teacher_source.family is not family:
        raise InputError(
            f"a teacher of {teacher_source.family.name} and a student of {family.name}",
            "a pair has one family",
            "give both models of one pair",
        )
    size = (
        model_size_of(Path(student_source.place), student_source.parts)
        if student_source.local
        else named_size(family.name)
    )
    folder = Path(student_source.place) if student_source.local else None
    settings = known_defaults(pair.student, folder, family)
    plan = plan_pair(pair.student, family, size, defaults=settings, preset=preset)
    held, device = HOLDINGS[plan.preset], device_of(plan)
    student = load(student_of, preset="cpu" if device.type == "cpu" else held.preset)
    with convert_out_of_memory(plan, f"loading {teacher_source.name}"):
        pipe = _with_own_transformer(student.pipe, teacher_source, student_source, swapped=held.swapped)
    if held.swapped:
        swap(student.pipe.transformer, pipe.transformer, device)
    protect(pipe, device)
    plan = dataclasses.replace(plan, dtype=student.dtype)
    defaults = defaults_of(pipe, teacher_source.name, teacher_source.card)
    made = Flux(pipe, model=teacher_source.name, revision=teacher_source.revision, defaults=defaults, plan=plan)
    _ = made.preview
    return LoadedPair(
        teacher=remember(made),
        student=remember(Flux(student.pipe, **{**student.facts, "plan": plan})),
        pair=pair,
        plan=plan,
    )


def _names(model: str | Path, teacher: str | Path | None) -> tuple[str | Path, str | Path, Pair]:
    if teacher is not None:
        # What the distillation of a user's own pair keeps is not known: nothing is promised.
        names = (Path(str(model)).name, Path(str(teacher)).name)
        known = pair_of(str(model))
        kind = known.kind if known is not None and known is pair_of(str(teacher)) else "distribution"
        return model, teacher, Pair(teacher=names[1], student=names[0], kind=kind)
    found = pair_of(str(model))
    if found is None:
        raise InputError(
            f"a pair of {shorten(str(model))}",
            "pocket, klein and z-image-turbo have a public teacher",
            'type fnb.load_pair("klein"), or give the teacher as well: fnb.load_pair(student, teacher)',
        )
    return found.student, found.teacher, found


def _with_own_transformer(pipe: Any, source: weights.Source, shared: weights.Source, *, swapped: bool) -> Any:
    """A pipeline with the transformer and the scheduler of a source, and the other parts of a given pipeline."""
    import diffusers

    folder = Path(source.place)
    if not source.local:
        folder = download_pipeline(source.place, source.revision, variant=source.variant, only=OWN)
    own = {"transformer": source.parts.get("transformer", folder / "transformer"), "scheduler": folder / "scheduler"}
    check_model(folder, source.parts, only=() if source.local else OWN)
    if source.local and shared.local:
        _check_shared(folder, Path(shared.place))
    index = read_json(folder / "model_index.json")
    kind = getattr(diffusers, index["transformer"][1])
    if kind is not type(pipe.transformer):
        raise InputError(
            f"a {kind.__name__} beside a {type(pipe.transformer).__name__}",
            "both models of a pair have one architecture",
            "give both models of one pair",
        )
    config = kind.load_config(own["transformer"])
    transformer = build_without_memory(lambda: kind.from_config(config), pipe.transformer.dtype)
    device = torch.device("cpu") if swapped else next(pipe.transformer.parameters()).device
    load_weights(transformer, WeightReader(own["transformer"], variant=source.variant), device)
    scheduler = type(pipe.scheduler).from_pretrained(own["scheduler"], local_files_only=True)
    settings = {name: value for name, value in index.items() if isinstance(value, bool)}
    others = {name: part for name, part in pipe.components.items() if name not in OWN}
    return type(pipe)(transformer=transformer, scheduler=scheduler, **others, **settings)


def _check_shared(teacher: Path, student: Path) -> None:
    """Compare the configurations of the parts that both models share."""
    for part in ("text_encoder", "text_encoder_2", "vae"):
        files = [folder / part / "config.json" for folder in (teacher, student)]
        if not all(file.is_file() for file in files):
            continue
        one, other = (
            {k: v for k, v in read_json(file).items() if not k.startswith("_") and k not in OF_SAVING} for file in files
        )
        if one != other:
            raise InputError(
                f"a {part} of {teacher.name} unlike that of {student.name}",
                "the models of a pair share text encoder and VAE",
                "load each with fnb.load",
            )
