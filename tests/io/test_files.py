from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

import pytest
from PIL import Image

import fluxnb as fnb
from fluxnb.errors import InputError, StorageError
from fluxnb.html import page as html
from fluxnb.io.files import atomic_write, read_bytes, user_path, without_folders
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


@pytest.mark.moderate
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


# ------------------------------------------------------------------------------------------------------------- writing
def write(path, text="new"):
    with atomic_write(path) as part:
        part.write_text(text)


def test_a_link_is_followed_and_remains(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "a.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    write(link)
    assert link.is_symlink() and target.read_text() == "new" and list(target.parent.iterdir()) == [target]


def test_a_link_to_a_file_that_does_not_exist_creates_it(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "later" / "a.txt")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "later" / "a.txt").read_text() == "new"


def test_links_in_a_circle_are_a_storage_error(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(StorageError, match="cannot write"):
        write(tmp_path / "a")
    assert (tmp_path / "a").is_symlink()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_replaced_file_keeps_its_mode(tmp_path, mode):
    target = tmp_path / "a.txt"
    target.write_text("old")
    target.chmod(mode)
    write(target)
    assert target.read_text() == "new" and stat.S_IMODE(target.stat().st_mode) == mode


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    write(tmp_path / "a.txt")
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("name", ["a" * 255, "a" * 240 + ".png", "ä" * 127, "狐" * 85])
def test_names_of_up_to_255_bytes_are_written(tmp_path, name):
    write(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_longer_name_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="cannot write"):
        write(tmp_path / ("a" * 256))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
def test_folders_devices_and_fifos_are_never_replaced(tmp_path, kind, linked):
    place = special(tmp_path, kind)
    if linked:
        (tmp_path / "link").symlink_to(place)
    with pytest.raises(StorageError, match="cannot write") as caught:
        write(tmp_path / "link" if linked else place)
    assert caught.value.remedy and not stat.S_ISREG(place.stat().st_mode)
    assert not list(tmp_path.glob("*.part"))


# ------------------------------------------------------------------------------------------------------------- reading
def special(folder, kind):
    """A path that is no regular file."""
    if kind == "device":
        return Path("/dev/zero")
    place = folder / kind
    if kind == "fifo":
        os.mkfifo(place)
    else:
        place.mkdir()
    return place


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", ["fifo", "folder", "device"])
@pytest.mark.parametrize("read", [lambda path: read_bytes(path, at_most=100), open_recipe, open_trajectory])
def test_what_is_no_regular_file_is_not_read(tmp_path, kind, linked, read):
    place = special(tmp_path, kind)
    if linked:
        (tmp_path / "link").symlink_to(place)
    with pytest.raises(StorageError) as caught:
        read(tmp_path / "link" if linked else place)
    assert caught.value.remedy


def test_a_file_is_read_through_a_link_up_to_its_bound(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_bytes(tmp_path / "link", at_most=5) == b"12345"
    with pytest.raises(StorageError, match="at most"):
        read_bytes(tmp_path / "link", at_most=4)


@pytest.mark.parametrize("wrong", ["a\0b.png", "\ud800.png"])
def test_characters_that_no_path_holds_are_an_input_error(wrong):
    with pytest.raises(InputError, match="as a path"):
        user_path(wrong)


# ------------------------------------------------------------------------------------------------------------- sharing
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("the disk of /data/alice/store is full", "the disk of store is full"),
        ("cannot write '/data/alice b/c d.png' (no)", "cannot write 'c d.png' (no)"),
        ("../alice/secret/model (OSError)", "model (OSError)"),
        ("~alice/store and ~/store", "store and store"),
        (r"C:\Users\alice\fox.png is missing", "fox.png is missing"),
        (
            "see https://huggingface.co/a/b; 3 s/step, 1/2 and/or",
            "see https://huggingface.co/a/b; 3 s/step, 1/2 and/or",
        ),
        ("black-forest-labs/FLUX.1-dev is gated", "black-forest-labs/FLUX.1-dev is gated"),
    ],
)
def test_a_shared_message_names_no_folder(message, expected):
    assert without_folders(message) == expected


class FailingStream:
    """A stream of one cell that ends with an error about a path."""

    def __init__(self, path):
        made = grid(seeds=[0], steps=[1])
        self.axes, self.model, self._path, self._cells = made.axes, made.model, path, iter(made)

    def __iter__(self):
        return self

    def __next__(self):
        for cell in self._cells:
            return cell
        raise StorageError(f"cannot write {str(self._path)!r}", "a folder is needed", "check it")


@pytest.mark.parametrize("source", [lambda path: grid(seeds=[0], steps=[1]), FailingStream])
def test_the_state_of_an_explorer_names_no_folder(tmp_path, source):
    explorer = fnb.explore(source(tmp_path / "secret" / "a.png"), folder=tmp_path / "starred")
    with contextlib.suppress(StorageError):
        explorer.wait(30)
    state = repr(explorer.get_state())
    assert str(tmp_path) not in state and "secret" not in state and "starred" in state
    assert source is not FailingStream or "cannot write 'a.png'" in explorer.data["message"]
