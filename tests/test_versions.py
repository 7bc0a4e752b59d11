"""The lower bounds are what Colab preinstalls, and both environments pin something that the bounds allow."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
BOUNDS = {
    canonicalize_name(each.name): each.specifier
    for each in map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
}


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
