"""GGUF files: transformers in blocks of 4 to 8 bits, with the layer names of Black Forest Labs.

diffusers reads such a file into main memory at once. Here the file is memory-mapped and each weight moves to the device
on its own, under the names of diffusers. The arithmetic is that of diffusers.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxnb.errors import InputError, StorageError
from fluxnb.io.headers import StoredTensor, gguf_header
from fluxnb.runtime.compat import gguf_types

__all__ = ["GgufReader", "stored_weight"]

FUSED, FUSED_SINGLE = 3, 7  # rows of a fused layer, in multiples of the width: q, k, v and in single blocks the MLP
FLOATS: Mapping[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}  # others are bytes
Rows = tuple[int, int]  # first and last row, in multiples of the transformer's width
_DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_PARTS: dict[str, tuple[str, Rows]] = {
    "attn.to_q": ("img_attn.qkv", (0, 1)),
    "attn.to_k": ("img_attn.qkv", (1, 2)),
    "attn.to_v": ("img_attn.qkv", (2, 3)),
    "attn.add_q_proj": ("txt_attn.qkv", (0, 1)),
    "attn.add_k_proj": ("txt_attn.qkv", (1, 2)),
    "attn.add_v_proj": ("txt_attn.qkv", (2, 3)),
}
_SINGLE: dict[str, tuple[str, Rows | None]] = {
    "norm.linear": ("modulation.lin", None),
    "proj_out": ("linear2", None),
    "attn.to_q": ("linear1", (0, 1)),
    "attn.to_k": ("linear1", (1, 2)),
    "attn.to_v": ("linear1", (2, 3)),
    "proj_mlp": ("linear1", (3, 7)),
}
_NORMS = {
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
_ENDS = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
}


def stored_weight(name: str) -> tuple[str, Rows | None]:
    """The name in the file, and the rows, of a weight with this name in diffusers.

    Raises:
        KeyError: FLUX has no such weight.

    Example:
        >>> stored_weight("single_transformer_blocks.7.proj_mlp.bias")
        ('single_blocks.7.linear1.bias', (3, 7))
    """
    layer, _, leaf = name.rpartition(".")
    if layer in _ENDS:
        return f"{_ENDS[layer]}.{leaf}", None
    found = re.fullmatch(r"(single_)?transformer_blocks\.(\d+)\.(.+)", layer)
    if not found:
        raise KeyError(name)
    single, block, inner = found.groups()
    if inner in _NORMS:
        norm = _NORMS[inner].removeprefix("img_attn.") if single else _NORMS[inner]
        return f"{'single' if single else 'double'}_blocks.{block}.{norm}.scale", None
    if single:
        source, rows = _SINGLE[inner]
        return f"single_blocks.{block}.{source}.{leaf}", rows
    if inner in _PARTS:
        source, rows = _PARTS[inner]
        return f"double_blocks.{block}.{source}.{leaf}", rows
    return f"double_blocks.{block}.{_DOUBLE[inner]}.{leaf}", None


class GgufReader:
    """The weights of a GGUF file under the names of diffusers.

    Weights of the blocks remain quantized; others are float32.

    Arguments:
        file: ends in .gguf.
        width: features of a token in the transformer, 3072 for FLUX.1.
        dequantize: convert quantized weights to float32 too, as the adaLN cache requires.

    Raises:
        StorageError: the file does not open, or lacks a weight.
        InputError: the `gguf` package is not installed.
    """

    memory_mapped = True
    aliases: Mapping[str, str] = {}  # a transformer shares no weights

    def __init__(self, file: str | Path, width: int, *, dequantize: bool = False) -> None:
        self.file, self.width, self.dequantize = Path(file), width, dequantize
        try:
            import gguf
        except ImportError:
            raise InputError(
                f"{self.file.name}", "reading GGUF requires a package that is not installed", "run pip install gguf"
            ) from None
        self._types = gguf.GGMLQuantizationType
        self.place = self.file
        try:
            tensors = gguf_header(self.file).tensors
        except StorageError as problem:
            raise StorageError(
                f"{self.file} does not open ({problem.given})", problem.possible, "download the file again"
            ) from problem
        self._tensors = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in tensors.items()}
        self._data = np.memmap(self.file, np.uint8, "r")

    def __contains__(self, name: object) -> bool:
        try:
            return stored_weight(str(name))[0] in self._tensors
        except KeyError:
            return False

    def __getitem__(self, name: str) -> Tensor:
        _, parameter, dequantize = gguf_types()
        stored, rows = self._entry(name)
        raw = self._stored(stored)
        if rows is not None:
            raw = raw[rows[0] * self.width : rows[1] * self.width]
        if not raw.dtype.is_floating_point:
            quantized = parameter(raw.contiguous(), quant_type=self._types[stored.dtype])
            in_block = name.endswith(".weight") and ".norm" not in name and "transformer_blocks." in name
            if in_block and not self.dequantize:
                return quantized
            raw = dequantize(quantized)
        if name.startswith("norm_out.linear"):  # the file stores shift before scale
            raw = torch.cat(raw.chunk(2, dim=0)[::-1], dim=0)
        return raw.float()

    def stored(self, name: str) -> tuple[tuple[int, ...], bool]:
        """Shape of a weight in the network, and whether it holds floats, which all types of GGUF do.

        Raises:
            StorageError: the file lacks the weight.
        """
        tensor, rows = self._entry(name)
        layer = FUSED_SINGLE if "linear1" in stored_weight(name)[0] else FUSED
        if rows is None or tensor.shape[0] != layer * self.width:
            return tensor.shape, True
        return ((rows[1] - rows[0]) * self.width, *tensor.shape[1:]), True

    def _entry(self, name: str) -> tuple[StoredTensor, Rows | None]:
        try:
            source, rows = stored_weight(name)
        except KeyError:
            source, rows = name, None  # a layer that FLUX does not have
        if source not in self._tensors:
            raise StorageError(
                f"{self.file} holds no {source!r}", "it is not a complete FLUX.1 transformer",
                "use a file made from FLUX.1-schnell or FLUX.1-dev",
            )  # fmt: skip
        return self._tensors[source], rows

    def _stored(self, stored: StoredTensor) -> Tensor:
        """A tensor as it is in the file: floats, or rows of bytes."""
        raw = self._data[stored.start : stored.stop]
        shape = (*stored.shape[:-1], raw.size // math.prod(stored.shape[:-1]) if raw.size else 0)
        if stored.dtype in FLOATS:
            raw, shape = raw.view(FLOATS[stored.dtype]), stored.shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the file is mapped read-only, and nothing writes to the tensor
            return torch.from_numpy(raw.reshape(shape))

    def add_alias(self, name: str, stored: str) -> None:
        """Without effect, since FLUX's transformer shares no weights."""

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield these tensors in this order."""
        return ((name, self[name]) for name in names)

    def close(self) -> None:
        """Without effect; the file is closed with the last of its tensors."""
