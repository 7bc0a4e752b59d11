"""Shipping: the card, a student added to a shipped teacher, and the files in fluxnb/pocket."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentencepiece")

from diffusers import FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file

import fluxnb
import fluxnb as fnb
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
    # Parts that both models share are in both folders, and once in the repository.
    files = [path for path in POCKET.rglob("*") if path.is_file() and path.name != "judge.safetensors"]
    contents = {hashlib.sha256(path.read_bytes()).digest(): path.stat().st_size for path in files}
    assert sum(contents.values()) < 44e6


def test_the_shipped_models_share_every_part_but_the_transformer():
    base = POCKET / "base"
    shared = [
        path.relative_to(base) for path in base.rglob("*") if path.is_file() and path.parent.name != "transformer"
    ]
    assert len(shared) > 8
    assert [path for path in shared if (POCKET / path).read_bytes() != (base / path).read_bytes()] == []


@pytest.mark.moderate
@pytest.mark.parametrize(
    ("name", "folder", "settings"),
    [
        ("pocket", ".", {"guidance_scale": 0.0, "steps": 4}),
        ("pocket-base", "base", {"true_cfg_scale": 1.5, "steps": 4}),
    ],
)
def test_diffusers_loads_each_shipped_folder_and_samples_the_picture_of_fluxnb(name, folder, settings):
    pipe = FluxPipeline.from_pretrained(POCKET / folder)
    pipe.set_progress_bar_config(disable=True)
    steps = settings.pop("steps")
    if "true_cfg_scale" in settings:
        settings |= {"negative_prompt": ""}
    run = fnb.run(fnb.load(name, dtype="float32"), "a fox in the snow", seed=3, steps=steps)
    plain = pipe(
        "a fox in the snow", height=run.recipe.height, width=run.recipe.width, num_inference_steps=steps,
        max_sequence_length=run.recipe.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(3), **settings,
    ).images[0]  # fmt: skip
    assert plain.tobytes() == run.image.tobytes()
