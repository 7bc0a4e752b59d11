from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import fluxnb as fnb
from fluxnb.errors import InputError, StorageError
from fluxnb.html import page as html
from fluxnb.io.files import atomic_write, user_path
from fluxnb.io.png import open_recipe, write_png
from fluxnb.io.trajectory_files import open_trajectory, save
from fluxnb.records.recipe import Recipe
from fluxnb.visuals import animation
from tests.scenes import grid, trajectory

TINY = Image.new("RGB", (4, 4))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    return tmp_path


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as part:
        part.write_text("ne")
        raise RuntimeError
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


def test_missing_folders_are_made(tmp_path):
    with atomic_write(tmp_path / "a" / "b" / "c.txt") as part:
        part.write_text("new")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "new"


def test_a_disk_error_is_a_storage_error_with_its_number(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a writable folder is needed") as caught, atomic_write(tmp_path / "file/a"):
        pass
    assert caught.value.errno is not None and caught.value.remedy


@pytest.mark.parametrize("wrong", [5, None, b"a.png", True])
def test_what_is_not_a_path_is_an_input_error(wrong):
    with pytest.raises(InputError, match="as a path"):
        user_path(wrong)


def test_a_user_without_a_home_folder_is_an_input_error():
    with pytest.raises(InputError, match="as a path"):
        user_path("~no-such-user-here/a.png")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_png(TINY, path, Recipe(prompt="a")),
        lambda path: save(trajectory(), path),
        lambda path: trajectory().save(path),
        lambda path: trajectory().to_html(path),
        lambda path: grid(seeds=[0], steps=[1]).to_html(path),
        lambda path: html.write(trajectory(), path),
        lambda path: animation.write(trajectory(), path),
        lambda path: fnb.explore(grid(seeds=[0], steps=[1])).to_html(path),
        lambda path: fnb.scrub(trajectory()).to_html(path),
    ],
)
def test_a_tilde_is_the_home_folder_for_everything_that_is_written(home, write):
    path = write("~/out/a.gif")
    assert path == home / "out" / "a.gif" and path.is_file()


def test_a_tilde_is_the_home_folder_for_everything_that_is_read(home, toy_folder):
    write_png(TINY, home / "a.png", Recipe(prompt="a"))
    save(trajectory(), home / "a.safetensors")
    (home / "toy").symlink_to(toy_folder)
    assert open_recipe("~/a.png") == open_recipe(Path("~/a.png")) == Recipe(prompt="a")
    assert len(open_trajectory("~/a.safetensors")) == 4
    assert fnb.load("~/toy").model == fnb.load(Path("~/toy")).model == "toy"
    assert fnb.plan("~/toy", "8gb/16gb").model == "toy"


def test_a_tilde_is_the_home_folder_for_a_store_and_an_export(home):
    assert fnb.Store("~/store").folder == home / "store"
    explorer = fnb.explore(grid(seeds=[0], steps=[1]), folder="~/starred")
    explorer.stars = [0]
    assert explorer.export()[0].parent == home / "starred"
    assert explorer.export("~/best")[0].parent == home / "best"
