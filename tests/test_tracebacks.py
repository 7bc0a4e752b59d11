"""What a notebook displays of an error: the caller's line and the parts of the message."""

from __future__ import annotations

import linecache
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import fluxnb as fnb
from fluxnb.errors import RunError


def rendered(action) -> list[str]:
    with pytest.raises(fnb.FluxnbError) as caught:
        action()
    return caught.value._render_traceback_()


def test_the_line_of_the_caller_and_the_three_parts_are_displayed():
    lines = rendered(lambda: fnb.Recipe(prompt="a fox", steps=0))
    assert "test_tracebacks.py" in lines[0] and 'fnb.Recipe(prompt="a fox", steps=0)' in lines[0]
    assert lines[1] == "InputError: steps=0"
    assert lines[2].startswith("  ") and "At least 1" in lines[2]
    assert "try steps=4" in lines[3] and "print_last" in lines[-1] and len(lines) == 5


def defined_in(folder: str, monkeypatch) -> Callable[[Callable[[], object]], object]:
    """A function that calls its argument, as if its file were in this folder."""
    path, source, names = f"{folder}/called.py", "def call(action):\n    return action()\n", {}
    monkeypatch.setitem(linecache.cache, path, (len(source), None, source.splitlines(keepends=True), path))
    exec(compile(source, path, "exec"), names)
    return names["call"]


@pytest.mark.parametrize(
    "folder", ["/env/site-packages/torch", "/usr/lib/dist-packages/torch", sysconfig.get_path("stdlib")]
)
def test_the_line_of_a_library_that_calls_fluxnb_is_not_the_line_of_the_caller(folder, monkeypatch):
    call = defined_in(folder, monkeypatch)
    assert "test_tracebacks.py" in rendered(lambda: call(partial(fnb.Recipe, prompt="a fox", steps=0)))[0]


def test_a_file_in_a_folder_whose_name_starts_like_that_of_the_package_is_the_caller(monkeypatch):
    call = defined_in(f"{Path(fnb.__file__).parent}_examples", monkeypatch)
    assert "called.py, line 2" in rendered(lambda: call(partial(fnb.Recipe, prompt="a fox", steps=0)))[0]


def test_the_cause_of_an_error_is_displayed_in_one_line():
    def fail():
        try:
            raise ValueError("first line\nsecond line")
        except ValueError as problem:
            raise RunError("no picture", "it failed", "try again") from problem

    assert "Caused by ValueError: first line" in rendered(fail)


def test_the_full_traceback_is_displayed_on_request(monkeypatch):
    monkeypatch.setenv("FLUXNB_TRACEBACK", "1")
    text = "".join(rendered(lambda: fnb.Recipe(prompt="a fox", steps=0)))
    assert text.startswith("Traceback") and "recipe.py" in text


@pytest.mark.slow
def test_ipython_displays_the_parts_instead_of_a_traceback(capsys):
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell.instance()
    shell.run_cell("import fluxnb as fnb\nrecipe = fnb.Recipe(prompt='a fox', steps=0)")
    printed = capsys.readouterr().out
    type(shell).clear_instance()
    assert "InputError: steps=0" in printed and "line 2: recipe" in printed and len(printed.splitlines()) < 10
