"""Mutated cells and locks of a store."""

from __future__ import annotations

import hashlib
import json
import os
import random

import pytest
from PIL import Image

from fluxnb.grid.claims import Claims
from fluxnb.grid.store import Store
from tests.mutations import amount, examine, mutated_bytes, mutated_json, mutated_png
from tests.trajectories import noise, resolved, sample_trajectory

pytestmark = pytest.mark.slow

RECIPE = resolved()
KEY = RECIPE.key()
IMAGE = Image.effect_noise((32, 32), 90).convert("RGB")


@amount
def test_mutated_cells(count, tmp_path):
    rng, store = random.Random(4), Store(tmp_path)
    made = sample_trajectory(lambda x, s: x.sin(), noise(), (1.0, 0.5, 0.0), image=IMAGE)
    store.put(KEY, RECIPE, IMAGE, seconds={"denoise": 1.0}, versions={"torch": "2"}, trajectory=made)
    paths = {suffix: store.path(KEY, suffix) for suffix in (".json", ".png", ".safetensors")}
    original = {suffix: path.read_bytes() for suffix, path in paths.items()}
    metadata = json.loads(original[".json"])

    def inputs():
        for _ in range(count):
            files = dict(original)
            match rng.randrange(5):
                case 0:
                    files[".json"] = mutated_bytes(rng, original[".json"])
                case 1 | 2:
                    files[".json"] = mutated_json(rng, metadata)
                case 3:  # another picture with its right checksum
                    files[".png"] = mutated_png(rng, original[".png"])
                    digest = hashlib.sha256(files[".png"]).hexdigest()
                    files[".json"] = json.dumps({**metadata, "png": digest}).encode()
                case 4:
                    files[".safetensors"] = mutated_bytes(rng, original[".safetensors"])
                    digest = hashlib.sha256(files[".safetensors"]).hexdigest()
                    files[".json"] = json.dumps({**metadata, "trajectory": digest}).encode()
            yield files

    def answer(files):
        for suffix, path in paths.items():
            path.write_bytes(files[suffix])
        for trajectory in (False, True):
            cell = store.get(KEY, RECIPE, trajectory=trajectory)
            if cell is not None:
                assert cell.image.size == IMAGE.size and repr(cell)

    outcomes = examine(answer, inputs())
    assert outcomes["value"]


@amount
def test_mutated_locks(count, tmp_path):
    rng, claims = random.Random(5), Claims()
    lock = tmp_path / "a.lock"
    claim = claims.acquire(lock)
    original = lock.read_bytes()
    claim.release()
    fields = json.loads(original)

    def inputs():
        for _ in range(count):
            yield mutated_bytes(rng, original) if rng.random() < 0.4 else mutated_json(rng, fields)

    def answer(data):
        lock.write_bytes(data)
        claims.holder(lock)
        claim = claims.acquire(lock)
        if claim is not None:
            claim.release()
        lock.unlink(missing_ok=True)

    examine(answer, inputs())


@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_a_lock_that_is_no_regular_file_stalls_nothing(tmp_path, kind):
    store = Store(tmp_path)
    lock = store.path(KEY, ".lock")
    lock.parent.mkdir()
    if kind == "fifo":
        os.mkfifo(lock)
    elif kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to("/dev/zero")

    def answer(_):
        assert store.holder(KEY) == ""
        with store.claim(KEY):
            pass

    examine(answer, iter([None]))
