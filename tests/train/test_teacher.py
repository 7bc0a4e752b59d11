"""Training the teacher: optimizers, continued trainings, and the validation loss."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentencepiece")

from transformers import AutoTokenizer

import fluxnb
from fluxnb.errors import InputError, StorageError
from fluxnb.train.__main__ import main
from fluxnb.train.config import POCKET, PRESETS, TINY
from fluxnb.train.data.render import Renderer
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.networks.build import build_autoencoder
from fluxnb.train.networks.denoiser import build_denoiser
from fluxnb.train.stages import teacher
from fluxnb.train.stages.loop import Average, Rank, read_log
from fluxnb.train.stages.ship import ship
from fluxnb.train.stages.teacher import Validation

CPU = Rank(0, 1, torch.device("cpu"))
SHIPPED = Path(fluxnb.__file__).parent / "pocket"


def run_folder(path, seed=0):
    """A run with an untrained autoencoder and an empty judge file."""
    torch.manual_seed(seed)
    build_autoencoder(TINY.sizes).save_pretrained(path / "vae")
    (path / "judge.safetensors").write_bytes(b"")
    return path


def train(out, *more):
    """Train for two iterations; returns the log."""
    few = ["--iterations", "2", "--scenes", "8", "--validation", "8"]
    main(["teacher", "--preset", "tiny", *few, "--out", str(out), *more])
    return read_log(out / "teacher.jsonl")


def validations(log):
    """The validation losses in a log, of the averaged and of the live weights."""
    return [(line["validation"], line["validation_live"]) for line in log if "validation" in line]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = run_folder(tmp_path_factory.mktemp("run"))
    train(out, "--learning-rate", "0.01")
    return out


@pytest.fixture(scope="module")
def shipped(run, tmp_path_factory):
    return ship(run, tmp_path_factory.mktemp("shipped"), TINY.sizes)


@pytest.mark.moderate
def test_muon_trains_a_teacher(tmp_path):
    log = train(run_folder(tmp_path), "--optimizer", "muon", "--learning-rate", "0.01")
    assert log[-1]["optimizer"] == "muon" and log[-1]["iterations"] == 2
    assert (tmp_path / "transformer.safetensors").exists()


@pytest.mark.moderate
def test_the_validation_loss_is_the_same_function_for_both_optimizers(run, tmp_path):
    (adamw,) = validations(train(tmp_path / "adamw", "--learning-rate", "0", "--pretrained", str(run)))
    (muon,) = validations(
        train(tmp_path / "muon", "--learning-rate", "0", "--pretrained", str(run), "--optimizer", "muon")
    )
    (moved,) = validations(
        train(tmp_path / "moved", "--learning-rate", "0.1", "--pretrained", str(run), "--optimizer", "muon")
    )
    assert adamw == muon != moved


@pytest.mark.moderate
def test_a_shipped_teacher_continues_with_the_loss_of_its_run(run, shipped, tmp_path):
    (from_run,) = validations(train(tmp_path / "run", "--learning-rate", "0", "--pretrained", str(run)))
    (from_shipped,) = validations(train(tmp_path / "shipped", "--learning-rate", "0", "--pretrained", str(shipped)))
    assert from_shipped == pytest.approx(from_run, rel=1e-3)  # the shipped autoencoder is in half precision


@pytest.mark.moderate
def test_a_continued_run_can_be_shipped(shipped, tmp_path):
    train(tmp_path / "run", "--pretrained", str(shipped))
    again = ship(tmp_path / "run", tmp_path / "again", TINY.sizes)
    assert (again / "base" / "vae").is_dir() and (again / "judge.safetensors").exists()


@pytest.mark.moderate
def test_the_card_keeps_the_previous_training_of_a_continued_teacher(shipped, tmp_path):
    before = json.loads((shipped / "card.json").read_text())["training"]["teacher"]
    to = Path(shutil.copytree(shipped, tmp_path / "to"))
    train(tmp_path / "run", "--pretrained", str(shipped))
    for _ in range(2):  # the second time adds nothing
        ship(tmp_path / "run", to, TINY.sizes)
    assert json.loads((to / "card.json").read_text())["training"]["teacher"]["previous"] == before


@pytest.mark.moderate
@pytest.mark.parametrize(("start", "iterations"), [(False, 500), (True, 100)])
def test_pretrained_weights_get_a_short_warmup(run, tmp_path, monkeypatch, start, iterations):
    warmups = []

    class Recorded(teacher.Pace):
        def __init__(self, schedule, rank):
            warmups.append(schedule.warmup)
            super().__init__(schedule, rank)

    monkeypatch.setattr(teacher, "Pace", Recorded)
    slow = dataclasses.replace(TINY, teacher=dataclasses.replace(TINY.teacher, warmup=500))
    monkeypatch.setitem(PRESETS, "tiny", slow)
    shutil.copytree(run / "vae", tmp_path / "vae")
    train(tmp_path, *(["--pretrained", str(run)] if start else []))
    assert warmups == [iterations]


def test_weights_of_another_preset_are_rejected(tmp_path):
    with pytest.raises(InputError, match="--preset"):
        train(tmp_path, "--pretrained", str(SHIPPED))


def test_a_start_without_a_denoiser_is_rejected(tmp_path):
    with pytest.raises(StorageError, match="--pretrained fluxnb/pocket"):
        train(tmp_path / "run", "--pretrained", str(tmp_path))


def test_the_error_for_a_missing_autoencoder_names_the_command(tmp_path):
    with pytest.raises(StorageError, match="train autoencoder --out"):
        train(tmp_path)


@pytest.mark.moderate
def test_another_autoencoder_is_rejected(run, tmp_path):
    with pytest.raises(StorageError, match="two autoencoders"):
        train(run_folder(tmp_path, seed=1), "--pretrained", str(run))


def test_the_shipped_tokenizers_agree_with_the_built_ones():
    captions = ['the fox on an orange background holding a sign that says "zyx ok"', "grapes over a cat in the snow"]
    shipped = Tokens(*(AutoTokenizer.from_pretrained(SHIPPED / "base" / name) for name in ("tokenizer", "tokenizer_2")))
    for ids, built in zip(shipped(captions), Tokens.of(POCKET.sizes)(captions), strict=True):
        assert torch.equal(ids, built)


@pytest.mark.moderate
def test_the_validation_loss_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    vae = build_autoencoder(TINY.sizes).eval()

    def loss_of(latents, clip, t5, sigmas, noise):
        return sigmas * (latents - noise).square().mean((1, 2, 3)) + clip.sum(1) + t5.sum(1)

    whole, parts = (Validation(vae, Renderer("cpu"), TINY.sizes, count=6, batch=batch)(loss_of) for batch in (6, 4))
    assert whole == pytest.approx(parts, rel=1e-6)


def test_validate_measures_both_weights_and_restores_them():
    torch.manual_seed(0)
    model = build_denoiser(TINY.sizes)
    average = Average(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    before = [tensor.clone() for tensor in (*average.live, *average.mean)]
    seen = []
    teacher.validate(
        lambda loss_of: seen.append(float(loss_of())) or 0.0, lambda: average.live[0].detach().sum(), average
    )
    assert seen[0] != seen[1], "live and averaged weights are both measured"
    assert all(torch.equal(a, b) for a, b in zip(before, (*average.live, *average.mean), strict=True))
