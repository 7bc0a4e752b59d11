from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fluxnb as fnb
from fluxnb.checkpoints import sources as weights
from fluxnb.errors import StorageError
from tests.checkpoints.local_hub import COMMIT, Hub

REPO = "fluxnb-tests/fox"
SHARD = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(toy_folder, tmp_path, monkeypatch):
    """A hub that serves the toy, and a client that knows no other and has an empty cache."""
    from huggingface_hub import constants, file_download

    with Hub(toy_folder) as serving:
        monkeypatch.setattr(constants, "ENDPOINT", serving.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", serving.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(file_download.time, "sleep", lambda _: None)  # the client waits a second before each retry
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 2**14)  # what has arrived counts from one chunk on
        monkeypatch.setenv("HF_TOKEN", "")
        yield serving


def fetched() -> Path:
    return weights.fetch(weights.locate(REPO))


def test_a_model_comes_whole_with_the_commit_as_its_revision(hub, toy_folder):
    source = weights.locate(REPO)
    assert (source.revision, source.local) == (COMMIT, False)
    folder = weights.fetch(source)
    for path in toy_folder.rglob("*.safetensors"):
        assert (folder / path.relative_to(toy_folder)).read_bytes() == path.read_bytes()


def test_what_is_there_is_not_fetched_again(hub):
    fetched()
    before = hub.sent.copy()
    fetched()
    assert hub.sent == before


def test_only_the_parts_of_the_pipeline_are_fetched(hub, toy_folder, tmp_path):
    import shutil

    hub.folder = Path(shutil.copytree(toy_folder, tmp_path / "repo"))
    for name in ("flux1-schnell.safetensors", "ae.safetensors", "README.md", "onnx/model.safetensors"):
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_bytes(b"not wanted")
    folder = fetched()
    assert not {"flux1-schnell.safetensors", "ae.safetensors", "README.md"} & {path.name for path in folder.iterdir()}
    assert not (folder / "onnx").exists()


@pytest.mark.parametrize(
    ("status", "gated", "says", "remedy"),
    [
        (401, True, "is gated", "HF_TOKEN"),
        (403, True, "is gated", "accept them on"),
        (401, False, "knows no", "hf auth login"),
        (404, False, "knows no", "misspelt|look at"),
    ],
)
def test_a_refusal_says_what_to_do(hub, status, gated, says, remedy):
    hub.refuse, hub.gated = status, gated
    with pytest.raises(StorageError, match=says) as caught:
        fetched()
    import re

    assert re.search(remedy, caught.value.given + caught.value.possible + caught.value.remedy)
    assert REPO in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_hub_in_trouble_is_our_error(hub):
    hub.refuse = 500
    with pytest.raises(StorageError, match=REPO):
        fetched()


def test_terms_that_were_accepted_open_the_gate(hub, monkeypatch):
    hub.token = "hf_secret"
    with pytest.raises(StorageError, match="is gated") as caught:
        fetched()
    assert "hf_secret" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert (fetched() / SHARD).is_file()


def test_a_connection_that_breaks_off_goes_on_where_it_stopped(hub, toy_folder):
    hub.broken[SHARD] = 1
    folder = fetched()
    assert (folder / SHARD).read_bytes() == (toy_folder / SHARD).read_bytes()
    assert any(line.startswith(f"{SHARD} bytes=") for line in hub.ranges)


def test_a_connection_that_keeps_breaking_off_is_told_and_later_goes_on(hub, toy_folder):
    hub.broken[SHARD] = 10**6
    with pytest.raises(StorageError):
        fetched_or_gives_up(hub)
    done = hub.sent.copy()
    hub.broken.clear()
    folder = fetched()
    assert (folder / SHARD).read_bytes() == (toy_folder / SHARD).read_bytes()
    finished = [name for name in done if name != SHARD and name.endswith(".safetensors")]
    assert all(hub.sent[name] == done[name] for name in finished)


def fetched_or_gives_up(hub):
    """A client halves what is missing with each try; a hub that is gone ends that."""
    import threading

    threading.Timer(1.5, lambda: setattr(hub, "refuse", 500)).start()
    try:
        return fetched()
    finally:
        hub.refuse = 0


def test_a_shard_that_came_damaged_is_told_deleted_and_fetched_anew(hub, toy_folder):
    hub.damaged.add(SHARD)
    with pytest.raises(StorageError, match="came damaged") as caught:
        fetched()
    assert "load again" in str(caught.value).lower()
    hub.damaged.clear()
    assert (fetched() / SHARD).read_bytes() == (toy_folder / SHARD).read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told(hub, monkeypatch, code):
    from huggingface_hub import file_download

    real = file_download.http_get

    def full(url, *given, **more):
        if SHARD in url:
            raise OSError(code, os.strerror(code))
        return real(url, *given, **more)

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(StorageError, match="disk is full") as caught:
        fetched()
    assert "HF_HOME" in caught.value.remedy


def test_without_a_network_what_was_fetched_still_loads(hub, monkeypatch):
    from huggingface_hub import constants

    first = fetched()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetched() == first


@pytest.mark.slow
def test_the_public_door_loads_from_the_hub_and_draws_the_same_bytes(hub, toy_folder, tmp_path):
    prompt = "a red fox in the snow"
    say = (
        "import fluxnb as fnb, hashlib\n"
        f"flux = fnb.load({REPO!r}, dtype='float32')\n"
        f"walk = fnb.run(flux, {prompt!r}, seed=3, steps=4)\n"
        "print(flux.revision, hashlib.sha256(walk.image.tobytes()).hexdigest())\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    run = subprocess.run([sys.executable, "-c", say], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    here = fnb.run(fnb.load(toy_folder, dtype="float32"), prompt, seed=3, steps=4)
    digest = hashlib.sha256(here.image.tobytes()).hexdigest()
    assert run.stdout.split()[-2:] == [COMMIT, digest]
