"""Every preset on the toy and on pocket; exact presets give the bytes of the plain pipeline."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shutil

import pytest
import torch

import fluxnb as fnb
from fluxnb.checkpoints.sources import POCKET
from fluxnb.errors import InputError, RunError, StorageError
from fluxnb.planning.presets import PRESETS
from fluxnb.planning.requirements import Workload
from fluxnb.runtime import streaming
from fluxnb.runtime.assembly import assemble
from tests.conftest import toy_pipeline
from tests.interrupts import Opcodes
from tests.io.test_headers import safetensors
from tests.offload import group_offload
from tests.plain_calls import plain_call

CPU = torch.device("cpu")
EXACT = ("resident", "lean", "stream", "stream-mapped", "cpu")
REQUEST = {"seed": 3, "steps": 4}


def built(folder, preset, dtype=torch.float32, **options):
    with group_offload():
        pipe = assemble(folder, PRESETS[preset], device=CPU, dtype=dtype, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.moderate
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("preset", EXACT)
def test_an_exact_preset_gives_the_bytes_of_the_plain_pipeline(toy_folder, preset, dtype):
    plain = fnb.load(toy_folder, dtype=dtype)
    flux = fnb.load(built(toy_folder, preset, getattr(torch, dtype)))
    trajectory = fnb.run(flux, "a fox holding a sign", **REQUEST)
    assert trajectory.image.tobytes() == fnb.run(plain, "a fox holding a sign", **REQUEST).image.tobytes()
    assert flux.dtype == dtype


@pytest.mark.moderate
@pytest.mark.parametrize("preset", ["lean", "stream", "lean-fp8"])
def test_load_accepts_a_preset_by_name(toy_folder, preset):
    with group_offload():
        flux = fnb.load(toy_folder, preset=preset)
    assert flux.plan.preset == preset and flux.plan.exact == PRESETS[preset].exact
    trajectory = fnb.run(flux, "a fox", **REQUEST)
    assert trajectory.numerics == ("exact" if flux.plan.exact else preset)


@pytest.mark.moderate
def test_a_component_can_be_in_another_folder(tmp_path):
    student = toy_pipeline(seed=5).transformer
    student.save_pretrained(tmp_path / "student")
    with pytest.raises(RuntimeError):  # the toy's width is not pocket's, so this transformer was really taken
        pipe = built(POCKET / "base", "lean", parts={"transformer": tmp_path / "student"})
        fnb.run(fnb.load(pipe), "a fox", **REQUEST)


@pytest.mark.parametrize("preset", ["lean", "stream"])
def test_the_plain_call_of_diffusers_works_under_a_preset(toy_folder, toy_trajectory, preset):
    assert plain_call(built(toy_folder, preset), toy_trajectory.recipe).tobytes() == toy_trajectory.image.tobytes()


def test_a_weight_that_two_layers_share_is_in_memory_once(toy_folder):
    encoder = built(toy_folder, "resident").text_encoder_2
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight


def test_text_encoders_take_no_memory_between_prompts(toy_folder):
    pipe = built(toy_folder, "lean")
    encoders = [pipe.text_encoder, pipe.text_encoder_2]
    for _ in range(2):
        assert all(weight.is_meta for encoder in encoders for weight in encoder.parameters())
        pipe.encode_prompt("a fox", None, max_sequence_length=48)


@pytest.mark.moderate
def test_in_float16_the_encoders_are_those_that_transformers_loads(toy_folder):
    plain, flux = fnb.load(toy_folder, dtype="float16"), fnb.load(built(toy_folder, "lean", torch.float16))
    wide = {name for name, weight in flux.pipe.text_encoder_2.named_parameters() if weight.dtype is torch.float32}
    assert wide and wide == {
        name for name, weight in plain.pipe.text_encoder_2.named_parameters() if weight.dtype is torch.float32
    }
    mine, theirs = (each.encode(each.resolve(fnb.Recipe(prompt="a fox"))) for each in (flux, plain))
    assert torch.equal(mine.embeds, theirs.embeds) and torch.equal(mine.pooled, theirs.pooled)


@pytest.mark.moderate
def test_an_encoder_that_fails_releases_its_weights(toy_folder):
    pipe = built(toy_folder, "lean")
    layer = pipe.text_encoder_2.encoder.block[0].layer[0].SelfAttention.q
    with pytest.raises(RuntimeError):
        layer(torch.zeros(1, 7))  # the wrong width
    assert layer.weight.is_meta


@pytest.mark.moderate
def test_a_new_prompt_is_encoded_as_by_the_plain_pipeline(toy_folder, toy):
    flux = fnb.load(built(toy_folder, "lean"))
    for prompt in ("a cat", "a blue dog on snow", "a fox and nothing else, however long the prompt may be"):
        recipe = flux.resolve(fnb.Recipe(prompt=prompt))
        mine, plain = flux.encode(recipe), toy.encode(toy.resolve(fnb.Recipe(prompt=prompt)))
        assert torch.equal(mine.embeds, plain.embeds) and torch.equal(mine.pooled, plain.pooled)


def first_velocity(pipe):
    """Nothing is decoded: some CPUs take a minute for a picture in bfloat16."""
    with fnb.recording(pipe) as recorder:
        pipe("a fox", height=128, width=128, num_inference_steps=1, max_sequence_length=48, output_type="latent",
             generator=torch.Generator().manual_seed(1))  # fmt: skip
    return recorder.trajectories[0].steps[0].v.float()


@pytest.mark.moderate
@pytest.mark.parametrize("storage", ["fp8", "int8", "nf4"])
def test_quantized_weights_are_close_and_only_inside_the_blocks(storage):
    for library in {"int8": ["torchao"], "nf4": ["bitsandbytes"]}.get(storage, []):
        pytest.importorskip(library)
    pipe = built(POCKET / "base", f"lean-{storage}", torch.bfloat16)
    mine, theirs = (first_velocity(each) for each in (pipe, built(POCKET / "base", "resident", torch.bfloat16)))
    error = ((mine - theirs).norm() / theirs.norm()).item()
    assert 1e-4 < error < 0.15, error
    assert pipe.transformer.x_embedder.weight.dtype is torch.bfloat16
    assert pipe.transformer.proj_out.weight.dtype is torch.bfloat16


@pytest.mark.moderate
def test_eight_bit_storage_halves_the_blocks(toy_folder):
    def size(pipe):
        return sum(p.numel() * p.element_size() for p in pipe.transformer.transformer_blocks[0].attn.parameters())

    half, quarter = (size(built(toy_folder, name, torch.bfloat16)) for name in ("lean", "lean-fp8"))
    assert quarter < 0.6 * half


def test_a_missing_library_is_an_error(toy_folder, monkeypatch):
    import importlib

    real = importlib.import_module

    def missing(name, *rest):
        if name == "bitsandbytes":
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match="pip install bitsandbytes"):
        built(toy_folder, "lean-nf4")


@pytest.mark.moderate
def test_offloading_blocks_changes_no_bytes(toy_folder, toy_trajectory, monkeypatch):
    from fluxnb.runtime import assembly

    seen = []

    @contextlib.contextmanager
    def noted(layers, waiting):
        seen.append(len(layers))
        yield

    monkeypatch.setattr(assembly, "offloaded_blocks", noted)
    assert (
        plain_call(built(toy_folder, "lean", offload_blocks=True), toy_trajectory.recipe).tobytes()
        == toy_trajectory.image.tobytes()
    )
    assert seen == [1]


@pytest.mark.moderate
def test_a_compiled_decoder_offloads_blocks_too(toy_folder, monkeypatch):
    from fluxnb.runtime import assembly

    seen = []

    @contextlib.contextmanager
    def noted(layers, waiting):
        seen.append("away")
        yield
        seen.append("back")

    monkeypatch.setattr(assembly, "offloaded_blocks", noted)
    pipe = built(toy_folder, "lean", offload_blocks=True)
    pipe.vae.decoder.compile(backend="eager")
    with torch.no_grad():
        for _ in range(2):
            pipe.vae.decode(torch.zeros(1, 16, 8, 8))
    assert seen == ["away", "back"] * 2


@pytest.mark.moderate
def test_an_overflow_in_float16_is_an_error_that_names_the_part(toy_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(toy_folder, tmp_path / "wild")
    file = folder / "text_encoder_2" / "model.safetensors"
    weights = load_file(file)
    weights["encoder.final_layer_norm.weight"].fill_(1e30)
    save_file(weights, file, metadata={"format": "pt"})
    flux = fnb.load(built(folder, "lean", torch.float16))
    with pytest.raises(RunError, match="T5's text embedding is not finite in float16"):
        fnb.run(flux, "a fox", **REQUEST)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: (f / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"\0" * 100),
        lambda f: (f / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        lambda f: (f / "text_encoder_2" / "model.safetensors").unlink(),
        lambda f: (f / "transformer" / "config.json").write_text("{"),
        lambda f: (f / "model_index.json").write_text("["),
        lambda f: shutil.rmtree(f / "tokenizer"),
    ],
)
def test_a_damaged_folder_is_an_error(toy_folder, tmp_path, damage):
    folder = shutil.copytree(toy_folder, tmp_path / "copy")
    damage(folder)
    with pytest.raises(StorageError) as caught:
        built(folder, "lean")
    assert str(folder) in str(caught.value) and caught.value.remedy


def test_a_weight_that_is_missing_from_its_file_is_named(toy_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(toy_folder, tmp_path / "copy")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.pop("proj_out.bias")
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(StorageError, match=r"proj_out\.bias"):
        built(folder, "lean")


def test_a_model_in_shards_is_the_same_model(toy_folder, toy_trajectory, tmp_path):
    folder = shutil.copytree(toy_folder, tmp_path / "sharded")
    shutil.rmtree(folder / "transformer")
    toy_pipeline().transformer.save_pretrained(folder / "transformer", max_shard_size="50KB")
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 2
    assert plain_call(built(folder, "lean"), toy_trajectory.recipe).tobytes() == toy_trajectory.image.tobytes()


def test_a_missing_shard_is_an_error(toy_folder, tmp_path):
    folder = shutil.copytree(toy_folder, tmp_path / "sharded")
    shutil.rmtree(folder / "transformer")
    toy_pipeline().transformer.save_pretrained(folder / "transformer", max_shard_size="50KB")
    sorted((folder / "transformer").glob("*.safetensors"))[1].unlink()
    with pytest.raises(StorageError, match="missing, damaged"):
        built(folder, "lean")


def test_an_index_that_points_outside_its_folder_stays_inside(tmp_path):
    import json

    from fluxnb.runtime.streaming import WeightReader

    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../../etc/passwd"}}))
    with pytest.raises(StorageError) as caught:
        WeightReader(tmp_path)["w"]
    assert ".." not in str(caught.value)


def test_a_weight_of_a_number_format_that_pytorch_lacks_is_a_storage_error(tmp_path):
    from fluxnb.runtime.streaming import WeightReader, load_by_layer

    entry = {"dtype": "F6_E2M3", "shape": [8], "data_offsets": [0, 6]}
    (tmp_path / "model.safetensors").write_bytes(safetensors({"bias": entry}, bytes(6)))
    with pytest.raises(StorageError, match="does not open"):
        WeightReader(tmp_path)["bias"]
    with pytest.raises(StorageError):  # passing a reader to a function reads no weight
        load_by_layer(torch.nn.Linear(8, 8, device="meta"), WeightReader(tmp_path), torch.device("cpu"))


@pytest.mark.moderate
def test_out_of_memory_is_an_error_that_names_the_next_preset(toy, monkeypatch):
    flux = copy.copy(toy)
    flux.plan = fnb.plan("schnell", "rtx-4090")

    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(toy.pipe.vae), "decode", full)
    with pytest.raises(RunError, match=rf'Try preset="{flux.plan.next_smaller}"') as caught:
        flux.decode(torch.zeros(1, 16, 8, 8))
    assert flux.plan.next_smaller and caught.value.__cause__ is None


@pytest.mark.parametrize("wrong", ["fp4", 2, None])
def test_an_unknown_value_of_fast_is_an_error(toy_folder, wrong):
    with pytest.raises(InputError, match="fast="):
        fnb.load(toy_folder, fast=wrong)


@pytest.mark.slow
def test_fast_reports_its_speedups_and_changes_little(toy_folder):
    plain = fnb.load(toy_folder)
    flux = fnb.load(toy_folder, fast=True)
    assert not flux.plan.exact and flux.plan.preset.endswith(", fast")
    assert [speedup.name.removesuffix(", not used") for speedup in flux.plan.fast.speedups] == [
        "compiled blocks, one product for q, k and v", "decoder compiled in channels-last",
    ]  # fmt: skip
    assert all(speedup.before > 0 and speedup.after > 0 for speedup in flux.plan.fast.speedups)
    mine, theirs = (fnb.run(each, "a fox", **REQUEST) for each in (flux, plain))
    assert torch.allclose(mine.steps[0].v, theirs.steps[0].v, atol=1e-4)
    assert mine.numerics == flux.plan.preset != "exact"


@pytest.mark.slow
@pytest.mark.parametrize("used", [True, False], ids=["faster", "slower"])
def test_the_first_picture_after_fast_compiles_nothing_more(toy_folder, monkeypatch, used):
    from torch._dynamo.utils import counters

    from fluxnb.runtime import compilation

    measured = compilation._compile_decoder

    def decided(*given, **options):
        times = iter((2.0, 1.0) if used else (1.0, 2.0))
        with monkeypatch.context() as patch:
            patch.setattr(compilation, "seconds", lambda call, rounds: (call(), next(times))[1])
            return measured(*given, **options)

    monkeypatch.setattr(compilation, "_compile_decoder", decided)
    flux = fnb.load(toy_folder, fast=True)
    graphs = counters["stats"]["unique_graphs"]
    fnb.run(flux, "a fox", **REQUEST)
    assert counters["stats"]["unique_graphs"] == graphs > 0
    assert flux.plan.fast.speedups[-1].name.endswith(", not used") is not used


@pytest.mark.moderate
def test_a_decoder_that_is_slower_when_compiled_is_not_compiled(toy_folder, monkeypatch):
    from fluxnb.runtime import compilation

    pipe, times = built(toy_folder, "lean"), iter((1.0, 2.0))
    decoder = pipe.vae.decoder
    monkeypatch.setattr(type(decoder), "compile", lambda self: setattr(self, "_compiled_call_impl", self._call_impl))
    monkeypatch.setattr(compilation, "seconds", lambda *_: next(times))
    speedup = compilation._compile_decoder(pipe, lambda: None, torch.device("cpu"), 1)
    assert speedup.name.endswith(", not used") and decoder._compiled_call_impl is None
    assert all(weight.is_contiguous() for weight in pipe.vae.parameters())


def test_with_little_memory_only_the_compiled_decoder_runs(toy_folder, monkeypatch):
    from fluxnb.runtime import compilation

    pipe, ran = built(toy_folder, "lean"), []
    decoder = pipe.vae.decoder
    monkeypatch.setattr(type(decoder), "compile", lambda self: setattr(self, "_compiled_call_impl", self._call_impl))
    speedup = compilation._compile_decoder(
        pipe, lambda: ran.append(decoder._compiled_call_impl), torch.device("cpu"), 1, low_memory=True
    )
    assert ran and all(ran)
    assert speedup.before is speedup.factor is None and "->" not in repr(speedup)


def test_evaluations_are_not_replayed_when_blocks_are_offloaded(toy_folder, monkeypatch):
    from fluxnb.pipeline import load as loading

    options, chosen = {}, fnb.plan(toy_folder)
    monkeypatch.setattr(loading.planning, "plan", lambda *_, **__: dataclasses.replace(chosen, offload_blocks=True))
    monkeypatch.setattr(loading, "compile_pipeline", lambda *_, **given: options.update(given))
    fnb.load(toy_folder, fast=True)
    assert options["graphs"] is False


@pytest.mark.parametrize(("after", "used"), [(0.9, True), (0.98, True), (0.995, False), (1.1, False)])
def test_evaluations_are_replayed_where_that_is_faster(toy_folder, monkeypatch, after, used):
    from fluxnb.runtime import compilation
    from fluxnb.runtime.cuda_graphs import GraphReplay
    from tests.runtime.test_cuda_graphs import Recorder, ask

    transformer, recorder = built(toy_folder, "lean").transformer, Recorder()
    monkeypatch.setattr(compilation, "GraphReplay", lambda given: GraphReplay(given, recorder))
    monkeypatch.setattr(compilation, "seconds", lambda *_: after)
    speedup = compilation._use_graphs(transformer, lambda: ask(transformer), 1.0, 1)
    assert isinstance(transformer.forward, GraphReplay) is used is not speedup.name.endswith(", not used")
    assert recorder.recorded == 1


@pytest.mark.moderate
def test_fused_projections_change_little_and_hold_no_weight_twice(toy_folder):
    from fluxnb.runtime.compilation import _fuse_projections

    pipe = built(toy_folder, "lean")
    before, size = first_velocity(pipe), sum(weight.numel() for weight in pipe.transformer.parameters())
    assert _fuse_projections(pipe.transformer)
    assert sum(weight.numel() for weight in pipe.transformer.parameters()) == size
    assert torch.allclose(first_velocity(pipe), before, atol=1e-4)


def test_projections_of_quantized_weights_are_not_fused(toy_folder):
    from fluxnb.runtime.compilation import _fuse_projections

    pipe = built(toy_folder, "lean-fp8", torch.bfloat16)
    assert not _fuse_projections(pipe.transformer) and hasattr(pipe.transformer.transformer_blocks[0].attn, "to_q")


@pytest.mark.parametrize("preset", ["model-offload", "sequential-offload"])
def test_assemble_refuses_the_offloads_of_diffusers(toy_folder, preset):
    with pytest.raises(InputError, match=r"try fnb\.load|Try fnb\.load"):
        built(toy_folder, preset)


def test_fast_refuses_a_preset_that_moves_its_weights(toy_folder):
    from fluxnb.runtime.compilation import compile_pipeline

    pipe = built(toy_folder, "lean")
    pipe.transformer.to("meta")
    with pytest.raises(InputError, match="weights in one place"):
        compile_pipeline(pipe, CPU, Workload(size=64, text=48))


def test_an_interrupt_never_leaves_blocks_without_their_weights():
    block = torch.nn.Linear(2, 2, device="meta")  # stands for a GPU: weights on the CPU are not moved
    copies = {weight: torch.ones(weight.shape) for weight in block.parameters()}
    shapes = [weight.shape for weight in block.parameters()]

    def move(interrupt):
        with interrupt, streaming.offloaded_blocks([block], copies):
            assert all(weight.numel() == 0 for weight in block.parameters())

    move(dry := Opcodes(file=streaming.__file__))
    assert len(dry.places) > 50
    for index, place in enumerate(dry.places):
        with contextlib.suppress(KeyboardInterrupt):
            move(Opcodes(index, file=streaming.__file__))
        assert [weight.shape for weight in block.parameters()] == shapes, place
