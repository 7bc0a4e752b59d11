"""Trajectory files of the current format and of the older one."""

from __future__ import annotations

import dataclasses
import json

import pytest

from fluxnb.errors import StorageError
from fluxnb.io.trajectory_files import open_trajectory, save
from tests.scenes import trajectory


def rewritten(path, change):
    """The file with its JSON header changed by a function."""
    from safetensors import safe_open
    from safetensors.torch import load, save_file

    with safe_open(path, "pt") as opened:
        header = json.loads(opened.metadata()["fluxnb"])
    tensors = load(path.read_bytes())
    change(header)
    save_file(tensors, path, metadata={"fluxnb": json.dumps(header)})
    return path


def as_format_1(numerics):
    def change(header):
        header["format"] = 1
        del header["numerics"]
        if header["recipe"] is not None:
            fields = {**json.loads(header["recipe"]), "fluxnb_recipe": 1, "numerics": numerics}
            header["recipe"] = json.dumps(fields)

    return change


@pytest.mark.parametrize("numerics", ["exact", "gguf-q8", "gguf-q8, batch"])
def test_numerics_come_back(tmp_path, numerics):
    made = dataclasses.replace(trajectory(), numerics=numerics)
    opened = open_trajectory(save(made, tmp_path / "a"))
    assert opened.numerics == numerics and opened.exact == (numerics == "exact")


@pytest.mark.parametrize("numerics", ["exact", "gguf-q8"])
def test_a_file_of_format_1_opens_with_the_numerics_of_its_recipe(tmp_path, numerics):
    made = trajectory()
    opened = open_trajectory(rewritten(save(made, tmp_path / "a"), as_format_1(numerics)))
    assert opened.numerics == numerics and opened.recipe == made.recipe and len(opened) == len(made)


def test_the_numerics_of_a_file_of_format_1_without_a_recipe_are_unknown(tmp_path):
    made = dataclasses.replace(trajectory(), recipe=None)
    opened = open_trajectory(rewritten(save(made, tmp_path / "a"), as_format_1("exact")))
    assert opened.numerics == "unknown" and not opened.exact


@pytest.mark.parametrize("numerics", [1, None, ["exact"]])
def test_numerics_of_a_wrong_type_are_a_storage_error(tmp_path, numerics):
    for change in (as_format_1(numerics), lambda header: header.update(numerics=numerics)):
        with pytest.raises(StorageError, match="not a complete trajectory file"):
            open_trajectory(rewritten(save(trajectory(), tmp_path / "a"), change))
