"""A checkpoint in diffusers' layout with random weights and FLUX.1-schnell's shapes, or with the shapes of a toy model.

Memory, time and byte equality depend on shapes and not on the content of a picture, so nothing is downloaded. Weights
are drawn on the GPU if there is one, written in shards by several threads, and remain in the page cache.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from fluxnb.planning.model_size import FLUX1
from fluxnb.runtime.streaming import build_without_memory, set_tensor

SHARD = 2 * 10**9  # bytes
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0, "use_dynamic_shifting": False}


def models(tiny: bool, depth: tuple[int, int, int] = (19, 38, 24)) -> dict[str, nn.Module]:
    """The four networks on the meta device.

    Args:
        tiny: the shapes of the toy pipeline of the tests.
        depth: double blocks, single blocks and T5 blocks; fewer for tests that need only the full width.
    """
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    if tiny:
        from tests.conftest import toy_pipeline

        pipe = toy_pipeline()
        return {name: getattr(pipe, name) for name in ("transformer", "vae", "text_encoder", "text_encoder_2")}
    t = {**FLUX1["transformer"], "num_layers": depth[0], "num_single_layers": depth[1]}
    clip, t5 = FLUX1["text_encoder"], {**FLUX1["text_encoder_2"], "num_layers": depth[2]}
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "sample_size": 1024,
        "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
    }  # fmt: skip
    clip_config = {
        "num_attention_heads": 12,
        "projection_dim": 768,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    dtype = torch.bfloat16
    return {
        "transformer": build_without_memory(lambda: FluxTransformer2DModel(**t), dtype),
        "vae": build_without_memory(lambda: AutoencoderKL(**vae), dtype),
        "text_encoder": build_without_memory(lambda: CLIPTextModel(CLIPTextConfig(**clip, **clip_config)), dtype),
        "text_encoder_2": build_without_memory(
            lambda: T5EncoderModel(
                T5Config(**t5, feed_forward_proj="gated-gelu", is_encoder_decoder=False, use_cache=False)
            ),
            dtype,
        ),
    }


def on_device(device: torch.device, *, text: bool = True) -> Any:
    """A pipeline in bfloat16 whose weights are drawn on `device`, without files.

    Args:
        device: of the weights.
        text: whether to include the text encoders; calls with given embeddings do not need them.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    from tests.conftest import toy_tokenizers

    built = models(tiny=False)
    parts: dict[str, Any] = {name: _materialize(built[name], device) for name in ("transformer", "vae")}
    text_encoders = ("text_encoder", "text_encoder_2")
    parts |= {name: _materialize(built[name], device) if text else None for name in text_encoders}
    for name, tokenizer, length in zip(("tokenizer", "tokenizer_2"), toy_tokenizers(), (77, 512), strict=True):
        tokenizer.model_max_length = length
        parts[name] = tokenizer if text else None
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    pipe = FluxPipeline(scheduler=scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _materialize(model: nn.Module, device: torch.device) -> nn.Module:
    generator, tensors = torch.Generator(device).manual_seed(0), {}
    for name, like in model.named_parameters(remove_duplicate=False):
        path, _, leaf = name.rpartition(".")
        if id(like) not in tensors:
            tensors[id(like)] = _random(name, like, device, generator)
        set_tensor(model.get_submodule(path), leaf, tensors[id(like)])
    for name, constant in list(model.named_buffers()):
        path, _, leaf = name.rpartition(".")
        set_tensor(model.get_submodule(path), leaf, constant.to(device))
    return model


def write_checkpoint(
    folder: Path,
    *,
    tiny: bool = False,
    sparse: bool = False,
    depth: tuple[int, int, int] = (19, 38, 24),
    threads: int = 8,
) -> float:
    """Write the checkpoint unless it is complete already; returns the seconds taken.

    Args:
        folder: folder of the checkpoint.
        tiny, depth: as in `models`.
        sparse: write sparse files of the right size, with all weights 0, that take no disk space.
        threads: number of writers.
    """
    began, done = time.perf_counter(), folder / "done"
    if done.is_file():
        return 0.0
    from tests.conftest import toy_tokenizers

    folder.mkdir(parents=True, exist_ok=True)
    kinds = {
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    _write(folder / "model_index.json", {"_class_name": "FluxPipeline", "_diffusers_version": "0.42.1", **kinds})
    _write(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    for name, tokenizer, length in zip(
        ("tokenizer", "tokenizer_2"), toy_tokenizers(), (48, 48) if tiny else (77, 512), strict=True
    ):
        tokenizer.model_max_length = length
        tokenizer.save_pretrained(folder / name)
    with ThreadPoolExecutor(max_workers=threads) as writers:
        for name, model in models(tiny, depth).items():
            _save(model, folder / name, writers, _write_sparse if sparse else _write_random)
    done.write_text("whole")
    return time.perf_counter() - began


def _save(model: Any, folder: Path, writers: ThreadPoolExecutor, write: Callable[..., None]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = "diffusion_pytorch_model" if hasattr(model, "load_config") else "model"
    if hasattr(model, "load_config"):
        model.save_config(folder)
    else:
        model.config.architectures = [type(model).__name__]
        model.config.dtype = "bfloat16"
        model.config.save_pretrained(folder)
    shared = set(getattr(model, "_tied_weights_keys", None) or {})
    tensors = [(name, tensor) for name, tensor in model.state_dict().items() if name not in shared]
    shards = list(_shards(tensors))
    names = [f"{stem}-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        names = [f"{stem}.safetensors"]
    else:
        table = {name: file for shard, file in zip(shards, names, strict=True) for name, _ in shard}
        total = sum(tensor.numel() * 2 for _, tensor in tensors)
        _write(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": table})
    list(writers.map(write, shards, [folder / name for name in names], range(len(shards))))


def _write_random(shard: list[tuple[str, torch.Tensor]], path: Path, seed: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator(device).manual_seed(zlib.crc32(path.parent.name.encode()) + seed)
    tensors = {name: _random(name, like, device, generator).cpu() for name, like in shard}
    save_file(tensors, path, metadata={"format": "pt"})


def _random(name: str, like: torch.Tensor, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    norm = "norm" in name.rpartition(".")[0].rpartition(".")[2] and name.endswith("weight") and like.ndim == 1
    drawn = torch.empty(like.shape, dtype=torch.bfloat16, device=device)
    variance = name.endswith("running_var")  # of a batch norm, which is positive
    return drawn.fill_(1.0) if norm or variance else drawn.normal_(0.0, 0.02, generator=generator)


def _write_sparse(shard: list[tuple[str, torch.Tensor]], path: Path, _: int) -> None:
    """Write the header of a safetensors file, and extend the file to the size of the weights."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, like in shard:
        begin, end = end, end + like.numel() * 2
        header[name] = {"dtype": "BF16", "shape": list(like.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as stream:
        stream.write(len(raw).to_bytes(8, "little") + raw)
        stream.truncate(8 + len(raw) + end)


def _shards(tensors: Iterable[tuple[str, torch.Tensor]]) -> Iterable[list[tuple[str, torch.Tensor]]]:
    shard: list[tuple[str, torch.Tensor]] = []
    size = 0
    for name, tensor in tensors:
        if shard and size + tensor.numel() * 2 > SHARD:
            yield shard
            shard, size = [], 0
        shard.append((name, tensor))
        size += tensor.numel() * 2
    yield shard


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))
