"""Remedies that install this package name where it was installed from."""

from __future__ import annotations

import importlib.metadata
import json
import re
import types
from pathlib import Path

import pytest

from fluxnb.installation import restore_command, update_command
from fluxnb.planning.presets import PRESETS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("record", "restore", "update"),
    [
        (None, "pip install --force-reinstall --no-deps fluxnb", "pip install --upgrade fluxnb"),
        (
            {"url": "https://example.org/fluxnb.git", "vcs_info": {"vcs": "git", "commit_id": "0"}},
            "pip install --force-reinstall --no-deps git+https://example.org/fluxnb.git",
            "pip install --upgrade git+https://example.org/fluxnb.git",
        ),
        (
            {"url": "file:///a%20b/fluxnb", "dir_info": {}},
            "pip install --force-reinstall --no-deps '/a b/fluxnb'",
            "pip install --upgrade '/a b/fluxnb'",
        ),
        (
            {"url": "file:///a/fluxnb", "dir_info": {"editable": True}},
            "git -C /a/fluxnb checkout -- fluxnb",
            "git -C /a/fluxnb pull",
        ),
    ],
    ids=["package index", "repository", "folder", "editable"],
)
def test_the_commands_name_where_the_package_was_installed_from(monkeypatch, record, restore, update):
    text = None if record is None else json.dumps(record)
    installed = types.SimpleNamespace(read_text=lambda name: text)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: installed)
    assert (restore_command(), update_command()) == (restore, update)


def test_a_package_that_is_not_installed_has_commands_too(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert update_command() == "pip install --upgrade fluxnb"


def test_every_package_that_a_remedy_names_is_one_of_the_project_file():
    """A name that pip cannot find, such as that of a module or of an extra, would be no remedy."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "fluxnb").rglob("*.py")]
    named = {name for text in texts for name in re.findall(r"pip install (?:-\S+ )*([a-zA-Z][\w\[\]-]*)", text)}
    named |= {preset.library for preset in PRESETS.values() if preset.library}
    declared = set(re.findall(r'"([A-Za-z][\w-]*)>=', (ROOT / "pyproject.toml").read_text()))
    assert named and named <= declared, named - declared
