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
from tests.checkpoints.local_hub import COMMIT, Hub, connect

REPO = "fluxnb-tests/fox"
SHARD = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(toy_folder, tmp_path, monkeypatch):
    """A local hub that serves the toy, and a client with an empty cache that uses it."""
    with Hub(toy_folder) as serving:
        connect(serving, monkeypatch, tmp_path / "cache")
        yield serving


def download() -> Path:
    return weights.fetch(weights.locate(REPO))


def test_a_download_is_complete_and_its_revision_is_the_commit(hub, toy_folder):
    source = weights.locate(REPO)
    assert (source.revision, source.local) == (COMMIT, False)
    folder = weights.fetch(source)
    for path in toy_folder.rglob("*.safetensors"):
        assert (folder / path.relative_to(toy_folder)).read_bytes() == path.read_bytes()


def test_cached_files_are_not_downloaded_again(hub):
    download()
    before = hub.sent.copy()
    download()
    assert hub.sent == before


def test_only_the_parts_of_the_pipeline_are_downloaded(hub, toy_folder, tmp_path):
    import shutil

    hub.folder = Path(shutil.copytree(toy_folder, tmp_path / "repo"))
    for name in ("flux1-schnell.safetensors", "ae.safetensors", "README.md", "onnx/model.safetensors"):
        (hub.folder / name).parent.mkdir(exist_ok=True)
        (hub.folder / name).write_bytes(b"not wanted")
    folder = download()
    assert not {"flux1-schnell.safetensors", "ae.safetensors", "README.md"} & {path.name for path in folder.iterdir()}
    assert not (folder / "onnx").exists()


@pytest.mark.parametrize(
    ("status", "gated", "message", "remedy"),
    [
        (401, True, "is gated", "HF_TOKEN"),
        (403, True, "is gated", "accept them on"),
        (401, False, "is not on the hub", "hf auth login"),
        (404, False, "is not on the hub", "misspelt|see https"),
    ],
)
def test_an_error_of_the_hub_names_the_remedy(hub, status, gated, message, remedy):
    hub.refuse, hub.gated = status, gated
    with pytest.raises(StorageError, match=message) as caught:
        download()
    import re

    assert re.search(remedy, caught.value.given + caught.value.possible + caught.value.remedy)
    assert REPO in str(caught.value) and "Traceback" not in str(caught.value)


def test_a_server_error_is_a_storage_error(hub):
    hub.refuse = 500
    with pytest.raises(StorageError, match=REPO):
        download()


def test_a_gated_model_loads_with_a_token(hub, monkeypatch):
    hub.token = "hf_secret"
    with pytest.raises(StorageError, match="is gated") as caught:
        download()
    assert "hf_secret" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert (download() / SHARD).is_file()


def test_a_broken_download_resumes_where_it_stopped(hub, toy_folder):
    hub.broken[SHARD] = 1
    folder = download()
    assert (folder / SHARD).read_bytes() == (toy_folder / SHARD).read_bytes()
    assert any(line.startswith(f"{SHARD} bytes=") for line in hub.ranges)


def test_a_download_that_keeps_breaking_is_an_error_and_resumes_later(hub, toy_folder):
    hub.broken[SHARD] = 10**6
    with pytest.raises(StorageError):
        download_until_the_hub_fails(hub)
    done = hub.sent.copy()
    hub.broken.clear()
    folder = download()
    assert (folder / SHARD).read_bytes() == (toy_folder / SHARD).read_bytes()
    finished = [name for name in done if name != SHARD and name.endswith(".safetensors")]
    assert all(hub.sent[name] == done[name] for name in finished)


def download_until_the_hub_fails(hub):
    """Download while the connection breaks, until the hub returns an error; the client would retry for long."""
    import threading

    threading.Timer(1.5, lambda: setattr(hub, "refuse", 500)).start()
    try:
        return download()
    finally:
        hub.refuse = 0


def test_a_damaged_shard_is_an_error_and_is_downloaded_again(hub, toy_folder):
    hub.damaged.add(SHARD)
    with pytest.raises(StorageError, match="was damaged") as caught:
        download()
    assert "load again" in str(caught.value).lower()
    hub.damaged.clear()
    assert (download() / SHARD).read_bytes() == (toy_folder / SHARD).read_bytes()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error(hub, monkeypatch, code):
    from huggingface_hub import file_download

    real = file_download.http_get

    def full(url, *given, **more):
        if SHARD in url:
            raise OSError(code, os.strerror(code))
        return real(url, *given, **more)

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(StorageError, match="disk is full") as caught:
        download()
    assert "HF_HOME" in caught.value.remedy


