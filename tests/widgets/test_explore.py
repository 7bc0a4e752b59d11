"""The explorer through its traits and messages, and its page through its text; no front end, no model."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fluxnb as fnb
from fluxnb.errors import InputError, StorageError
from fluxnb.html import grid_page as pages
from fluxnb.html.front_end import VIEWS, script, style
from fluxnb.records import Cell, Sweep
from fluxnb.widgets import Explorer, explore
from tests.scenes import grid
from tests.trajectories import resolved

NASTY = "</script><script>window.owned=1</script></style> \" ' & <img src=x onerror=window.owned=2> <b>bold</b>"


class Coming:
    """What `fnb.stream` returns, as far as a view sees it: cells that come one by one, and the grid they will fill."""

    def __init__(self, sweep: Sweep, *, gate: threading.Semaphore | None = None, breaks_at: int | None = None) -> None:
        self.axes, self.model, self.closed = dict(sweep.axes), sweep.model, False
        self._cells, self._gate, self._breaks_at = list(sweep.cells), gate, breaks_at

    def __iter__(self):
        return self

    def __next__(self) -> Cell:
        if self._gate is not None:
            self._gate.acquire(timeout=20)
        if self._breaks_at == 0:
            raise fnb.RunError("CUDA out of memory", "the picture is too large for this card", "try height=512")
        if self._breaks_at is not None:
            self._breaks_at -= 1
        if not self._cells:
            raise StopIteration
        return self._cells.pop(0)

    def close(self) -> None:
        self.closed = True


def content(text: str) -> dict:
    """The JSON of a page, read as the browser reads it."""
    return json.loads(re.search(r"const \{ data, urls \} = (\{.*\});\nmount", text, re.S)[1])


# ------------------------------------------------------------------------------------------------------ what is shown
def test_cells_are_json_and_frames_are_webp():
    widget = explore(grid(trajectories=True))
    assert len(json.loads(json.dumps(widget.cells))) == 12
    assert all(isinstance(frame, bytes) and frame[8:12] == b"WEBP" for frame in widget.frames)


def test_every_frame_a_cell_names_is_there_and_every_frame_is_named():
    widget = explore(grid(seeds=[0, 1], trajectories=True))
    named = {cell["final"] for cell in widget.cells}
    named |= {n for cell in widget.cells for numbers in cell["frames"].values() for n in numbers}
    assert named == set(range(len(widget.frames)))


def test_a_frame_that_cells_share_travels_once():
    alone = sum(len(explore(grid(seeds=[0], steps=[count], trajectories=True)).frames) for count in (1, 2, 4))
    assert len(explore(grid(seeds=[0], steps=[1, 2, 4], trajectories=True)).frames) < alone


def test_a_small_picture_arrives_pixel_for_pixel():
    import io

    sweep = grid(seeds=[1], steps=[2])
    widget = explore(sweep)
    with Image.open(io.BytesIO(widget.frames[widget.cells[0]["final"]])) as shown:
        assert shown.convert("RGB").tobytes() == sweep[0].image.convert("RGB").tobytes()


def test_a_picture_larger_than_size_is_made_smaller_and_keeps_its_shape():
    import io

    cell = dataclasses.replace(grid(seeds=[1], steps=[2])[0], picture=Image.new("RGB", (400, 200), "red"))
    widget = explore([cell], size=100)
    with Image.open(io.BytesIO(widget.frames[0])) as shown:
        assert shown.size == (100, 50)
    assert (widget.cells[0]["width"], widget.cells[0]["height"]) == (400, 200)


def test_a_seed_that_javascript_would_round_is_text():
    cell = dataclasses.replace(grid(seeds=[1], steps=[2])[0], recipe=resolved(prompt="a fox", seed=2**64 - 1))
    assert ["seed", "18446744073709551615"] in json.loads(json.dumps(explore([cell]).cells))[0]["facts"]


def test_prompts_that_begin_alike_are_called_by_what_differs():
    common = "a photograph of a house on a hill in the evening,"
    axis = explore(grid(prompts=[f"{common} pencil", f"{common} oil"])).data["axes"][0]
    assert axis["values"] == ["… pencil", "… oil"] and axis["whole"][1] == f"{common} oil"
    nested = explore(grid(prompts=[common, f"{common} oil"])).data["axes"][0]["values"]
    assert nested == ["… evening,", "… evening, oil"], "something is left of each"


def test_axes_are_in_words_and_cells_know_their_place():
    data, cells = (widget := explore(grid(seeds=[5, 7], steps=[1, 4]))).data, widget.cells
    assert [axis["name"] for axis in data["axes"]] == ["prompt", "seed", "steps"]
    assert data["axes"][1]["values"] == ["seed 5", "seed 7"] and data["axes"][2]["values"] == ["1 step", "4 steps"]
    assert [cell["at"] for cell in cells] == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]


def test_a_value_that_the_run_filled_in_has_the_place_of_what_was_asked():
    sweep = grid(seeds=[0], steps=[1])
    asked = dataclasses.replace(sweep, axes={**sweep.axes, "width": (None, 256)})
    assert explore(asked).cells[0]["at"][-1] == 0


def test_a_list_of_cells_finds_the_axes_in_which_they_differ():
    axes = explore(list(grid(seeds=[0, 3], steps=[2]))).data["axes"]
    assert [(axis["name"], len(axis["values"])) for axis in axes] == [("prompt", 1), ("seed", 2), ("steps", 1)]


def test_cells_without_steps_say_why_nothing_can_be_scrubbed():
    widget = explore(grid())
    assert all(cell["sigmas"] == [] for cell in widget.cells) and "keep=fnb.Keep()" in widget.data["why"]


def test_a_lossy_cell_says_so():
    cell = dataclasses.replace(grid(seeds=[0], steps=[1])[0], numerics="batch")
    assert dict(explore([cell]).cells[0]["facts"])["numbers"].startswith("lossy")


def test_the_decoder_that_is_handed_in_makes_the_frames():
    asked = []

    def decode(latents):
        asked.append(len(latents))
        return [Image.new("RGB", (24, 24), (10, 200, 30)) for _ in latents]

    widget = explore(grid(seeds=[0], steps=[2, 4], trajectories=True), shows=["clean"], decode=decode)
    assert asked == [2, 3], "the start that both walks share is decoded once"
    assert len(widget.frames) == 1 + 2 and widget.data["note"] == "frames by decoder"


@pytest.mark.parametrize("nothing", [[], Sweep(cells=(), axes={"seed": (1,)}), "grid", 3, None, iter([])])
def test_what_is_no_grid_is_refused_with_what_to_type(nothing):
    with pytest.raises(InputError, match=r"fnb\.sweep|Run it again"):
        explore(nothing)


@pytest.mark.parametrize("wrong", [{"shows": ["z"]}, {"size": 3}, {"size": True}, {"size": 40.0}])
def test_unknown_shows_and_sizes_are_refused(wrong):
    with pytest.raises(InputError):
        explore(grid(), **wrong)


def test_repr_says_how_many_and_holds_no_address():
    assert repr(explore(grid())) == "Explorer(12 of 12 cells)"
    unfinished = dataclasses.replace(grid(), cells=grid().cells[:5], finished=False)
    assert repr(explore(unfinished)) == "Explorer(5 of 12 cells, stopped)"


def test_the_bundle_has_a_still_picture_for_who_cannot_run_it():
    bundle, _ = explore(grid())._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    with Image.open(__import__("io").BytesIO(base64.b64decode(bundle["image/png"]))) as still:
        assert still.width > still.height > 80


# ------------------------------------------------------------------------------------------------------- while it fills
def test_cells_fill_in_while_the_kernel_is_free():
    gate = threading.Semaphore(0)
    widget = explore(Coming(grid(), gate=gate))
    assert widget.data["state"] == "running" and repr(widget) == "Explorer(0 of 12 cells, running)"
    for _ in range(13):
        gate.release()
    widget.wait(20)
    assert widget.data["state"] == "finished" and len(widget.cells) == 12
    assert [cell.recipe for cell in widget.grid] == [cell.recipe for cell in grid()]


def test_each_cell_is_sent_as_it_comes_and_all_of_them_at_every_doubling(monkeypatch):
    sent, whole = [], []
    monkeypatch.setattr(Explorer, "send", lambda self, said, buffers=None: sent.append((said, buffers)))
    monkeypatch.setattr(Explorer, "send_state", lambda self, key=None: whole.append((key, len(self.cells))))
    widget = explore(Coming(grid(trajectories=True))).wait(20)
    assert [said["number"] + 1 for said, _ in sent] == [3, 5, 6, 7, 9, 10, 11, 12]
    assert [count for key, count in whole if key == ["cells", "frames"]] == [1, 2, 4, 8, 12]
    for said, buffers in sent:
        first = said["first"]
        assert buffers == widget.frames[first : first + len(buffers)] and said["cell"] == widget.cells[said["number"]]


def test_stop_ends_the_making_after_the_cell_in_hand():
    gate = threading.Semaphore(3)
    coming = Coming(grid(), gate=gate)
    widget = explore(coming)
    while len(widget.cells) < 3:
        pass
    widget.stop()
    gate.release()
    widget.wait(20)
    assert len(widget.grid) == 4 and widget.data["state"] == "stopped" and coming.closed


def test_what_breaks_the_making_is_shown_and_raised_again():
    coming = Coming(grid(), breaks_at=2)
    widget = explore(coming)
    with pytest.raises(fnb.RunError, match="out of memory"):
        widget.wait(20)
    assert widget.data["state"] == "failed" and "Try height=512" in widget.data["said"]
    assert len(widget.cells) == 2 and coming.closed and not widget.grid.finished


def test_a_step_that_stops_the_making_is_a_stop_and_no_error(toy):
    def first_only(step):
        return fnb.STOP if step.index == 1 else None

    widget = explore(fnb.stream(toy, prompts="a red fox", seeds=0, steps=[1, 3], on_step=first_only)).wait(60)
    assert len(widget.cells) == 1 and widget.data["state"] == "stopped"


def test_a_click_on_stop_is_heard():
    gate = threading.Semaphore(1)
    widget = explore(Coming(grid(), gate=gate))
    widget._handle_custom_msg({"kind": "stop"}, [])
    gate.release()
    widget.wait(20)
    assert widget.data["state"] == "stopped"


def test_a_stream_shows_the_grid_of_its_own_model(toy):
    coming = fnb.stream(toy, prompts="a red fox", seeds=[0, 2**64 - 1], steps=[1, 2], keep=fnb.Keep())
    assert isinstance(coming, fnb.Stream) and dict(coming.axes)["steps"] == (1, 2)
    widget = fnb.explore(coming).wait(60)
    assert isinstance(widget, fnb.Explorer) and widget.data["total"] == 4
    assert {cell["sigmas"][0] for cell in widget.cells} == {1.0} and widget.grid.finished


# ------------------------------------------------------------------------------------------------------ stars and files
def test_the_starred_leave_as_png_with_their_recipes(tmp_path):
    widget = explore(grid(), folder=tmp_path / "best")
    widget.stars = [5, 1]
    paths = widget.export()
    assert [fnb.open_recipe(path) for path in paths] == [widget.grid[1].recipe, widget.grid[5].recipe]
    assert widget.export() == paths and len(list((tmp_path / "best").iterdir())) == 2


def test_a_click_on_save_is_answered_in_words(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(Explorer, "send", lambda self, content, buffers=None: said.append(content["text"]))
    widget = explore(grid(), folder=tmp_path / "best")
    widget._handle_custom_msg({"kind": "save"}, [])
    widget.stars = [0]
    widget._handle_custom_msg({"kind": "save"}, [])
    assert "no starred cell" in said[0] and said[1] == f"1 picture written to {tmp_path / 'best'}"


def test_a_folder_that_cannot_be_is_an_error_in_words(tmp_path):
    (tmp_path / "file").write_text("")
    widget = explore(grid(), folder=tmp_path / "file" / "best")
    widget.stars = [0]
    with pytest.raises(StorageError, match="cannot write"):
        widget.export()


def test_a_star_that_no_cell_has_is_nothing(tmp_path):
    widget = explore(grid())
    widget.stars = [99, -1, 2]
    assert widget.starred == (widget.grid[2],)


@given(st.text(min_size=1, max_size=80).filter(lambda text: text.strip() and not re.search("[\ud800-\udfff]", text)))
def test_a_file_name_is_a_name_whatever_the_prompt(prompt):
    cell = Cell(recipe=resolved(prompt=prompt), key="0a1b2c3d4e")
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*-seed-0-steps-4-0a1b2c3d", pages._stem(cell))


# ------------------------------------------------------------------------------------------------------------- the page
def test_a_sweep_writes_its_page_with_every_cell(tmp_path):
    sweep = grid(trajectories=True)
    found = content(sweep.to_html(tmp_path / "grid.html").read_text())
    assert len(found["data"]["cells"]) == 12 and len(found["urls"]) == len(explore(sweep).frames)
    assert [fnb.Recipe.from_json(cell["recipe"]) for cell in found["data"]["cells"]] == [c.recipe for c in sweep]


def test_the_widget_writes_the_same_page(tmp_path):
    sweep = grid(trajectories=True)
    widget = explore(sweep, size=512)
    assert widget.to_html(tmp_path / "a.html").read_text() == sweep.to_html(tmp_path / "b.html").read_text()


def test_a_hostile_prompt_ends_no_script_and_no_title(tmp_path):
    text = grid(prompts=[NASTY]).to_html(tmp_path / "grid.html").read_text()
    assert text.count("</script>") == 1 and text.count("</style>") == 1 and "<b>bold" not in text
    assert content(text)["data"]["cells"][0]["facts"][0] == ["prompt", NASTY]


def test_a_page_asks_for_nothing_outside_itself(tmp_path):
    text = grid().to_html(tmp_path / "grid.html").read_text()
    assert "default-src 'none'" in text and not re.search(r"https?://(?!www\.w3\.org)", text)


def test_a_page_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        grid().to_html(tmp_path / "file" / "grid.html")
    with pytest.raises(InputError):
        Sweep(cells=(), axes={"seed": (1,)}).to_html(tmp_path / "none.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -------------------------------------------------------------------------------------------------------- the front end
def test_nothing_in_the_front_end_makes_markup_of_text_or_asks_the_network():
    source = script("explore")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", source)
    assert not re.search(r"https?://|import\s*\(|fetch\(|XMLHttpRequest", source)


def test_the_front_end_is_one_module_with_one_door():
    assert script("explore").count("export default") == 1 and "import " not in style("explore")
    assert set(VIEWS["explore"]) >= {"film", "explore"}
