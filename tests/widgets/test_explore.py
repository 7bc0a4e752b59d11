"""The explorer by its traits and messages, and its page by its text; without a front end or a model."""

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


class FakeStream:
    """A stand-in for the result of `fnb.stream`: an iterator of cells with `axes`, `model` and `close`."""

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
    """The JSON that a page passes to its script."""
    return json.loads(re.search(r"const \{ data, urls \} = (\{.*\});\nmount", text, re.S)[1])


# ------------------------------------------------------------------------------------------------------- displayed data
@pytest.mark.moderate
def test_cells_are_json_and_frames_are_webp():
    widget = explore(grid(trajectories=True))
    assert len(json.loads(json.dumps(widget.cells))) == 12
    assert all(isinstance(frame, bytes) and frame[8:12] == b"WEBP" for frame in widget.frames)


def test_cells_refer_to_every_frame_and_to_no_other():
    widget = explore(grid(seeds=[0, 1], trajectories=True))
    used = {cell["final"] for cell in widget.cells}
    used |= {n for cell in widget.cells for numbers in cell["frames"].values() for n in numbers}
    assert used == set(range(len(widget.frames)))


def test_a_frame_that_cells_share_is_sent_once():
    separate = sum(len(explore(grid(seeds=[0], steps=[count], trajectories=True)).frames) for count in (1, 2, 4))
    assert len(explore(grid(seeds=[0], steps=[1, 2, 4], trajectories=True)).frames) < separate


def test_a_small_image_is_sent_losslessly():
    import io

    sweep = grid(seeds=[1], steps=[2])
    widget = explore(sweep)
    with Image.open(io.BytesIO(widget.frames[widget.cells[0]["final"]])) as image:
        assert image.convert("RGB").tobytes() == sweep[0].image.convert("RGB").tobytes()


def test_an_image_larger_than_size_is_downscaled_with_its_aspect_ratio():
    import io

    cell = dataclasses.replace(grid(seeds=[1], steps=[2])[0], picture=Image.new("RGB", (400, 200), "red"))
    widget = explore([cell], size=100)
    with Image.open(io.BytesIO(widget.frames[0])) as image:
        assert image.size == (100, 50)
    assert (widget.cells[0]["width"], widget.cells[0]["height"]) == (400, 200)


def test_a_large_seed_is_sent_as_text():
    cell = dataclasses.replace(grid(seeds=[1], steps=[2])[0], recipe=resolved(prompt="a fox", seed=2**64 - 1))
    assert ["seed", "18446744073709551615"] in json.loads(json.dumps(explore([cell]).cells))[0]["facts"]


@pytest.mark.moderate
def test_prompts_with_a_common_prefix_are_named_by_the_rest():
    common = "a photograph of a house on a hill in the evening,"
    axis = explore(grid(prompts=[f"{common} pencil", f"{common} oil"])).data["axes"][0]
    assert axis["values"] == ["… pencil", "… oil"] and axis["full"][1] == f"{common} oil"
    nested = explore(grid(prompts=[common, f"{common} oil"])).data["axes"][0]["values"]
    assert nested == ["… evening,", "… evening, oil"], "no name is empty"


def test_axes_have_readable_values_and_cells_their_position():
    data, cells = (widget := explore(grid(seeds=[5, 7], steps=[1, 4]))).data, widget.cells
    assert [axis["name"] for axis in data["axes"]] == ["prompt", "seed", "steps"]
    assert data["axes"][1]["values"] == ["seed 5", "seed 7"] and data["axes"][2]["values"] == ["1 step", "4 steps"]
    assert [cell["position"] for cell in cells] == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]


def test_a_default_filled_in_by_the_run_has_the_position_of_none():
    sweep = grid(seeds=[0], steps=[1])
    requested = dataclasses.replace(sweep, axes={**sweep.axes, "width": (None, 256)})
    assert explore(requested).cells[0]["position"][-1] == 0


