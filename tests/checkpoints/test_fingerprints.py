"""Fingerprints of files: what changes the revision of a model."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fluxnb as fnb
from fluxnb.checkpoints import checksums
from fluxnb.checkpoints import sources as weights
from fluxnb.checkpoints.checksums import fingerprint
from fluxnb.errors import StorageError
from fluxnb.io.headers import GGUF_TYPES, gguf_header, safetensors_header

MILLION = 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of 96 MiB with tensors before, in and after its middle."""
    folder = tmp_path_factory.mktemp("large")
    tensors = {name: torch.randn(4 * MILLION) for name in "abcdef"}
    save_file({**tensors, "bias": torch.randn(64)}, folder / "model.safetensors")
    return folder


@pytest.mark.moderate
@pytest.mark.parametrize("name", ["a", "b", "c", "d", "e", "f", "bias"])
def test_a_change_of_any_tensor_of_a_large_file_changes_its_fingerprint(large, tmp_path, name):
    tensors = load_file(large / "model.safetensors")
    tensors[name] += 0.001 * torch.randn(tensors[name].shape)  # as an adapter that is fused
    save_file(tensors, tmp_path / "model.safetensors")
    assert fingerprint([tmp_path]) != fingerprint([large])


def test_a_renamed_tensor_of_a_large_file_changes_its_fingerprint(large, tmp_path):
    tensors = load_file(large / "model.safetensors")
    tensors["z"] = tensors.pop("f")
    save_file(tensors, tmp_path / "model.safetensors")
    assert fingerprint([tmp_path]) != fingerprint([large])


def test_a_copy_has_the_fingerprint_of_the_original(large, tmp_path):
    shutil.copy(large / "model.safetensors", tmp_path)
    assert fingerprint([tmp_path]) == fingerprint([large])


def test_the_cost_of_a_large_file_depends_on_its_tensors_and_not_on_its_size(tmp_path):
    header = {"a": {"dtype": "U8", "shape": [2**36], "data_offsets": [0, 2**36]}}
    text = json.dumps(header).encode()
    with open(tmp_path / "model.safetensors", "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + 2**36)  # a file of 64 GiB without blocks on the disk
    begin = time.perf_counter()
    assert fingerprint([tmp_path])
    assert time.perf_counter() - begin < 1


def test_a_large_file_with_a_damaged_header_is_a_storage_error(tmp_path):
    with open(tmp_path / "model.safetensors", "wb") as stream:
        stream.truncate(checksums.FULL_HASH + 1)
    with pytest.raises(StorageError, match="no complete safetensors file"):
        fingerprint([tmp_path])


@pytest.mark.parametrize("name", ["scheduler/scheduler_config.json", "vae/config.json", "tokenizer/tokenizer.json"])
def test_configurations_of_every_component_belong_to_the_revision(toy_folder, tmp_path, name):
    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    before = weights.locate(folder).revision
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, "shift": 3.0}))
    assert weights.locate(folder).revision != before


@pytest.mark.parametrize("name", ["a.json", "a.safetensors"])
def test_a_fifo_in_a_folder_is_a_storage_error(toy_folder, tmp_path, name):
    import os

    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    os.mkfifo(folder / "vae" / name)
    with pytest.raises(StorageError, match="is a FIFO"):
        weights.locate(folder)


# ---------------------------------------------------------------------------------------------------------------- GGUF
def write_gguf(path, values, **metadata):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "flux")
    for key, value in metadata.items():
        writer.add_string(key, value)
    writer.add_array("words", ["a", "b"])
    writer.add_array("numbers", [1, 2, 3])
    for name, (array, kind) in values.items():
        quantized = array if kind is None else gguf.quants.quantize(array, kind)
        writer.add_tensor(name, quantized, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_header_of_a_gguf_file_is_that_of_its_own_library(tmp_path):
    gguf = pytest.importorskip("gguf")
    rows = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    kinds = gguf.GGMLQuantizationType
    values = {"q": (rows, kinds.Q8_0), "f": (rows, None), "h": (rows.astype(np.float16), None), "b": (rows[0], None)}
    path = write_gguf(tmp_path / "a.gguf", values, name="x")
    mine, data = gguf_header(path).tensors, path.read_bytes()
    for theirs in gguf.GGUFReader(path).tensors:
        stored = mine[theirs.name]
        assert stored.dtype == theirs.tensor_type.name and stored.shape == tuple(reversed(theirs.shape.tolist()))
        assert data[stored.start : stored.stop] == theirs.data.tobytes()
    assert len(mine) == 4


def test_the_types_of_gguf_are_those_that_diffusers_computes_with():
    gguf = pytest.importorskip("gguf")
    from diffusers.quantizers.gguf.utils import SUPPORTED_GGUF_QUANT_TYPES, UNQUANTIZED_TYPES

    for number, (name, block, length) in GGUF_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, (block, length)) == (name, gguf.GGML_QUANT_SIZES[kind])
    assert {int(kind) for kind in (*SUPPORTED_GGUF_QUANT_TYPES, *UNQUANTIZED_TYPES)} == set(GGUF_TYPES)


@pytest.mark.parametrize("local", [True, False])
def test_the_gguf_file_belongs_to_the_revision(tmp_path, local):
    source = weights.Source(place=str(tmp_path), name="toy", revision="abc", local=local)
    revisions = {weights.revision_with_gguf(source, path) for path in gguf_files(tmp_path)}
    assert len(revisions | {"abc"}) == 3


def gguf_files(folder):
    """Two files that differ in one value, each in the folder of a commit of the hub."""
    rows = np.zeros((3, 64), np.float32)
    for commit in "12":
        (folder / commit).mkdir()
        yield write_gguf(folder / commit / "toy-Q8_0.gguf", {"a": (rows, None)})
        rows[1, 1] = 1


@pytest.mark.moderate
def test_two_gguf_files_of_one_model_give_two_revisions(toy_folder, tmp_path):
    pytest.importorskip("gguf")
    from tests.benchmarks.random_gguf import write_gguf as write_transformer
    from tests.conftest import toy_pipeline

    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    write_transformer(folder / "toy-Q8_0.gguf", toy_pipeline().transformer)
    first = fnb.load(folder, preset="gguf-q8").revision
    data = bytearray((folder / "toy-Q8_0.gguf").read_bytes())
    data[-10] ^= 1
    (folder / "toy-Q8_0.gguf").write_bytes(data)
    second = fnb.load(folder, preset="gguf-q8").revision
    assert len({first, second, fnb.load(folder).revision}) == 3


def test_a_header_of_safetensors_lists_what_the_library_reads(toy_folder):
    path = next((toy_folder / "transformer").glob("*.safetensors"))
    tensors, data = load_file(path), path.read_bytes()
    header = safetensors_header(path)
    assert {name: stored.shape for name, stored in header.tensors.items()} == {
        n: tuple(t.shape) for n, t in tensors.items()
    }
    for name, stored in header.tensors.items():
        assert data[stored.start : stored.stop] == tensors[name].numpy().tobytes()
