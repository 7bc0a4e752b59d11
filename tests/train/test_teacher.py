"""A teacher goes on from what has shipped, and every run is asked for its loss in the same way."""

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
from fluxnb.train.networks.files import build_denoiser
from fluxnb.train.stages import teacher
from fluxnb.train.stages.loop import Average, Rank, read_log
from fluxnb.train.stages.ship import ship
from fluxnb.train.stages.validation import Validation

CPU = Rank(0, 1, torch.device("cpu"))
SHIPPED = Path(fluxnb.__file__).parent / "pocket"


def folder(path, seed=0):
    """A run with an autoencoder and a judge that nobody trained."""
    torch.manual_seed(seed)
    build_autoencoder(TINY.sizes).save_pretrained(path / "vae")
    (path / "judge.safetensors").write_bytes(b"")
    return path


def train(out, *more):
    """Two iterations; returns what they logged."""
    few = ["--iterations", "2", "--scenes", "8", "--validation", "8"]
    main(["teacher", "--preset", "tiny", *few, "--out", str(out), *more])
    return read_log(out / "teacher.jsonl")


def checks(log):
    """The validation losses of a log: of the averaged weights and of the live ones."""
    return [(line["validation"], line["validation_live"]) for line in log if "validation" in line]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = folder(tmp_path_factory.mktemp("run"))
    train(out, "--rate", "0.01")
    return out


@pytest.fixture(scope="module")
def shipped(run, tmp_path_factory):
    return ship(run, tmp_path_factory.mktemp("shipped"), TINY.sizes)


def test_muon_trains_a_teacher(tmp_path):
    log = train(folder(tmp_path), "--optimizer", "muon", "--rate", "0.01")
    assert log[-1]["optimizer"] == "muon" and log[-1]["iterations"] == 2
    assert (tmp_path / "transformer.safetensors").exists()


def test_both_optimizers_are_asked_the_same(run, tmp_path):
    (still,) = checks(train(tmp_path / "adamw", "--rate", "0", "--start", str(run)))
    (same,) = checks(train(tmp_path / "muon", "--rate", "0", "--start", str(run), "--optimizer", "muon"))
    (other,) = checks(train(tmp_path / "moved", "--rate", "0.1", "--start", str(run), "--optimizer", "muon"))
    assert still == same != other


def test_a_shipped_teacher_goes_on_where_its_run_ended(run, shipped, tmp_path):
    (run_goes_on,) = checks(train(tmp_path / "run", "--rate", "0", "--start", str(run)))
    (goes_on,) = checks(train(tmp_path / "shipped", "--rate", "0", "--start", str(shipped)))
    assert goes_on == pytest.approx(run_goes_on, rel=1e-3)  # the shipped autoencoder is in half precision


def test_a_run_that_goes_on_has_all_that_later_stages_need(shipped, tmp_path):
    train(tmp_path / "run", "--start", str(shipped))
    again = ship(tmp_path / "run", tmp_path / "again", TINY.sizes)
    assert (again / "base" / "vae").is_dir() and (again / "judge.safetensors").exists()


def test_the_card_keeps_the_story_that_a_teacher_goes_on_from(shipped, tmp_path):
    before = json.loads((shipped / "card.json").read_text())["training"]["teacher"]
    to = Path(shutil.copytree(shipped, tmp_path / "to"))
    train(tmp_path / "run", "--start", str(shipped))
    for _ in range(2):  # shipping twice tells it once
        ship(tmp_path / "run", to, TINY.sizes)
    assert json.loads((to / "card.json").read_text())["training"]["teacher"]["before"] == before


@pytest.mark.parametrize(("start", "iterations"), [(False, 500), (True, 100)])
def test_weights_that_were_trained_before_warm_up_shortly(run, tmp_path, monkeypatch, start, iterations):
    asked = []

    class Watched(teacher.Pace):
        def __init__(self, schedule, rank):
            asked.append(schedule.warmup)
            super().__init__(schedule, rank)

    monkeypatch.setattr(teacher, "Pace", Watched)
    slow = dataclasses.replace(TINY, teacher=dataclasses.replace(TINY.teacher, warmup=500))
    monkeypatch.setitem(PRESETS, "tiny", slow)
    shutil.copytree(run / "vae", tmp_path / "vae")
    train(tmp_path, *(["--start", str(run)] if start else []))
    assert asked == [iterations]


def test_weights_of_another_preset_are_refused(tmp_path):
    with pytest.raises(InputError, match="--preset"):
        train(tmp_path, "--start", str(SHIPPED))


def test_a_folder_without_a_denoiser_is_refused(tmp_path):
    with pytest.raises(StorageError, match="--start fluxnb/pocket"):
        train(tmp_path / "run", "--start", str(tmp_path))


def test_a_teacher_without_an_autoencoder_is_told_how_to_get_one(tmp_path):
    with pytest.raises(StorageError, match="train autoencoder --out"):
        train(tmp_path)


def test_the_latents_of_another_autoencoder_are_refused(run, tmp_path):
    with pytest.raises(StorageError, match="two autoencoders"):
        train(folder(tmp_path, seed=1), "--start", str(run))


def test_the_shipped_tokenizers_say_what_the_worlds_do():
    captions = ['the fox on an orange background holding a sign that says "zyx ok"', "grapes over a cat in the snow"]
    shipped = Tokens(*(AutoTokenizer.from_pretrained(SHIPPED / "base" / name) for name in ("tokenizer", "tokenizer_2")))
    for said, worlds in zip(shipped(captions), Tokens.of(POCKET.sizes)(captions), strict=True):
        assert torch.equal(said, worlds)


def test_the_validation_loss_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    vae = build_autoencoder(TINY.sizes).eval()

    def loss_of(latents, clip, t5, sigmas, noise):
        return sigmas * (latents - noise).square().mean((1, 2, 3)) + clip.sum(1) + t5.sum(1)

    whole, parts = (Validation(vae, Renderer("cpu"), TINY.sizes, 6, batch)(loss_of) for batch in (6, 4))
    assert whole == pytest.approx(parts, rel=1e-6)


def test_a_look_leaves_every_weight_as_it_was():
    torch.manual_seed(0)
    model = build_denoiser(TINY.sizes)
    average = Average(model, 0.9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    before = [tensor.clone() for tensor in (*average.live, *average.mean)]
    seen = []
    teacher.look(lambda loss_of: seen.append(float(loss_of())) or 0.0, lambda: average.live[0].detach().sum(), average)
    assert seen[0] != seen[1], "live and averaged weights are looked at"
    assert all(torch.equal(a, b) for a, b in zip(before, (*average.live, *average.mean), strict=True))