def test_the_axes_of_a_list_of_cells_are_the_fields_that_differ():
    axes = explore(list(grid(seeds=[0, 3], steps=[2]))).data["axes"]
    assert [(axis["name"], len(axis["values"])) for axis in axes] == [("prompt", 1), ("seed", 2), ("steps", 1)]


@pytest.mark.moderate
def test_cells_without_steps_have_a_note_about_keep():
    widget = explore(grid())
    assert all(cell["sigmas"] == [] for cell in widget.cells) and "keep=fnb.Keep()" in widget.data["scrub_note"]


def test_a_lossy_cell_is_marked():
    cell = dataclasses.replace(grid(seeds=[0], steps=[1])[0], numerics="batch")
    assert dict(explore([cell]).cells[0]["facts"])["numbers"].startswith("lossy")


def test_a_user_supplied_decoder_computes_the_frames():
    batch_sizes = []

    def decode(latents):
        batch_sizes.append(len(latents))
        return [Image.new("RGB", (24, 24), (10, 200, 30)) for _ in latents]

    widget = explore(grid(seeds=[0], steps=[2, 4], trajectories=True), shows=["clean"], decode=decode)
    assert batch_sizes == [2, 3], "the first step that both trajectories share is decoded once"
    assert len(widget.frames) == 1 + 2 and widget.data["note"] == "frames by decoder"


@pytest.mark.parametrize("nothing", [[], Sweep(cells=(), axes={"seed": (1,)}), "grid", 3, None, iter([])])
def test_other_values_are_refused_with_a_remedy(nothing):
    with pytest.raises(InputError, match=r"fnb\.sweep|Run it again"):
        explore(nothing)


@pytest.mark.parametrize("wrong", [{"shows": ["z"]}, {"size": 3}, {"size": True}, {"size": 40.0}])
def test_unknown_shows_and_sizes_are_refused(wrong):
    with pytest.raises(InputError):
        explore(grid(), **wrong)


@pytest.mark.moderate
def test_repr_has_the_count_and_no_memory_address():
    assert repr(explore(grid())) == "Explorer(12 of 12 cells)"
    unfinished = dataclasses.replace(grid(), cells=grid().cells[:5], finished=False)
    assert repr(explore(unfinished)) == "Explorer(5 of 12 cells, stopped)"


@pytest.mark.moderate
def test_the_mime_bundle_has_a_fallback_image():
    bundle, _ = explore(grid())._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    with Image.open(__import__("io").BytesIO(base64.b64decode(bundle["image/png"]))) as image:
        assert image.width > image.height > 80


# ------------------------------------------------------------------------------------------------------- while sampling
@pytest.mark.moderate
def test_cells_are_received_in_the_background():
    gate = threading.Semaphore(0)
    widget = explore(FakeStream(grid(), gate=gate))
    assert widget.data["state"] == "running" and repr(widget) == "Explorer(0 of 12 cells, running)"
    for _ in range(13):
        gate.release()
    widget.wait(20)
    assert widget.data["state"] == "finished" and len(widget.cells) == 12
    assert [cell.recipe for cell in widget.grid] == [cell.recipe for cell in grid()]


@pytest.mark.moderate
def test_each_cell_is_sent_at_once_and_all_of_them_at_every_doubling(monkeypatch):
    sent, resent = [], []
    monkeypatch.setattr(Explorer, "send", lambda self, message, buffers=None: sent.append((message, buffers)))
    monkeypatch.setattr(Explorer, "send_state", lambda self, key=None: resent.append((key, len(self.cells))))
    widget = explore(FakeStream(grid(trajectories=True))).wait(20)
    assert [message["number"] + 1 for message, _ in sent] == [3, 5, 6, 7, 9, 10, 11, 12]
    assert [count for key, count in resent if key == ["cells", "frames"]] == [1, 2, 4, 8, 12]
    for message, buffers in sent:
        first = message["first_frame"]
        assert buffers == widget.frames[first : first + len(buffers)]
        assert message["cell"] == widget.cells[message["number"]]


