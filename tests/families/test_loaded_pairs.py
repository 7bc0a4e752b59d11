"""load_pair: a teacher and its student with shared parts, both on the device or taking turns."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError, RunError, StorageError
from fluxnb.families.klein import KLEIN
from fluxnb.families.z_image import Z_IMAGE
from fluxnb.planning.model_size import klein_size, z_image_size
from fluxnb.planning.pairs import plan_pair
from fluxnb.runtime.swapping import swap
from tests.families.test_families import bytes_of, plain
from tests.families.tiny import klein

pytestmark = pytest.mark.slow  # importing the classes takes seconds


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A student, and a teacher with another transformer and the same text encoder and VAE."""
    student = klein(distilled=True)
    teacher = klein(distilled=False)
    other = klein(distilled=False, seed=5)
    teacher.register_modules(transformer=other.transformer)
    root = tmp_path_factory.mktemp("pair")
    for name, pipe in (("student", student), ("teacher", teacher)):
        pipe.save_pretrained(root / name)
    return root, student, teacher


@pytest.fixture(scope="module")
def pair(folders):
    return fnb.load_pair(folders[0] / "student", folders[0] / "teacher")


def test_a_pair_shares_its_text_encoder_and_vae(pair):
    teacher, student = pair
    assert isinstance(pair, fnb.LoadedPair) and pair.teacher is teacher and pair.student is student
    assert teacher.pipe.vae is student.pipe.vae and teacher.pipe.text_encoder is student.pipe.text_encoder
    assert teacher.pipe.transformer is not student.pipe.transformer
    assert teacher.defaults.guidance_kind == "true_cfg" and student.defaults.guidance_kind == "none"
    assert pair.plan.preset == "both" and "distribution" in repr(pair)


def test_each_model_of_a_pair_has_the_bytes_of_its_plain_call(folders, pair):
    _, student, teacher = folders
    assert bytes_of(plain(pair.student.pipe, "klein")) == bytes_of(plain(student, "klein"))
    assert bytes_of(plain(pair.teacher.pipe, "klein-base")) == bytes_of(plain(teacher, "klein-base"))


def test_models_that_take_turns_have_the_bytes_of_their_plain_calls(folders):
    _, student, teacher = folders
    expected = [bytes_of(plain(pipe, name)) for pipe, name in ((student, "klein"), (teacher, "klein-base"))]
    one, two = klein(distilled=True), klein(distilled=False)
    two.register_modules(transformer=klein(distilled=False, seed=5).transformer)
    swap(one.transformer, two.transformer, torch.device("cpu"))
    for _ in range(2):
        assert bytes_of(plain(one, "klein")) == expected[0]
        assert bytes_of(plain(two, "klein-base")) == expected[1]


def test_a_weight_that_was_changed_keeps_its_change_through_a_swap():
    one, two = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    swap(one, two, torch.device("cpu"))
    x = torch.ones(1, 3)
    with torch.no_grad():
        one(x)
        one.weight.add_(1.0)  # as a fused adapter does
        changed = one(x).clone()
        two(x)
        assert torch.equal(one(x), changed)


def test_an_interrupt_while_models_change_places_leaves_both_right(monkeypatch):
    from fluxnb.runtime.swapping import _Turns

    one, two = (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)) for _ in range(2))
    x = torch.ones(1, 3)
    with torch.no_grad():
        expected = one(x), two(x)
        swap(one, two, torch.device("cpu"))
        leave, left = _Turns._leave, []

        def interrupted(self, weight):
            left.append(weight)
            if len(left) == 2:
                raise KeyboardInterrupt
            leave(self, weight)

        with monkeypatch.context() as patch:
            patch.setattr(_Turns, "_leave", interrupted)
            with pytest.raises(KeyboardInterrupt):
                two(x)
        for model, values in ((one, expected[0]), (two, expected[1]), (one, expected[0])):
            assert torch.equal(model(x), values)


