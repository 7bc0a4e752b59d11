"""Trajectory files of the current format and of the older one."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

import fluxnb as fnb
from fluxnb.errors import InputError, StorageError
from fluxnb.io.trajectory_files import open_trajectory, save
from fluxnb.records import Geometry
from fluxnb.records.geometry import FLUX1
from fluxnb.records.recipe import LARGEST_SIDE
from tests.mutations import examine
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


DATA = Path(__file__).parent / "data"


def as_format_1(numerics):
    def change(header):
        header["format"] = 1
        del header["geometry"], header["predicts"]
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


@pytest.mark.parametrize("format_", [1, 2])
def test_a_file_that_an_older_version_wrote_opens_as_flux1(format_):
    opened, made = open_trajectory(DATA / f"format_{format_}.safetensors"), trajectory(seed=3, steps=2, size=32)
    assert opened.geometry == FLUX1 and opened.predicts == "velocity" and opened.numerics == "exact"
    assert opened.recipe.seed == 3 and opened.image.size == (32, 32) and opened.finished
    for step, new in zip(opened, made, strict=True):
        torch.testing.assert_close(step.latents("clean"), new.latents("clean"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (0,), (16, 63)])
def test_tensors_of_another_shape_in_a_file_of_an_older_version_are_a_storage_error(tmp_path, shape):
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = DATA / "format_2.safetensors"
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    tensors = {n: torch.zeros(shape) if n.endswith(".x") else t for n, t in load_file(path).items()}
    save_file(tensors, tmp_path / "a", metadata=metadata)
    with pytest.raises(StorageError, match="not a complete trajectory file"):
        open_trajectory(tmp_path / "a")


@pytest.mark.parametrize(
    "geometry", [Geometry(channels=4, layout="spatial"), Geometry(channels=4), Geometry(channels=1, order="ph pw c")]
)
def test_geometry_comes_back(tmp_path, geometry):
    made = dataclasses.replace(trajectory(size=32), geometry=geometry, preview=None, predicts="mean velocity")
    x = geometry.arrange(torch.randn(geometry.channels, 4, 4))
    steps = [dataclasses.replace(step, geometry=geometry, tensors={"x": x, "v": x}) for step in made]
    opened = open_trajectory(save(dataclasses.replace(made, steps=tuple(steps)), tmp_path / "a"))
    assert opened.geometry == geometry and opened.predicts == "mean velocity"
    assert torch.equal(opened[0].latents("x"), steps[0].latents("x"))


@pytest.mark.parametrize("numerics", [1, None, ["exact"]])
def test_numerics_of_a_wrong_type_are_a_storage_error(tmp_path, numerics):
    for change in (as_format_1(numerics), lambda header: header.update(numerics=numerics)):
        with pytest.raises(StorageError, match="not a complete trajectory file"):
            open_trajectory(rewritten(save(trajectory(), tmp_path / "a"), change))


def test_a_norm_that_is_not_finite_comes_back_as_not_a_number(tmp_path):
    made = trajectory()
    first = dataclasses.replace(made.steps[0], norms={"x": float("inf"), "v": float("nan")})
    opened = open_trajectory(save(dataclasses.replace(made, steps=(first, *made.steps[1:])), tmp_path / "a"))
    assert (
        all(math.isnan(opened.steps[0].norms[name]) for name in "xv") and opened.steps[1].norms == made.steps[1].norms
    )


@pytest.mark.parametrize("size", [(9000, 16), (144, 112)])
def test_a_picture_of_another_size_than_the_record_is_not_decoded(tmp_path, monkeypatch, size):
    made = dataclasses.replace(trajectory(), image=Image.new("RGB", size))
    path = save(made, tmp_path / "a")
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(StorageError, match="not a complete trajectory file"):
        open_trajectory(path)


def test_the_picture_of_a_record_without_a_size_comes_back(tmp_path):
    made = dataclasses.replace(trajectory(), steps=(), recipe=None, height=0, width=0)
    opened = open_trajectory(save(made, tmp_path / "a"))
    assert opened.image.tobytes() == made.image.tobytes() and (opened.width, opened.height) == made.image.size


def test_a_trajectory_that_no_file_holds_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="files hold at most"):
        save(dataclasses.replace(trajectory(), recipe=None, steps=(), height=9008, width=16), tmp_path / "a")


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.update(sigmas=[1e300] * 5),
        lambda header: header.update(sigmas=[0.5] * 20_000),
        lambda header: header.update(model="\ud800"),
        lambda header: header.update(preset="a" * 100_000),
        lambda header: header["steps"][0].update(sigma=-1.0),
        lambda header: header["steps"][0].update(seconds=1e300),
        lambda header: header["steps"][0]["norms"].pop("v"),
        lambda header: header["preview"].update(weight=[[0.1] * 15] * 3),
        lambda header: header.update(height=64, recipe=None, steps=[]),
        lambda header: header.update(words=["a"] * 5000),
        lambda header: header.update(predicts="noise"),
        lambda header: header.update(geometry={"layout": "spatial"}),
        lambda header: header.update(geometry={"channels": 2**40}),
        lambda header: header.update(geometry={"rows": 3}),
        lambda header: header.update(geometry=None),
    ],
)
def test_values_out_of_their_bounds_are_a_storage_error(tmp_path, change):
    path = save(trajectory(), tmp_path / "a")
    with pytest.raises(StorageError, match="not a complete trajectory file"):
        open_trajectory(rewritten(path, change))


@pytest.mark.long
@pytest.mark.parametrize("preview", [True, False], ids=["preview", "no preview"])
def test_a_trajectory_of_the_largest_picture_opens_and_is_displayed_in_time(tmp_path, preview):
    """Five seconds and 1 GB for each, as for any other file."""
    path = save(trajectory(steps=2, size=LARGEST_SIDE, preview=preview), tmp_path / "large")
    opened = []

    def views():
        yield lambda: opened.append(open_trajectory(path))
        yield lambda: opened[0].to_html(tmp_path / "page.html")
        yield lambda: fnb.filmstrip(opened[0])._repr_png_()
        yield lambda: fnb.scrub(opened[0])

    assert examine(lambda view: view(), views()) == {"value": 4}
