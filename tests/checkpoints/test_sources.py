from __future__ import annotations

import hashlib
import json
import types

import pytest

from fluxnb.checkpoints import sources as weights
from fluxnb.checkpoints.hub import hub_error
from fluxnb.errors import InputError, StorageError


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "fox"
    (place / "vae").mkdir(parents=True)
    (place / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (place / "vae" / "w.safetensors").write_bytes(b"weights")
    return place


def carded(folder, **files):
    (folder / "card.json").write_text(json.dumps({"files": files}))


def test_a_folder_is_found_and_named(folder):
    source = weights.locate(folder)
    assert (source.name, source.local) == ("fox", True)
    assert source.revision == weights.locate(str(folder)).revision


def test_the_revision_changes_with_any_byte_of_a_weight(folder):
    before = weights.locate(folder).revision
    (folder / "vae" / "w.safetensors").write_bytes(b"weightz")
    assert weights.locate(folder).revision != before


def test_a_file_that_matches_its_checksum_passes(folder):
    carded(folder, **{"vae/w.safetensors": hashlib.sha256(b"weights").hexdigest()})
    assert weights.locate(folder).card["files"]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"vae/w.safetensors": "0" * 64}, "is damaged"),
        ({"vae/none.safetensors": "0" * 64}, "is missing"),
        ({"../x": "0" * 64}, "own folder"),
        ({"/etc/passwd": "0" * 64}, "own folder"),
    ],
)
def test_a_damaged_or_missing_file_is_told(folder, files, says):
    carded(folder, **files)
    with pytest.raises(StorageError, match=says) as caught:
        weights.locate(folder)
    assert caught.value.remedy


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(InputError, match="Try model='pocket'"):
        weights.locate("poket")


@pytest.mark.parametrize("missing", ["./nowhere", "/no/such/folder", "a/b/c"])
def test_a_missing_folder_is_told(missing):
    with pytest.raises(StorageError, match="no such folder"):
        weights.locate(missing)


def test_a_folder_without_a_pipeline_is_told(tmp_path):
    with pytest.raises(StorageError, match=r"model_index\.json"):
        weights.locate(tmp_path)


def test_another_kind_of_pipeline_is_told(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(InputError, match="StableDiffusionPipeline"):
        weights.locate(tmp_path)


def test_a_broken_index_is_told(tmp_path):
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(StorageError, match="no readable JSON"):
        weights.locate(tmp_path)


def test_missing_package_data_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "POCKET", tmp_path / "pocket")
    with pytest.raises(StorageError, match="pip install"):
        weights.locate("pocket")


def test_pocket_takes_its_transformer_from_the_student_where_there_is_one(monkeypatch, folder, tmp_path):
    packaged = tmp_path / "pocket"
    (packaged / "transformer").mkdir(parents=True)
    (packaged / "transformer" / "config.json").write_text("{}")
    folder.rename(packaged / "base")
    monkeypatch.setattr(weights, "POCKET", packaged)
    pocket, base = weights.locate("pocket"), weights.locate("pocket-base")
    assert pocket.place == base.place and set(pocket.parts) == {"transformer"} and not base.parts
    assert pocket.revision != base.revision


def refused(name, status=None, inner=None):
    error = type(name, (Exception,), {})("no\nsecond line")
    error.response = types.SimpleNamespace(status_code=status)
    error.__cause__ = inner
    return error


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (refused("GatedRepoError", 403), "is gated"),
        (refused("HfHubHTTPError", 403), "is gated"),
        (refused("OSError", inner=refused("GatedRepoError")), "HF_TOKEN"),
        (refused("RepositoryNotFoundError", 401), "misspelt"),
        (refused("HfHubHTTPError", 404), "misspelt"),
        (refused("LocalEntryNotFoundError"), "could not be reached"),
        (refused("OfflineModeIsEnabled"), "HF_HUB_OFFLINE"),
        (refused("LocalEntryNotFoundError", inner=refused("ConnectionError")), 'fnb.load("pocket")'),
        (refused("SomethingNew", 500), "could not be fetched"),
    ],
)
def test_every_refusal_of_the_hub_says_what_to_do(problem, says):
    error = hub_error("owner/name", problem)
    assert isinstance(error, StorageError) and says in str(error) and error.remedy
    assert "second line" not in str(error)


def test_the_hub_out_of_reach_is_our_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StorageError, match="could not be reached"):
        weights.locate("fluxnb-tests/none")
