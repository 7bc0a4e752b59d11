"""Mutated GGUF files and model folders."""

from __future__ import annotations

import json
import random
import shutil
import struct

import pytest
import torch

import fluxnb as fnb
from fluxnb.runtime.gguf import GgufReader
from fluxnb.runtime.streaming import check_weights
from tests.benchmarks.random_gguf import write_gguf
from tests.conftest import toy_pipeline
from tests.mutations import amount, examine, mutated_bytes, mutated_json

pytestmark = pytest.mark.slow


@amount
def test_mutated_gguf_files(count, tmp_path):
    pytest.importorskip("gguf")
    rng, transformer = random.Random(6), toy_pipeline().transformer
    write_gguf(tmp_path / "original.gguf", transformer)
    data, path = (tmp_path / "original.gguf").read_bytes(), tmp_path / "a.gguf"
    end = data.index(b"single_blocks.0.norm.key_norm.scale")
    meta = transformer.to("meta")

    def inputs():
        for _ in range(count):
            # The header is a twentieth of the file.
            head = mutated_bytes(rng, data[:end]) if rng.random() < 0.7 else data[:end]
            yield head + data[end:] if head != data[:end] else mutated_bytes(rng, data)

    def answer(given):
        path.write_bytes(given)
        reader = GgufReader(path, 32, dequantize=True)
        check_weights(meta, reader)
        for name, weight in meta.named_parameters():
            assert reader[name].shape == weight.shape and reader[name].dtype is torch.float32

    outcomes = examine(answer, inputs())
    assert outcomes["error"] and outcomes["value"]


@amount
def test_mutated_model_folders(count, toy_folder, tmp_path):
    rng, folder = random.Random(7), shutil.copytree(toy_folder, tmp_path / "toy")
    (folder / "card.json").write_text(json.dumps({"files": {}, "defaults": {"steps": 4, "size": 64, "guidance": None}}))
    files = [path for path in sorted(folder.rglob("*")) if path.suffix == ".json"]
    weights = sorted(folder.rglob("*.safetensors"))
    fnb.load(folder)  # imports the libraries

    def inputs():
        for _ in range(count):
            path = rng.choice(weights if rng.random() < 0.15 else files)
            original = path.read_bytes()
            if rng.random() < 0.3:
                changed = mutated_bytes(rng, original)
            elif path in weights:
                length = struct.unpack("<Q", original[:8])[0]
                header = mutated_json(rng, json.loads(original[8 : 8 + length]))
                changed = struct.pack("<Q", len(header)) + header + original[8 + length :]
            else:
                changed = mutated_json(rng, json.loads(original))
            path.write_bytes(changed)
            yield path.relative_to(folder)
            path.write_bytes(original)

    def answer(_):
        fnb.plan(folder, "8gb/16gb")
        fnb.load(folder, preset=rng.choice(("auto", "lean")))

    outcomes = examine(answer, inputs())
    assert outcomes["error"] and outcomes["value"]
