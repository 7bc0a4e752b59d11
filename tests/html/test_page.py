"""Self-contained pages and animations."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from fluxnb.errors import InputError, StorageError
from fluxnb.html import grid_page, page
from fluxnb.visuals import animation
from tests.scenes import grid, trajectory

NASTY = "</script><script>document.title='owned'</script></style><!-- \" ' & \u2028 <img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)


def test_the_page_refers_to_no_other_file():
    text = page.page(trajectory())
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", text)
    assert "default-src 'none'" in text and "http" not in re.sub(r"http-equiv", "", text)


def test_a_hostile_prompt_adds_no_element_to_the_page():
    def tags(prompt: str) -> list[str]:
        parser = Tags()
        parser.feed(page.page([trajectory(prompt=prompt, steps=1), trajectory(prompt=prompt, steps=2)]))
        return parser.names

    assert tags(NASTY) == tags("a house")


def test_equal_trajectories_give_equal_pages():
    assert page.page(trajectory()) == page.page(trajectory())


def test_a_page_in_a_notebook_displays_as_html_and_has_a_plain_repr():
    cell_output = page.Page(trajectory(prompt="a <b>fox</b>"))
    assert repr(cell_output) == "Page('a <b>fox</b>, toy, seed 3, 4 steps')"
    assert "<b>fox" not in cell_output._repr_html_() and "mountPage(" in cell_output._repr_html_()


def test_without_script_the_page_displays_the_picture():
    assert re.search(r'<img alt="a house on a hill[^"]*" src="data:image/webp;base64,', page.page(trajectory()))


def test_a_sweep_without_trajectories_is_a_page_of_pictures():
    text = page.page(grid(seeds=[0, 1], steps=[1, 2]))
    assert text.count("data:image/webp") == 4  # each picture once, in the sheet


@pytest.mark.moderate
def test_a_page_of_sixty_four_trajectories_stays_small():
    assert len(page.page(grid(seeds=range(16), steps=[1, 2, 3, 4], trajectories=True))) < 6_000_000


def test_writing_creates_folders_and_leaves_no_temporary_file(tmp_path):
    path = page.write(trajectory(), tmp_path / "a" / "b" / "fox.html")
    assert path.read_text().startswith("<!doctype html>") and [p.name for p in path.parent.iterdir()] == ["fox.html"]


def test_an_unwritable_path_raises_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a writable folder is needed"):
        page.write(trajectory(), tmp_path / "file" / "fox.html")


@pytest.mark.moderate
def test_to_html_of_a_record_writes_its_page(tmp_path):
    assert trajectory().to_html(tmp_path / "fox.html").exists()
    assert grid().to_html(tmp_path / "grid.html").exists()


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_the_animation_of_a_trajectory_has_all_steps_and_the_picture(tmp_path, ending):
    with Image.open(animation.write(trajectory(steps=3), tmp_path / f"fox.{ending}", size=64)) as movie:
        assert movie.n_frames == 4 and movie.size == (64, 64) and movie.info["loop"] == 0


def test_the_animation_of_a_grid_has_a_frame_for_each_value_of_the_axis(tmp_path):
    with Image.open(animation.write_axis(grid(), tmp_path / "steps.webp", axis="steps", seed=2)) as movie:
        assert movie.n_frames == 3


def test_an_unknown_ending_axis_or_quantity_raises_an_error(tmp_path):
    with pytest.raises(InputError, match="gif"):
        animation.write(trajectory(), tmp_path / "fox.mp4")
    with pytest.raises(InputError, match="axis"):
        animation.write_axis(grid(), tmp_path / "a.gif", axis="width")
    with pytest.raises(InputError, match="show"):
        animation.write(trajectory(), tmp_path / "a.gif", show="z")
    assert list(tmp_path.iterdir()) == []


def inline(text, element):
    return re.findall(rf"<{element}[^>]*>(.*?)</{element}>", text, re.DOTALL)


@pytest.mark.moderate
@pytest.mark.parametrize("make", [lambda: page.page(trajectory(prompt=NASTY)), lambda: grid_page.page(grid())])
def test_the_policy_permits_the_script_and_the_style_of_the_page_alone(make):
    text = make()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for name, element in (("script-src", "script"), ("style-src", "style")):
        (body,) = inline(text, element)
        expected = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert rules.pop(name) == f"'sha256-{expected}'"
    assert rules == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}
