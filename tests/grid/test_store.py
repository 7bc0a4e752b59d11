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
from fluxnb.grid import store as module
from fluxnb.grid.store import Store
from fluxnb.io.trajectory_files import open_trajectory, save
from fluxnb.records import Keep
from fluxnb.records.latents import LinearRGB
from fluxnb.records.recipe import ResolvedRecipe
from tests.trajectories import noise, resolved, sample_trajectory

ASK = resolved()
KEY = ASK.key()
PICTURE = Image.effect_noise((32, 32), 90).convert("RGB")
PREVIEW = LinearRGB(weight=((0.1,) * 16,) * 3, bias=(0.5, 0.4, 0.3), error=0.01)


@pytest.fixture
def trajectory():
    return sample_trajectory(lambda x, s: x.sin(), noise().bfloat16(), (1.0, 0.5, 0.0), image=PICTURE, preview=PREVIEW)


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


def test_a_saved_walk_opens_as_it_was(trajectory, tmp_path):
    path = save(trajectory, tmp_path / "fox")
    assert path.name == "fox.safetensors"
    assert same(open_trajectory(path), trajectory)


@pytest.mark.parametrize(
    "keep", [Keep.nothing(), Keep.last(), Keep(tensors=("v",)), Keep(tensors=("x",)), Keep(steps=(0,))]
)
def test_whatever_was_kept_comes_back(trajectory, tmp_path, keep):
    thin = dataclasses.replace(
        trajectory, steps=tuple(step.reduced(keep, 2) for step in trajectory), image=None, recipe=None
    )
    assert same(open_trajectory(save(thin, tmp_path / "thin.safetensors")), thin)


def test_a_point_that_two_steps_share_is_written_once(trajectory, tmp_path):
    from safetensors import safe_open

    with safe_open(save(trajectory, tmp_path / "a.safetensors"), "pt") as opened:
        assert sorted(opened.keys()) == ["0000.v", "0000.x", "0000.x_next", "0001.v", "0001.x_next", "image"]


def test_a_walk_opens_in_a_process_without_diffusers(trajectory, tmp_path):
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
        lambda h, t: h.update(format=3),
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
def test_a_tampered_file_is_an_error_of_ours(trajectory, tmp_path, change):
    path = save(trajectory, tmp_path / "a.safetensors")
    rewritten(path, change)
    with pytest.raises(StorageError, match="not a complete trajectory file"):
        open_trajectory(path)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_file_cut_short_is_an_error_of_ours(trajectory, tmp_path, keep):
    path = save(trajectory, tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StorageError):
        open_trajectory(path)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(StorageError, match="no such file"):
        open_trajectory(tmp_path / "none.safetensors")


def full_disk(monkeypatch):
    def refuse(self, data):
        with open(self, "wb") as stream:
            stream.write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", refuse)


def test_a_full_disk_is_named_and_leaves_nothing_half_written(trajectory, tmp_path, monkeypatch):
    save(trajectory, tmp_path / "before.safetensors")
    full_disk(monkeypatch)
    with pytest.raises(StorageError, match="is full") as caught:
        save(trajectory, tmp_path / "a.safetensors")
    assert str(tmp_path) in str(caught.value) and caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["before.safetensors"]
    monkeypatch.undo()
    assert same(open_trajectory(tmp_path / "before.safetensors"), trajectory)


# -------------------------------------------------------------------------------------------------------- the store
def put(store: Store, recipe: ResolvedRecipe = ASK) -> str:
    key = recipe.key()
    store.put(key, recipe, PICTURE, seconds={"denoise": 1.0}, versions={})
    return key


def test_what_was_put_is_got(tmp_path):
    store = Store(tmp_path)
    cell = store.get(put(store), ASK)
    assert cell.image.tobytes() == PICTURE.tobytes()
    assert not cell.made and cell.recipe == ASK and cell.path.is_file()


def test_nothing_is_got_where_nothing_was_put(tmp_path):
    assert Store(tmp_path).get(KEY, ASK) is None


