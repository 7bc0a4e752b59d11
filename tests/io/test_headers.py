"""Headers of safetensors and GGUF files that are damaged or out of bounds."""

from __future__ import annotations

import json
import struct
import time

import pytest

from fluxnb.errors import StorageError
from fluxnb.io import headers
from fluxnb.io.headers import gguf_header, safetensors_header


def safetensors(tensors, data=b"\0" * 8) -> bytes:
    text = json.dumps(tensors).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape=(2,), offsets=(0, 8), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    "data",
    [
        b"", safetensors([]), safetensors({"a": entry(dtype="F33")}), safetensors({"a": entry(dtype=[])}),
        safetensors({"a": entry((3,))}), safetensors({"a": entry((4,), (0, 16))}), safetensors({"a": entry((-2,))}),
        safetensors({"a": entry((2, *[1] * headers.MOST_DIMENSIONS))}), safetensors({"__metadata__": {"a": 1}}),
        safetensors({str(n): entry() for n in range(4)}), struct.pack("<Q", 10**6) + bytes(100),
        struct.pack("<Q", headers.LONGEST_HEADER + 1) + bytes(headers.LONGEST_HEADER + 100),
    ],
)  # fmt: skip
def test_a_header_of_safetensors_that_is_damaged_or_out_of_bounds_is_a_storage_error(tmp_path, monkeypatch, data):
    monkeypatch.setattr(headers, "MOST_TENSORS", 3)
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(StorageError, match="no complete safetensors file"):
        safetensors_header(tmp_path / "a.safetensors")


def test_a_header_of_safetensors_within_the_bounds_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(headers, "MOST_TENSORS", 3)
    shape = (2, *[1] * (headers.MOST_DIMENSIONS - 1))
    (tmp_path / "a.safetensors").write_bytes(safetensors({name: entry(shape) for name in "abc"}))
    assert safetensors_header(tmp_path / "a.safetensors").tensors["c"].shape == shape


def test_a_tensor_of_many_dimensions_is_refused_without_multiplying_them(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(safetensors({"a": entry([10**6] * 500_000, (0, 0))}))
    started = time.process_time()
    with pytest.raises(StorageError, match="500000 dimensions"):
        safetensors_header(tmp_path / "a.safetensors")
    assert time.process_time() - started < 2


# ---------------------------------------------------------------------------------------------------------------- GGUF
def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def value(key: bytes, kind: int, body: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + body


def info(name=b"a", shape=(2,), kind=0, start=0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, start)


def gguf(values=(), infos=(), counts=None, version=3) -> bytes:
    tensors, fields = counts or (len(infos), len(values))
    head = b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + b"".join((*values, *infos))
    return head + bytes(-len(head) % headers.ALIGNMENT) + bytes(64)


def array(kind: int, count: int, body: bytes = b"") -> bytes:
    return value(b"list", headers.ARRAY, struct.pack("<IQ", kind, count) + body)


def alignment(number: int) -> bytes:
    return value(b"general.alignment", 4, struct.pack("<I", number))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"GGUF", gguf(version=1), gguf(counts=(4, 0)), gguf(counts=(0, 4)), gguf(counts=(2**64 - 1, 2**64 - 1)),
        gguf([alignment(3)]), gguf([alignment(0)]), gguf([alignment(2**17)]), gguf([value(b"a", 13, b"")]),
        gguf([array(headers.STRING, 4, 4 * string(b""))]), gguf([array(0, 2**63)]), gguf([array(headers.ARRAY, 1)]),
        gguf([value(b"a", headers.STRING, struct.pack("<Q", 2**63))]),
        gguf(infos=[info(shape=(1, 1, 1, 1, 1))]), gguf(infos=[info(shape=())]), gguf(infos=[info(kind=4)]),
        gguf(infos=[info(shape=(2**40,))]), gguf(infos=[info(kind=8, shape=(31,))]), gguf(infos=[info(start=2**40)]),
        gguf(infos=[info(), info()]), gguf(infos=[info(name=b"\xff")]),
    ],
)  # fmt: skip
def test_a_header_of_gguf_that_is_damaged_or_out_of_bounds_is_a_storage_error(tmp_path, monkeypatch, data):
    for name in ("MOST_TENSORS", "MOST_FIELDS", "MOST_STRINGS"):
        monkeypatch.setattr(headers, name, 3)
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(StorageError, match="damaged or not a GGUF file"):
        gguf_header(tmp_path / "a.gguf")


def test_a_header_of_gguf_within_the_bounds_is_read(tmp_path, monkeypatch):
    for name in ("MOST_TENSORS", "MOST_FIELDS", "MOST_STRINGS"):
        monkeypatch.setattr(headers, name, 3)
    values = [alignment(64), array(headers.STRING, 3, 3 * string(b"x")), array(0, 3, b"abc")]
    infos = [info(b"a"), info(b"b", (1, 1, 1, 2), start=32), info(b"c", (32,), kind=2)]
    (tmp_path / "a.gguf").write_bytes(gguf(values, infos) + bytes(64))
    tensors = gguf_header(tmp_path / "a.gguf").tensors
    assert [(stored.dtype, stored.shape) for stored in tensors.values()] == [
        ("F32", (2,)), ("F32", (2, 1, 1, 1)), ("Q4_0", (32,)),
    ]  # fmt: skip
    assert all(stored.start % 64 == (32 if name == "b" else 0) for name, stored in tensors.items())
