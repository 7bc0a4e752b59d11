"""The page that stands alone, and the moving pictures."""

import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from fluxnb.errors import InputError, StorageError
from fluxnb.html import page as html
from fluxnb.visuals import animation as gif
from tests.scenes import grid, trajectory

NASTY = "</script><script>document.title='owned'</script></style><!-- \" ' & \u2028 <img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)


def test_the_page_is_one_file_that_asks_for_no_other():
    text = html.page(trajectory())
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!data:)""", text)
    assert "default-src 'none'" in text and "http" not in re.sub(r"http-equiv", "", text)


def test_a_hostile_prompt_adds_no_tag_to_the_page():
    def tags(prompt: str) -> list[str]:
        parser = Tags()
        parser.feed(html.page([trajectory(prompt=prompt, steps=1), trajectory(prompt=prompt, steps=2)]))
        return parser.seen

    assert tags(NASTY) == tags("a house")


def test_the_same_walk_makes_the_same_page():
    assert html.page(trajectory()) == html.page(trajectory())


def test_a_page_in_a_notebook_shows_itself_and_has_a_plain_repr():
    shown = html.Page(trajectory(prompt="a <b>fox</b>"))
    assert repr(shown) == "Page('a <b>fox</b>, toy, seed 3, 4 steps')"
    assert "<b>fox" not in shown._repr_html_() and "mount(" in shown._repr_html_()


def test_without_script_the_picture_is_there():
    assert re.search(r'<img alt="a house on a hill[^"]*" src="data:image/webp;base64,', html.page(trajectory()))


def test_a_sweep_without_walks_is_a_page_of_pictures():
    text = html.page(grid(seeds=[0, 1], steps=[1, 2]))
    assert text.count("data:image/webp") == 5  # four pictures and the still


def test_a_sixty_four_cell_page_of_walks_stays_small():
    assert len(html.page(grid(seeds=range(16), steps=[1, 2, 3, 4], trajectories=True))) < 6_000_000


def test_writing_makes_folders_and_leaves_nothing_half_written(tmp_path):
    path = html.write(trajectory(), tmp_path / "a" / "b" / "walk.html")
    assert path.read_text().startswith("<!doctype html>") and [p.name for p in path.parent.iterdir()] == ["walk.html"]


def test_where_nothing_can_be_written_the_error_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="a writable folder is needed"):
        html.write(trajectory(), tmp_path / "file" / "walk.html")


def test_a_record_writes_its_own_page(tmp_path):
    assert trajectory().to_html(tmp_path / "walk.html").exists()
    assert grid().to_html(tmp_path / "grid.html").exists()


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_a_walk_becomes_a_loop_of_all_its_steps_and_the_picture(tmp_path, ending):
    with Image.open(gif.write(trajectory(steps=3), tmp_path / f"walk.{ending}", size=64)) as movie:
        assert movie.n_frames == 4 and movie.size == (64, 64) and movie.info["loop"] == 0


def test_a_grid_becomes_a_loop_along_one_axis(tmp_path):
    with Image.open(gif.write_axis(grid(), tmp_path / "steps.webp", axis="steps", seed=2)) as movie:
        assert movie.n_frames == 3


def test_an_unknown_ending_axis_or_show_is_refused(tmp_path):
    with pytest.raises(InputError, match="gif"):
        gif.write(trajectory(), tmp_path / "walk.mp4")
    with pytest.raises(InputError, match="axis"):
        gif.write_axis(grid(), tmp_path / "a.gif", axis="width")
    with pytest.raises(InputError, match="show"):
        gif.write(trajectory(), tmp_path / "a.gif", show="z")
    assert list(tmp_path.iterdir()) == []
