"""Every private attribute in compat.py exists in the installed libraries and means what its docstring states."""

from __future__ import annotations

import copy
import inspect
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fluxnb.runtime import compat
from tests.conftest import toy_pipeline
from tests.offload import group_offload


@pytest.fixture
def pipe():
    return toy_pipeline()


# -------------------------------------------------------------------------------------------------------------- torch
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_both_hooks_of_a_call_run_in_the_same_frame(fails):
    module, frames = nn.Identity(), []
    module.register_forward_pre_hook(lambda *_: frames.append(compat.module_call_frame()))
    module.register_forward_hook(lambda *_: frames.append(compat.module_call_frame()), always_call=True)
    if fails:
        module.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            module(1)
    else:
        module(1)
    assert frames[0] is frames[1] and frames[0].f_code.co_name == "_call_impl"


def test_each_nested_call_has_a_frame_of_its_own():
    inner, frames = nn.Identity(), []
    outer = nn.Sequential(inner)
    for module in (outer, inner):
        module.register_forward_pre_hook(lambda *_: frames.append(compat.module_call_frame()))
    outer(1)
    assert len(set(map(id, frames))) == 2


def test_outside_a_module_call_there_is_no_frame():
    with pytest.raises(RuntimeError, match="no call of a module"):
        compat.module_call_frame()


def test_an_interrupt_runs_no_hooks_and_ends_the_frame():
    module, frames = nn.Identity(), []

    def interrupt(*_):
        raise KeyboardInterrupt

    module.register_forward_pre_hook(lambda *_: frames.append(compat.module_call_frame()))
    module.register_forward_pre_hook(interrupt)
    module.register_forward_hook(lambda *_: frames.append(None), always_call=True)
    with pytest.raises(KeyboardInterrupt):
        module(1)
    assert len(frames) == 1
    frames[0].clear()  # raises RuntimeError for a frame that is executing


def test_forward_hooks_are_counted():
    module = nn.Identity()
    assert compat.hook_count(module) == 0
    module.register_forward_hook(lambda *_: None)
    module.register_forward_pre_hook(lambda *_: None)
    assert compat.hook_count(module) == 2


@pytest.mark.moderate
def test_a_compiled_call_can_be_discarded_and_restored():
    class Doubled(nn.Module):  # modules of torch itself are not compiled on their own
        def forward(self, x):
            return 2 * x

    module, compiled = Doubled(), []
    module.compile(backend=lambda graph, _: (compiled.append(1), graph.forward)[1])
    assert module._compiled_call_impl is not None
    call = compat.compiled_call(module)
    compat.discard_compiled_call(module)
    module(torch.ones(1))
    assert not compiled and compat.compiled_call(module) is None
    compat.set_compiled_call(module, call)
    module(torch.ones(1))
    assert compiled


@pytest.mark.parametrize("autotune", [False, True])
def test_compiler_options_are_set_inside_the_block_and_restored_after_it(autotune):
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    before = (dynamo.cache_size_limit, inductor.max_autotune, inductor.coordinate_descent_tuning)
    with compat.compiler_options(autotune):
        assert dynamo.cache_size_limit == 128
        assert inductor.max_autotune == inductor.coordinate_descent_tuning == autotune
    assert before == (dynamo.cache_size_limit, inductor.max_autotune, inductor.coordinate_descent_tuning)


# ---------------------------------------------------------------------------------------------------------- diffusers
def test_diffusers_has_the_attention_backends():
    from diffusers.models.attention_dispatch import AttentionBackendName

    assert set(compat.ATTENTION_BACKENDS) <= {name.value for name in AttentionBackendName}


