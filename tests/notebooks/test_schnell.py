"""Notebooks with `MODEL = "schnell"`: their code on a tiny random model of the classes of FLUX.1, from a local hub."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import fluxnb as fnb
from fluxnb.planning.hardware import describe_hardware
from tests.checkpoints.local_hub import COMMIT, Hub, connect
from tests.conftest import toy_pipeline
from tests.notebooks.execution import (
    NOTEBOOK,
    NOTEBOOKS,
    announced_for_schnell,
    cells_of,
    count_evaluations,
    executed,
)


@pytest.fixture
def schnell(tmp_path, monkeypatch):
    """A hub on which FLUX.1-schnell is a tiny model with random weights, and a machine that can hold the real one."""
    toy_pipeline(length=256).save_pretrained(tmp_path / "schnell")
    with Hub(tmp_path / "schnell", token="hf_read") as hub:
        connect(hub, monkeypatch, tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", "hf_read")
        machine = describe_hardware({"ram_gib": 64, "cores": 2})
        monkeypatch.setattr("fluxnb.planning.plan.detect", lambda *_: machine)
        monkeypatch.setenv("FLUXNB_MODEL", "schnell")
        monkeypatch.chdir(tmp_path)
        yield hub


@pytest.fixture
def in_bfloat16(schnell, other_noise_in_16_bits, monkeypatch):
    """schnell in bfloat16, other models in float32, and noise that differs between these two, as in PyTorch 2.11."""
    load = fnb.load

    def loaded(model: str, **options: Any) -> Any:
        if model != "schnell":
            return load(model, **options)
        return load(model, dtype="bfloat16", **options).with_defaults(size=128)  # a smaller size, to be faster

    monkeypatch.setattr(fnb, "load", loaded)


@pytest.fixture
def counted(monkeypatch):
    """The evaluations of the tiny model, which has one double block and pocket several."""
    return count_evaluations(monkeypatch, double_blocks=1)


@pytest.mark.long
@pytest.mark.parametrize("name", announced_for_schnell())
def test_a_notebook_runs_on_schnell_within_the_evaluations_that_it_announces(name, schnell, counted):
    _, displayed = executed(NOTEBOOKS / f"{name}.ipynb")
    assert 0 < counted[0] <= announced_for_schnell()[name]
    (claims,) = [each for each in displayed if isinstance(each, fnb.Claims)]
    assert all(claim.status != "fail" for claim in claims)


@pytest.mark.long
@pytest.mark.parametrize("name", announced_for_schnell())
def test_a_notebook_runs_on_schnell_where_each_number_format_has_its_own_noise(name, in_bfloat16):
    _, displayed = executed(NOTEBOOKS / f"{name}.ipynb")
    (claims,) = [each for each in displayed if isinstance(each, fnb.Claims)]
    assert all(claim.status != "fail" for claim in claims)


@pytest.mark.moderate
def test_the_noise_of_a_seed_is_compared_in_the_number_format_of_the_run(in_bfloat16, capsys):
    names, _ = executed(NOTEBOOKS / "03_seeds_and_steps.ipynb", until="cell-05")
    assert {run.x_T.dtype for run in names["runs"]} == {torch.bfloat16, torch.float32}
    text = capsys.readouterr().out
    assert "6 runs" in text and "the same noise in each number format, here bfloat16 and float32" in text


def test_several_notebooks_offer_schnell():
    assert len(announced_for_schnell()) >= 5


@pytest.mark.slow
def test_the_schnell_branch_runs_and_evaluates_as_often_as_it_announces(schnell, counted, capsys):
    names, displayed = executed(NOTEBOOK)
    text = capsys.readouterr().out

    assert (names["flux"].model, names["flux"].revision) == ("schnell", COMMIT)
    announced = int(re.search(r"schnell, 512 px: (\d+) evaluations", text)[1])
    assert counted == [announced] and f"{announced} evaluations were made, {announced} were announced" in text
    assert re.search(r"T4: \d+ min .*, L4: \d+ min .*, A100: \d+ min", text)
    assert "pocket" not in text
    assert all(prompt.startswith("a photo of ") for prompt, *_ in names["runs"])
    assert {run.image.size for run in names["runs"].values()} == {(512, 512)}

    (claims,) = [each for each in displayed if isinstance(each, fnb.Claims)]
    assert len(claims) >= 4
    assert all(claim.count.trials and claim.status in ("pass", "differs") for claim in claims)
    assert "schnell" in repr(claims)


def test_the_committed_notebook_made_the_evaluations_that_it_announced():
    cells = cells_of(NOTEBOOK)
    printed = "".join(
        "".join(output["text"])
        for cell in cells
        for output in cell.get("outputs", ())
        if output["output_type"] == "stream"
    )
    made, announced = re.search(r"(\d+) evaluations were made, (\d+) were announced", printed).groups()
    assert made == announced and f"| pocket | {made} |" in "".join(cells[0]["source"])
