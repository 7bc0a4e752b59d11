"""load(): from a name, a folder, a hub id or somebody's own pipeline to a Flux handle under a plan.

What is known of each pipeline is remembered here, so that a recorder around a plain diffusers call can say whose
call it was.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch

from fluxnb import presets, weights
from fluxnb.errors import InputError, checks_itself
from fluxnb.pipeline import Flux
from fluxnb.presets import Plan
from fluxnb.profile import profile_of
from fluxnb.recipe import Recipe

__all__ = ["handle_of", "load"]

# What is known of a pipeline, so that a recorder around somebody's own call can say whose call it was. Only names
# and numbers, no handle: a handle holds the pipeline and would keep it alive for ever.
_KNOWN: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


def handle_of(pipe: Any) -> Flux | None:
    """A handle for a FluxPipeline, loaded by us or not; None for other pipelines."""
    if pipe not in _KNOWN and "FluxPipeline" in {base.__name__ for base in type(pipe).__mro__}:
        return _adopt(pipe)
    return Flux(pipe, **_KNOWN[pipe]) if pipe in _KNOWN else None


@checks_itself
def load(model: str | Path | Any = "pocket", preset: str = "auto", *, dtype: str = "auto") -> Flux:
    """A model ready to run.

    Arguments:
        model: "pocket", "pocket-base", "schnell", "dev", a folder in diffusers layout, a hub id, or a FluxPipeline,
            which is taken as it is.
        preset: how to hold it in memory, see `fnb.plan`; "auto" takes the fastest that fits.
        dtype: "float32", "bfloat16", "float16"; "auto" is float32 for small models and on a CPU, else bfloat16
            where the GPU has it natively and float16 where not.

    Raises:
        InputError: an unknown name, preset or dtype, or a pipeline of another kind.
        StorageError: a missing folder, a damaged file, a gated or unreachable hub.
        RunError: not enough memory, said before anything is downloaded.

    Example:
        >>> flux = load("pocket")                                                   # doctest: +SKIP
        >>> flux.plan.preset                                                        # doctest: +SKIP
        'cpu'
    """
    if not isinstance(model, str | Path):
        return _adopt(model)
    if dtype != "auto":
        Recipe(prompt="-", dtype=dtype)  # says what is possible
    # The plan comes first: nobody should download 34 GB to learn that they do not fit.
    chosen = presets.plan(str(model), preset=preset)
    source = weights.locate(model)
    large = source.name in weights.HUB or not source.local
    if dtype == "auto":
        dtype = _natural_dtype(chosen.device) if large else "float32"
    pipe = weights.read(source, getattr(torch, dtype), loud=large)
    _place(pipe, chosen)
    teacher_alone = source.name == "pocket" and not source.parts
    name = "pocket-base" if teacher_alone else source.name
    profile = profile_of(pipe, name, source.card)
    flux = _remember(Flux(pipe, model=source.name, revision=source.revision, profile=profile, plan=chosen))
    _ = flux.preview  # fitted here, where waiting is expected, and not in the first run
    return flux


def _remember(flux: Flux) -> Flux:
    _KNOWN[flux.pipe] = {
        "model": flux.model,
        "revision": flux.revision,
        "profile": flux.profile,
        "plan": flux.plan,
    }
    return flux


def _adopt(pipe: Any) -> Flux:
    kinds = {base.__name__ for base in type(pipe).__mro__}
    if "FluxPipeline" not in kinds:
        other = "watch other pipelines with fnb.recording(pipe)" if "DiffusionPipeline" in kinds else None
        raise InputError(
            f"model of type {type(pipe).__name__}",
            "a name, a folder, a hub id or a FluxPipeline is possible",
            other or 'try fnb.load("pocket")',
        )
    name = str(pipe.config.get("_name_or_path") or "pipeline")
    name = Path(name).name if Path(name).is_absolute() else name  # a recipe should not carry somebody's home folder
    device = pipe._execution_device.type
    held = Plan(preset="as given", device=device, vram_gib=0.0, ram_gib=0.0, why="the pipeline was given")
    revision = weights.sampled_fingerprint(pipe.transformer)
    return _remember(Flux(pipe, model=name, revision=revision, profile=profile_of(pipe), plan=held))


def _natural_dtype(device: str) -> str:
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        return "float16"
    return "bfloat16"


def _place(pipe: Any, chosen: Plan) -> None:
    if chosen.preset == "resident":
        pipe.to(chosen.device)
    elif chosen.preset == "model-offload":
        pipe.enable_model_cpu_offload()
    elif chosen.preset == "group-offload":
        pipe.enable_group_offload(
            onload_device=torch.device(chosen.device),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",  # by blocks T5 would come up whole
            use_stream=chosen.device == "cuda",
        )