def test_stop_ends_the_sampling_after_the_current_cell():
    gate = threading.Semaphore(3)
    cells = FakeStream(grid(), gate=gate)
    widget = explore(cells)
    while len(widget.cells) < 3:
        pass
    widget.stop()
    gate.release()
    widget.wait(20)
    assert len(widget.grid) == 4 and widget.data["state"] == "stopped" and cells.closed


def test_an_error_while_sampling_is_displayed_and_raised_by_wait():
    cells = FakeStream(grid(), breaks_at=2)
    widget = explore(cells)
    with pytest.raises(fnb.RunError, match="out of memory"):
        widget.wait(20)
    assert widget.data["state"] == "failed" and "Try height=512" in widget.data["message"]
    assert len(widget.cells) == 2 and cells.closed and not widget.grid.finished


@pytest.mark.moderate
def test_a_step_callback_that_returns_stop_is_no_error(toy):
    def first_only(step):
        return fnb.STOP if step.index == 1 else None

    widget = explore(fnb.stream(toy, prompts="a red fox", seeds=0, steps=[1, 3], on_step=first_only)).wait(60)
    assert len(widget.cells) == 1 and widget.data["state"] == "stopped"


def test_a_stop_message_ends_the_sampling():
    gate = threading.Semaphore(1)
    widget = explore(FakeStream(grid(), gate=gate))
    widget._handle_custom_msg({"kind": "stop"}, [])
    gate.release()
    widget.wait(20)
    assert widget.data["state"] == "stopped"


def test_a_stream_stops_when_its_last_view_is_gone(monkeypatch):
    monkeypatch.setattr("fluxnb.widgets.explorer.VIEW_TIMEOUT", 0.01)
    gate = threading.Semaphore(0)
    widget = explore(FakeStream(grid(), gate=gate))
    for window, count in (("a", 1), ("b", 1), ("a", 0)):
        widget._handle_custom_msg({"kind": "views", "window": window, "count": count}, [])
    threading.Event().wait(0.1)
    assert not widget._worker.stopping, "the other window still displays it"
    widget._handle_custom_msg({"kind": "views", "window": "b", "count": 0}, [])
    threading.Event().wait(0.2)
    assert widget._worker.stopping
    gate.release()
    widget.wait(20)


def test_a_second_stream_of_a_model_stops_the_first(monkeypatch):
    gates, model = [threading.Semaphore(0) for _ in range(2)], object()
    streams = [FakeStream(grid(), gate=gate) for gate in gates]
    for each in streams:
        each.owner = model
    first, second = explore(streams[0]), explore(streams[1])
    assert first._worker.stopping and not second._worker.stopping
    second.stop()
    for gate in gates:
        gate.release()
    first.wait(20)
    second.wait(20)


@pytest.mark.moderate
def test_a_stream_of_a_real_model_is_explored(toy):
    cells = fnb.stream(toy, prompts="a red fox", seeds=[0, 2**64 - 1], steps=[1, 2], keep=fnb.Keep())
    assert isinstance(cells, fnb.Stream) and dict(cells.axes)["steps"] == (1, 2)
    widget = fnb.explore(cells).wait(60)
    assert isinstance(widget, fnb.Explorer) and widget.data["total"] == 4
    assert {cell["sigmas"][0] for cell in widget.cells} == {1.0} and widget.grid.finished


# ------------------------------------------------------------------------------------------------------ stars and files
@pytest.mark.moderate
def test_starred_cells_are_exported_as_png_with_their_recipes(tmp_path):
    widget = explore(grid(), folder=tmp_path / "best")
    widget.stars = [5, 1]
    paths = widget.export()
    assert [fnb.open_recipe(path) for path in paths] == [widget.grid[1].recipe, widget.grid[5].recipe]
    assert widget.export() == paths and len(list((tmp_path / "best").iterdir())) == 2


