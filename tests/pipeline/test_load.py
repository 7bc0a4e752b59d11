from __future__ import annotations

import dataclasses
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


@pytest.mark.moderate
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


@pytest.mark.moderate
def test_a_dtype_can_be_chosen(toy_folder):
    flux = fnb.load(str(toy_folder), dtype="bfloat16")
    assert flux.dtype == "bfloat16" and str(flux.pipe.vae.dtype) == "torch.bfloat16"
    with pytest.raises(InputError, match="dtype="):
        fnb.load(str(toy_folder), dtype="float8")


@pytest.mark.moderate
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


@pytest.mark.moderate
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


@pytest.mark.moderate
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


@pytest.mark.moderate
def test_a_dtype_of_torch_is_accepted(toy_folder, toy_pipe):
    assert fnb.load(toy_folder, dtype=torch.bfloat16).dtype == "bfloat16"
    assert fnb.load(toy_pipe, dtype=torch.float32).dtype == fnb.load(toy_pipe, dtype="float32").dtype == "float32"
    with pytest.raises(InputError, match="dtype="):
        fnb.load(toy_folder, dtype=torch.int8)


@pytest.mark.parametrize("preset", ["auto", "as given"])
def test_a_given_pipeline_accepts_the_preset_that_it_has(toy_pipe, preset):
    assert fnb.load(toy_pipe, preset=preset).plan.preset == "as given"


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ({"preset": "lean"}, 'fnb.load("schnell", preset="lean")'),
        ({"dtype": "bfloat16"}, "fnb.load(pipe.to(torch.bfloat16))"),
        ({"dtype": torch.float16}, "fnb.load(pipe.to(torch.float16))"),
        ({"variant": "fp16"}, 'variant="fp16"'),
        ({"revision": "main"}, 'revision="main"'),
    ],
)
def test_a_given_pipeline_refuses_what_it_cannot_follow_and_stays_as_it_is(toy_pipe, arguments, remedy):
    before = {name: weight.dtype for name, weight in toy_pipe.transformer.named_parameters()}
    with pytest.raises(InputError) as caught:
        fnb.load(toy_pipe, **arguments)
    assert remedy in caught.value.remedy
    assert {name: weight.dtype for name, weight in toy_pipe.transformer.named_parameters()} == before


@pytest.mark.slow
def test_a_given_pipeline_is_compiled_on_request():
    pipe = toy_pipeline(seed=5)
    pipe.set_progress_bar_config(disable=True)
    plain = fnb.load(pipe)
    expected = fnb.run(plain, "a fox", steps=1)
    flux = fnb.load(pipe, fast=True)
    assert flux.plan.preset == "as given, fast" and not flux.plan.exact and flux.plan.fast.speedups
    assert flux.revision == plain.revision
    found = fnb.run(flux, "a fox", steps=1)
    assert torch.allclose(found.steps[0].v, expected.steps[0].v, atol=1e-4) and found.numerics == "as given, fast"


def test_a_pipeline_that_moves_its_weights_is_not_compiled(toy_pipe, monkeypatch):
    from fluxnb.pipeline import load as loading

    monkeypatch.setattr(loading, "execution_device", lambda pipe: torch.device("meta"))
    monkeypatch.setattr(loading, "protect", lambda *_: None)
    with pytest.raises(InputError, match="offloading"):
        fnb.load(toy_pipe, fast=True)


# -------------------------------------------------------------------------------------------- variants of weight files
@pytest.fixture
def fp16_folder(tmp_path):
    """The toy saved in float16 under the variant "fp16", its transformer in shards."""
    pipe = toy_pipeline().to(torch.float16)
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    for path in (tmp_path / "half" / "transformer").glob("*.safetensors"):
        path.unlink()
    pipe.transformer.save_pretrained(tmp_path / "half" / "transformer", variant="fp16", max_shard_size="50KB")
    return tmp_path / "half"


def weights_of(pipe):
    parts = (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2)
    return [weight for part in parts for weight in part.state_dict().values()]


