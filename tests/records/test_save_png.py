"""PNG files that trajectories and cells write."""

from __future__ import annotations

import dataclasses
import io
import os

import pytest
from PIL import Image

import fluxnb as fnb
from fluxnb.errors import StorageError, UnavailableError
from fluxnb.records.sweep import Cell
from tests.scenes import trajectory


@pytest.fixture
def cell():
    made = trajectory()
    return Cell(recipe=made.recipe, key="0" * 64, picture=made.image, numerics="batch")


def test_a_trajectory_writes_its_image_and_recipe(tmp_path):
    made = trajectory()
    path = made.save_png(tmp_path / "new folder" / "fox.png")
    assert fnb.open_recipe(path) == made.recipe
    with Image.open(path) as opened:
        assert opened.convert("RGB").tobytes() == made.image.convert("RGB").tobytes()


def test_a_cell_writes_its_image_recipe_and_numerics(cell, tmp_path):
    path = cell.save_png(tmp_path / "fox.png")
    assert fnb.open_recipe(path) == cell.recipe
    with Image.open(io.BytesIO(path.read_bytes())) as opened:
        assert "Numerics: batch" in opened.text["parameters"]


def test_a_trajectory_without_a_recipe_writes_its_image_only(tmp_path):
    path = dataclasses.replace(trajectory(), recipe=None, recipe_missing="a custom call").save_png(tmp_path / "a.png")
    with Image.open(path) as opened:
        assert opened.text == {}


def test_a_trajectory_without_an_image_is_an_error(tmp_path):
    with pytest.raises(UnavailableError, match="not decoded"):
        dataclasses.replace(trajectory(), image=None).save_png(tmp_path / "a.png")


def test_an_older_file_is_kept_if_writing_fails(cell, tmp_path, monkeypatch):
    path = cell.save_png(tmp_path / "fox.png")
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(StorageError, match="full"):
        cell.save_png(path)
    assert path.read_bytes() == before and [each.name for each in tmp_path.iterdir()] == ["fox.png"]
