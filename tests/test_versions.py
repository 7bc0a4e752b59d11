"""Versions: bounds and pins, hashes of the environment, and a warning of libraries newer than the tested ones."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import fluxnb as fnb
from fluxnb import installation

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BOUNDS = {canonicalize_name(each.name): each.specifier for each in map(Requirement, PROJECT["dependencies"])}


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-colab.txt"])
def test_what_is_pinned_is_what_the_bounds_allow(name):
    wrong = {package: pin for package, pin in pins(name).items() if package in BOUNDS and pin not in BOUNDS[package]}
    assert not wrong


@pytest.mark.parametrize("package", ["anywidget", "diffusers", "huggingface-hub", "ipywidgets", "transformers"])
def test_what_moves_fast_is_bounded_by_what_colab_has(package):
    lowest = next(str(each.version) for each in BOUNDS[package] if each.operator == ">=")
    assert f"{pins('constraints-colab.txt')[package]}.".startswith(f"{lowest}.")


# -------------------------------------------------------------------------------------------------------------- hashes
def hashed() -> dict[str, list[str]]:
    """Each version with hashes, by package; a package may have several, for several Pythons."""
    found: dict[str, list[str]] = {}
    text = (ROOT / "constraints-hashes.txt").read_text()
    entry = r"^([\w.-]+)==(\S+)[^\\\n]*(?:\\\n +--hash=sha256:[0-9a-f]{64} ?)+$"
    for name, version in re.findall(entry, text, re.MULTILINE):
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


def test_every_pinned_package_has_hashes_of_that_version():
    # torch comes from the index that has the build of the machine; uv writes the file.
    expected = {name: pin for name, pin in pins("constraints.txt").items() if name not in ("torch", "uv")}
    assert {name: versions for name in expected if (versions := hashed().get(name)) != [expected[name]]} == {}


def test_every_requirement_of_the_environment_has_hashes():
    extras = [each for name in ("dev", "docs", "lab", "train") for each in PROJECT["optional-dependencies"][name]]
    names = {canonicalize_name(Requirement(each).name) for each in [*PROJECT["dependencies"], *extras]}
    assert names - set(hashed()) == {"torch", "fluxnb"}


def test_no_line_of_the_hashes_is_without_a_hash():
    text = (ROOT / "constraints-hashes.txt").read_text()
    packages = re.findall(r"^[A-Za-z][^\n]*", text, re.M)
    assert len(packages) > 150 and all("==" in line and line.endswith("\\") for line in packages)
    assert len(packages) == sum(len(versions) for versions in hashed().values())
    assert not [line for line in packages if line.startswith(("torch==", "triton", "nvidia-", "cuda-"))]


# ----------------------------------------------------------------------------------------------------- newer libraries
@pytest.fixture
def first_use(monkeypatch):
    """The state of a process that has not used fluxnb, and a function that sets the version of a library."""
    monkeypatch.setattr(installation, "_checked", False)
    version = importlib.metadata.version
    versions: dict[str, str] = {}
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or version(name))
    return versions.__setitem__


def test_the_tested_versions_are_those_of_the_constraints():
    pinned = pins("constraints.txt")
    assert installation.TESTED == {name: pinned[canonicalize_name(name)] for name in installation.TESTED}
    assert set(installation.TESTED) >= {"diffusers", "torch", "transformers"}


def test_no_warning_appears_with_the_tested_versions(first_use):
    for name, tested in installation.TESTED.items():
        first_use(name, tested)
    first_use("torch", f"{installation.TESTED['torch']}+cu130")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        installation.warn_of_newer_libraries()


@pytest.mark.parametrize(("version", "warned"), [
    ("99.0", True), ("0.43.0.dev0", True), ("0.43", True), ("1!0.1", False), ("0.42.9", False), ("0.39.0", False),
    ("", False), ("main", False),
])  # fmt: skip
def test_a_newer_major_or_minor_version_is_warned_of(first_use, version, warned):
    first_use("diffusers", version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        installation.warn_of_newer_libraries()
    assert [issubclass(each.category, fnb.VersionWarning) for each in caught] == ([True] if warned else [])


def test_the_warning_names_both_versions_and_how_to_silence_it(first_use):
    first_use("diffusers", "0.50.1")
    first_use("torch", "3.0.0+cpu")
    with pytest.warns(fnb.VersionWarning) as caught:
        installation.warn_of_newer_libraries()
    text = str(caught[0].message)
    assert "diffusers 0.50.1 (tested: 0.42.1), torch 3.0.0+cpu (tested: 2.13.0)" in text
    assert "pip install diffusers==0.42.1 torch==2.13.0" in text
    silence = re.search(r"warnings\.filterwarnings\([^)]*\)", text)[0]  # type: ignore[index]
    with warnings.catch_warnings(record=True) as silent:
        warnings.simplefilter("always")
        exec(silence, {"warnings": warnings, "fluxnb": fnb})
        installation._checked = False
        installation.warn_of_newer_libraries()
    assert silent == []


def test_loading_and_recording_warn_once_in_a_process_at_the_line_of_the_caller(first_use, toy_folder):
    first_use("diffusers", "99.0")
    with pytest.warns(fnb.VersionWarning) as caught:
        flux = fnb.load(toy_folder)
        with fnb.recording(flux.pipe):
            pass
        fnb.load(toy_folder)
    assert [Path(each.filename).name for each in caught] == ["test_versions.py"]


def test_recording_alone_warns_as_well(first_use, toy_folder):
    pipe = fnb.load(toy_folder).pipe
    installation._checked = False
    first_use("transformers", "99.0")
    with pytest.warns(fnb.VersionWarning), fnb.recording(pipe):
        pass