@pytest.mark.moderate
def test_a_save_message_is_answered_with_a_text(tmp_path, monkeypatch):
    replies = []
    monkeypatch.setattr(Explorer, "send", lambda self, content, buffers=None: replies.append(content["text"]))
    widget = explore(grid(), folder=tmp_path / "best")
    widget._handle_custom_msg({"kind": "save"}, [])
    widget.stars = [0]
    widget._handle_custom_msg({"kind": "save"}, [])
    assert "no starred cell" in replies[0] and replies[1] == f"1 picture written to {tmp_path / 'best'}"


@pytest.mark.moderate
def test_an_unwritable_folder_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    widget = explore(grid(), folder=tmp_path / "file" / "best")
    widget.stars = [0]
    with pytest.raises(StorageError, match="cannot write"):
        widget.export()


@pytest.mark.moderate
def test_a_star_of_no_cell_is_ignored(tmp_path):
    widget = explore(grid())
    widget.stars = [99, -1, 2]
    assert widget.starred == (widget.grid[2],)


@given(st.text(min_size=1, max_size=80).filter(lambda text: text.strip() and not re.search("[\ud800-\udfff]", text)))
def test_a_file_name_is_valid_for_any_prompt(prompt):
    cell = Cell(recipe=resolved(prompt=prompt), key="0a1b2c3d4e")
    assert re.fullmatch(r"[a-z0-9][a-z0-9-]*-seed-0-steps-4-0a1b2c3d", pages._stem(cell))


# ------------------------------------------------------------------------------------------------------------- the page
@pytest.mark.moderate
def test_the_page_of_a_sweep_contains_every_cell(tmp_path):
    sweep = grid(trajectories=True)
    found = content(sweep.to_html(tmp_path / "grid.html").read_text())
    assert len(found["data"]["cells"]) == 12 and len(found["urls"]) == len(explore(sweep).frames)
    assert [fnb.Recipe.from_json(cell["recipe"]) for cell in found["data"]["cells"]] == [c.recipe for c in sweep]


@pytest.mark.moderate
def test_the_widget_writes_the_same_page(tmp_path):
    sweep = grid(trajectories=True)
    widget = explore(sweep, size=512)
    assert widget.to_html(tmp_path / "a.html").read_text() == sweep.to_html(tmp_path / "b.html").read_text()


@pytest.mark.moderate
def test_a_prompt_with_markup_is_escaped(tmp_path):
    text = grid(prompts=[NASTY]).to_html(tmp_path / "grid.html").read_text()
    assert text.count("</script>") == 1 and text.count("</style>") == 1 and "<b>bold" not in text
    assert content(text)["data"]["cells"][0]["facts"][0] == ["prompt", NASTY]


def test_a_page_makes_no_network_request(tmp_path):
    text = grid().to_html(tmp_path / "grid.html").read_text()
    assert "default-src 'none'" in text and not re.search(r"https?://(?!www\.w3\.org)", text)


@pytest.mark.moderate
def test_a_failed_write_leaves_no_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        grid().to_html(tmp_path / "file" / "grid.html")
    with pytest.raises(InputError):
        Sweep(cells=(), axes={"seed": (1,)}).to_html(tmp_path / "none.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# -------------------------------------------------------------------------------------------------------- the front end
def test_the_front_end_neither_parses_text_as_markup_nor_uses_the_network():
    source = script("explore")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", source)
    assert not re.search(r"https?://|import\s*\(|fetch\(|XMLHttpRequest", source)


def test_the_front_end_is_one_module_with_one_export():
    for view in VIEWS:
        assert len(re.findall(r"\bexport\b", script(view))) == 1, "one list of exports"
        assert not re.search(r"\bimport\b", script(view) + style(view))