def test_model_offload_hooks_move_their_models(pipe):
    assert not compat.model_offload_hooks(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    hooks = compat.model_offload_hooks(pipe)
    assert len(hooks) == 4 and all(callable(hook.offload) for hook in hooks)
    assert hooks[0] is compat.model_offload_hooks(pipe)[0]
    pipe.remove_all_hooks()
    assert not compat.model_offload_hooks(pipe)


@pytest.mark.parametrize("kind", ["model offload", "sequential offload", "group offload", "layerwise casting"])
def test_hooks_that_move_or_cast_weights_are_found(pipe, kind):
    transformer = pipe.transformer
    assert not compat.has_stateful_hooks(transformer)
    if kind == "model offload":
        pipe.enable_model_cpu_offload(device="cpu")
    elif kind == "sequential offload":
        pipe.enable_sequential_cpu_offload(device="cpu")
    elif kind == "group offload":
        with group_offload():
            transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    else:
        transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert compat.has_stateful_hooks(transformer)


def test_a_hook_that_only_aligns_devices_is_not_stateful(pipe):
    compat.set_execution_device(pipe.vae, torch.device("cpu"))
    assert hasattr(pipe.vae, "_hf_hook") and not compat.has_stateful_hooks(pipe.vae)


def test_a_device_that_is_set_is_reported_and_is_no_offload_of_diffusers(pipe):
    pipe.vae._hf_hook = compat.ExecutionDevice(torch.device("meta"))
    assert pipe._execution_device == torch.device("meta")
    assert pipe._optionally_disable_offloading(pipe) == (False, False, False)
    assert not compat.has_stateful_hooks(pipe.vae)
    pipe.remove_all_hooks()
    assert not hasattr(pipe.vae, "_hf_hook")


def test_a_pipeline_on_the_cpu_computes_on_the_cpu(pipe):
    assert compat.execution_device(pipe) == torch.device("cpu")


def _sequential_offload(pipe):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for part in (part for part in pipe.text_encoder.modules() if part._parameters):
        add_hook_to_module(part, AlignDevicesHook(execution_device="meta", offload=False))


def _model_offload(pipe):
    from accelerate.hooks import CpuOffload, add_hook_to_module

    add_hook_to_module(pipe.text_encoder, CpuOffload(execution_device="meta"))


def _group_offload(pipe, kind):
    from diffusers.hooks import apply_group_offloading

    apply_group_offloading(
        pipe.transformer,
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=kind,
        num_blocks_per_group=1,
    )


CHANGES_OF_PLACE = {
    "moved": lambda pipe: pipe.transformer.to("meta"),
    "sequential offload": _sequential_offload,
    "model offload": _model_offload,
    "group offload by block": lambda pipe: _group_offload(pipe, "block_level"),
    "group offload by layer": lambda pipe: _group_offload(pipe, "leaf_level"),
    "exchanged part": lambda pipe: setattr(pipe, "vae", toy_pipeline(seed=1).vae),
    "device set by a preset": lambda pipe: compat.set_execution_device(pipe.vae, torch.device("meta")),
}


@pytest.mark.parametrize("change", CHANGES_OF_PLACE)
def test_placement_markers_change_with_the_place_of_a_pipeline(change):
    other = toy_pipeline()
    before = compat.placement_markers(other)
    assert compat.placement_markers(other) == before
    with group_offload():
        CHANGES_OF_PLACE[change](other)
    assert compat.placement_markers(other) != before


@pytest.mark.parametrize("change", CHANGES_OF_PLACE)
def test_a_remembered_device_is_that_of_a_search(change):
    other, remembering = toy_pipeline(), toy_pipeline()
    compat.remember_device(remembering)
    assert remembering._execution_device == other._execution_device
    with group_offload():
        CHANGES_OF_PLACE[change](other)
        CHANGES_OF_PLACE[change](remembering)
    assert remembering._execution_device == other._execution_device


def test_a_pipeline_that_remembers_its_device_keeps_its_class_for_everyone_else(tmp_path):
    pipe = toy_pipeline()
    kind = type(pipe)
    compat.remember_device(pipe)
    compat.remember_device(pipe)
    assert isinstance(pipe, kind) and type(pipe).__mro__[1] is kind
    assert (type(pipe).__name__, type(pipe).__module__) == (kind.__name__, kind.__module__)
    assert compat.class_of(pipe) is kind is compat.class_of(toy_pipeline())
    pipe.save_config(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == kind.__name__


def test_a_pipeline_made_by_calling_the_class_of_another_finds_its_device(pipe):
    remembering = copy.copy(pipe)
    compat.remember_device(remembering, torch.device("meta"))
    assert type(remembering)(**pipe.components)._execution_device == torch.device("cpu")


def test_a_device_that_is_an_attribute_of_the_class_is_remembered_as_well():
    class Fixed:
        _execution_device = torch.device("meta")

    pipe = Fixed()
    compat.remember_device(pipe)
    assert pipe._execution_device == torch.device("meta")


def test_a_given_device_is_not_searched_for(pipe, monkeypatch):
    view = copy.copy(pipe)
    compat.remember_device(view, torch.device("meta"))
    monkeypatch.setattr(compat, "placement_markers", lambda _: pytest.fail("searched"))
    assert view._execution_device == torch.device("meta")
    assert "_fluxnb_device" not in vars(pipe)


def test_group_offload_is_found_and_covers_new_layers_once_installed_again(pipe):
    transformer = pipe.transformer
    assert not compat.is_group_offloaded(transformer)
    compat.reinstall_group_offload(transformer)
    assert not compat.is_group_offloaded(transformer)
    with group_offload():
        transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert compat.is_group_offloaded(transformer)
    transformer.new = nn.Linear(1, 1)
    assert not compat.is_group_offloaded(transformer.new)
    compat.reinstall_group_offload(transformer)
    assert compat.is_group_offloaded(transformer.new)


def test_fused_projections_can_be_separated_and_fused_again(pipe):
    attention = pipe.transformer.transformer_blocks[0].attn
    names = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
    before = {name: copy.deepcopy(getattr(attention, name).state_dict()) for name in names}
    assert not compat.separate_projections(pipe.transformer)
    pipe.transformer.fuse_qkv_projections()
    compat.remove_unfused_projections(pipe.transformer)
    fused = attention.to_qkv
    separated = compat.separate_projections(pipe.transformer)
    assert not attention.fused_projections and not hasattr(attention, "to_qkv")
    for name in names:
        for leaf, tensor in getattr(attention, name).state_dict().items():
            assert torch.equal(tensor, before[name][leaf])
    attention.to_q.weight.data += 1.0  # in the shared memory
    attention.to_k.weight.data = attention.to_k.weight.data + 2.0  # in memory of its own
    compat.restore_fused_projections(separated)
    assert attention.fused_projections and attention.to_qkv is fused and not hasattr(attention, "to_q")
    q, k, v = fused.weight.data.chunk(3)
    assert torch.equal(q, before["to_q"]["weight"] + 1.0) and torch.equal(k, before["to_k"]["weight"] + 2.0)
    assert torch.equal(v, before["to_v"]["weight"])


def test_layers_of_peft_are_found(pipe):
    peft = pytest.importorskip("peft")
    assert not compat.tuner_layers(pipe.transformer)
    pipe.transformer.add_adapter(peft.LoraConfig(target_modules=["to_q"]))
    (layer, *_) = compat.tuner_layers(pipe.transformer)
    assert layer.get_base_layer() is layer.base_layer and not layer.merged and not layer.disable_adapters


def test_an_adapter_is_noticed(pipe):
    from diffusers.loaders.peft import PeftAdapterMixin

    assert hasattr(PeftAdapterMixin, "_hf_peft_config_loaded") and isinstance(pipe.transformer, PeftAdapterMixin)
    assert not compat.is_changed_at_run_time(pipe.transformer)
    pipe.transformer._hf_peft_config_loaded = True
    assert compat.is_changed_at_run_time(pipe.transformer)


def test_a_cache_of_blocks_is_noticed(pipe):
    from diffusers import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    assert compat.is_changed_at_run_time(pipe.transformer)


@pytest.mark.moderate
def test_unfused_projections_are_removed_only_where_they_are_fused(pipe):
    attention = pipe.transformer.transformer_blocks[0].attn
    compat.remove_unfused_projections(pipe.transformer)
    assert hasattr(attention, "to_q") and hasattr(attention, "add_q_proj")
    pipe.transformer.fuse_qkv_projections()
    compat.remove_unfused_projections(pipe.transformer)
    assert attention.fused_projections and not hasattr(attention, "to_q") and not hasattr(attention, "add_q_proj")


def test_the_gguf_parameter_is_a_parameter_and_its_layer_a_linear_layer():
    pytest.importorskip("gguf")
    linear, parameter, dequantize = compat.gguf_types()
    assert issubclass(linear, nn.Linear) and issubclass(parameter, nn.Parameter) and callable(dequantize)


def test_the_attention_backend_of_one_transformer_is_not_that_of_others(pipe):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    default, _ = _AttentionBackendRegistry.get_active_backend()
    transformer = copy.deepcopy(pipe.transformer)
    compat.set_attention_backend(transformer, "_native_math")
    backends = {
        str(module.processor._attention_backend) for module in transformer.modules() if hasattr(module, "processor")
    }
    assert backends == {"AttentionBackendName._NATIVE_MATH"}
    assert _AttentionBackendRegistry.get_active_backend()[0] == default


def test_the_attention_over_processes_takes_the_inputs_that_its_replacement_reads():
    from diffusers.models.attention_dispatch import TemplatedUlyssesAttention

    kind = getattr(TemplatedUlyssesAttention, "of_diffusers", TemplatedUlyssesAttention)
    names = ["query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa", "return_lse"]
    assert list(inspect.signature(kind.forward).parameters)[1:] == [
        *names,
        "forward_op",
        "backward_op",
        "_parallel_config",
    ]


@pytest.mark.parametrize(
    ("marked", "mask", "sums", "grad", "expected"),
    [
        (True, None, False, False, "fluxnb"),
        (False, None, False, False, "diffusers"),
        (True, "mask", False, False, "diffusers"),
        (True, None, True, False, "diffusers"),
        (True, None, False, True, "diffusers"),
    ],
    ids=["a split transformer", "another transformer", "a mask", "log-sum-exp", "gradients"],
)
def test_the_attention_of_diffusers_is_replaced_only_where_it_can_be(marked, mask, sums, grad, expected):
    class OfDiffusers:
        @staticmethod
        def apply(*_):
            return "diffusers"

    config = SimpleNamespace(**({compat._ATTENTION: lambda *_: "fluxnb"} if marked else {}))
    inputs = (*torch.zeros(3, 1), mask, 0.0, False, None, False, sums, None, None, config)
    with torch.set_grad_enabled(grad):
        assert compat._replaceable(OfDiffusers).apply(*inputs) == expected


def test_the_replaced_attention_computes_with_the_kernel_and_the_options_of_the_call():
    given = {}

    def forward(*inputs, **others):
        given.update(inputs=inputs[:1] + inputs[4:], **others)
        return sum(inputs[1:4])

    config = SimpleNamespace(**{compat._ATTENTION: lambda query, key, value, attend: attend(query, key, value)})
    inputs = (*torch.ones(3, 1), None, 0.1, False, 0.5, False, False, forward, None, config)
    with torch.no_grad():
        assert compat._replaceable(object()).apply(*inputs) == 3
    options = (None, 0.1, False, 0.5, False, False)  # mask, dropout, causal, scale, grouped queries, log-sum-exp
    assert given == {"inputs": (None, *options), "_save_ctx": False, "_parallel_config": config}


# ------------------------------------------------------------------------------------------------------- transformers
def test_t5_keeps_its_output_layers_in_float32(pipe):
    assert "wo" in compat.modules_in_float32(pipe.text_encoder_2)
    assert compat.modules_in_float32(nn.Identity()) == frozenset()


def test_t5_ties_its_embedding(pipe):
    from transformers import PreTrainedModel

    assert hasattr(PreTrainedModel, "_tied_weights_keys")
    assert "shared.weight" in compat.tied_weights(pipe.text_encoder_2).values()
    assert compat.tied_weights(nn.Identity()) == {}


@pytest.mark.parametrize("name", ["tokenizer", "tokenizer_2"])
def test_every_call_of_a_tokenizer_goes_through_its_encoding_method(pipe, name):
    tokenizer = getattr(pipe, name)
    method, calls = compat.tokenizer_method(tokenizer), []
    original = getattr(tokenizer, method)
    setattr(tokenizer, method, lambda *args, **options: (calls.append(1), original(*args, **options))[1])
    tokenizer("a fox")
    tokenizer(["a fox"], padding="max_length", max_length=8, truncation=True)
    assert len(calls) == 2 and compat.tokenizer_method(pipe.vae) == ""