@pytest.mark.moderate
@pytest.mark.parametrize("preset", ["auto", "lean"])
def test_a_folder_with_one_variant_alone_is_read(fp16_folder, preset):
    assert len(list((fp16_folder / "transformer").glob("*.fp16-*.safetensors"))) > 1
    flux = fnb.load(fp16_folder, preset=preset, dtype="float16")
    plain = FluxPipeline.from_pretrained(fp16_folder, variant="fp16", torch_dtype=torch.float16)
    if preset == "auto":
        assert all(map(torch.equal, weights_of(flux.pipe), weights_of(plain)))
    else:
        assert torch.equal(flux.pipe.transformer.proj_out.weight, plain.transformer.proj_out.weight)
    assert flux.revision.endswith("-fp16")


@pytest.mark.moderate
@pytest.mark.parametrize("preset", ["auto", "lean"])
def test_of_two_variants_the_requested_one_is_read_and_has_its_own_revision(copied, fp16_folder, preset):
    for path in fp16_folder.glob("*/*.fp16*"):
        shutil.copy(path, copied / path.parent.name / path.name)
    plain, half = (fnb.load(copied, preset=preset, dtype="float32", variant=name) for name in (None, "fp16"))
    weight = toy_pipeline().transformer.proj_out.weight
    assert torch.equal(plain.pipe.transformer.proj_out.weight, weight)
    assert torch.equal(half.pipe.transformer.proj_out.weight, weight.half().float())
    assert plain.revision != half.revision


def test_an_unknown_variant_is_an_error_that_names_those_that_exist(fp16_folder, toy_folder):
    with pytest.raises(InputError, match=r'have fp16\. Type variant="fp16"'):
        fnb.load(fp16_folder, variant="bf16")
    with pytest.raises(InputError, match=r"have none\. Leave variant out"):
        fnb.load(toy_folder, variant="fp16")


def test_a_folder_has_no_revision(toy_folder):
    with pytest.raises(InputError, match="only models of the hub"):
        fnb.load(toy_folder, revision="main")


def test_a_weight_that_is_missing_in_a_file_is_named(toy_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["decoder.conv_in.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(StorageError, match=r"vae in .* has no 'decoder.conv_in.weight'"):
        fnb.load(folder)


# --------------------------------------------------------------------------------------------------- several processes
@pytest.mark.parametrize(
    ("rank", "count", "current", "expected"), [(0, 1, 0, "cuda"), (1, 2, 0, "cuda:1"), (1, 2, 2, "cuda:2")]
)
def test_a_launched_process_loads_to_its_own_gpu(monkeypatch, rank, count, current, expected):
    from fluxnb.pipeline.load import device_of
    from fluxnb.planning.plan import Plan
    from fluxnb.planning.processes import Processes

    place = Processes(rank=rank, count=count, local_rank=rank, local_count=count)
    for name, value in place.environment.items():
        monkeypatch.setenv(name, value)
    chosen = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    plan = Plan(preset="resident", device="cuda", vram_gib=1.0, ram_gib=1.0)
    assert str(device_of(plan)) == expected
    assert chosen == ([torch.device(expected)] if count > 1 else [])
    assert str(device_of(dataclasses.replace(plan, device="cpu"))) == "cpu"


def test_sampling_makes_the_device_of_the_model_the_current_one(toy, monkeypatch):
    """A thread other than the one that loaded the model begins with the first GPU as its current device."""
    from fluxnb.pipeline.flux import Flux
    from fluxnb.sampling import sampler

    entered = []

    class Current:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.append(None)

    monkeypatch.setattr(torch.cuda, "device", Current)
    monkeypatch.setattr(Flux, "device", property(lambda self: torch.device("cuda:3")))
    monkeypatch.setattr(sampler, "_sample_batch", lambda *_, **__: entered.append("sampled") or [])
    sampler.sample_batch(toy, [], [], keep=fnb.Keep(), known=[])
    assert entered == [torch.device("cuda:3"), "sampled", None]
