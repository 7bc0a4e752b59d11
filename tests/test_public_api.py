"""What outside code may rely on: the names, that each explains itself, and one version."""

from __future__ import annotations

import importlib
import inspect
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROMISED = """
load run recording sweep stream plan Recipe Axes Keep Step Trajectory Film Cell Sweep
save open_trajectory open_recipe
filmstrip compare contact_sheet latent_channels sigma_curve velocity lock_in path
scrub Scrubber FluxnbError
""".split()


@pytest.fixture(scope="module")
def fnb():
    return importlib.import_module("fluxnb")


@pytest.mark.parametrize("name", PROMISED)
def test_a_promised_name_is_there_and_explains_itself(fnb, name):
    assert name in fnb.__all__
    thing = getattr(fnb, name)
    text = inspect.getdoc(thing) or ""
    first = text.split("\n\n")[0].split("\n")[0]
    assert len(first) > 15, f"fnb.{name} has no docstring"


def test_every_public_name_can_be_had(fnb):
    for name in fnb.__all__:
        assert getattr(fnb, name) is not None


def test_dir_lists_the_table_of_contents(fnb):
    assert set(fnb.__all__) <= set(dir(fnb))


@pytest.mark.parametrize("name", ["load", "run", "sweep", "plan", "scrub", "filmstrip", "contact_sheet", "compare"])
def test_the_main_verbs_have_annotations_for_everything(fnb, name):
    signature = inspect.signature(getattr(fnb, name))
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


def test_there_is_one_version(fnb):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert fnb.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_public_name_is_in_the_readme_a_notebook_or_a_test(fnb):
    places = [ROOT / "README.md", *(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "tests").rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in places if path.name != Path(__file__).name)
    assert [name for name in fnb.__all__ if name not in text] == []