@pytest.mark.parametrize(
    ("family", "size", "machine", "preset"),
    [
        (KLEIN, klein_size(), "colab-a100", "both"),
        (KLEIN, klein_size(), "colab-l4", "both-text-by-layer"),
        (Z_IMAGE, z_image_size(), "colab-a100", "both"),
        (Z_IMAGE, z_image_size(), "colab-l4", "swapped-text-by-layer"),
    ],
)
def test_the_plan_of_a_pair_fits_its_machine(family, size, machine, preset):
    plan = plan_pair("pair", family, size, machine)
    assert plan.preset == preset and plan.why
    assert plan.vram_gib <= plan.machine.vram_gib and plan.ram_gib <= plan.machine.ram_gib


def test_a_pair_that_no_machine_holds_is_a_run_error():
    with pytest.raises(RunError, match="no way to hold it fits"):
        plan_pair("z-image", Z_IMAGE, z_image_size(), "colab-t4")
    assert "swapped" in plan_pair("klein", KLEIN, klein_size(), "24gb/64gb", preset="swapped").preset


def test_a_model_without_a_partner_is_an_input_error():
    with pytest.raises(InputError, match="klein and z-image-turbo have a public teacher"):
        fnb.load_pair("schnell")


def test_models_with_different_text_encoders_are_no_pair(folders, tmp_path):
    root, _, _ = folders
    shutil.copytree(root / "teacher", tmp_path / "other")
    config = tmp_path / "other" / "vae" / "config.json"
    config.write_text(config.read_text().replace('"latent_channels": 32', '"latent_channels": 16'))
    with pytest.raises(InputError, match="unlike that of"):
        fnb.load_pair(root / "student", tmp_path / "other")


def test_a_pair_may_be_saved_by_different_versions_and_in_different_formats(folders, tmp_path):
    root, _, _ = folders
    shutil.copytree(root / "teacher", tmp_path / "other")
    config = tmp_path / "other" / "text_encoder" / "config.json"
    saved = {"transformers_version": "5.0.0", "dtype": "bfloat16"}
    config.write_text(json.dumps({**json.loads(config.read_text()), **saved}))
    pair = fnb.load_pair(root / "student", tmp_path / "other")
    assert pair.teacher.pipe.text_encoder is pair.student.pipe.text_encoder


@pytest.mark.parametrize("index", [{"transformer": ["diffusers", "DiffusionPipeline"]}, {"extra": ["os", "system"]}])
def test_the_index_of_a_downloaded_teacher_is_checked(folders, tmp_path, monkeypatch, index):
    from fluxnb.checkpoints import sources
    from fluxnb.pipeline import pairs

    root, _, _ = folders
    for part in pairs.OWN:  # as downloaded
        shutil.copytree(root / "teacher" / part, tmp_path / "hub" / part)
    names = json.loads((root / "teacher" / "model_index.json").read_text())
    (tmp_path / "hub" / "model_index.json").write_text(json.dumps({**names, **index}))
    local = sources.locate(root / "student")
    teacher = dataclasses.replace(local, place="someone/teacher", name="someone/teacher", local=False)
    monkeypatch.setattr(sources, "locate", lambda model, **_: local if "student" in str(model) else teacher)
    monkeypatch.setattr(pairs, "download_pipeline", lambda *_, **__: tmp_path / "hub")
    with pytest.raises(StorageError, match=next(iter(index))):
        fnb.load_pair(root / "student", "someone/teacher")


def test_the_pair_of_pocket_is_the_two_packaged_models():
    teacher, student = fnb.load_pair("pocket")
    for flux, name in ((teacher, "pocket-base"), (student, "pocket")):
        alone = fnb.load(name)
        one, other = (fnb.run(each, "a fox", seed=1, steps=2) for each in (flux, alone))
        assert flux.model == name and one.image.tobytes() == other.image.tobytes() and one.recipe == other.recipe
