"""Loading and planning the models of other families: names, folders, presets, sizes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import fluxnb as fnb
from fluxnb.checkpoints.sources import HUB
from fluxnb.checkpoints.validation import check_model
from fluxnb.errors import InputError, StorageError
from fluxnb.families.registry import MODELS
from fluxnb.planning.model_size import klein_size, model_size_of, z_image_size
from fluxnb.planning.presets import presets_of
from fluxnb.planning.requirements import text_bytes
from fluxnb.runtime.assembly import assemble
from fluxnb.runtime.exclusive import group_of
from tests.families.test_families import LENGTH, bytes_of, plain, scale_of
from tests.families.tiny import PIPELINES

pytestmark = pytest.mark.slow  # importing the classes of two families takes seconds

NAMES = tuple(PIPELINES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            pipe = PIPELINES[name]()
            made[name] = pipe, tmp_path_factory.mktemp("models") / name
            pipe.save_pretrained(made[name][1])
        return made[name]

    return get


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_loads_as_its_family(folders, name):
    pipe, folder = folders(name)
    flux = fnb.load(folder)
    assert type(flux.pipe) is type(pipe) and flux.family.owns(pipe) and flux.model == name
    trajectory = fnb.run(flux.with_defaults(max_sequence_length=LENGTH), "a red fox", steps=2, height=64, width=64)
    assert trajectory.recipe.guidance == scale_of(name)
    expected = plain(pipe, name, seed=0, num_inference_steps=2, height=64, width=64)
    assert bytes_of([trajectory.image]) == bytes_of(expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", ["text-by-layer", "cpu"])
def test_an_assembled_pipeline_has_the_bytes_of_the_loaded_one(folders, name, preset):
    pipe, folder = folders(name)
    kind = presets_of(fnb.load(pipe).family)[preset]
    assembled = assemble(folder, kind, device=torch.device("cpu"), dtype=torch.float32)
    assembled.set_progress_bar_config(disable=True)
    assert type(assembled) is type(pipe)
    assert assembled.config.get("is_distilled") == pipe.config.get("is_distilled")
    assert bytes_of(plain(assembled, name)) == bytes_of(plain(pipe, name))


@pytest.mark.parametrize("preset", ["resident", "text-fp8"])
def test_a_head_that_is_the_token_embedding_is_in_memory_once(tmp_path, preset):
    pipe = PIPELINES["klein"]()
    pipe.text_encoder.config.tie_word_embeddings = True
    pipe.text_encoder.tie_weights()
    pipe.save_pretrained(tmp_path)
    kind = presets_of(fnb_family("klein"))[preset]
    encoder = assemble(tmp_path, kind, device=torch.device("cpu"), dtype=torch.float32).text_encoder
    assert encoder.lm_head.weight is encoder.model.embed_tokens.weight


def text_in_fp8(folder, name):
    kind = presets_of(fnb_family(name))["text-fp8"]
    pipe = assemble(folder, kind, device=torch.device("cpu"), dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("name", NAMES)
def test_an_8_bit_text_encoder_has_the_predicted_bytes(folders, name):
    folder = folders(name)[1]
    held = sum(p.numel() * p.element_size() for p in text_in_fp8(folder, name).text_encoder.parameters())
    norms = sum(p.numel() for n, p in folders(name)[0].text_encoder.named_parameters() if "norm" in n)  # 16 bits
    assert held == text_bytes(presets_of(fnb_family(name))["text-fp8"], model_size_of(folder), 2) + norms


@pytest.mark.parametrize("name", NAMES)
def test_an_8_bit_text_encoder_encodes_nearly_as_the_plain_one(folders, name):
    pipe, folder = folders(name)
    family = fnb_family(name)
    both = [
        family.encode(each, "a red fox", LENGTH, torch.device("cpu"))[0] for each in (pipe, text_in_fp8(folder, name))
    ]
    exact, near = (each[0] for each in both)  # Z-Image has a list of one prompt, klein a batch of one
    assert 0 < torch.dist(exact.float(), near.float()) < 0.1 * exact.float().norm()


def test_an_8_bit_text_encoder_runs_in_one_thread_at_a_time(folders):
    assert group_of(text_in_fp8(folders("klein")[1], "klein").text_encoder) is not None


@pytest.mark.parametrize(("name", "machine", "size"), [("klein", "colab-t4", 768), ("z-image", "colab-l4", 1024)])
def test_the_plan_of_an_8_bit_text_encoder_is_lossy_and_fits(name, machine, size):
    plan = fnb.plan(name, machine, preset="text-fp8", size=size)
    assert not plan.exact and plan.vram_gib <= plan.machine.vram_gib


@pytest.mark.parametrize("name", NAMES)
def test_the_size_of_a_folder_is_the_number_of_its_weights(folders, name):
    pipe, folder = folders(name)
    size = model_size_of(folder)
    count = {part: sum(p.numel() for p in getattr(pipe, part).parameters()) for part in ("transformer", "text_encoder")}
    assert (size.transformer, size.t5, size.clip) == (count["transformer"], count["text_encoder"], 0)


def test_the_sizes_of_the_named_models_are_those_of_their_weights():
    assert round(klein_size().transformer * 2 / 1e9, 2) == 7.75 and round(klein_size().t5 * 2 / 1e9, 2) == 8.04
    assert round(z_image_size().transformer * 2 / 1e9, 1) == 12.3


@pytest.mark.parametrize("name", NAMES)
def test_a_named_model_is_on_the_hub_and_open(name):
    assert HUB[name] == MODELS[name].repo and not MODELS[name].gated and MODELS[name].licence == "Apache-2.0"


@pytest.mark.parametrize(
    ("name", "machine", "preset"),
    [
        ("klein", "colab-t4", "text-by-layer"),
        ("klein", "colab-l4", "resident"),
        ("klein-base", "colab-a100", "resident"),
        ("z-image-turbo", "colab-t4", "stream-mapped"),
        ("z-image", "colab-l4", "text-by-layer"),
        ("z-image", "colab-a100", "resident"),
    ],
)
def test_the_plan_of_a_named_model_fits_its_machine(name, machine, preset):
    plan = fnb.plan(name, machine)
    assert plan.preset == preset and plan.exact and plan.steps == MODELS[name].defaults["steps"]
    assert plan.vram_gib <= plan.machine.vram_gib and plan.ram_gib <= plan.machine.ram_gib
    assert {option.preset.name for option in plan.options} == set(presets_of(fnb_family(name)))


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_of_a_folder_has_the_steps_of_its_model(folders, name):
    folder = folders(name)[1]
    assert fnb.plan(folder).steps == fnb.load(folder).defaults.steps == MODELS[name].defaults["steps"]


@pytest.mark.parametrize(("teacher", "student"), [("klein-base", "klein"), ("z-image", "z-image-turbo")])
def test_the_plan_of_a_teacher_in_a_folder_has_two_evaluations_a_step(folders, teacher, student):
    def seconds_of_a_step(name):
        one, two = (fnb.plan(folders(name)[1], "colab-a100", steps=steps).seconds for steps in (1, 2))
        return two - one

    assert seconds_of_a_step(teacher) == pytest.approx(2 * seconds_of_a_step(student), rel=1e-6)


def fnb_family(name):
    from fluxnb.families.registry import family_of_model

    return family_of_model(name)


def test_a_teacher_takes_two_evaluations_a_step():
    one, two = (fnb.plan(name, "colab-a100", steps=50) for name in ("klein", "klein-base"))
    assert one.seconds < 0.6 * two.seconds


def test_a_preset_of_flux1_is_refused_for_another_family():
    with pytest.raises(InputError, match=r"FLUX\.2 klein: it has resident, text-by-layer"):
        fnb.plan("klein", "colab-l4", preset="lean")
    with pytest.raises(InputError, match=r"FLUX\.1"):
        fnb.plan("schnell", "colab-l4", preset="text-by-layer")


@pytest.mark.parametrize("fast", [True, "fp8"])
def test_fast_is_refused_for_another_family(folders, fast):
    with pytest.raises(InputError, match=r"compiling is written for FLUX\.1"):
        fnb.load(folders("klein")[0], fast=fast)


def test_fast_is_refused_before_a_model_of_another_family_is_fetched(folders, monkeypatch):
    fetched = []
    monkeypatch.setattr("fluxnb.checkpoints.sources.fetch", lambda *_, **__: fetched.append(1))
    with pytest.raises(InputError, match=r"compiling is written for FLUX\.1"):
        fnb.load(folders("z-image")[1], fast=True)
    assert not fetched


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("model_index.json", {"transformer": ["diffusers", "FluxTransformer2DModel"]}, "diffusers has Flux2"),
        ("model_index.json", {"extra": ["os", "system"]}, "known are"),
        ("transformer/config.json", {"num_layers": 10**6}, "0 to 256"),
        ("transformer/config.json", {"mlp_ratio": 10**6}, "1 to 64"),
        ("text_encoder/config.json", {"num_key_value_heads": 10**6}, "1 to 1024"),
        ("text_encoder/config.json", {"auto_map": {"AutoModel": "a.py"}}, "code of a model"),
    ],
)
def test_a_tampered_folder_is_refused_before_anything_is_built(folders, tmp_path, file, change, reason):
    copied = tmp_path / "copy"
    shutil.copytree(folders("klein")[1], copied)
    path = copied / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(StorageError, match=reason):
        check_model(copied)
