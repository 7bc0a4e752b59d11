"""Headers of safetensors and GGUF files: where each tensor is, read within bounds and without a library.

A file may come from anyone. Every length is compared with the file before it is used.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fluxnb.errors import StorageError, shorten
from fluxnb.io.files import disk_errors, open_regular

__all__ = ["Header", "StoredTensor", "gguf_header", "safetensors_header"]

LONGEST_HEADER = 16 * 2**20  # bytes; that of FLUX.1 in one file has 0.2 MB
MOST_TENSORS = 100_000
MOST_DIMENSIONS = 8  # of a tensor; a GGUF file has at most 4
MOST_FIELDS = 10_000  # of metadata in a GGUF file
MOST_STRINGS = 1_000_000  # of an array in a GGUF file
ALIGNMENT = 32  # of the tensors in a GGUF file that states none
# Bits of a number of each type.
BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
# Name, weights per block and bytes per block of each type in a GGUF file, by number.
GGUF_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
}  # fmt: skip
STRING, ARRAY = 8, 9  # types of metadata
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of the others


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

    @property
    def is_float(self) -> bool:
        """Whether a tensor of a safetensors file holds floats from which weights are read."""
        # PyTorch computes with floats of at least 8 bits.
        return self.dtype.startswith(("F", "BF")) and BITS[self.dtype] >= 8


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
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{shorten(name)} has {len(shape)} dimensions")
    if any(type(number) is not int or not 0 <= number <= size for number in (*shape, start, stop)):
        raise ValueError(f"the place of {shorten(name)}")
    if 8 * (stop - start) != math.prod(shape) * BITS[dtype] or end + stop > size:
        raise ValueError(f"the size of {shorten(name)}")
    return StoredTensor(dtype, shape, end + start, end + stop)


def gguf_header(path: Path) -> Header:
    """Read the header of a GGUF file of version 2 or 3.

    Shapes have the order of PyTorch, rows first. Metadata is skipped.

    Raises:
        StorageError: no such file, or a header that is damaged, longer than 16 MB, or does not fit the file.

    Example:
        >>> gguf_header(path).tensors["img_in.weight"].dtype                        # doctest: +SKIP
        'F32'
    """
    with open_regular(path) as stream, disk_errors(path, doing="read"):
        size = stream.seek(0, 2)
        stream.seek(0)
        try:
            return _Gguf(stream.read(min(size, LONGEST_HEADER)), size).header()
        except (ValueError, struct.error) as problem:
            raise StorageError(
                f"{path} does not open ({shorten(str(problem), 120)})",
                "it is damaged or not a GGUF file",
                "download the file again",
            ) from None


class _Gguf:
    """A cursor in the first bytes of a GGUF file.

    Arguments:
        data: the first bytes, with the complete header.
        size: of the file.
    """

    def __init__(self, data: bytes, size: int) -> None:
        self.data, self.size, self.place = data, size, 0

    def header(self) -> Header:
        if self._bytes(4) != b"GGUF" or self._number("<I") not in (2, 3):
            raise ValueError("no GGUF of version 2 or 3")
        count, fields = self._number("<Q"), self._number("<Q")
        if count > MOST_TENSORS or fields > MOST_FIELDS:
            raise ValueError(f"{count} tensors and {fields} fields")
        alignment = ALIGNMENT
        for _ in range(fields):
            key, kind = self._bytes(self._number("<Q")), self._number("<I")
            if key == b"general.alignment" and kind == 4:
                alignment = self._number("<I")
            else:
                self._skip(kind)
        if not 1 <= alignment <= 2**16 or alignment & (alignment - 1):
            raise ValueError(f"an alignment of {alignment}")
        infos = dict(self._info() for _ in range(count))
        if len(infos) < count:
            raise ValueError("two tensors of one name")
        end = -(-self.place // alignment) * alignment
        tensors = {}
        for name, (dtype, shape, start, length) in infos.items():
            if end + start + length > self.size:
                raise ValueError(f"{shorten(name)} ends after the file")
            tensors[name] = StoredTensor(dtype, shape, end + start, end + start + length)
        return Header(tensors, {}, self.place)

    def _info(self) -> tuple[str, tuple[str, tuple[int, ...], int, int]]:
        name = self._bytes(self._number("<Q")).decode("utf-8")
        dimensions = self._number("<I")
        if dimensions > 4:
            raise ValueError(f"{shorten(name)} has {dimensions} dimensions")
        shape = tuple(self._number("<Q") for _ in range(dimensions))[::-1]
        kind, start = self._number("<I"), self._number("<Q")
        if kind not in GGUF_TYPES:
            raise ValueError(f"{shorten(name)} is of the unknown type {kind}")
        dtype, weights, length = GGUF_TYPES[kind]
        if not shape or shape[-1] % weights or max(shape) > self.size * weights:
            raise ValueError(f"{shorten(name)} is {dtype} {shape}")
        return name, (dtype, shape, start, math.prod(shape) // weights * length)

    def _skip(self, kind: int) -> None:
        """Skip a value of metadata."""
        if kind == STRING:
            self._bytes(self._number("<Q"))
        elif kind in SCALARS:
            self._bytes(SCALARS[kind])
        elif kind == ARRAY:
            inner, count = self._number("<I"), self._number("<Q")
            if inner in SCALARS:
                self._bytes(count * SCALARS[inner])
            elif inner == STRING and count <= MOST_STRINGS:
                for _ in range(count):
                    self._bytes(self._number("<Q"))
            else:
                raise ValueError(f"an array of {count} values of type {inner}")
        else:
            raise ValueError(f"metadata of type {kind}")

    def _number(self, form: str) -> int:
        (value,) = struct.unpack(form, self._bytes(struct.calcsize(form)))
        return int(value)

    def _bytes(self, count: int) -> bytes:
        if self.place + count > len(self.data):
            raise ValueError("it ends within its header")
        self.place += count
        return self.data[self.place - count : self.place]
