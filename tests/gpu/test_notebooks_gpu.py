"""The notebooks that offer FLUX.1-schnell, on a model of its size with random weights.

`python -m pytest tests/gpu/test_notebooks_gpu.py -m gpu -o addopts=`. The weights take 34 GB of disk.
"""

from __future__ import annotations

import pytest
import torch

import fluxnb as fnb
from tests.benchmarks.random_checkpoint import write_checkpoint
from tests.notebooks.execution import NOTEBOOK, NOTEBOOKS, announced_for_schnell, count_evaluations, executed

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint of FLUX.1-schnell's size with random weights."""
    place = tmp_path_factory.mktemp("schnell")
    write_checkpoint(place)
    return place


@pytest.fixture
def counted(folder, monkeypatch, tmp_path):
    """The evaluations of the large model, which `fnb.load("schnell")` gives."""
    load = fnb.load

    def loading(model="pocket", *args, **kwargs):
        return load(folder if model == "schnell" else model, *args, **kwargs)

    monkeypatch.setattr(fnb, "load", loading)
    monkeypatch.setenv("FLUXNB_MODEL", "schnell")
    monkeypatch.chdir(tmp_path)
    return count_evaluations(monkeypatch, double_blocks=19)


@pytest.mark.parametrize("name", [*announced_for_schnell(), NOTEBOOK.stem])
def test_a_notebook_runs_to_its_end_within_the_evaluations_that_it_announces(name, counted):
    names, displayed = executed(NOTEBOOKS / f"{name}.ipynb")
    announced = announced_for_schnell().get(name) or names["evaluations"]
    assert 0 < counted[0] <= announced
    (claims,) = [each for each in displayed if isinstance(each, fnb.Claims)]
    assert len(claims) > 0
