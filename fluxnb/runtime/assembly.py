"""A FluxPipeline put together from its folder under a preset, part by part, none of them ever whole in main memory.

What comes out is diffusers' own pipeline: what is special about a preset sits in hooks of its modules, so the plain
call `pipe("a prompt")` works under each of them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fluxnb.errors import InputError, RunError, StorageError, shorten
from fluxnb.planning.presets import Preset
from fluxnb.runtime.adaln_cache import Tables, expected_of
from fluxnb.runtime.exclusive import ExclusiveGroup, group_of, protect
from fluxnb.runtime.gguf import GgufShelf
from fluxnb.runtime.quantisation import finish, prepare
from fluxnb.runtime.streaming import Shelf, by_layer, computes_on, parked, stream_in, without_memory

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
) -> Any:
    """The pipeline of a folder in diffusers' layout, held as the preset says.

    Arguments:
        device: where it computes.
        dtype: of the transformer and the VAE; text_dtype: of the text encoders, the same by default.
        parts: components that lie in another folder.
        gguf: the transformer's file, for a preset that takes one.
        offload_blocks: move part of the transformer to main memory while a picture is decoded.
        cache_weights: keep weights that each new prompt reads in page-locked main memory.

    Raises:
        StorageError: a part is missing or damaged.
        InputError: the preset's library is not installed, or it is one of diffusers' own offloads.
    """
    if preset.text_encoders == "offloaded":
        raise InputError(f"assemble with {preset.name}", "diffusers loads its own recipes", "try fnb.load")
    places = _places(folder, parts or {})
    windows = device.type != "cpu"
    pipe = _frame(places, dtype, text_dtype or dtype)
    for name in ("text_encoder", "text_encoder_2"):
        encoder, shelf = (
            getattr(pipe, name),
            Shelf(places[name], keep=cache_weights and preset.text_encoders == "by layer", windows=windows),
        )
        if preset.text_encoders == "by layer":
            by_layer(encoder, shelf, device)
            ExclusiveGroup(encoder, device=device)
        else:
            stream_in(encoder, shelf, device)
    stream_in(pipe.vae, Shelf(places["vae"], windows=windows), device)
    if preset.text_encoders == "by layer":
        computes_on(pipe.vae, device)  # the first that a pipeline asks where it computes
    _transformer(pipe, gguf or places["transformer"], preset, device, dtype, cache_weights)
    if preset.adaln_cache or preset.offload or offload_blocks:
        ExclusiveGroup(pipe.transformer, device=device)
    if offload_blocks:
        _park_while_decoding(pipe)
    protect(pipe, device)
    if dtype is torch.float16:
        _finite(pipe.text_encoder_2, "T5's text embedding")
        _finite(pipe.vae.decoder, "the VAE's picture")
    return pipe


def _transformer(pipe: Any, place: Path, preset: Preset, device: torch.device, dtype: torch.dtype, keep: bool) -> None:
    transformer, windows = pipe.transformer, device.type != "cpu"
    shelf: Shelf | GgufShelf
    modulation: Shelf | GgufShelf
    if preset.gguf:
        width = transformer.inner_dim
        shelf, modulation = GgufShelf(place, width), GgufShelf(place, width, whole=True)
    else:
        shelf, modulation = Shelf(place, windows=windows), Shelf(place, keep=keep, windows=windows)
    streamed = preset.offload in ("leaf", "mapped")
    if preset.adaln_cache and not streamed:
        Tables(transformer, modulation, expected_of(pipe))  # first: these layers' weights are then never read here
    arrive = prepare(transformer, preset.storage, dtype)
    stream_in(transformer, shelf, torch.device("cpu") if streamed else device, arrive)
    finish(transformer, preset.storage, dtype)
    if streamed:
        # diffusers notes the order of the first pass; a twin leaves that order alone when rows are made ahead.
        twin = copy.deepcopy(transformer.time_text_embed).to(device)
        Tables(transformer, modulation, expected_of(pipe), embed=twin)
        transformer.enable_group_offload(
            onload_device=device,
            offload_type="leaf_level",
            use_stream=device.type == "cuda",
            record_stream=device.type == "cuda",
            low_cpu_mem_usage=preset.offload == "mapped",
        )


def _places(folder: Path, parts: Mapping[str, Path]) -> dict[str, Path]:
    try:
        told = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        names = [name for name, kind in told.items() if isinstance(kind, list) and kind[:1] != [None]]
    except (OSError, ValueError, AttributeError) as problem:
        raise StorageError(
            f"{folder / 'model_index.json'} ({type(problem).__name__})", "it is missing or damaged", "fetch it again"
        ) from None
    return {name: Path(parts.get(name, folder / name)) for name in names}


def _frame(places: Mapping[str, Path], dtype: torch.dtype, text_dtype: torch.dtype) -> Any:
    """The pipeline with everything small in place and the four models without memory."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, T5EncoderModel

    def ours(kind: Any, name: str) -> Any:
        config = kind.load_config(places[name])
        return without_memory(lambda: kind.from_config(config), dtype)

    def theirs(kind: Any, name: str) -> Any:
        config = AutoConfig.from_pretrained(places[name], local_files_only=True)
        config = getattr(config, "text_config", config) if kind is CLIPTextModel else config
        return without_memory(lambda: kind(config), text_dtype)

    try:
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(places["scheduler"], local_files_only=True),
            tokenizer=AutoTokenizer.from_pretrained(places["tokenizer"], local_files_only=True),
            tokenizer_2=AutoTokenizer.from_pretrained(places["tokenizer_2"], local_files_only=True),
            text_encoder=theirs(CLIPTextModel, "text_encoder"),
            text_encoder_2=theirs(T5EncoderModel, "text_encoder_2"),
            transformer=ours(FluxTransformer2DModel, "transformer"),
            vae=ours(AutoencoderKL, "vae"),
        )
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise StorageError(
            f"{next(iter(places.values())).parent} does not load ({shorten(str(problem), 160)})",
            "a configuration or a tokenizer is missing or damaged",
            "fetch the folder again",
        ) from problem


def _park_while_decoding(pipe: Any) -> None:
    """Move half of the single blocks to main memory while the decoder runs, which needs 2.4 GiB at 1024 px."""
    blocks = list(pipe.transformer.single_transformer_blocks)
    copies: dict[nn.Parameter, Tensor] = {}
    group = group_of(pipe.transformer)
    assert group is not None
    group.add(pipe.vae.decoder, during=lambda: parked(blocks[len(blocks) // 2 :], copies))


def _finite(module: nn.Module, what: str) -> None:
    """Stop at the first part that leaves float16's range, rather than draw black."""

    def look(_: nn.Module, __: Any, output: Any) -> None:
        first = output if isinstance(output, Tensor) else output[0]
        if not bool(torch.isfinite(first).all()):
            raise RunError(
                f"{what} is not finite in float16",
                "float16 ends at 65504, and something went beyond",
                'load with dtype="bfloat16" (slower on this card, and safe), or try another prompt',
            )

    module.register_forward_hook(look)
