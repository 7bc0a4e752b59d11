from __future__ import annotations

import shutil

import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError, StorageError
from fluxnb.planning.presets import PRESETS
from fluxnb.runtime.assembly import assemble
from fluxnb.runtime.gguf import GgufReader, stored_weight
from tests.benchmarks.random_gguf import write_gguf
from tests.conftest import toy_pipeline

gguf = pytest.importorskip("gguf")
WIDTH = 32


def names(transformer):
    return [name for name, _ in transformer.named_parameters()]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """The toy's transformer as a GGUF file: its names, fused layers, weights of the blocks in Q8_0."""
    transformer = toy_pipeline().transformer
    fused: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for name, weight in transformer.named_parameters():
        source, rows = stored_weight(name)
        if name.startswith("norm_out.linear"):
            weight = torch.cat(weight.chunk(2, dim=0)[::-1], dim=0)
        fused.setdefault(source, []).append((rows[0] if rows else 0, weight.detach()))
    path = tmp_path_factory.mktemp("gguf") / "toy-Q8_0.gguf"
    writer = gguf.GGUFWriter(path, "flux")
    for source, parts in fused.items():
        whole = torch.cat([weight for _, weight in sorted(parts, key=lambda part: part[0])], dim=0).numpy()
        small = whole.ndim == 2 and whole.shape[1] % 32 == 0 and "blocks." in source
        if small:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(source, gguf.quants.quantize(whole, kind), raw_dtype=kind)
        else:
            writer.add_tensor(source, whole)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def rounded(file):
    """The plain toy with the dequantized weights of the file."""
    pipe = toy_pipeline()
    reader = GgufReader(file, WIDTH, dequantize=True)
    with torch.no_grad():
        for name, weight in pipe.transformer.named_parameters():
            weight.copy_(reader[name])
    pipe.set_progress_bar_config(disable=True)
    return fnb.load(pipe)


def test_every_weight_of_the_network_is_in_the_file_with_its_shape(file):
    transformer, reader = toy_pipeline(guidance_embeds=True).transformer, GgufReader(file, WIDTH, dequantize=True)
    for name, weight in transformer.named_parameters():
        if "guidance" not in name:
            assert reader[name].shape == weight.shape, name
        else:
            assert stored_weight(name)[0].startswith("guidance_in.") and name not in reader


def test_weights_are_those_of_the_network_to_eight_bits(file):
    transformer, reader = toy_pipeline().transformer, GgufReader(file, WIDTH, dequantize=True)
    for name, weight in transformer.named_parameters():
        assert torch.allclose(reader[name], weight, atol=weight.abs().max().item() / 100), name


@pytest.mark.moderate
def test_the_pipeline_computes_what_its_rounded_weights_compute(toy_folder, file, rounded):
    pipe = assemble(toy_folder, PRESETS["gguf-q8"], device=torch.device("cpu"), dtype=torch.float32, gguf=file)
    pipe.set_progress_bar_config(disable=True)
    trajectory = fnb.run(fnb.load(pipe), "a fox", seed=3, steps=4)
    plain = fnb.run(rounded, "a fox", seed=3, steps=4)
    assert torch.allclose(trajectory.steps[-1].x_next, plain.steps[-1].x_next, atol=1e-4)
    assert pipe.transformer.transformer_blocks[0].attn.to_q.weight.dtype is torch.uint8


@pytest.mark.moderate
def test_load_finds_the_file_beside_the_model(toy_folder, file, tmp_path):
    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    with pytest.raises(StorageError, match="no Q8_0 GGUF file"):
        fnb.load(folder, preset="gguf-q8")
    shutil.copy(file, folder)
    flux = fnb.load(folder, preset="gguf-q8")
    assert fnb.run(flux, "a fox", steps=1).numerics == "gguf-q8"


def test_a_generated_file_holds_every_weight_with_its_shape(tmp_path):
    transformer, path = toy_pipeline().transformer, tmp_path / "generated-Q8_0.gguf"
    assert write_gguf(path, transformer) > 0 == write_gguf(path, transformer)
    reader = GgufReader(path, WIDTH, dequantize=True)
    for name, weight in transformer.named_parameters():
        assert reader[name].shape == weight.shape and reader[name].isfinite().all(), name


def test_a_file_in_another_format_is_an_error(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF but not really, and long enough to be read")
    with pytest.raises(StorageError, match="does not open"):
        GgufReader(tmp_path / "x.gguf", WIDTH)
    with pytest.raises(StorageError, match="does not open"):
        GgufReader(tmp_path / "none.gguf", WIDTH)


def test_a_missing_weight_is_an_error(file):
    with pytest.raises(StorageError, match=r"guidance_in\.in_layer\.weight"):
        GgufReader(file, WIDTH)["time_text_embed.guidance_embedder.linear_1.weight"]


def test_a_missing_package_is_an_error(file, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match="pip install gguf"):
        GgufReader(file, WIDTH)
