"""Shipping: folders that diffusers loads, their card, and the files in fluxnb/pocket."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file
from transformers import AutoTokenizer

import fluxnb as fnb
from fluxnb.records.latents import pack
from fluxnb.train.__main__ import main
from fluxnb.train.config import TINY
from fluxnb.train.data.vocabulary import Tokenizers
from fluxnb.train.networks.denoiser import build_denoiser, load_denoiser, sample
from fluxnb.train.networks.weights import save_weights
from fluxnb.train.stages.loop import read_log
from fluxnb.train.stages.ship import CURVE, summarize

POCKET = Path(fnb.__file__).parent / "pocket"
CARD = json.loads((POCKET / "card.json").read_text())


@pytest.mark.slow
def test_a_shipped_student_is_loaded_by_diffusers_and_draws_the_pictures_of_the_run(run, tmp_path):
    main(["ship", "--preset", "tiny", "--out", str(run), "--to", str(tmp_path / "teacher")])
    pipe = FluxPipeline.from_pretrained(tmp_path / "teacher")
    pipe.set_progress_bar_config(disable=True)
    model = load_denoiser(TINY.sizes, run / "teacher.safetensors")
    noise = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = Tokenizers()(["a red fox"])
    expected = pack(sample(model, *ids, noise, 2))
    settings = {"num_inference_steps": 2, "height": 64, "width": 64, "max_sequence_length": 48}
    latents = pipe("a red fox", latents=pack(noise), output_type="latent", **settings).images
    torch.testing.assert_close(latents, expected, atol=5e-3, rtol=0)  # half precision


@pytest.mark.slow
def test_a_shipped_folder_has_settings_of_the_classes_of_diffusers_alone(run, tmp_path):
    main(["ship", "--preset", "tiny", "--out", str(run), "--to", str(tmp_path / "teacher")])
    for name, kind in (("transformer", FluxTransformer2DModel), ("vae", AutoencoderKL)):
        stored = json.loads((tmp_path / "teacher" / name / "config.json").read_text())
        assert {key for key in stored if not key.startswith("_")} <= set(inspect.signature(kind).parameters)


@pytest.mark.slow
def test_a_shipped_folder_has_the_default_size_of_the_preset(run, tmp_path):
    main(["ship", "--preset", "tiny", "--out", str(run), "--to", str(tmp_path / "teacher")])
    flux = fnb.load(FluxPipeline.from_pretrained(tmp_path / "teacher"))
    assert flux.defaults.size == TINY.sizes.default_size


@pytest.fixture(scope="module")
def pair(run, tmp_path_factory):
    """A shipped pair, of a run with logs of two trainings of the teacher and with notes."""
    whole = tmp_path_factory.mktemp("whole")
    shutil.copytree(run, whole, dirs_exist_ok=True)
    main(["judge", "--preset", "tiny", "--out", str(whole)])
    student = build_denoiser(TINY.sizes).transformer
    save_weights(student, whole / "student.safetensors")
    (whole / "teacher.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in 2 * read_log(run / "teacher.jsonl"))
    )
    (whole / "notes.json").write_text(json.dumps({"hardware": "a machine"}))
    main(["ship", "--preset", "tiny", "--out", str(whole), "--to", str(whole / "pair"), "--pair"])
    return whole / "pair"


@pytest.mark.slow
def test_a_shipped_pair_is_loaded_as_student_and_teacher(pair):
    student, teacher_of_it = FluxPipeline.from_pretrained(pair), FluxPipeline.from_pretrained(pair / "base")
    shared = [student.vae, student.text_encoder, student.text_encoder_2]
    for one, other in zip(
        shared, [teacher_of_it.vae, teacher_of_it.text_encoder, teacher_of_it.text_encoder_2], strict=True
    ):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
    parts = {"vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"}
    files = [path for path in pair.rglob("*") if path.is_file() and path.relative_to(pair).parts[0] in parts]
    assert len(files) > 8
    assert all(path.read_bytes() == (pair / "base" / path.relative_to(pair)).read_bytes() for path in files)
    weights = teacher_of_it.transformer.state_dict()
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in student.transformer.state_dict().items())
    assert fnb.load(student).defaults.size == TINY.sizes.default_size


@pytest.mark.slow
def test_the_card_of_a_pair_has_the_checksum_of_every_file(pair):
    files = {path.relative_to(pair).as_posix(): path for path in pair.rglob("*") if path.is_file()}
    del files["card.json"]
    card = json.loads((pair / "card.json").read_text())
    assert card["files"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    assert card["hardware"] == "a machine" and card["defaults"]["pocket-base"]["steps"] == 28


@pytest.mark.slow
def test_the_card_of_a_pair_adds_up_the_trainings_of_a_log(run, pair):
    once = summarize(read_log(run / "teacher.jsonl"))
    card = json.loads((pair / "card.json").read_text())["training"]["teacher"]
    assert card["seconds"] == pytest.approx(2 * once["seconds"]) and len(card["runs"]) == 2
    last = max(iteration for iteration, _ in once["validation"]["validation_64x64"])
    assert [iteration for iteration, _ in card["validation"]["validation_64x64"]][-1] == last + TINY.teacher.iterations


@pytest.mark.slow
def test_a_loss_curve_in_a_card_is_short():
    log = [{"iteration": n, "loss": 1.0} for n in range(1000)] + [{"iterations": 1000, "seconds": 5.0}]
    assert 40 <= len(summarize(log)["loss"]) <= CURVE


# ------------------------------------------------------------------------------------------- the files in fluxnb/pocket
def test_the_shipped_tokenizers_agree_with_the_built_ones():
    captions = ["two foxes on an orange background, 3d style", 'a cat in the snow holding a sign that says "zyx ok"']
    built, shipped = Tokenizers(), Tokenizers()
    shipped.clip, shipped.t5 = (
        AutoTokenizer.from_pretrained(POCKET / "base" / name) for name in ("tokenizer", "tokenizer_2")
    )
    for ids, expected in zip(shipped(captions), built(captions), strict=True):
        assert torch.equal(ids, expected)


def test_the_shipped_card_has_the_checksum_of_every_file():
    files = {p.relative_to(POCKET).as_posix(): p for p in POCKET.rglob("*") if p.is_file() and p.name != "card.json"}
    files = {name: path for name, path in files.items() if "__pycache__" not in name}
    assert CARD["files"] == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def test_the_shipped_student_differs_from_the_teacher():
    student = load_file(next((POCKET / "transformer").glob("*.safetensors")))
    teacher = load_file(next((POCKET / "base" / "transformer").glob("*.safetensors")))
    assert student.keys() == teacher.keys() and any(not torch.equal(student[k], teacher[k]) for k in student)


def test_both_shipped_models_take_less_than_85_megabytes():
    # Parts that both models share are in both folders, and once in the repository.
    files = [path for path in POCKET.rglob("*") if path.is_file() and path.name != "judge.safetensors"]
    contents = {hashlib.sha256(path.read_bytes()).digest(): path.stat().st_size for path in files}
    assert sum(contents.values()) < 85e6


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
        ("pocket", ".", {"guidance_scale": 0.0}),
        ("pocket-base", "base", {"true_cfg_scale": CARD["defaults"]["pocket-base"]["guidance"], "negative_prompt": ""}),
    ],
)
def test_diffusers_loads_each_shipped_folder_and_samples_the_picture_of_fluxnb(name, folder, settings):
    pipe = FluxPipeline.from_pretrained(POCKET / folder)
    pipe.set_progress_bar_config(disable=True)
    run = fnb.run(fnb.load(name, dtype="float32"), "a fox in the snow", seed=3, steps=4)
    plain = pipe(
        "a fox in the snow", height=run.recipe.height, width=run.recipe.width, num_inference_steps=4,
        max_sequence_length=run.recipe.max_sequence_length,
        generator=torch.Generator("cpu").manual_seed(3), **settings,
    ).images[0]  # fmt: skip
    assert plain.tobytes() == run.image.tobytes()
