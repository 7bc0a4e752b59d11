from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch
from diffusers import FluxPipeline

import fluxnb as fnb
from fluxnb.checkpoints import sources as weights
from fluxnb.errors import InputError, StorageError
from fluxnb.families.defaults import DEFAULTS, ModelDefaults
from fluxnb.pipeline.state import state_of
from tests.conftest import toy_pipeline
from tests.plain_calls import plain_call


@pytest.fixture
def copied(toy_folder, tmp_path):
    return shutil.copytree(toy_folder, tmp_path / "copy")


def test_a_folder_loads_quietly_and_runs(toy_folder, toy_trajectory, capfd):
    flux = fnb.load(toy_folder)
    assert capfd.readouterr() == ("", "")
    assert (flux.model, flux.defaults.size, flux.defaults.max_sequence_length) == ("toy", 64, 48)
    assert flux.plan.preset in ("cpu", "resident") and flux.plan.exact
    trajectory = fnb.run(flux, toy_trajectory.recipe)
    # Not beside the walk of the pipeline that was saved: weights that lie elsewhere in memory are, on some CPUs,
    # summed in another order.
    plain = FluxPipeline.from_pretrained(toy_folder)
    plain.set_progress_bar_config(disable=True)
    assert trajectory.image.tobytes() == plain_call(plain, trajectory.recipe).tobytes()
    assert trajectory.recipe.revision == flux.revision != toy_trajectory.recipe.revision


def test_the_same_folder_has_the_same_revision(toy_folder, copied):
    assert weights.locate(toy_folder).revision == weights.locate(copied).revision


def test_a_dtype_can_be_chosen(toy_folder):
    flux = fnb.load(str(toy_folder), dtype="bfloat16")
    assert flux.dtype == "bfloat16" and str(flux.pipe.vae.dtype) == "torch.bfloat16"
    with pytest.raises(InputError, match="dtype="):
        fnb.load(str(toy_folder), dtype="float8")


def test_a_pipeline_is_taken_as_it_is(toy_pipe):
    flux = fnb.load(toy_pipe)
    assert flux.pipe is toy_pipe and flux.plan.preset == "as given"
    assert fnb.load(toy_pipe).revision == flux.revision != fnb.load(toy_pipeline(seed=9)).revision


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2"])
def test_a_pipeline_with_another_part_has_another_revision(toy_pipe, part):
    parts = toy_pipe.components | {part: toy_pipeline(seed=9).components[part]}
    assert fnb.load(FluxPipeline(**parts)).revision != fnb.load(toy_pipe).revision


def test_a_pipeline_is_given_its_preview_before_its_first_run():
    pipe = toy_pipeline(seed=3)
    fnb.load(pipe)
    assert state_of(pipe).preview(pipe.vae) is not None


def test_another_kind_of_object_is_told(toy_pipe):
    from diffusers import FluxImg2ImgPipeline

    with pytest.raises(InputError, match=r"fnb\.recording"):
        fnb.load(FluxImg2ImgPipeline(**toy_pipe.components))
    with pytest.raises(InputError, match="NoneType"):
        fnb.load(None)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100),
        lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        lambda f: (f / "text_encoder_2" / "model.safetensors").unlink(),
        lambda f: (f / "transformer" / "config.json").write_text("{"),
        lambda f: shutil.rmtree(f / "tokenizer"),
        lambda f: (f / "transformer" / "diffusion_pytorch_model.safetensors").rename(
            f / "transformer" / "diffusion_pytorch_model.bin"
        ),
    ],
)
def test_a_damaged_folder_is_told(copied, damage):
    damage(copied)
    with pytest.raises(StorageError) as caught:
        fnb.load(copied)
    assert str(copied) in str(caught.value) and caught.value.remedy


def test_a_weight_that_does_not_match_its_checksum_is_told_before_loading(copied):
    path = copied / "vae" / "diffusion_pytorch_model.safetensors"
    files = {"vae/diffusion_pytorch_model.safetensors": hashlib.sha256(path.read_bytes()).hexdigest()}
    (copied / "card.json").write_text(json.dumps({"files": files}))
    assert fnb.load(copied).model == "copy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StorageError, match="is damaged"):
        fnb.load(copied)


def test_a_card_can_state_the_profile(copied):
    (copied / "card.json").write_text(
        json.dumps({"defaults": {"size": 32, "steps": 28, "guidance_kind": "true_cfg", "guidance": 2.5}})
    )
    flux = fnb.load(copied)
    assert (flux.defaults.size, flux.defaults.guidance_kind, flux.defaults.guidance) == (32, "true_cfg", 2.5)


@pytest.mark.parametrize("name", ["pocket", "pocket-base"])
def test_what_is_known_by_name_is_what_the_shipped_card_says(name):
    stated = json.loads((weights.POCKET / "card.json").read_text())["defaults"][name]
    assert ModelDefaults(**DEFAULTS[name]) == ModelDefaults(**stated)


def test_a_card_with_nonsense_is_told(copied):
    (copied / "card.json").write_text(json.dumps({"defaults": {"size": 33}}))
    with pytest.raises(InputError, match="multiples of 16"):
        fnb.load(copied)


@pytest.fixture
def packaged(monkeypatch, toy_folder, tmp_path):
    folder = tmp_path / "pocket"
    shutil.copytree(toy_folder, folder / "base")
    monkeypatch.setattr(weights, "POCKET", folder)
    return folder


def test_pocket_without_a_student_is_the_teacher_with_its_guidance(packaged):
    flux = fnb.load("pocket")
    assert flux.model == "pocket" and flux.defaults.guidance_kind == "true_cfg"


def test_pocket_is_the_student_and_pocket_base_the_teacher(packaged):
    toy_pipeline(seed=5).transformer.save_pretrained(packaged / "transformer")
    pocket, base = fnb.load("pocket"), fnb.load("pocket-base")
    assert pocket.defaults.guidance_kind == "none" and base.defaults.guidance_kind == "true_cfg"
    trajectory = fnb.run(pocket, "a fox", height=64, width=64, steps=2)
    student = toy_pipeline(seed=5).transformer.state_dict()
    assert all(torch.equal(student[name], value) for name, value in pocket.pipe.transformer.state_dict().items())
    assert trajectory.image.tobytes() == plain_call(pocket.pipe, trajectory.recipe).tobytes()


def test_an_unknown_name_is_told():
    with pytest.raises(InputError, match="Try model='schnell'"):
        fnb.load("shnell")


def test_a_large_model_is_refused_before_the_hub_is_asked(monkeypatch):
    from fluxnb.errors import RunError
    from fluxnb.planning import plan as planning
    from fluxnb.planning.hardware import Hardware

    small = Hardware(device="cpu", name="CPU", vram_gib=0.0, ram_gib=8.0, cores=2, bf16=True)
    monkeypatch.setattr(planning, "detect", lambda: small)
    with pytest.raises(RunError, match="no preset fits"):
        fnb.load("schnell")


def test_a_hub_that_cannot_be_reached_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(StorageError, match="could not be reached"):
        fnb.load("fluxnb-tests/none")


def test_the_preview_is_fitted_once_and_always_the_same(toy):
    from fluxnb.pipeline.preview import fit_preview

    assert toy.preview is fnb.load(toy.pipe).preview
    assert fit_preview(toy.pipe) == toy.preview


def test_texts_have_no_memory_addresses(toy):
    assert "0x" not in repr(toy) + repr(toy.plan) + repr(toy.defaults)
