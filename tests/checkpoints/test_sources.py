from __future__ import annotations

import hashlib
import json
import types

import pytest

from fluxnb.checkpoints import sources as weights
from fluxnb.checkpoints.hub import hub_error
from fluxnb.errors import InputError, StorageError
from fluxnb.families.family import Model


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "fox"
    (place / "vae").mkdir(parents=True)
    (place / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (place / "vae" / "w.safetensors").write_bytes(b"weights")
    return place


def write_card(folder, **files):
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
    write_card(folder, **{"vae/w.safetensors": hashlib.sha256(b"weights").hexdigest()})
    assert weights.locate(folder).card["files"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"vae/w.safetensors": "0" * 64}, "is damaged"),
        ({"vae/none.safetensors": "0" * 64}, "is missing"),
        ({"../x": "0" * 64}, "own folder"),
        ({"/etc/passwd": "0" * 64}, "own folder"),
    ],
)
def test_a_damaged_or_missing_file_is_an_error(folder, files, message):
    write_card(folder, **files)
    with pytest.raises(StorageError, match=message) as caught:
        weights.locate(folder)
    assert caught.value.remedy


def test_an_unknown_name_is_an_error_with_the_nearest_name():
    with pytest.raises(InputError, match="Try model='pocket'"):
        weights.locate("poket")


@pytest.mark.parametrize("missing", ["./nowhere", "/no/such/folder", "a/b/c"])
def test_a_missing_folder_is_an_error(missing):
    with pytest.raises(StorageError, match="no such folder"):
        weights.locate(missing)


def test_a_folder_without_a_pipeline_is_an_error(tmp_path):
    with pytest.raises(StorageError, match=r"model_index\.json"):
        weights.locate(tmp_path)


def test_another_kind_of_pipeline_is_an_error(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(InputError, match="StableDiffusionPipeline"):
        weights.locate(tmp_path)


def test_a_broken_index_is_an_error(tmp_path):
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(StorageError, match="no readable JSON"):
        weights.locate(tmp_path)


def test_missing_package_data_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "POCKET", tmp_path / "pocket")
    monkeypatch.setattr(weights, "restore_command", lambda: "pip install a_folder")
    with pytest.raises(StorageError, match="pip install a_folder"):
        weights.locate("pocket")


def test_a_package_without_a_readable_card_is_an_error(monkeypatch):
    monkeypatch.setattr(weights, "MODELS", {**weights.MODELS, "pocket": Model()})
    with pytest.raises(StorageError, match=r"no readable card\.json"):
        weights.locate("pocket")


def test_the_transformer_of_pocket_is_the_student_if_there_is_one(monkeypatch, folder, tmp_path):
    packaged = tmp_path / "pocket"
    (packaged / "transformer").mkdir(parents=True)
    (packaged / "transformer" / "config.json").write_text("{}")
    folder.rename(packaged / "base")
    monkeypatch.setattr(weights, "POCKET", packaged)
    pocket, base = weights.locate("pocket"), weights.locate("pocket-base")
    assert pocket.place == base.place and set(pocket.parts) == {"transformer"} and not base.parts
    assert pocket.revision != base.revision


def hub_exception(name, status=None, inner=None):
    error = type(name, (Exception,), {})("no\nsecond line")
    error.response = types.SimpleNamespace(status_code=status)
    error.__cause__ = inner
    return error


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (hub_exception("GatedRepoError", 403), "is gated"),
        (hub_exception("HfHubHTTPError", 403), "is gated"),
        (hub_exception("OSError", inner=hub_exception("GatedRepoError")), "HF_TOKEN"),
        (hub_exception("RepositoryNotFoundError", 401), "misspelt"),
        (hub_exception("HfHubHTTPError", 404), "misspelt"),
        (hub_exception("LocalEntryNotFoundError"), "could not be reached"),
        (hub_exception("OfflineModeIsEnabled"), "HF_HUB_OFFLINE"),
        (hub_exception("LocalEntryNotFoundError", inner=hub_exception("ConnectionError")), 'fnb.load("pocket")'),
        (hub_exception("SomethingNew", 500), "could not be downloaded"),
    ],
)
def test_every_error_of_the_hub_names_the_remedy(problem, message):
    error = hub_error("owner/name", problem)
    assert isinstance(error, StorageError) and message in str(error) and error.remedy
    assert "second line" not in str(error)


def test_an_unreachable_hub_is_a_storage_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StorageError, match="could not be reached"):
        weights.locate("fluxnb-tests/none")
