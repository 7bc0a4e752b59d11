"""Shipping: the card, a student added to a shipped teacher, and the files in fluxnb/pocket."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentencepiece")

from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file

import fluxnb
from fluxnb.train.config import PRESETS, TINY
from fluxnb.train.networks.build import build_transformer
from fluxnb.train.networks.denoiser import save_transformer
from fluxnb.train.stages.ship import ship

POCKET = Path(fluxnb.__file__).parent / "pocket"


@pytest.fixture
def shipped(tmp_path):
    """A student, and the folder with an earlier card that it is shipped to."""
    torch.manual_seed(0)
    student = build_transformer(TINY.sizes)
    save_transformer(student, tmp_path / "run" / "student.safetensors")
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "card.json").write_text(json.dumps({"training": {"teacher": {"seconds": 1}}, "hardware": "a"}))
    (tmp_path / "run" / "student.jsonl").write_text('{"iteration": 1, "fd_4": 0.5}\n{"iterations": 2, "seconds": 3}\n')
    return student, ship(tmp_path / "run", tmp_path / "to", TINY.sizes)


def test_a_shipped_student_loads_with_diffusers(shipped):
    student, to = shipped
    opened = FluxTransformer2DModel.from_pretrained(to / "transformer", torch_dtype=torch.float32)
    assert all(
        torch.equal(value.half(), opened.state_dict()[name].half()) for name, value in student.state_dict().items()
    )


def test_shipping_a_student_keeps_the_rest_of_the_card(shipped):
    card = json.loads((shipped[1] / "card.json").read_text())
    assert card["training"]["teacher"] == {"seconds": 1} and card["hardware"] == "a"
    assert card["training"]["student"]["monitored"] == [{"iteration": 1, "fd_4": 0.5}]


def test_the_default_guidance_is_that_of_the_pairs_and_is_kept(tmp_path, shipped):
    to, default = shipped[1], PRESETS["pocket"].distillation.guidance
    assert json.loads((to / "card.json").read_text())["defaults"]["pocket-base"]["guidance"] == default
    (tmp_path / "run" / "pairs.jsonl").write_text('{"pairs": 8, "guidance": 3.0, "seconds": 1.0}\n')
    ship(tmp_path / "run", to, TINY.sizes)
    (tmp_path / "run" / "pairs.jsonl").unlink()
    ship(tmp_path / "run", to, TINY.sizes)
    assert json.loads((to / "card.json").read_text())["defaults"]["pocket-base"]["guidance"] == 3.0


def test_the_shipped_card_has_the_checksum_of_every_file():
    card = json.loads((POCKET / "card.json").read_text())
    files = {p.relative_to(POCKET).as_posix(): p for p in POCKET.rglob("*") if p.is_file() and p.name != "card.json"}
    files = {name: path for name, path in files.items() if "__pycache__" not in name}
    assert card["files"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_the_shipped_student_differs_from_the_teacher():
    student = load_file(next((POCKET / "transformer").glob("*.safetensors")))
    teacher = load_file(next((POCKET / "base" / "transformer").glob("*.safetensors")))
    assert student.keys() == teacher.keys() and any(not torch.equal(student[k], teacher[k]) for k in student)


def test_both_shipped_models_take_less_than_44_megabytes():
    files = [path for path in POCKET.rglob("*") if path.is_file() and path.name != "judge.safetensors"]
    assert sum(path.stat().st_size for path in files) < 44e6
