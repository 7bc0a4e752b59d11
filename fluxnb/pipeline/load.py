"""load(): a Flux handle from a name, a folder, a hub id or a user's own pipeline, under a plan."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch

from fluxnb.checkpoints import sources as weights
from fluxnb.checkpoints.hub import hub_error
from fluxnb.errors import InputError, StorageError, shorten, unknown_choice, validates_own_input
from fluxnb.families.defaults import defaults_of
from fluxnb.pipeline.compat import dtype_keyword, execution_device, without_loading_output
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.identity import identity_of
from fluxnb.pipeline.state import state_of
from fluxnb.planning import plan as planning
from fluxnb.planning.model_size import model_size_of
from fluxnb.planning.plan import Plan, convert_out_of_memory, is_large
from fluxnb.planning.presets import PRESETS, Workload
from fluxnb.records.recipe import Recipe
from fluxnb.runtime.assembly import assemble
from fluxnb.runtime.compat import is_library_error
from fluxnb.runtime.compilation import compile_pipeline
from fluxnb.runtime.exclusive import protect

__all__ = ["handle_of", "load"]


def handle_of(pipe: Any) -> Flux | None:
    """A handle for a FluxPipeline, loaded by fluxnb or not; None for other pipelines."""
    if not _is_flux_pipeline(pipe):
        return None
    facts = state_of(pipe).facts
    return Flux(pipe, **facts) if facts else _adopt(pipe)


def _is_flux_pipeline(pipe: Any) -> bool:
    # By name: importing diffusers for a pipeline of another library would take seconds.
    return "FluxPipeline" in {base.__name__ for base in type(pipe).__mro__}


@validates_own_input
def load(
    model: str | Path | Any = "pocket", preset: str = "auto", *, dtype: str = "auto", fast: bool | str = False
) -> Flux:
    """A model ready to run.

    Arguments:
        model: "pocket", "pocket-base", "schnell", "dev", a folder in diffusers layout, a hub id, or a FluxPipeline,
            which is taken as it is.
        preset: how to hold it in memory, see `fnb.plan`; "auto" takes the fastest that fits.
        dtype: "float32", "bfloat16", "float16"; "auto" is float32 for small models and on a CPU, else bfloat16
            where the GPU has it natively and float16 where not.
        fast: True compiles what repeats, takes the quickest attention and replays evaluations whole where that is
            quicker, which costs half a minute or a whole one and changes roundings; "fp8" computes in 8-bit floats
            too, which is lossy. What each of them gave stands in the plan.

    Raises:
        InputError: an unknown name, preset, dtype or fast, or a pipeline of another kind.
        StorageError: a missing folder, a damaged file, a gated or unreachable hub.
        RunError: not enough memory; raised before anything is downloaded.

    Example:
        >>> flux = load("pocket")                                                   # doctest: +SKIP
        >>> flux.plan.preset                                                        # doctest: +SKIP
        'cpu'
    """
    if not isinstance(model, str | Path):
        return _adopt(model)
    model = weights.expand_user(model)
    if dtype != "auto":
        Recipe(prompt="-", dtype=dtype)  # raises InputError for an unknown one
    if fast not in (True, False, "fp8"):
        raise unknown_choice("fast", fast, ("True", "False", "fp8"))
    # The plan comes first, so that a model that does not fit is refused before its 34 GB are downloaded.
    chosen = planning.plan(model, preset=preset)
    source = weights.locate(model)
    if dtype != "auto":
        chosen = dataclasses.replace(chosen, dtype=dtype)
    needed = PRESETS[chosen.preset].gguf
    gguf = weights.gguf_file(source, needed) if needed else None
    with convert_out_of_memory(chosen, f"loading {source.name}"):
        pipe = _held(source, chosen, gguf)
        protect(pipe, torch.device(chosen.device))
    teacher_alone = source.name == "pocket" and not source.parts
    name = "pocket-base" if teacher_alone else source.name
    defaults = defaults_of(pipe, name, source.card)
    if fast or PRESETS[chosen.preset].compiled:
        report = compile_pipeline(
            pipe,
            torch.device(chosen.device),
            Workload(size=defaults.size, text=defaults.max_sequence_length),
            fp8=fast == "fp8",
            graphs=not chosen.offload_blocks,
            low_memory=PRESETS[chosen.preset].compiled,  # planned with the memory of the compiled decoder
        )
        named = f"{chosen.preset}, {'fp8' if fast == 'fp8' else 'fast'}" if fast else chosen.preset
        chosen = dataclasses.replace(chosen, preset=named, exact=False, fast=report)
    revision = weights.revision_with_gguf(source, gguf) if gguf else source.revision
    flux = _remember(Flux(pipe, model=source.name, revision=revision, defaults=defaults, plan=chosen))
    _ = flux.preview  # fitted here, where waiting is expected, and not during the first run
    return flux


def _held(source: weights.Source, chosen: Plan, gguf: Path | None) -> Any:
    """The pipeline of a source under a plan: a small one as diffusers loads it, others part by part."""
    preset, device = PRESETS[chosen.preset], torch.device(chosen.device)
    folder = weights.fetch(source, without_transformer=gguf is not None)
    large = is_large(model_size_of(folder, source.parts))
    computes = getattr(torch, chosen.dtype)
    if not large and preset.name in ("resident", "cpu"):
        return _from_diffusers(source, computes, progress=False).to(device)
    if preset.text_encoders == "offloaded":
        downloaded = dataclasses.replace(source, place=str(folder), local=True)
        pipe = _from_diffusers(downloaded, computes, progress=large)
        enable = pipe.enable_model_cpu_offload if preset.offload == "model" else pipe.enable_sequential_cpu_offload
        enable(device=device)
        return pipe
    return assemble(
        folder,
        preset,
        device=device,
        dtype=computes,
        parts=source.parts,
        gguf=gguf,
        offload_blocks=chosen.offload_blocks,
        cache_weights=chosen.cache_weights,
    )


def _from_diffusers(source: weights.Source, dtype: torch.dtype, *, progress: bool) -> Any:
    """The pipeline as diffusers loads it, with errors as StorageError.

    Arguments:
        progress: show progress bars and advice of the libraries.
    """
    with contextlib.nullcontext() if progress else without_loading_output():
        from diffusers import FluxPipeline, FluxTransformer2DModel

        options: dict[str, Any] = {dtype_keyword(): dtype, "use_safetensors": True}
        try:
            parts = {
                name: FluxTransformer2DModel.from_pretrained(folder, **options)
                for name, folder in source.parts.items()
                if name == "transformer"
            }
            if not source.local:
                options["revision"] = source.revision
            return FluxPipeline.from_pretrained(source.place, **options, **parts, trust_remote_code=False)
        except BaseException as problem:  # safetensors, JSON, missing files and the hub raise various classes
            if not is_library_error(problem):
                raise
            if not source.local:
                raise hub_error(source.place, problem) from problem
            raise StorageError(
                f"{source.place} does not load ({shorten(str(problem), 160)})",
                "a file is missing, damaged, or not safetensors",
                "copy or download the folder again",
            ) from problem


def _remember(flux: Flux) -> Flux:
    # Names and numbers alone: a handle holds the pipeline and would keep it alive.
    revision, identity = flux.loaded_as
    state_of(flux.pipe).facts.update(
        model=flux.model, revision=revision, defaults=flux.defaults, plan=flux.plan, identity=identity
    )
    return flux


def _adopt(pipe: Any) -> Flux:
    if not _is_flux_pipeline(pipe):
        kinds = {base.__name__ for base in type(pipe).__mro__}
        other = "record other pipelines with fnb.recording(pipe)" if "DiffusionPipeline" in kinds else None
        raise InputError(
            f"model of type {type(pipe).__name__}",
            "a name, a folder, a hub id or a FluxPipeline is possible",
            other or 'try fnb.load("pocket")',
        )
    device = execution_device(pipe)
    protect(pipe, device)
    name = weights.public_name(str(pipe.config.get("_name_or_path") or ""))
    held = Plan(preset="as given", device=device.type, vram_gib=0.0, ram_gib=0.0, why="the pipeline was given")
    identity = identity_of(pipe)
    flux = _remember(
        Flux(pipe, model=name, revision=identity.digest, defaults=defaults_of(pipe), plan=held, identity=identity)
    )
    _ = flux.preview
    return flux
