"""Headers of safetensors files: where each tensor is, read within bounds and without a library.

A file may come from anyone. Every length is compared with the file before it is used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fluxnb.errors import StorageError, shorten
from fluxnb.io.files import disk_errors, open_regular

__all__ = ["Header", "StoredTensor", "safetensors_header"]

LONGEST_HEADER = 16 * 2**20  # bytes; that of FLUX.1 in one file has 0.2 MB
MOST_TENSORS = 100_000
# Bits of a number of each type.
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Arguments:
        dtype: name of the number format.
        shape: its dimensions.
        start, stop: the range of its bytes in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """The header of a file of tensors.

    Arguments:
        tensors: by name.
        metadata: text by name.
        end: bytes before the first tensor.
    """

    tensors: Mapping[str, StoredTensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    end: int = 0


def safetensors_header(path: Path) -> Header:
    """Read the header of a safetensors file.

    Raises:
        StorageError: no such file, or a header that is damaged, longer than 16 MB, or does not fit the file.

    Example:
        >>> safetensors_header(path).tensors["proj_out.bias"].shape                 # doctest: +SKIP
        (64,)
    """
    with open_regular(path) as stream, disk_errors(path, doing="read"):
        try:
            return _parsed(stream)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
            raise StorageError(
                f"{path} ({shorten(str(problem), 120)})", "it is no complete safetensors file", "copy the file again"
            ) from None


def _parsed(stream: BinaryIO) -> Header:
    size = stream.seek(0, 2)
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= min(size - 8, LONGEST_HEADER):
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    entries = json.loads(stream.read(length).decode("utf-8"))
    if not isinstance(entries, dict) or len(entries) > MOST_TENSORS:
        raise ValueError("the header lists no tensors")
    metadata = entries.pop("__metadata__", {})
    if not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("the metadata is not text")
    return Header(
        {name: _entry(name, values, 8 + length, size) for name, values in entries.items()}, metadata, 8 + length
    )


def _entry(name: str, values: Mapping[str, Any], end: int, size: int) -> StoredTensor:
    dtype, shape, (start, stop) = values["dtype"], tuple(values["shape"]), values["data_offsets"]
    if any(type(number) is not int or not 0 <= number <= size for number in (*shape, start, stop)):
        raise ValueError(f"the place of {shorten(name)}")
    if 8 * (stop - start) != math.prod(shape) * BITS[dtype] or end + stop > size:
        raise ValueError(f"the size of {shorten(name)}")
    return StoredTensor(dtype, shape, end + start, end + stop)
