"""Model folders of any origin: what is refused before a library opens it."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import fluxnb as fnb
from fluxnb.checkpoints.sources import public_name
from fluxnb.checkpoints.validation import check_configuration, check_model
from fluxnb.errors import StorageError
from fluxnb.planning.presets import PRESETS
from fluxnb.runtime.assembly import assemble
from tests.conftest import toy_pipeline
from tests.families.tiny import klein


@pytest.fixture
def folder(toy_folder, tmp_path):
    return shutil.copytree(toy_folder, tmp_path / "toy")


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(path, change_of):
    tensors = load_file(path)
    change_of(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def refused(folder, match, preset="auto"):
    with pytest.raises(StorageError, match=match) as caught:
        fnb.load(folder, preset=preset)
    assert caught.value.possible and caught.value.remedy


@pytest.mark.parametrize("preset", ["auto", "lean"])
@pytest.mark.parametrize(
    ("component", "values"),
    [
        ("transformer", {"num_layers": 10**6}),
        ("transformer", {"num_single_layers": -1}),
        ("transformer", {"axes_dims_rope": [4] * 1000}),
        ("transformer", {"attention_head_dim": 10**9}),
        ("text_encoder", {"vocab_size": 10**9}),
        ("text_encoder", {"hidden_size": "32"}),
        ("text_encoder_2", {"d_model": 10**7}),
        ("text_encoder_2", {"nested": {"num_layers": 10**6}}),
        ("vae", {"block_out_channels": [10**6] * 4}),
        ("scheduler", {"num_train_timesteps": 10**9}),
        ("scheduler", {"shift": 1e300}),
        ("tokenizer", {"model_max_length": 10**9}),
    ],
)
def test_numbers_out_of_range_are_refused_before_anything_is_built(folder, component, values, preset):
    files = {"scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json"}
    change(folder / component / files.get(component, "config.json"), **values)
    refused(folder, "is possible|are possible", preset)


@pytest.mark.parametrize("file", ["text_encoder_2/config.json", "tokenizer/tokenizer_config.json", "vae/config.json"])
def test_a_configuration_that_names_code_is_refused(folder, file):
    change(folder / file, auto_map={"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", None]})
    (folder / file).with_name("evil.py").write_text("raise SystemExit('executed')")
    refused(folder, "code of a model is never run")


@pytest.mark.parametrize("made_of", [["evil_module", "Class"], ["os", "system"], ["transformers", "Trainer"], ["a"]])
def test_a_class_that_the_pipeline_does_not_have_is_refused_and_not_imported(folder, made_of, monkeypatch):
    (folder.parent / "evil_module.py").write_text("raise SystemExit('executed')")
    monkeypatch.syspath_prepend(folder.parent)
    change(folder / "model_index.json", text_encoder=made_of)
    refused(folder, "text_encoder' as")
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("preset", ["auto", "lean"])
def test_an_index_that_lists_a_pickle_is_refused(folder, preset):
    place = folder / "transformer"
    names = load_file(place / "diffusion_pytorch_model.safetensors")
    torch.save(names, place / "weights.bin")
    (place / "diffusion_pytorch_model.safetensors").unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "weights.bin")}
    (place / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, "lists safetensors files of its own folder", preset)


def test_an_index_of_files_that_were_not_downloaded_is_no_error(folder):
    index = {"metadata": {}, "weight_map": {"a": "diffusion_pytorch_model.fp16-00001-of-00002.safetensors"}}
    name = "diffusion_pytorch_model.safetensors.index.fp16.json"
    (folder / "transformer" / name).write_text(json.dumps(index))
    check_model(folder)
    index["weight_map"]["a"] = "weights.bin"
    (folder / "transformer" / name).write_text(json.dumps(index))
    with pytest.raises(StorageError, match="lists safetensors files of its own folder"):
        check_model(folder)


@pytest.mark.moderate
def test_a_tiny_decoder_in_a_pickle_is_refused(toy, tmp_path):
    from diffusers import AutoencoderTiny

    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path, safe_serialization=False)
    assert not list(tmp_path.glob("*.safetensors"))
    with pytest.raises(StorageError, match="as a tiny decoder"):
        fnb.tiny(toy, tmp_path)


@pytest.mark.moderate
@pytest.mark.parametrize(
    ("change_of", "match"),
    [
        (lambda tensors: tensors.pop(a_weight(tensors)), "without decoder"),
        (lambda tensors: tensors.update({a_weight(tensors): tensors[a_weight(tensors)].int()}), "holds I32"),
    ],
)
def test_a_tiny_decoder_that_lacks_a_weight_or_holds_integers_is_refused(toy, tmp_path, change_of, match):
    from diffusers import AutoencoderTiny

    AutoencoderTiny(latent_channels=16).save_pretrained(tmp_path)
    change_tensors(tmp_path / "diffusion_pytorch_model.safetensors", change_of)
    with pytest.raises(StorageError, match=match):
        fnb.tiny(toy, tmp_path)


@pytest.mark.parametrize("name", ["transformer/diffusion_pytorch_model.safetensors", "vae/config.json"])
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_a_file_that_is_no_regular_one_is_refused(folder, name, kind):
    (folder / name).unlink()
    os.mkfifo(folder / name) if kind == "fifo" else (folder / name).symlink_to("/dev/zero")
    refused(folder, "a regular file is needed")


@pytest.mark.moderate
@pytest.mark.parametrize("preset", ["lean", "stream", "resident"])
@pytest.mark.parametrize(
    "change_of",
    [
        lambda tensors: tensors.update({name: t[:1].clone() for name, t in tensors.items() if name.endswith("bias")}),
        lambda tensors: tensors.update({"proj_out.bias": tensors["proj_out.bias"][:1].clone()}),
        lambda tensors: tensors.update({"x_embedder.weight": tensors["x_embedder.weight"].T.contiguous()}),
        lambda tensors: tensors.update({"proj_out.bias": tensors["proj_out.bias"].to(torch.int32)}),
        lambda tensors: tensors.pop("norm_out.linear.bias"),
    ],
)
def test_weights_of_another_shape_or_kind_are_refused(folder, preset, change_of):
    change_tensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", change_of)
    with pytest.raises(StorageError) as caught:
        assemble(folder, PRESETS[preset], device=torch.device("cpu"), dtype=torch.float32)
    assert caught.value.remedy


def test_a_text_encoder_of_another_shape_is_refused_before_the_first_prompt(folder):
    path = folder / "text_encoder_2" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("layer_norm.weight"))
    save_file({**tensors, name: tensors[name][:1].clone()}, path, metadata={"format": "pt"})
    with pytest.raises(StorageError, match="has the shape"):
        assemble(folder, PRESETS["lean"], device=torch.device("cpu"), dtype=torch.float32)


def a_weight(tensors):
    return next(name for name in sorted(tensors) if name.endswith(".weight"))


@pytest.mark.moderate
@pytest.mark.parametrize("preset", ["auto", "resident", "lean"])
@pytest.mark.parametrize("component", ["text_encoder", "text_encoder_2"])
def test_a_text_encoder_that_lacks_a_weight_is_refused(folder, component, preset):
    change_tensors(folder / component / "model.safetensors", lambda tensors: tensors.pop(a_weight(tensors)))
    refused(folder, "has no|holds no", preset)


@pytest.mark.moderate
@pytest.mark.parametrize("preset", ["resident", "text-by-layer"])
@pytest.mark.parametrize("name", ["bn.running_mean", "bn.running_var"])
def test_a_vae_that_lacks_a_statistic_of_its_batch_norm_is_refused(tmp_path, name, preset):
    klein(distilled=True).save_pretrained(tmp_path)
    change_tensors(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", lambda tensors: tensors.pop(name))
    refused(tmp_path, "has no|holds no", preset)


@pytest.mark.parametrize("preset", ["auto", "lean"])
@pytest.mark.parametrize(
    "file",
    [
        "text_encoder_2/model.safetensors",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_weights_of_integers_are_refused(folder, file, preset):
    def cast(tensors):
        tensors[a_weight(tensors)] = tensors[a_weight(tensors)].to(torch.int32)

    change_tensors(folder / file, cast)
    refused(folder, "holds I32", preset)


def test_integers_of_a_quantized_component_and_of_buffers_are_no_error(folder):
    def cast(tensors):
        tensors[a_weight(tensors)] = tensors[a_weight(tensors)].to(torch.uint8)

    change_tensors(folder / "text_encoder_2" / "model.safetensors", cast)
    change_tensors(
        folder / "text_encoder" / "model.safetensors",
        lambda tensors: tensors.update(position_ids=torch.arange(48)),
    )
    change(folder / "text_encoder_2" / "config.json", quantization_config={"load_in_8bit": True})
    check_model(folder)


@pytest.mark.parametrize("preset", ["auto", "lean"])
@pytest.mark.parametrize(
    "file", ["text_encoder_2/model.safetensors", "transformer/diffusion_pytorch_model.safetensors"]
)
def test_tensors_that_overlap_in_a_file_are_refused_before_the_first_prompt(folder, file, preset):
    data = (folder / file).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["further"] = header[a_weight(header)]
    changed = json.dumps(header).encode()
    (folder / file).write_bytes(len(changed).to_bytes(8, "little") + changed + data[8 + length :])
    refused(folder, "does not open|does not load", preset)


# ------------------------------------------------------------------------------------------------------ names of models
@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("../alice/secret/model", "model"),
        ("alice/model", "model"),
        ("secret/model/", "model"),
        ("/data/alice/model", "model"),
        (r"C:\Users\alice\model", "model"),
        ("~/model", "model"),
        ("model", "model"),
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
        ("", "pipeline"),
        (".", "pipeline"),
        ("../..", "pipeline"),
        ("C:\\", "pipeline"),
    ],
)
def test_a_name_holds_no_folder_of_the_user(given, name):
    assert public_name(given) == name


def test_a_hub_id_remains_whole_if_its_repository_is_in_the_cache(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "models--alice--model").mkdir(parents=True)
    assert public_name("alice/model") == "alice/model" and public_name("alice/other") == "other"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alice" / "model").mkdir(parents=True)
    assert public_name("alice/model") == "model"  # a folder comes before the hub, as in from_pretrained


@pytest.mark.moderate
def test_a_pipeline_loaded_by_a_relative_path_leaves_no_folder_in_its_files(tmp_path, monkeypatch):
    from diffusers import FluxPipeline

    place = tmp_path / "alice" / "secret" / "model"
    toy_pipeline().save_pretrained(place)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    pipe = FluxPipeline.from_pretrained("../alice/secret/model", use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    flux = fnb.load(pipe)
    grid = fnb.sweep(flux, prompts="a fox", seeds=[0], steps=[1], store=tmp_path / "store", keep=fnb.Keep())
    grid.to_html(tmp_path / "store" / "grid.html")
    grid[0].trajectory.to_html(tmp_path / "store" / "fox.html")
    written = [path for path in (tmp_path / "store").rglob("*") if path.is_file()]
    assert len(written) >= 5
    for path in written:
        assert not any(word in path.read_bytes() for word in (b"alice", b"secret", str(tmp_path).encode())), path


@pytest.mark.parametrize("count", [2**31 - 1, 1001, -1, float("nan")])
def test_a_tokenizer_with_too_many_extra_tokens_is_refused(count, tmp_path):
    with pytest.raises(StorageError, match="extra_ids"):
        check_configuration({"extra_ids": count, "model_max_length": 10**30}, tmp_path / "tokenizer_config.json")
    check_configuration({"extra_ids": 100, "model_max_length": 10**30}, tmp_path / "tokenizer_config.json")
