"""Adapters under every preset: the picture of plain diffusers with the same adapter, or a refusal that changes nothing.

`python -m tests.runtime.test_adapters` prints the outcome of every preset, target and action.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

import fluxnb as fnb
from fluxnb.errors import InputError
from fluxnb.pipeline.identity import identity_of
from fluxnb.planning.presets import PRESETS
from fluxnb.planning.requirements import Workload
from fluxnb.runtime.adapters import support_adapters
from fluxnb.runtime.assembly import assemble
from fluxnb.runtime.compilation import compile_pipeline
from fluxnb.runtime.quantisation import block_layers
from fluxnb.runtime.streaming import WeightReader
from tests.conftest import toy_pipeline
from tests.offload import group_offload

pytestmark = pytest.mark.slow

peft = pytest.importorskip("peft")

CPU = torch.device("cpu")
COMPILED = "resident, fast"  # the shape checks of these tests exclude "lean, fast", where the table has it
HELD = ("cpu", "resident", "lean", "lean-fp8", "stream", "stream-mapped")
TARGETS = {
    "attention": ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    "feed-forward": ("ff.net.0.proj", "ff.net.2", "ff_context.net.2", "proj_mlp", "blocks.0.proj_out"),
    "modulation": ("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear"),
}
ALL = tuple(name for names in TARGETS.values() for name in names)


# ----------------------------------------------------------------------------------------------- pipelines and adapters
@functools.cache
def toy_files():
    folder = Path(tempfile.mkdtemp(prefix="fluxnb-tests-")) / "toy"
    toy_pipeline().save_pretrained(folder)
    return folder


def plain(preset="resident"):
    """The plain pipeline with the numbers that the preset stores."""
    pipe = toy_pipeline()
    if PRESETS[preset.partition(", ")[0]].storage == "fp8":
        for layer in block_layers(pipe.transformer).values():
            for weight in layer.parameters():
                weight.data = weight.data.to(torch.float8_e4m3fn).float()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def held(preset, **options):
    """The pipeline under a preset; "resident, fast" is `resident` with compiled blocks."""
    preset, _, fast = preset.partition(", ")
    with group_offload():
        pipe = assemble(toy_files(), PRESETS[preset], device=CPU, dtype=torch.float32, **options)
    pipe.set_progress_bar_config(disable=True)
    if fast:
        compile_pipeline(pipe, CPU, Workload(size=64, text=48), rounds=1)
    return pipe


@functools.cache
def adapter(targets, component="transformer", seed=1):
    """The tensors of an adapter with random weights, in the layout of trainers."""
    from peft.utils import get_peft_model_state_dict

    model, generator = getattr(toy_pipeline(), component), torch.Generator().manual_seed(seed)
    config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=list(targets), init_lora_weights=False)
    peft.inject_adapter_in_model(config, model)
    return {
        f"{component}.{name}": torch.randn(tensor.shape, generator=generator) * 0.3
        for name, tensor in get_peft_model_state_dict(model).items()
    }


def load(pipe, targets, name="style", **options):
    pipe.load_lora_weights(dict(adapter(targets, **options)), adapter_name=name)


def drawn(pipe, kind="pt"):
    generator = torch.Generator().manual_seed(3)
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "max_sequence_length": 48, "output_type": kind}
    return pipe("a fox", generator=generator, **options).images[0]


# ---------------------------------------------------------------------------------------------------------- the table
ACTIONS = {
    "load": [load],
    "scale": [load, lambda pipe, _: pipe.set_adapters(["style"], [0.4])],
    "fuse": [load, lambda pipe, _: pipe.fuse_lora(lora_scale=0.7)],
    "unload": [load, lambda pipe, _: pipe.unload_lora_weights()],
    "disable": [load, lambda pipe, _: pipe.disable_lora()],
    "unfuse": [load, lambda pipe, _: pipe.fuse_lora(), lambda pipe, _: pipe.unfuse_lora()],
    "fuse, unload": [load, lambda pipe, _: pipe.fuse_lora(), lambda pipe, _: pipe.unload_lora_weights()],
    "fuse, disable": [load, lambda pipe, _: pipe.fuse_lora(), lambda pipe, _: pipe.disable_lora()],
    "two": [
        load,
        lambda pipe, targets: load(pipe, targets, "second", seed=2),
        lambda pipe, _: pipe.set_adapters(["style", "second"], [0.5, 0.8]),
    ],
    "delete": [
        load,
        lambda pipe, targets: load(pipe, targets, "second", seed=2),
        lambda pipe, _: pipe.delete_adapters("style"),
    ],
}
FUSING = ("fuse", "unfuse", "fuse, unload", "fuse, disable")
REFUSED = {("lean-fp8", target, action) for target in ("attention", "feed-forward") for action in FUSING}


@functools.cache
def expected(preset, target, action, kind):
    """Of plain diffusers: the picture before the action, after it, and after unloading."""
    pipe = plain(preset)
    pictures = [drawn(pipe, kind)]
    for step in ACTIONS[action]:
        step(pipe, TARGETS[target])
    pictures.append(drawn(pipe, kind))
    pipe.unload_lora_weights()
    return (*pictures, drawn(pipe, kind))


def outcome(pipe, preset, target, action):
    """ "exact", "close" or "refused"; raises AssertionError for a wrong picture and for a pipeline that was changed."""
    kind = "latent" if "fast" in preset else "pt"  # a compiled decoder is close
    _, changed, unloaded = expected(preset, target, action, kind)
    result = "exact"
    for step in ACTIONS[action]:
        before = drawn(pipe, kind)
        try:
            step(pipe, TARGETS[target])
        except InputError as error:
            assert error.given and error.possible and error.remedy
            assert torch.equal(drawn(pipe, kind), before)
            result = "refused"
            break
    if result == "exact":
        result = compared(drawn(pipe, kind), changed)
    pipe.unload_lora_weights()
    assert result == "refused" or compared(drawn(pipe, kind), unloaded)
    return result


def compared(mine, theirs):
    if torch.equal(mine, theirs):
        return "exact"
    assert torch.allclose(mine, theirs, atol=1e-5)
    return "close"


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("preset", HELD)
def test_a_preset_draws_as_plain_diffusers_or_refuses(preset, target, action):
    before, changed, _ = expected(preset, target, action, "pt")
    assert action in ("unload", "disable", "fuse, disable") or not torch.allclose(before, changed, atol=1e-5)
    refused = (preset, target, action) in REFUSED
    assert outcome(held(preset), preset, target, action) == ("refused" if refused else "exact")


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_with_an_adapter_a_compiled_pipeline_computes_as_plain_diffusers(target):
    pipe = held(COMPILED)
    assert pipe.transformer.transformer_blocks[0].attn.fused_projections
    compiled = drawn(pipe, "latent")
    for action in ACTIONS:
        if action not in FUSING:  # weights are not what they were afterwards
            with_adapter = action != "unload"
            assert outcome(pipe, COMPILED, target, action) in (("exact",) if with_adapter else ("exact", "close"))
            assert torch.equal(drawn(pipe, "latent"), compiled)
    for action in FUSING:
        assert outcome(held(COMPILED), COMPILED, target, action) in ("exact", "close")


def print_table():
    print(f"{'':30}" + "".join(f"{action:>15}" for action in ACTIONS))
    for preset in (*HELD, "resident, fast", "lean, fast"):
        for target in TARGETS:
            row = [outcome(held(preset), preset, target, action) for action in ACTIONS]
            print(f"{preset:16}{target:14}" + "".join(f"{result:>15}" for result in row), flush=True)


# ------------------------------------------------------------------------------------------- other ways to an adapter
@pytest.mark.parametrize("preset", HELD)
def test_an_adapter_for_the_text_encoder_is_exact(preset):
    pipe, reference = held(preset), plain(preset)
    for each in (pipe, reference):
        load(each, ("q_proj", "v_proj", "fc1"), component="text_encoder")
    assert torch.equal(drawn(pipe), drawn(reference))
    assert not torch.equal(drawn(pipe), drawn(plain(preset)))
    pipe.unload_lora_weights()
    assert torch.equal(drawn(pipe), drawn(plain(preset)))


def test_an_adapter_is_not_fused_into_a_text_encoder_that_is_read_layer_by_layer():
    pipe = held("lean")
    load(pipe, ("q_proj",), component="text_encoder")
    before = drawn(pipe)
    with pytest.raises(InputError, match="read from a file"):
        pipe.fuse_lora(components=["text_encoder"])
    assert torch.equal(drawn(pipe), before)


@pytest.mark.parametrize("preset", HELD)
def test_an_adapter_can_be_added_to_the_transformer_itself(preset):
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=list(ALL), init_lora_weights=True)
    pipe, reference = held(preset), plain(preset)
    for each in (pipe, reference):
        each.transformer.add_adapter(copy.deepcopy(config), "style")
        generator = torch.Generator().manual_seed(5)
        for name, weight in each.transformer.named_parameters():
            if "lora_" in name:
                weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.3)
    assert torch.equal(drawn(pipe), drawn(reference))


@pytest.mark.parametrize("preset", ["lean", "stream", "lean-fp8"])
@pytest.mark.parametrize("option", ["use_dora", "init_lora_weights"])
def test_an_adapter_that_reads_the_weights_of_its_layers_is_refused(preset, option):
    given = {"use_dora": True, "init_lora_weights": "olora"}[option]
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["norm1.linear"], **{option: given})
    pipe = held(preset)
    before = drawn(pipe)
    with pytest.raises(InputError, match=option):
        pipe.transformer.add_adapter(config)
    assert torch.equal(drawn(pipe), before) and not hasattr(pipe.transformer, "peft_config")


@pytest.mark.parametrize("loaded", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("preset", HELD)
def test_an_adapter_that_does_not_load_changes_nothing(preset, loaded):
    pipe = held(preset)
    if loaded:
        load(pipe, ALL)
    before, modules = drawn(pipe), [(name, type(module)) for name, module in pipe.transformer.named_modules()]
    damaged = dict(adapter(ALL, seed=2))
    name = "transformer.single_transformer_blocks.0.norm.linear.lora_B.weight"
    damaged[name] = damaged[name][:-1]
    with pytest.raises((RuntimeError, ValueError)):
        pipe.load_lora_weights(damaged, adapter_name="damaged")
    assert torch.equal(drawn(pipe), before)
    assert [(name, type(module)) for name, module in pipe.transformer.named_modules()] == modules
    assert list(getattr(pipe.transformer, "peft_config", {})) == ["style"] * loaded


def test_an_interrupt_while_an_adapter_loads_changes_nothing(monkeypatch):
    pipe = held("stream")
    before = drawn(pipe)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(peft, "set_peft_model_state_dict", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load(pipe, ALL)
    assert torch.equal(drawn(pipe), before)
    monkeypatch.undo()
    load(pipe, ALL)
    assert not torch.equal(drawn(pipe), before)


def test_a_copy_of_a_pipeline_has_adapters_of_its_own():
    pipe = held("lean")
    before, twin = drawn(pipe), copy.deepcopy(pipe)
    load(twin, ALL)
    assert torch.equal(drawn(pipe), before) and not torch.equal(drawn(twin), before)


def test_weights_quantized_by_torchao_take_no_adapter():
    class Quantized(torch.Tensor):
        def __tensor_flatten__(self):
            return [], None

    pipe = held("lean")
    layer = pipe.transformer.transformer_blocks[0].ff.net[2]
    layer._parameters["weight"] = layer.weight.data.as_subclass(Quantized)
    for change in (lambda: load(pipe, ALL), pipe.transformer.unfuse_qkv_projections):
        with pytest.raises(InputError, match="torchao"):
            change()


def test_fusing_discards_copies_of_the_weights():
    pipe, copies = plain(), {}
    support_adapters(pipe, CPU, copies=copies)
    load(pipe, ALL)
    for change in (pipe.fuse_lora, pipe.unfuse_lora, pipe.unload_lora_weights):
        copies["weight"] = torch.ones(1)
        change()
        assert not copies


def test_fusing_into_memory_mapped_weights_leaves_the_file_as_it_is():
    reader = WeightReader(toy_files() / "transformer", memory_mapped=True)
    before = reader["proj_out.weight"].clone()
    reader["proj_out.weight"].add_(1.0)
    assert torch.equal(WeightReader(toy_files() / "transformer")["proj_out.weight"], before)


@pytest.mark.parametrize("gguf_type", ["gguf-q8"])
def test_a_gguf_transformer_takes_an_adapter_and_refuses_to_fuse_it(gguf_type, tmp_path):
    pytest.importorskip("gguf")
    from fluxnb.runtime.gguf import GgufReader
    from tests.benchmarks.random_gguf import write_gguf

    reference = plain()
    write_gguf(tmp_path / "toy-Q8_0.gguf", reference.transformer)
    reader = GgufReader(tmp_path / "toy-Q8_0.gguf", 32, dequantize=True)
    for name, weight in reference.transformer.named_parameters():
        weight.data.copy_(reader[name])
    pipe = held(gguf_type, gguf=tmp_path / "toy-Q8_0.gguf")
    before = drawn(pipe)
    for each in (pipe, reference):
        load(each, ALL)
    adapted = drawn(pipe)
    assert torch.allclose(adapted, drawn(reference), atol=1e-4) and not torch.allclose(adapted, before, atol=1e-4)
    with pytest.raises(InputError, match="quantized"):
        pipe.fuse_lora()
    assert torch.equal(drawn(pipe), adapted)
    pipe.unload_lora_weights()
    assert torch.equal(drawn(pipe), before)


# -------------------------------------------------------------------------------------------------------------- keys
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("preset", ["cpu", "resident", "lean", "stream", "stream-mapped"])
def test_each_state_of_an_adapter_has_an_identity_of_its_own(preset, target):
    pipe = held(preset)
    drawn(pipe)
    digests = {"base": identity_of(pipe).digest}
    for name, change in {
        "loaded": lambda: load(pipe, TARGETS[target]),
        "scaled": lambda: pipe.set_adapters(["style"], [0.4]),
        "disabled": pipe.disable_lora,
    }.items():
        change()
        assert not identity_of(pipe).unknown
        digests[name] = identity_of(pipe).digest
    pipe.enable_lora()
    assert identity_of(pipe).digest == digests["scaled"]
    pipe.unload_lora_weights()
    assert identity_of(pipe).digest == digests["base"]
    load(pipe, TARGETS[target])
    pipe.fuse_lora()
    digests["fused"] = identity_of(pipe).digest
    pipe.unload_lora_weights()
    digests["fused and unloaded"] = identity_of(pipe).digest
    assert len(set(digests.values())) == len(digests)


def test_a_store_holds_no_picture_of_another_state(tmp_path):
    pipe = held("lean")
    flux = fnb.load(pipe)
    grid = {"prompts": "a fox", "seeds": 3, "steps": 2, "height": 64, "width": 64, "store": tmp_path}
    keys = []
    for change in (
        lambda: None,
        lambda: load(pipe, TARGETS["modulation"]),
        lambda: pipe.set_adapters(["style"], [0.4]),
        pipe.fuse_lora,
        pipe.unload_lora_weights,
    ):
        change()
        cell = fnb.sweep(flux, **grid)[0]
        keys.append(cell.key)
        assert cell.image.tobytes() == fnb.run(flux, "a fox", seed=3, steps=2, height=64, width=64).image.tobytes()
    assert len(set(keys)) == len(keys)


# ---------------------------------------------------------------------------------------------------- moving weights
MOVES = {
    "to another dtype": lambda pipe: pipe.to(torch.bfloat16),
    "to another device": lambda pipe: pipe.to("meta"),
    "to both": lambda pipe: pipe.to("cpu", torch.bfloat16),
    "to keywords": lambda pipe: pipe.to(device="cpu", dtype=torch.bfloat16),
    "model offload": lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    "sequential offload": lambda pipe: pipe.enable_sequential_cpu_offload(device="cpu"),
    "group offload": lambda pipe: pipe.enable_group_offload(onload_device=CPU, offload_type="leaf_level"),
    "textual inversion": lambda pipe: pipe.load_textual_inversion({"<new>": torch.ones(1, 32)}),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("preset", ["cpu", "lean", "lean-fp8", "stream", "stream-mapped"])
def test_a_move_that_a_preset_excludes_is_refused_whole(preset, move):
    pipe = held(preset)
    before = drawn(pipe)
    with pytest.raises(InputError) as caught:
        MOVES[move](pipe)
    assert caught.value.given and caught.value.possible and caught.value.remedy
    assert torch.equal(drawn(pipe), before)


@pytest.mark.parametrize(
    "change",
    [
        lambda pipe: pipe.to("cpu"),
        lambda pipe: pipe.to(torch.float32),
        lambda pipe: pipe.to("cpu", torch.float32),
        lambda pipe: pipe.to(),
        lambda pipe: pipe.remove_all_hooks(),
        lambda pipe: pipe.enable_attention_slicing(),
        lambda pipe: pipe.vae.enable_slicing(),
        lambda pipe: pipe.reset_device_map(),
        lambda pipe: pipe.maybe_free_model_hooks(),
    ],
    ids=["device", "dtype", "both", "nothing", "hooks", "attention slicing", "vae slicing", "device map", "free hooks"],
)
@pytest.mark.parametrize("preset", HELD)
def test_a_setting_that_moves_no_weights_works(preset, change):
    pipe = held(preset)
    before = drawn(pipe)
    change(pipe)
    assert torch.equal(drawn(pipe), before)
    assert pipe._execution_device == CPU


def test_a_resident_pipeline_can_be_moved():
    pipe = held("resident")
    pipe.to(torch.bfloat16)
    assert pipe.transformer.dtype is pipe.text_encoder.dtype is torch.bfloat16
    assert drawn(pipe).isfinite().all()


@pytest.mark.parametrize("preset", HELD)
def test_projections_are_fused_or_refused(preset):
    pipe, reference = held(preset), plain(preset)
    before = drawn(pipe)
    if preset == "lean-fp8":
        with pytest.raises(InputError, match="8 bits"):
            pipe.transformer.fuse_qkv_projections()
    else:
        for each in (pipe, reference):
            each.transformer.fuse_qkv_projections()
        assert torch.equal(drawn(pipe), drawn(reference))
        pipe.transformer.unfuse_qkv_projections()
    assert torch.equal(drawn(pipe), before)
    load(pipe, ALL)
    adapted = drawn(pipe)
    with pytest.raises(InputError, match="leave out the adapters"):
        pipe.transformer.fuse_qkv_projections()
    assert torch.equal(drawn(pipe), adapted)


def test_diffusers_sees_no_offload_of_its_own_in_a_preset():
    from diffusers.loaders.lora_base import LoraBaseMixin

    for preset, streamed in (("lean", False), ("stream", True)):
        with contextlib.suppress(AttributeError):
            assert LoraBaseMixin._optionally_disable_offloading(held(preset)) == (False, False, streamed)


def test_an_adapter_waits_for_a_forward_pass_in_another_thread():
    import threading

    pipe = held("lean")
    inside, finish, order = threading.Event(), threading.Event(), []

    class Pause(nn.Identity):
        def forward(self, x):
            inside.set()
            finish.wait(10)
            order.append("evaluated")
            return x

    norm = pipe.transformer.norm_out
    handle = norm.register_forward_pre_hook(lambda _, inputs: (Pause()(inputs[0]), *inputs[1:]))
    run = threading.Thread(target=drawn, args=(pipe,))
    run.start()
    assert inside.wait(10)
    change = threading.Thread(target=lambda: (load(pipe, ALL), order.append("loaded")))
    change.start()
    change.join(0.3)
    assert change.is_alive() and not hasattr(pipe.transformer, "peft_config")
    finish.set()
    change.join(30)
    handle.remove()
    run.join(30)
    assert order[0] == "evaluated" and "loaded" in order


# ------------------------------------------------------------------------------------------ pipelines of the same parts
def redrawn(pipe):
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return pipe("a fox", image=picture, strength=0.8, height=64, width=64, num_inference_steps=3, output_type="pt",
                max_sequence_length=48, generator=torch.Generator().manual_seed(3)).images[0]  # fmt: skip


@pytest.mark.parametrize("action", ["load", "fuse", "unfuse"])
@pytest.mark.parametrize("preset", ["lean", "lean-fp8", "stream"])
def test_an_adapter_of_an_image_to_image_pipeline_over_the_same_parts_gives_its_picture_or_a_refusal(preset, action):
    from diffusers import FluxImg2ImgPipeline

    reference = FluxImg2ImgPipeline.from_pipe(plain(preset))
    pipe = FluxImg2ImgPipeline.from_pipe(held(preset))
    for each in (reference, pipe):
        each.set_progress_bar_config(disable=True)
    before = redrawn(pipe)
    refused = False
    try:
        for step in ACTIONS[action]:
            step(pipe, ALL)
    except InputError:
        refused = True
        pipe.unload_lora_weights()
        assert torch.equal(redrawn(pipe), before)
    else:
        for step in ACTIONS[action]:
            step(reference, ALL)
        assert torch.equal(redrawn(pipe), redrawn(reference))
    assert refused == (preset == "lean-fp8" and action in FUSING)


def test_weights_that_are_only_in_their_files_are_not_saved_in_part(tmp_path):
    pipe = held("lean")
    with pytest.raises(InputError, match="only in the files"):
        pipe.transformer.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    held("resident").transformer.save_pretrained(tmp_path)


if __name__ == "__main__":
    print_table()