def test_the_trajectory_comes_only_where_it_was_put(tmp_path, trajectory):
    store = Store(tmp_path)
    put(store)
    assert store.get(KEY, ASK) is not None and store.get(KEY, ASK, trajectory=True) is None
    store.put(KEY, ASK, PICTURE, seconds={}, versions={}, trajectory=trajectory)
    assert same(store.get(KEY, ASK, trajectory=True).trajectory, trajectory)


@pytest.mark.parametrize("suffix", [".png", ".json"])
@pytest.mark.parametrize("where", [0, 0.5, 0.99])
def test_one_flipped_byte_makes_a_cell_missing(tmp_path, suffix, where):
    store = Store(tmp_path)
    path = store.path(put(store), suffix)
    data = bytearray(path.read_bytes())
    data[int(len(data) * where)] ^= 0x10
    path.write_bytes(data)
    assert store.get(KEY, ASK) is None or suffix == ".json"
    if suffix == ".png":
        put(store)
        assert store.get(KEY, ASK) is not None


def test_a_recipe_at_anothers_address_is_not_believed(tmp_path):
    store = Store(tmp_path)
    put(store)
    assert store.get(KEY, resolved(seed=1)) is None


def test_a_picture_without_its_json_does_not_count(tmp_path):
    store = Store(tmp_path)
    store.path(put(store), ".json").unlink()
    assert store.get(KEY, ASK) is None


def test_of_two_claims_one_wins_and_it_ends_with_the_block(tmp_path):
    store = Store(tmp_path)
    with store.claim(KEY) as first, store.claim(KEY) as second:
        assert (first, second) == (True, False)
        assert store.path(KEY, ".lock").exists()
    with store.claim(KEY) as again:
        assert again
    assert not store.path(KEY, ".lock").exists()


def test_the_claim_of_a_dead_process_is_taken_over(tmp_path):
    store = Store(tmp_path)
    code = (
        "import os; from fluxnb.grid.store import Store; "
        f"claim = Store({str(tmp_path)!r}).claim({KEY!r}); claim.__enter__(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert store.path(KEY, ".lock").exists()
    with store.claim(KEY) as mine:
        assert mine


def test_a_claim_from_another_machine_is_honoured_until_its_lease_ends(tmp_path):
    store = Store(tmp_path, lease=30)
    lock = store.path(KEY, ".lock")
    lock.parent.mkdir(parents=True)
    lock.write_text("elsewhere 1 abc")
    with store.claim(KEY) as mine:
        assert not mine
    os.utime(lock, (time.time() - 31,) * 2)
    with store.claim(KEY) as mine:
        assert mine


def test_a_sign_of_life_renews_a_claim(tmp_path):
    store = Store(tmp_path, lease=30)
    lock = store.path(KEY, ".lock")
    lock.parent.mkdir(parents=True)
    lock.write_text("elsewhere 1 abc")
    os.utime(lock, (time.time() - 31,) * 2)
    store.touch(KEY)
    with store.claim(KEY) as mine:
        assert not mine


def test_a_full_disk_leaves_finished_cells_whole(tmp_path, monkeypatch):
    store = Store(tmp_path)
    put(store)
    full_disk(monkeypatch)
    other = resolved(seed=1)
    with pytest.raises(StorageError, match="is full"):
        put(store, other)
    monkeypatch.undo()
    assert store.get(KEY, ASK) is not None and store.get(other.key(), other) is None
    assert not list(tmp_path.rglob("*.part"))


def test_what_killed_writers_left_is_swept_up_once_it_is_old(tmp_path):
    old, new = (Store(tmp_path).path(KEY, f".{name}.part") for name in ("old", "new"))
    old.parent.mkdir(parents=True)
    old.write_bytes(b"x"), new.write_bytes(b"x")
    os.utime(old, (time.time() - 1000,) * 2)
    Store(tmp_path)
    assert not old.exists() and new.exists()


def test_a_store_where_a_file_stands_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="writable folder"):
        Store(tmp_path / "file")


def test_an_own_process_is_alive_and_an_impossible_one_is_not():
    assert module._alive(os.getpid()) and not module._alive(2**22 + 1)
