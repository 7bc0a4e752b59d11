"""Progress bars appear when work is predicted to take long, and leave nothing behind."""

from __future__ import annotations

import pytest

from fluxnb import progress as module
from fluxnb.progress import Progress


class FakeBar:
    def __init__(self) -> None:
        self.texts: list[str] = []
        self.closed = False

    def show(self, done: int, total: int, text: str) -> None:
        self.texts.append(text)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def bar(monkeypatch):
    bar = FakeBar()
    monkeypatch.setattr(module, "_bar", lambda *, required: bar)
    return bar


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def work(clock, *, units: int, seconds: float, **options) -> None:
    with Progress(units, unit="steps", **options) as progress:
        for _ in range(units):
            clock[0] += seconds
            progress.update()


def test_work_of_two_seconds_has_no_bar(bar, clock):
    work(clock, units=4, seconds=0.5)
    assert bar.texts == []


def test_work_of_four_seconds_has_one_after_its_first_part(bar, clock):
    work(clock, units=4, seconds=1.0)
    assert bar.texts[0] == "1 of 4 steps, about 3.0 s left" and bar.texts[-1] == "4 of 4 steps" and bar.closed


def test_a_bar_can_be_requested_and_refused(bar, clock):
    work(clock, units=2, seconds=0.01, displayed=True)
    assert bar.texts[0] == "0 of 2 steps"
    bar.texts.clear()
    work(clock, units=4, seconds=10, displayed=False)
    assert bar.texts == []


def test_a_bar_is_removed_when_the_work_fails(bar, clock):
    with pytest.raises(KeyboardInterrupt), Progress(4, unit="steps") as progress:
        clock[0] += 5
        progress.update()
        raise KeyboardInterrupt
    assert bar.texts and bar.closed


def test_bytes_are_displayed_as_sizes_and_a_note_beside_them(bar, clock):
    with Progress(4 * 2**20, unit="bytes", displayed=True) as progress:
        clock[0] += 1
        progress.update(2**20)
        progress.note("the transformer")
    assert bar.texts[-1] == "1.0 MiB of 4.0 MiB, about 3.0 s left; the transformer"


def test_a_log_file_has_no_bar(monkeypatch, capsys, clock):
    work(clock, units=4, seconds=1.0)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_a_line_of_text(monkeypatch, capsys, clock):
    monkeypatch.setattr(module.sys.stderr, "isatty", lambda: True)
    work(clock, units=4, seconds=1.0)
    assert "about 3.0 s left" in capsys.readouterr().err


@pytest.mark.slow
def test_in_a_notebook_the_bar_is_html_that_is_empty_at_the_end():
    import nbformat
    from nbclient import NotebookClient

    code = """import time
from fluxnb.progress import Progress
with Progress(4, unit="steps") as bar:
    for _ in range(4):
        time.sleep(0.9)
        bar.update()"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    seen = []
    client = NotebookClient(notebook, kernel_name="python3")
    original = client.process_message
    client.process_message = lambda message, *args: (seen.append(message), original(message, *args))[1]
    client.execute()
    (output,) = notebook.cells[0].outputs
    assert output.data == {"text/html": "", "text/plain": ""}
    pages = [each["content"]["data"]["text/html"] for each in seen if "display_data" in each["msg_type"]]
    assert "<progress" in pages[0] and "of 4 steps" in pages[0]


@pytest.mark.moderate
@pytest.mark.parametrize("entry", ["explore", "page"])
def test_encoding_the_pictures_of_a_large_grid_has_a_bar(bar, clock, monkeypatch, tmp_path, entry):
    import fluxnb as fnb
    from fluxnb.html.grid_page import GridEncoder
    from tests.scenes import grid

    add = GridEncoder.add

    def slow(encoder, cell):
        clock[0] += 1
        return add(encoder, cell)

    monkeypatch.setattr(GridEncoder, "add", slow)
    sweep = grid(seeds=range(5), steps=[1], size=16)
    fnb.explore(sweep) if entry == "explore" else sweep.to_html(tmp_path / "grid.html")
    assert bar.texts[0] == "1 of 5 pictures, about 4.0 s left" and bar.closed


def test_the_variable_that_disables_tqdm_disables_the_bars(monkeypatch, capsys, clock):
    monkeypatch.setattr(module, "_in_notebook", lambda: True)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    work(clock, units=4, seconds=1.0, displayed=True)
    assert not Progress(4, unit="steps").possible
    assert capsys.readouterr() == ("", "")
