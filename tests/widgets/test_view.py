"""What a widget leaves in the output of a cell, by kind of host; without a front end."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest

from fluxnb.widgets import explore, scrub, view
from tests.scenes import grid, trajectory
from tests.widgets.test_explore import FakeStream

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def notebook(monkeypatch):
    """A kernel whose displayed outputs are recorded as (data, display_id, update)."""
    from IPython import display

    for name in (*view.WIDGET_HOSTS, "FLUXNB_DISPLAY", "JPY_SESSION_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(view, "ipython_shell", lambda: SimpleNamespace(kernel=object()))
    shown = []
    record = lambda html, display_id=None, update=False: shown.append((html.data, display_id, update))  # noqa: E731
    monkeypatch.setattr(display, "display", record)
    return shown


@pytest.mark.moderate
def test_in_a_notebook_the_output_of_a_finished_widget_is_html_alone(notebook):
    for widget in (scrub(trajectory()), explore(grid())):
        data, _ = widget._repr_mimebundle_()
        assert WIDGET not in data and f'data-fluxnb="{widget.key}"' in data["text/html"]
        assert data["image/png"] and data["text/plain"] == repr(widget)
    assert notebook == []


def test_a_stream_has_a_place_for_the_widget_and_an_output_that_is_filled_at_its_end(notebook):
    gate = threading.Semaphore(0)
    widget = explore(FakeStream(grid(seeds=[0, 1]), gate=gate))
    data, _ = widget._repr_mimebundle_()
    assert "<img" not in data["text/html"] and f'data-fluxnb="{widget.key}"' in data["text/html"]
    ((_, name, update),) = notebook
    assert not update
    for _ in range(7):
        gate.release()
    widget.wait(20)
    text, last_name, update = notebook[-1]
    assert last_name == name and update and text.count("<figcaption>") == 6


def test_a_stream_that_failed_at_its_first_cell_has_the_output_of_a_live_widget(notebook):
    widget = explore(FakeStream(grid(seeds=[0, 1]), breaks_at=0))
    widget._worker.join(20)
    data, _ = widget._repr_mimebundle_()
    assert WIDGET not in data and f'data-fluxnb="{widget.key}"' in data["text/html"]


@pytest.mark.parametrize("variable", [*view.WIDGET_HOSTS, "FLUXNB_DISPLAY"])
def test_in_a_host_of_single_frames_the_widget_is_beside_the_html(notebook, monkeypatch, variable):
    monkeypatch.setenv(variable, "widget")
    data, _ = scrub(trajectory())._repr_mimebundle_()
    assert WIDGET in data and "text/html" in data


def test_a_jupyter_server_that_was_started_in_a_terminal_of_vs_code_is_a_notebook(notebook, monkeypatch):
    monkeypatch.setenv("VSCODE_PID", "1")
    monkeypatch.setenv("JPY_SESSION_NAME", "fox.ipynb")
    assert not view.displays_widgets_only()


def test_colab_is_a_host_of_single_frames(notebook, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert view.displays_widgets_only()


def test_ipython_displays_the_html_with_each_version_of_ipywidgets(monkeypatch):
    from IPython import display
    from IPython.core.formatters import DisplayFormatter

    published = []  # by ipywidgets 7, which displays itself; ipywidgets 8 returns what is displayed
    monkeypatch.setattr(display, "display", lambda data, raw: published.append(data))
    formatter = DisplayFormatter()
    formatter.active_types = formatter.format_types
    data, _ = formatter.format(scrub(trajectory()))
    (shown,) = [each for each in (data, *published) if each]
    assert "mountPage(" in shown["text/html"] and shown["text/plain"].startswith("Scrubber(1 trajectory")


def test_two_widgets_have_two_keys():
    assert scrub(trajectory()).key != scrub(trajectory()).key
