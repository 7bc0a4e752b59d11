"""Assembling a pipeline from its folder under a preset, part by part, so that no model is held in main memory.

The result is a pipeline of diffusers. Presets differ in hooks of the modules, so that the plain call
`pipe("a prompt")` works under every preset.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluxnb.checkpoints.checksums import read_json
from fluxnb.checkpoints.validation import check_index, check_model
from fluxnb.cleanup import undoing
from fluxnb.errors import InputError, RunError, StorageError, shorten
from fluxnb.families.family import Family
from fluxnb.families.flux1 import FLUX1
from fluxnb.families.registry import family_of_class
from fluxnb.planning.presets import Preset
from fluxnb.runtime.adaln_cache import AdaLNCache, expected_timesteps
from fluxnb.runtime.adapters import support_adapters
from fluxnb.runtime.compat import is_library_error, set_execution_device
from fluxnb.runtime.exclusive import ExclusiveGroup, protect
from fluxnb.runtime.gguf import GgufReader
from fluxnb.runtime.quantisation import cast_for_compute, load_text_encoder, prepare_storage
from fluxnb.runtime.streaming import (
    WeightReader,
    build_without_memory,
    check_weights,
    load_by_layer,
    load_weights,
    offloaded_blocks,
)

__all__ = ["assemble"]


def assemble(
    folder: Path,
    preset: Preset,
    *,
    device: torch.device,
    dtype: torch.dtype,
    text_dtype: torch.dtype | None = None,
    parts: Mapping[str, Path] | None = None,
    gguf: Path | None = None,
    offload_blocks: bool = False,
    cache_weights: bool = False,
    variant: str = "",
) -> Any:
    """A pipeline from a folder in diffusers' layout, held in memory as the preset describes.

    Arguments:
        device: of the computation.
        dtype: of the transformer and the VAE.
        text_dtype: of the text encoders; `dtype` by default.
        parts: components that are in another folder.
        gguf: the transformer's file, for a preset that requires one.
        offload_blocks: move part of the transformer to main memory while a picture is decoded.
        cache_weights: keep weights that each new prompt reads in page-locked main memory.
        variant: of the weight files, such as "fp16"; components without it are read without one.

    Raises:
        StorageError: a part is missing or damaged.
        InputError: the preset's library is not installed, or the preset is an offload of diffusers.
    """
    if preset.text_encoders == "offloaded":
        raise InputError(f"assemble with {preset.name}", "diffusers loads its own offloads", "try fnb.load")
    check_model(folder, parts)
    family = _family_of_folder(folder)
    folders = _component_folders(folder, parts or {})
    reader = functools.partial(WeightReader, memory_mapped=device.type != "cpu", variant=variant)
    pipe = _pipeline_without_memory(folder, family, folders, dtype=dtype, text_dtype=text_dtype or dtype)
    for name in (name for name in folders if name.startswith("text_encoder")):
        encoder = getattr(pipe, name)
        if preset.text_encoders == "by layer":
            release = load_by_layer(encoder, reader(folders[name], cache=cache_weights), device)
            ExclusiveGroup(device=device).add(encoder, during=functools.partial(undoing, release))
        else:
            load_text_encoder(encoder, reader(folders[name]), device, preset.text_storage, text_dtype or dtype)
    load_weights(pipe.vae, reader(folders["vae"]), device)
    if preset.text_encoders == "by layer":
        set_execution_device(pipe.vae, device)  # the first component that a pipeline derives its device from
    readers: Readers
    if gguf is not None:
        width = pipe.transformer.inner_dim  # of FLUX.1, which alone has GGUF presets
        readers = GgufReader(gguf, width), GgufReader(gguf, width, dequantize=True)
    else:
        readers = reader(folders["transformer"]), reader(folders["transformer"], cache=cache_weights)
    _load_transformer(pipe, preset, readers, device, dtype)
    copies: dict[nn.Parameter, Tensor] = {}
    if preset.adaln_cache or preset.offload or offload_blocks:
        group = ExclusiveGroup(pipe.transformer, device=device)
        if offload_blocks:
            _offload_blocks_while_decoding(pipe, group, copies)
    protect(pipe, device)
    support_adapters(pipe, device, copies=copies)
    if dtype is torch.float16:
        if hasattr(pipe, "text_encoder_2"):
            _check_finite(pipe.text_encoder_2, "T5's text embedding")
        _check_finite(pipe.vae.decoder, "the VAE's picture")
    return pipe


# Of the transformer's weights, and of those of the modulation layers for the adaLN cache.
Readers = tuple[WeightReader | GgufReader, WeightReader | GgufReader]


def _load_transformer(pipe: Any, preset: Preset, readers: Readers, device: torch.device, dtype: torch.dtype) -> None:
    transformer, (reader, modulation) = pipe.transformer, readers
    check_weights(transformer, reader)
    streamed = preset.offload in ("leaf", "mapped")
    if preset.adaln_cache and not streamed:
        # Before the weights are loaded, since it removes the modulation layers.
        AdaLNCache(transformer, modulation, expected_timesteps(pipe))
    setter = prepare_storage(transformer, preset.storage, dtype)
    load_weights(transformer, reader, torch.device("cpu") if streamed else device, setter)
    cast_for_compute(transformer, preset.storage, dtype)
    if streamed and preset.adaln_cache:
        # Group offload records the order of the layers in the first pass. A copy of the embedding computes rows ahead
        # of time without changing that order.
        embedding = copy.deepcopy(transformer.time_text_embed).to(device)
        AdaLNCache(transformer, modulation, expected_timesteps(pipe), embedding=embedding)
    if streamed:
        transformer.enable_group_offload(
            onload_device=device,
            offload_type="leaf_level",
            use_stream=device.type == "cuda",
            record_stream=device.type == "cuda",
            low_cpu_mem_usage=preset.offload == "mapped",
        )


def _component_folders(folder: Path, parts: Mapping[str, Path]) -> dict[str, Path]:
    return {name: Path(parts.get(name, folder / name)) for name in check_index(folder)}


def _family_of_folder(folder: Path) -> Family:
    return family_of_class(read_json(folder / "model_index.json").get("_class_name")) or FLUX1


def _pipeline_without_memory(
    folder: Path, family: Family, folders: Mapping[str, Path], *, dtype: torch.dtype, text_dtype: torch.dtype
) -> Any:
    """The pipeline with its scheduler and tokenizers, and with models built without memory."""
    import diffusers
    import transformers

    options = {"local_files_only": True, "trust_remote_code": False}
    index = read_json(folder / "model_index.json")
    # Entries that are no components are options of the pipeline, such as whether its network is distilled.
    settings = {name: value for name, value in index.items() if isinstance(value, bool)}

    def model(kind: Any, place: Path) -> Any:
        if kind.__module__.startswith("diffusers."):
            config = kind.load_config(place)
            return build_without_memory(lambda: kind.from_config(config), dtype)
        config = transformers.AutoConfig.from_pretrained(place, **options)
        config = getattr(config, "text_config", config) if kind is transformers.CLIPTextModel else config
        return build_without_memory(lambda: kind(config), text_dtype)

    def component(name: str, place: Path) -> Any:
        if name.startswith("tokenizer"):
            return transformers.AutoTokenizer.from_pretrained(place, **options)
        if name == "scheduler":
            return diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(place, local_files_only=True)
        library, kind = index[name]  # `check_model` has checked both
        return model(getattr(diffusers if library == "diffusers" else transformers, kind), place)

    names = [name for name in folders if name in (*family.encoders, "transformer", "vae", "scheduler")]
    try:
        pipeline = getattr(diffusers, family.pipelines[0])
        return pipeline(**{name: component(name, folders[name]) for name in names}, **settings)
    except BaseException as problem:  # the libraries raise various classes, that of Rust no Exception
        if not is_library_error(problem):
            raise
        raise StorageError(
            f"{next(iter(folders.values())).parent} does not load ({shorten(str(problem), 160)})",
            "a configuration or a tokenizer is missing or damaged",
            "download the folder again",
        ) from problem


def _offload_blocks_while_decoding(pipe: Any, group: ExclusiveGroup, copies: dict[nn.Parameter, Tensor]) -> None:
    """Move half of the single blocks to main memory while the decoder runs, which needs 2.4 GiB at 1024 px.

    Arguments:
        copies: filled with the weights in main memory.
    """
    blocks = list(pipe.transformer.single_transformer_blocks)
    group.add(pipe.vae.decoder, during=functools.partial(offloaded_blocks, blocks[len(blocks) // 2 :], copies))


def _check_finite(module: nn.Module, name: str) -> None:
    """Raise RunError when the output of a module exceeds the range of float16, which would give a black picture."""

    def check(_: nn.Module, __: Any, output: Any) -> None:
        first = output if isinstance(output, Tensor) else output[0]
        if not bool(torch.isfinite(first).all()):
            raise RunError(
                f"{name} is not finite in float16",
                "float16 ends at 65504, and a value exceeded it",
                'load with dtype="bfloat16" (slower on this card, and safe), or try another prompt',
            )

    module.register_forward_hook(check)
