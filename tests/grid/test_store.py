"""The store of finished cells and the trajectory files in it."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from fluxnb.errors import StorageError
from fluxnb.grid.store import Store
from fluxnb.io.trajectory_files import open_trajectory, save
from fluxnb.records import Keep
from fluxnb.records.latents import LinearRGB
from fluxnb.records.recipe import ResolvedRecipe
from tests.trajectories import noise, resolved, sample_trajectory

RECIPE = resolved()
KEY = RECIPE.key()
IMAGE = Image.effect_noise((32, 32), 90).convert("RGB")
PREVIEW = LinearRGB(weight=((0.1,) * 16,) * 3, bias=(0.5, 0.4, 0.3), error=0.01)


@pytest.fixture
def trajectory():
    return sample_trajectory(lambda x, s: x.sin(), noise().bfloat16(), (1.0, 0.5, 0.0), image=IMAGE, preview=PREVIEW)


def same(a, b):
    fields = [f.name for f in dataclasses.fields(a) if f.name not in ("image", "steps")]
    return (
        all(getattr(a, name) == getattr(b, name) for name in fields)
        and (a.image is b.image or a.image.tobytes() == b.image.tobytes())
        and all(
            s.tensors.keys() == t.tensors.keys()
            and all(
                torch.equal(s.tensors[n], t.tensors[n]) and s.tensors[n].dtype == t.tensors[n].dtype for n in s.tensors
            )
            and (s.index, s.sigma, s.dt, s.seconds, s.norms) == (t.index, t.sigma, t.dt, t.seconds, t.norms)
            for s, t in zip(a.steps, b.steps, strict=True)
        )
    )


def test_a_saved_trajectory_opens_unchanged(trajectory, tmp_path):
    path = save(trajectory, tmp_path / "fox")
    assert path.name == "fox.safetensors"
    assert same(open_trajectory(path), trajectory)


@pytest.mark.parametrize(
    "keep", [Keep.nothing(), Keep.last(), Keep(tensors=("v",)), Keep(tensors=("x",)), Keep(steps=(0,))]
)
def test_the_retained_tensors_are_restored(trajectory, tmp_path, keep):
    thin = dataclasses.replace(
        trajectory, steps=tuple(step.reduced(keep, 2) for step in trajectory), image=None, recipe=None
    )
    assert same(open_trajectory(save(thin, tmp_path / "thin.safetensors")), thin)


def test_a_tensor_that_two_steps_share_is_written_once(trajectory, tmp_path):
    from safetensors import safe_open

    with safe_open(save(trajectory, tmp_path / "a.safetensors"), "pt") as opened:
        assert sorted(opened.keys()) == ["0000.v", "0000.x", "0000.x_next", "0001.v", "0001.x_next", "image"]


@pytest.mark.moderate
def test_a_trajectory_opens_without_importing_diffusers(trajectory, tmp_path):
    path = save(trajectory, tmp_path / "a.safetensors")
    code = (
        "import sys; from fluxnb.io.trajectory_files import open_trajectory; "
        f"print(open_trajectory({str(path)!r}).caption, 'diffusers' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "a fox, toy, seed 7, 2 steps False"


def rewritten(path: Path, change) -> None:
    from safetensors import safe_open
    from safetensors.torch import load, save_file

    with safe_open(path, "pt") as opened:
        header = json.loads(opened.metadata()["fluxnb"])
    tensors = load(path.read_bytes())
    change(header, tensors)
    save_file(tensors, path, metadata={"fluxnb": json.dumps(header)})


@pytest.mark.parametrize(
    "change",
    [
        lambda h, t: h.update(format=4),
        lambda h, t: h.update(format=True),
        lambda h, t: h.update(numerics=1),
        lambda h, t: h.pop("numerics"),
        lambda h, t: h.pop("steps"),
        lambda h, t: h.update(steps=3),
        lambda h, t: h["steps"][0].update(sigma="1.0"),
        lambda h, t: h["steps"][0].update(sigma=True),
        lambda h, t: h["steps"][0].update(index=1),
        lambda h, t: h["steps"][0].update(kept=["x", "__reduce__"]),
        lambda h, t: h["steps"][0].update(norms=[1]),
        lambda h, t: h.update(height=64),
        lambda h, t: h.update(height=-16),
        lambda h, t: h.update(sigmas=[1.0]),
        lambda h, t: h.update(recipe='{"fluxnb_recipe":1,"prompt":""}'),
        lambda h, t: h["preview"].update(weight=[[1.0]]),
        lambda h, t: t.pop("0000.v"),
        lambda h, t: t.update({"0000.v": torch.zeros(4, 64, dtype=torch.int64)}),
        lambda h, t: t.update({"0000.v": torch.zeros(4)}),
        lambda h, t: t.update(image=torch.zeros(100, dtype=torch.uint8)),
    ],
)
def test_a_tampered_file_is_a_storage_error(trajectory, tmp_path, change):
    path = save(trajectory, tmp_path / "a.safetensors")
    rewritten(path, change)
    with pytest.raises(StorageError, match="not a complete trajectory file"):
        open_trajectory(path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_a_storage_error(trajectory, tmp_path, keep):
    path = save(trajectory, tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StorageError):
        open_trajectory(path)


def test_a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        open_trajectory(tmp_path / "none.safetensors")


def full_disk(monkeypatch):
    def refuse(self, data):
        with open(self, "wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)


def test_a_full_disk_raises_and_leaves_no_partial_file(trajectory, tmp_path, monkeypatch):
    save(trajectory, tmp_path / "before.safetensors")
    full_disk(monkeypatch)
    with pytest.raises(StorageError, match="is full") as caught:
        save(trajectory, tmp_path / "a.safetensors")
    assert str(tmp_path) in str(caught.value) and caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["before.safetensors"]
    monkeypatch.undo()
    assert same(open_trajectory(tmp_path / "before.safetensors"), trajectory)


# ------------------------------------------------------------------------------------------------------------ the store
def put(store: Store, recipe: ResolvedRecipe = RECIPE) -> str:
    key = recipe.key()
    store.put(key, recipe, IMAGE, seconds={"denoise": 1.0}, versions={})
    return key


def test_a_stored_cell_is_found(tmp_path):
    store = Store(tmp_path)
    cell = store.get(put(store), RECIPE)
    assert cell.image.tobytes() == IMAGE.tobytes()
    assert not cell.made and cell.recipe == RECIPE and cell.path.is_file()


def test_a_cell_that_was_not_stored_is_missing(tmp_path):
    assert Store(tmp_path).get(KEY, RECIPE) is None


def test_a_cell_stored_without_trajectory_is_missing_for_a_request_with_one(tmp_path, trajectory):
    store = Store(tmp_path)
    put(store)
    assert store.get(KEY, RECIPE) is not None and store.get(KEY, RECIPE, trajectory=True) is None
    store.put(KEY, RECIPE, IMAGE, seconds={}, versions={}, trajectory=trajectory)
    assert same(store.get(KEY, RECIPE, trajectory=True).trajectory, trajectory)


@pytest.mark.parametrize("suffix", [".png", ".json"])
@pytest.mark.parametrize("where", [0, 0.5, 0.99])
def test_one_flipped_byte_makes_a_cell_missing(tmp_path, suffix, where):
    store = Store(tmp_path)
    path = store.path(put(store), suffix)
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0x10
    path.write_bytes(data)
    assert store.get(KEY, RECIPE) is None or suffix == ".json"
    if suffix == ".png":
        put(store)
        assert store.get(KEY, RECIPE) is not None


def test_a_recipe_at_the_address_of_another_is_missing(tmp_path):
    store = Store(tmp_path)
    put(store)
    assert store.get(KEY, resolved(seed=1)) is None


def test_an_image_without_its_metadata_is_missing(tmp_path):
    store = Store(tmp_path)
    store.path(put(store), ".json").unlink()
    assert store.get(KEY, RECIPE) is None


def test_a_complete_cell_is_not_written_again(tmp_path):
    store = Store(tmp_path)
    before = store.path(put(store), ".json").stat()
    put(store)
    assert store.path(KEY, ".json").stat().st_ino == before.st_ino


def test_a_full_disk_leaves_finished_cells_unchanged(tmp_path, monkeypatch):
    store = Store(tmp_path)
    put(store)
    full_disk(monkeypatch)
    other = resolved(seed=1)
    with pytest.raises(StorageError, match="is full"):
        put(store, other)
    monkeypatch.undo()
    assert store.get(KEY, RECIPE) is not None and store.get(other.key(), other) is None
    assert not list(tmp_path.rglob("*.part"))


def test_old_temporary_files_of_killed_writers_are_removed(tmp_path):
    old, new = (Store(tmp_path).path(KEY, f".{name}.part") for name in ("old", "new"))
    old.parent.mkdir(parents=True)
    old.write_bytes(b"x"), new.write_bytes(b"x")
    os.utime(old, (time.time() - 1000,) * 2)
    Store(tmp_path)
    assert not old.exists() and new.exists()


def test_a_store_at_the_path_of_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="writable folder"):
        Store(tmp_path / "file")


def test_a_picture_of_another_size_than_its_recipe_is_missing(tmp_path):
    store = Store(tmp_path)
    store.put(KEY, RECIPE, Image.new("RGB", (48, 32)), seconds={}, versions={})
    assert store.get(KEY, RECIPE) is None


@pytest.mark.parametrize("seconds", [float("inf"), float("nan"), 10**400])
def test_a_cell_with_numbers_that_are_not_finite_is_missing(tmp_path, seconds):
    store = Store(tmp_path)
    path = store.path(put(store), ".json")
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "seconds": {"denoise": seconds}}))
    assert store.get(KEY, RECIPE) is None


@pytest.mark.parametrize("suffix", [".png", ".json"])
def test_a_fifo_or_a_device_in_place_of_a_file_makes_a_cell_missing(tmp_path, suffix):
    store = Store(tmp_path)
    path = store.path(put(store), suffix)
    path.unlink()
    os.mkfifo(path)
    assert store.get(KEY, RECIPE) is None
    path.unlink()
    path.symlink_to("/dev/zero")
    assert store.get(KEY, RECIPE) is None


def test_a_picture_that_is_deleted_later_is_reported_as_not_readable(tmp_path):
    store = Store(tmp_path)
    cell = store.get(put(store), RECIPE)
    cell.path.unlink()
    with pytest.raises(StorageError, match="cannot read") as caught:
        _ = cell.image
    assert caught.value.remedy