def test_cached_files_load_without_a_network(hub, monkeypatch):
    from huggingface_hub import constants

    first = download()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download() == first


@pytest.mark.slow
def test_load_from_the_hub_gives_the_same_bytes(hub, toy_folder, tmp_path):
    prompt = "a red fox in the snow"
    script = (
        "import fluxnb as fnb, hashlib\n"
        f"flux = fnb.load({REPO!r}, dtype='float32')\n"
        f"trajectory = fnb.run(flux, {prompt!r}, seed=3, steps=4)\n"
        "print(flux.revision, hashlib.sha256(trajectory.image.tobytes()).hexdigest())\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    here = fnb.run(fnb.load(toy_folder, dtype="float32"), prompt, seed=3, steps=4)
    digest = hashlib.sha256(here.image.tobytes()).hexdigest()
    assert run.stdout.split()[-2:] == [COMMIT, digest]


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_of_each_component_one_variant_is_downloaded(hub, toy_folder, tmp_path, variant):
    import shutil

    hub.folder = Path(shutil.copytree(toy_folder, tmp_path / "repo"))
    shutil.copy(hub.folder / SHARD, hub.folder / SHARD.replace(".safetensors", ".fp16.safetensors"))
    (hub.folder / "vae/diffusion_pytorch_model.safetensors").rename(
        hub.folder / "vae/diffusion_pytorch_model.bf16.safetensors"
    )
    folder = weights.fetch(weights.locate(REPO, variant=variant))
    assert set(weights.weight_files(folder / "transformer")) == {variant or ""}
    assert set(weights.weight_files(folder / "vae")) == {"bf16"}
    assert set(weights.weight_files(folder / "text_encoder")) == {""}


def test_a_commit_can_be_requested(hub):
    assert weights.locate(REPO, revision=COMMIT).revision == COMMIT


def test_an_unknown_revision_is_an_error():
    from fluxnb.checkpoints.hub import hub_error

    error = hub_error(REPO, type("RevisionNotFoundError", (Exception,), {})())
    assert "no such revision" in str(error) and "leave revision out" in error.remedy


@pytest.fixture
def gguf_hub(hub, toy_folder, tmp_path):
    """The hub with a transformer in several files and their index, and in a GGUF file."""
    import shutil

    pytest.importorskip("gguf")
    from tests.benchmarks.random_gguf import write_gguf
    from tests.conftest import toy_pipeline

    hub.folder = Path(shutil.copytree(toy_folder, tmp_path / "repo"))
    transformer = toy_pipeline().transformer
    shutil.rmtree(hub.folder / "transformer")
    transformer.save_pretrained(hub.folder / "transformer", max_shard_size="60KB")
    assert len(list((hub.folder / "transformer").glob("*-of-*.safetensors"))) > 1
    write_gguf(hub.folder / "fox-Q8_0.gguf", transformer)
    return hub


@pytest.mark.moderate
def test_a_transformer_in_a_gguf_file_is_read_from_the_hub_without_its_other_weights(gguf_hub):
    flux = fnb.load(REPO, preset="gguf-q8")
    here = fnb.load(gguf_hub.folder, preset="gguf-q8")
    pictures = [fnb.run(each, "a red fox", seed=3, steps=2).image.tobytes() for each in (flux, here)]
    assert pictures[0] == pictures[1] and flux.revision != COMMIT
    assert not [name for name in gguf_hub.sent if name.startswith("transformer/") and name.endswith(".safetensors")]


@pytest.mark.slow  # diffusers 0.39 requests the file list from an address that a test cannot replace
def test_a_transformer_in_several_files_loads_after_its_gguf_file(gguf_hub):
    fnb.load(REPO, preset="gguf-q8")
    flux = fnb.load(REPO, preset="cpu", dtype="float32")
    here = fnb.load(gguf_hub.folder, preset="cpu", dtype="float32")
    pictures = [fnb.run(each, "a red fox", seed=3, steps=2).image.tobytes() for each in (flux, here)]
    assert pictures[0] == pictures[1]


@pytest.mark.moderate
@pytest.mark.parametrize("entry", [fnb.plan, fnb.load])
def test_a_plan_reads_the_configurations_of_the_requested_revision(hub, entry):
    entry(REPO, revision="v2")
    named = {part for path in hub.requests for part in path.split("/") if part in ("main", "v2")}
    assert named == {"v2"}, hub.requests


def test_a_revision_of_a_folder_is_refused_by_a_plan(toy_folder):
    with pytest.raises(fnb.InputError, match="only models of the hub have revisions"):
        fnb.plan(toy_folder, revision="v2")
