"""load(): a Flux handle from a name, a folder, a hub id or a user's own pipeline, under a plan."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, overload

import torch

from fluxnb.arguments import entry_point
from fluxnb.checkpoints import sources as weights
from fluxnb.checkpoints.checksums import read_json
from fluxnb.checkpoints.hub import hub_error
from fluxnb.checkpoints.validation import check_index
from fluxnb.errors import InputError, StorageError, shorten, unknown_choice
from fluxnb.families.defaults import ModelDefaults, defaults_of
from fluxnb.families.family import Family
from fluxnb.families.registry import FAMILIES, family_of
from fluxnb.installation import warn_of_newer_libraries
from fluxnb.pipeline.compat import dtype_keyword, without_loading_output
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.identity import identity_of
from fluxnb.pipeline.state import state_of
from fluxnb.planning import plan as planning
from fluxnb.planning.hardware import gpu_of_process
from fluxnb.planning.model_facts import is_large
from fluxnb.planning.model_size import model_size_of
from fluxnb.planning.plan import Plan, convert_out_of_memory
from fluxnb.planning.presets import PRESETS, all_presets, presets_of
from fluxnb.planning.processes import launched
from fluxnb.planning.requirements import Workload
from fluxnb.records.recipe import DTYPES
from fluxnb.remote.endpoints import EndpointName, endpoint_of
from fluxnb.remote.handle import Remote
from fluxnb.runtime.assembly import assemble
from fluxnb.runtime.compat import execution_device, is_library_error
from fluxnb.runtime.compilation import compile_pipeline
from fluxnb.runtime.exclusive import protect
from fluxnb.runtime.parallel import join
from fluxnb.runtime.streaming import WeightReader, buffers_of_floats

__all__ = ["device_of", "handle_of", "load", "remember"]

_PIPELINES = tuple(name for family in FAMILIES for name in family.pipelines)


def handle_of(pipe: Any) -> Flux | None:
    """A handle that describes a pipeline of a family, loaded by fluxnb or not; None for other pipelines.

    Nothing is changed on the pipeline. One that was not loaded is not protected against calls of several threads.
    """
    if family_of(pipe) is None or getattr(pipe, "transformer", None) is None:
        return None
    facts = state_of(pipe).facts
    return Flux(pipe, **facts) if facts else remember(_as_given(pipe))


@overload
def load(  # type: ignore[overload-overlap]  # the name of an endpoint is a str as well
    model: EndpointName, preset: Literal["auto"] = "auto"
) -> Remote: ...
@overload
def load(
    model: str | Path | Any = "pocket",
    preset: str = "auto",
    *,
    dtype: str | torch.dtype = "auto",
    fast: bool | str = False,
    variant: str | None = None,
    revision: str | None = None,
) -> Flux: ...
@entry_point(
    preset='preset="auto"',
    dtype='dtype="bfloat16"',
    fast="fast=True",
    variant='variant="fp16"',
    revision='revision="main"',
)
def load(
    model: str | Path | Any = "pocket",
    preset: str = "auto",
    *,
    dtype: str | torch.dtype = "auto",
    fast: bool | str = False,
    variant: str | None = None,
    revision: str | None = None,
) -> Flux | Remote:
    """A model ready to run.

    A process that `torchrun`, `accelerate launch` or `fluxnb sweep` has started takes the GPU of its local rank, or the
    one that has been made the current device.

    Arguments:
        model: "pocket", "pocket-base", "schnell", "dev", "klein", "klein-base", "z-image", "z-image-turbo", a folder in
            diffusers layout, a hub id, or a pipeline of FLUX.1, FLUX.2 klein or Z-Image, which is taken as it is: its
            weights keep their place and number format. A hosted endpoint, such as "schnell@fal-ai", gives a Remote;
            nothing is loaded and no request is sent.
        preset: how to hold it in memory, see `fnb.plan`; "auto" takes the fastest that fits. "parallel" computes each
            picture on several GPUs: start the program with `torchrun --nproc-per-node N`, and make every call of the
            model in every process.
        dtype: "float32", "bfloat16", "float16", or a torch.dtype; "auto" is float32 for small models, float16
            on a GPU without native bfloat16, else bfloat16.
        fast: True compiles what repeats, takes the quickest attention and replays whole evaluations where that is
            quicker. It takes 30 to 60 seconds and changes roundings. "fp8" also computes in 8-bit floats, which is
            lossy. The plan lists what each of them gained.
        variant: of the weight files, such as "fp16" for `*.fp16.safetensors`. Left out, the files without a variant
            are read, or those of the only variant that there is.
        revision: a branch, tag or commit of the hub; "main" by default.

    Raises:
        InputError: an unknown name, preset, dtype, variant or fast, a pipeline of another kind, or a preset or dtype
            that a given pipeline does not have.
        StorageError: a missing folder, a damaged file, a gated or unreachable hub.
        RunError: not enough memory; raised before anything is downloaded.

    Warns:
        VersionWarning: a library is newer than the version that fluxnb was tested with; once in a process.

    Example:
        >>> flux = load("pocket")                                                   # doctest: +SKIP
        >>> flux.plan.preset                                                        # doctest: +SKIP
        'cpu'
    """
    warn_of_newer_libraries()
    dtype = str(dtype).removeprefix("torch.")
    if (endpoint := endpoint_of(model)) is not None:
        given = {"preset": preset, "dtype": dtype, "fast": fast, "variant": variant, "revision": revision}
        return _remote(str(model), endpoint.provider, given)
    if dtype not in ("auto", *DTYPES):
        raise unknown_choice("dtype", dtype, DTYPES)
    if fast not in (True, False, "fp8"):
        raise unknown_choice("fast", fast, ("True", "False", "fp8"))
    if not isinstance(model, str | Path):
        _check_given(model, preset=preset, dtype=dtype, variant=variant, revision=revision)
        return _adopt(model, fast=fast)
    model = weights.expand_user(model)
    # The plan comes first, so that a model that does not fit is refused before its 34 GB are downloaded.
    chosen = planning.plan(model, preset=preset, revision=revision)
    source = weights.locate(model, variant=variant, revision=revision)
    _check_fast(source.family, fast)
    if dtype != "auto":
        chosen = dataclasses.replace(chosen, dtype=dtype)
    needed = presets_of(source.family)[chosen.preset].gguf
    gguf = weights.gguf_file(source, needed) if needed else None
    device = device_of(chosen)
    if _is_parallel(chosen):
        join(launched(), device)
    with convert_out_of_memory(chosen, f"loading {source.name}"):
        pipe, used = _held(source, chosen, gguf, device=device)
        protect(pipe, device)
    teacher_alone = source.name == "pocket" and not source.parts
    name = "pocket-base" if teacher_alone else source.name
    defaults = defaults_of(pipe, name, source.card)
    chosen = _compiled(pipe, chosen, defaults, device=device, fast=fast)
    revision = weights.revision_with_gguf(source, gguf) if gguf else source.revision
    revision += f"-{used}" if used else ""
    flux = remember(Flux(pipe, model=source.name, revision=revision, defaults=defaults, plan=chosen))
    _ = flux.preview  # fitted here, where waiting is expected, and not during the first run
    return flux


def _remote(name: str, provider: str, given: Mapping[str, Any]) -> Any:
    """The handle of an endpoint, for which the arguments about weights have no meaning."""
    for argument, value in given.items():
        if value not in ("auto", False, None):
            raise InputError(
                f"{argument}={value!r} of {name}", f"{provider} decides how it runs its model", f"leave {argument} out"
            )
    return Remote(name)


def _check_fast(family: Family, fast: bool | str) -> None:
    """Refuse to compile the models of other families than FLUX.1, before one is loaded."""
    if fast and not family.exclusive:
        raise InputError(
            f"fast={fast!r} for a model of {family.name}",
            "compiling is written for FLUX.1",
            "leave fast out, or type flux.pipe.transformer.compile()",
        )


def device_of(plan: Plan) -> torch.device:
    """The device of a plan; on CUDA that of this process, which becomes the current one beside other processes."""
    if plan.device != "cuda" or launched().count == 1:
        return torch.device(plan.device)
    device = gpu_of_process()
    torch.cuda.set_device(device)
    return device


def _is_parallel(plan: Plan) -> bool:
    return plan.preset in PRESETS and PRESETS[plan.preset].parallel


def _compiled(pipe: Any, plan: Plan, defaults: ModelDefaults, *, device: torch.device, fast: bool | str) -> Plan:
    """Compile a pipeline where `fast` or its preset requires it; the plan with what that gave."""
    always, parallel = plan.preset in PRESETS and PRESETS[plan.preset].compiled, _is_parallel(plan)
    if not fast and not always:
        return plan
    report = compile_pipeline(
        pipe,
        device,
        Workload(size=defaults.size, text=defaults.max_sequence_length),
        fp8=fast == "fp8",
        graphs=not plan.offload_blocks,
        low_memory=always,  # planned with the memory of the compiled decoder
        parallel=parallel,
    )
    named = f"{plan.preset}, {'fp8' if fast == 'fp8' else 'fast'}" if fast else plan.preset
    return dataclasses.replace(plan, preset=named, exact=False, fast=report)


def _held(source: weights.Source, chosen: Plan, gguf: Path | None, *, device: torch.device) -> tuple[Any, str]:
    """The pipeline of a source under a plan, and the variant of its files ("" for none).

    A small model is loaded by diffusers, others are assembled part by part.
    """
    preset = presets_of(source.family)[chosen.preset]
    folder = weights.fetch(source, without_transformer=gguf is not None)
    variant = weights.variant_of(folder, source.variant, name=source.name)
    large = is_large(model_size_of(folder, source.parts))
    computes = getattr(torch, chosen.dtype)
    if not large and preset.name in ("resident", "cpu"):
        return _from_diffusers(source, folder, computes, variant=variant, progress=False).to(device), variant
    if preset.text_encoders == "offloaded":
        downloaded = dataclasses.replace(source, place=str(folder), local=True)
        pipe = _from_diffusers(downloaded, folder, computes, variant=variant, progress=large)
        enable = pipe.enable_model_cpu_offload if preset.offload == "model" else pipe.enable_sequential_cpu_offload
        enable(device=device)
        return pipe, variant
    pipe = assemble(
        folder,
        preset,
        device=device,
        dtype=computes,
        parts=source.parts,
        gguf=gguf,
        offload_blocks=chosen.offload_blocks,
        cache_weights=chosen.cache_weights,
        variant=variant,
    )
    return pipe, variant


def _from_diffusers(source: weights.Source, folder: Path, dtype: torch.dtype, *, variant: str, progress: bool) -> Any:
    """The pipeline as diffusers loads it, with errors as StorageError.

    Arguments:
        folder: with the files of the source.
        variant: of the weight files; "" for none.
        progress: show progress bars and advice of the libraries.
    """
    with contextlib.nullcontext() if progress else without_loading_output():
        import diffusers

        options: dict[str, Any] = {dtype_keyword(): dtype, "use_safetensors": True}
        try:
            parts = {
                name: diffusers.FluxTransformer2DModel.from_pretrained(place, **options)
                for name, place in source.parts.items()
                if name == "transformer"
            }
            parts |= {
                name: _text_encoder(folder, name, dtype, variant=variant)
                for name in check_index(folder)
                if name.startswith("text_encoder")
            }
            if not source.local:
                options["revision"] = source.revision
            if variant:
                options["variant"] = variant
            pipeline = getattr(diffusers, source.family.pipelines[0])
            pipe = pipeline.from_pretrained(source.place, **options, **parts, trust_remote_code=False)
        except StorageError:
            raise
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
    _check_loaded(pipe, folder, source.parts, variant=variant)
    return pipe


def _text_encoder(folder: Path, name: str, dtype: torch.dtype, *, variant: str) -> Any:
    """A text encoder as diffusers loads it. transformers fills weights that its files lack with random numbers.

    Raises:
        StorageError: a weight is missing.
    """
    import transformers

    kind = getattr(transformers, read_json(folder / "model_index.json")[name][1])  # `fetch` has checked it
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    if variant in weights.weight_files(folder / name):
        options["variant"] = variant or None
    encoder, report = kind.from_pretrained(folder / name, **options, output_loading_info=True)
    for weight in sorted(report["missing_keys"]):
        raise _missing(weight, name, folder)
    return encoder


def _check_loaded(pipe: Any, folder: Path, parts: Mapping[str, Path], *, variant: str) -> None:
    """Raise StorageError where diffusers found a weight missing, which it leaves without memory, or a buffer."""
    for name in ("transformer", "vae"):
        model = getattr(pipe, name)
        if model is None:
            continue
        missing = [weight for weight, tensor in model.named_parameters() if tensor.is_meta]
        if buffers := buffers_of_floats(model):
            reader = WeightReader(parts.get(name, folder / name), variant=variant)
            missing += [buffer for buffer in buffers if buffer not in reader]
        for weight in missing:
            raise _missing(weight, name, folder)


def _missing(weight: str, component: str, folder: Path) -> StorageError:
    return StorageError(
        f"{component} in {folder} has no {shorten(weight)}",
        "the model's configuration requires it",
        "copy or download the folder again",
    )


def remember(flux: Flux) -> Flux:
    """Store with a pipeline what other handles of it are made from."""
    # Names and numbers alone: a handle holds the pipeline and would keep it alive.
    state_of(flux.pipe).facts.update(flux.facts)
    return flux


def _check_given(pipe: Any, *, preset: str, dtype: str, variant: str | None, revision: str | None) -> None:
    """Refuse the arguments that a pipeline which is already loaded cannot follow."""
    _require_family(pipe)
    if preset not in ("auto", "as given"):
        if preset not in all_presets():
            raise unknown_choice("preset", preset, ("auto", "as given", *all_presets()))
        raise InputError(
            f"preset={preset!r} for a pipeline that is already loaded",
            "a pipeline is taken as it is; presets apply to names, folders and hub ids",
            f'leave preset out, or type fnb.load("schnell", preset="{preset}")',
        )
    held = str(pipe.transformer.dtype).removeprefix("torch.")
    if dtype not in ("auto", held):
        raise InputError(
            f"dtype={dtype!r} for a pipeline in {held}",
            "a pipeline keeps its number format",
            f"type fnb.load(pipe.to(torch.{dtype}))",
        )
    for name, value in (("variant", variant), ("revision", revision)):
        if value is not None:
            raise InputError(
                f"{name}={value!r} for a pipeline that is already loaded",
                "it chooses files of a folder or of the hub",
                f'leave {name} out, or type fnb.load("black-forest-labs/FLUX.1-schnell", {name}="{value}")',
            )


def _require_family(pipe: Any) -> Family:
    if isinstance(pipe, Flux):
        raise InputError("a Flux", "it is loaded already", "use it as it is, or type fnb.load(flux.pipe)")
    if (family := family_of(pipe)) is None:
        kinds = {base.__name__ for base in type(pipe).__mro__}
        other = "record other pipelines with fnb.recording(pipe)" if "DiffusionPipeline" in kinds else None
        raise InputError(
            f"model of type {type(pipe).__name__}",
            f"a name, a folder, a hub id or a {' or '.join(_PIPELINES)} is possible",
            other or 'try fnb.load("pocket")',
        )
    if getattr(pipe, "transformer", None) is None:
        raise InputError(
            f"a {type(pipe).__name__} without a transformer",
            "sampling needs one",
            "give a pipeline with its transformer, or record this one with fnb.recording(pipe)",
        )
    return family


def _adopt(pipe: Any, *, fast: bool | str = False) -> Flux:
    _check_fast(_require_family(pipe), fast)
    protect(pipe, execution_device(pipe))
    flux = _as_given(pipe)
    if fast:
        # The revision names the weights as they were given; compiling may fuse or round them.
        plan = _compiled(pipe, flux.plan, flux.defaults, device=torch.device(flux.plan.device), fast=fast)
        flux = Flux(
            pipe,
            model=flux.model,
            revision=flux.revision,
            defaults=flux.defaults,
            plan=plan,
            identity=identity_of(pipe),
        )
    flux = remember(flux)
    _ = flux.preview
    return flux


def _as_given(pipe: Any) -> Flux:
    """A handle for a user's pipeline, with its own identity as the revision."""
    name = weights.public_name(str(pipe.config.get("_name_or_path") or ""))
    device = execution_device(pipe).type
    held = Plan(preset="as given", device=device, vram_gib=0.0, ram_gib=0.0, why="the pipeline was given")
    identity = identity_of(pipe)
    return Flux(pipe, model=name, revision=identity.digest, defaults=defaults_of(pipe), plan=held, identity=identity)
