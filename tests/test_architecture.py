"""The house as the design draws it: one direction, small rooms, no user input checked by assert."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "fluxnb").rglob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_imports_point_down_only():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    run = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]


def test_importing_fluxnb_imports_no_heavy_library():
    heavy = ["torch", "diffusers", "transformers", "matplotlib", "ipywidgets", "numpy"]
    code = f"import sys, fluxnb; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["fluxnb.visuals.frames", "fluxnb.plots", "fluxnb.widgets", "fluxnb.html.page"])
def test_looking_at_a_record_needs_no_diffusers(module):
    code = f"import sys, {module}; print([n for n in ('diffusers', 'transformers', 'accelerate') if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_a_module_begins_with_a_docstring(path):
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_no_assert_and_no_bare_except(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: an assert vanishes under -O; raise InputError"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: except what?"


def test_the_library_prints_nothing():
    talkers = []
    for path in MODULES:
        if path.name == "__main__.py" or "train" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                talkers.append(f"{short(path)}:{node.lineno}")
    assert not talkers


def test_there_is_no_room_for_everything():
    assert not [short(path) for path in MODULES if path.stem in ("utils", "util", "helpers", "common", "misc", "core")]
