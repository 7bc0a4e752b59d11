"""Whatever changes the pictures of a pipeline changes its identity, and what changes nothing leaves it."""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys

import pytest
import torch

from fluxnb.pipeline.identity import identity_of
from fluxnb.pipeline.markers import change_markers, deep_markers
from tests.conftest import toy_pipeline


def exchanged_scheduler(**changes):
    def change(pipe):
        pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes)

    return change


def exchanged_vae(pipe):
    vae = copy.deepcopy(pipe.vae)
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(0.7)
    pipe.vae = vae


class Weaker:
    """An attention processor of the user's own."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, attn, hidden_states, *args, **kwargs):
        return self.inner(attn, hidden_states, *args, **kwargs)


def own_processors(pipe):
    for block in pipe.transformer.transformer_blocks:
        block.attn.processor = Weaker(block.attn.processor)


def first_block_cache(pipe):
    from diffusers import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))


def layerwise_casting(pipe):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def other_weights(pipe):
    pipe.transformer = toy_pipeline(seed=5).transformer


def one_weight_of_each_tensor(pipe):
    with torch.no_grad():
        for parameter in pipe.transformer.parameters():
            parameter.mul_(1.01)


def require_working_cache():
    """The FLUX pipeline of diffusers 0.39 sets no cache context, so that its call raises with a cache."""
    import diffusers
    from packaging.version import Version

    if Version(diffusers.__version__) < Version("0.42"):
        pytest.skip("a call with FirstBlockCache raises in this diffusers")


CHANGES = {
    "scheduler shift": exchanged_scheduler(shift=3.0),
    "dynamic shifting": exchanged_scheduler(use_dynamic_shifting=True),
    "Karras sigmas": exchanged_scheduler(use_karras_sigmas=True),
    "set_shift": lambda pipe: pipe.scheduler.set_shift(3.0),
    "another VAE": exchanged_vae,
    "VAE scaling factor": lambda pipe: pipe.vae.register_to_config(scaling_factor=0.5),
    "attention processor": own_processors,
    "first block cache": first_block_cache,
    "layerwise casting": layerwise_casting,
    "another transformer": other_weights,
    "text encoder in bfloat16": lambda pipe: pipe.text_encoder_2.to(torch.bfloat16),
    "VAE in bfloat16": lambda pipe: pipe.vae.to(torch.bfloat16),
    "VAE tiling": lambda pipe: pipe.vae.enable_tiling(),
    "pipeline in bfloat16": lambda pipe: pipe.to(torch.bfloat16),
    "image processor": lambda pipe: pipe.image_processor.register_to_config(do_normalize=False),
    "padding side": lambda pipe: setattr(pipe.tokenizer_2, "padding_side", "left"),
    "weights edited in place": lambda pipe: pipe.transformer.proj_out.weight.data.mul_(1.2),
    "all weights edited": one_weight_of_each_tensor,
    "fused projections": lambda pipe: pipe.transformer.fuse_qkv_projections(),
    "a text encoder less": lambda pipe: setattr(pipe, "text_encoder", None),
}


@pytest.mark.moderate
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_pipeline_changes_its_identity(name):
    pipe = toy_pipeline()
    before = identity_of(pipe)
    assert identity_of(pipe) == before
    CHANGES[name](pipe)
    assert identity_of(pipe).digest != before.digest


@pytest.mark.moderate
@pytest.mark.parametrize("name", sorted(CHANGES.keys() - {"weights edited in place"}))  # torch counts no edits of .data
def test_a_change_of_the_pipeline_changes_its_markers(name):
    pipe = toy_pipeline()
    before = change_markers(pipe), deep_markers(pipe)
    assert (change_markers(pipe), deep_markers(pipe)) == before
    CHANGES[name](pipe)
    assert (change_markers(pipe), deep_markers(pipe)) != before


CONFIGURATIONS = {
    **{name: CHANGES[name] for name in ("VAE scaling factor", "image processor", "padding side", "dynamic shifting")},
    "setting of the pipeline": lambda pipe: pipe.register_to_config(is_distilled=True),  # as klein has
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_change_of_a_configuration_is_found_before_every_run(name):
    pipe = toy_pipeline()
    before, identity = change_markers(pipe), identity_of(pipe)
    CONFIGURATIONS[name](pipe)
    assert change_markers(pipe) != before and identity_of(pipe) != identity


def test_two_pipelines_with_equal_weights_have_one_identity():
    assert identity_of(toy_pipeline()) == identity_of(toy_pipeline())


def test_a_call_leaves_the_identity_as_it_was():
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    before = identity_of(pipe)
    pipe("a fox", height=32, width=32, num_inference_steps=2, max_sequence_length=48)
    assert identity_of(pipe) == before


def test_a_hook_that_observes_leaves_the_identity_as_it_was():
    pipe = toy_pipeline()
    before = identity_of(pipe)
    pipe.transformer.register_forward_hook(lambda *_: None)
    assert identity_of(pipe) == before


def test_an_attention_processor_of_the_users_own_is_named_as_unknown():
    pipe = toy_pipeline()
    own_processors(pipe)
    assert "Weaker" in identity_of(pipe).unknown[0]


def test_a_forward_method_of_the_users_own_is_named_as_unknown():
    pipe = toy_pipeline()
    plain = pipe.transformer.forward
    pipe.transformer.forward = lambda **given: plain(**given)
    assert "forward" in identity_of(pipe).unknown[0]


def test_dropout_in_training_mode_is_named_as_unknown():
    pipe = toy_pipeline()
    pipe.text_encoder_2.encoder.block[0].layer[0].dropout.p = 0.5
    assert not identity_of(pipe).unknown
    pipe.text_encoder_2.train()
    assert identity_of(pipe).unknown == ("text_encoder_2 is in training mode, and its dropout is random",)


# ----------------------------------------------------------------------------------------------------- quantizations
def torchao(name, **options):
    def quantize(transformer):
        library = pytest.importorskip("torchao.quantization")
        library.quantize_(transformer, getattr(library, name)(**options))

    return quantize


def quanto(weights, activations=None):
    def quantize(transformer):
        library = pytest.importorskip("optimum.quanto")
        library.quantize(transformer, weights=weights, activations=activations)
        library.freeze(transformer)

    return quantize


def bitsandbytes(kind, **options):
    def quantize(transformer):
        library = pytest.importorskip("bitsandbytes").nn
        for name, layer in list(transformer.named_modules()):
            if isinstance(layer, torch.nn.Linear) and "blocks" in name:
                quantized = getattr(library, f"Linear{kind}")(layer.in_features, layer.out_features, **options)
                given = {"requires_grad": False, **options}
                given.pop("threshold", None)
                weight = library.Params4bit if kind == "4bit" else library.Int8Params
                quantized.weight, quantized.bias = weight(layer.weight.data, **given), layer.bias
                try:
                    transformer.set_submodule(name, quantized.to("cpu"))
                except RuntimeError as problem:
                    if "must be nf4 on CPU" in str(problem):  # bitsandbytes 0.46
                        raise Unsupported(str(problem)) from None
                    raise

    return quantize


class Unsupported(Exception):
    """A quantization that the installed version cannot compute on a CPU."""


QUANTIZATIONS = {
    "none": lambda transformer: None,
    "torchao int8": torchao("Int8WeightOnlyConfig"),
    "torchao int8, activations too": torchao("Int8DynamicActivationInt8WeightConfig"),
    "torchao fp8": torchao("Float8WeightOnlyConfig"),
    "torchao int4": torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
    "torchao int2": torchao("IntxWeightOnlyConfig", weight_dtype=torch.int2),
    "quanto int8": quanto("qint8"),
    "quanto int8, activations too": quanto("qint8", "qint8"),
    "quanto int8, activations in fp8": quanto("qint8", "qfloat8"),
    "quanto int4": quanto("qint4"),
    "quanto fp8": quanto("qfloat8"),
    "bitsandbytes nf4": bitsandbytes("4bit", quant_type="nf4"),
    "bitsandbytes fp4": bitsandbytes("4bit", quant_type="fp4"),
    "bitsandbytes nf4, plain scales": bitsandbytes("4bit", quant_type="nf4", compress_statistics=False),
    "bitsandbytes int8": bitsandbytes("8bitLt", has_fp16_weights=False),
    "bitsandbytes int8, outliers apart": bitsandbytes("8bitLt", has_fp16_weights=False, threshold=6.0),
}


def quantized(name, scale=1.0):
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        pipe.transformer.transformer_blocks[0].attn.to_q.weight.mul_(scale)
    QUANTIZATIONS[name](pipe.transformer)
    return pipe


@pytest.mark.moderate
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_quantization_of_a_model_has_an_identity_of_its_own(name):
    try:
        pipe = quantized(name)
    except Unsupported as problem:
        pytest.skip(str(problem))
    found = identity_of(pipe)
    assert found == identity_of(quantized(name)) and not found.unknown
    assert found != identity_of(quantized(name, scale=1.5)), "only the scales of the weights differ"
    pipe("a fox", height=32, width=32, num_inference_steps=1, max_sequence_length=48)
    assert identity_of(pipe) == found, "a call changes it"
    library = name.split()[0]
    for other in (each for each in QUANTIZATIONS if each != name and each.startswith((library, "none"))):
        with contextlib.suppress(Unsupported):
            assert identity_of(quantized(other)) != found, other


class Packed(torch.Tensor):
    """A quantized weight as torchao makes them: plain tensors, and settings without numbers."""

    @staticmethod
    def __new__(cls, data, settings):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data, settings):
        self.data_, self.settings = data, settings

    def __tensor_flatten__(self):
        return ["data_"], self.settings

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return cls(args[0].data_, args[0].settings)  # detach


def packed(settings):
    pipe = toy_pipeline()
    layer = pipe.transformer.proj_out
    layer.weight = torch.nn.Parameter(Packed(layer.weight.data, settings), requires_grad=False)
    return identity_of(pipe)


def test_the_settings_of_a_quantized_weight_belong_to_the_identity():
    assert packed({"activations": None}) == packed({"activations": None}) != packed({"activations": "int8"})


def test_a_quantized_weight_whose_settings_have_no_text_is_named_as_unknown():
    assert "Packed" in packed({"kernel": object()}).unknown[0]


def scaled(scale, nested):
    """A pipeline with a weight of bitsandbytes whose scales are quantized in turn."""
    from types import SimpleNamespace

    pipe = toy_pipeline()
    inner = SimpleNamespace(absmax=torch.tensor([nested]), state2=None)
    pipe.transformer.proj_out.weight.quant_state = SimpleNamespace(absmax=torch.tensor([scale]), state2=inner)
    return identity_of(pipe)


def test_scales_of_scales_belong_to_the_identity():
    assert scaled(1.0, 1.0) == scaled(1.0, 1.0)
    assert len({scaled(*each).digest for each in ((1.0, 1.0), (2.0, 1.0), (1.0, 2.0))}) == 3


def test_the_scales_of_an_8_bit_layer_belong_to_the_identity_wherever_they_are():
    from types import SimpleNamespace

    found = set()
    for scale in (1.0, 2.0):
        pipe = toy_pipeline()
        layer = pipe.transformer.proj_out
        layer.weight.SCB = torch.tensor([scale])
        before = identity_of(pipe)
        layer.state, layer.weight.SCB = SimpleNamespace(SCB=layer.weight.SCB), None  # as its first call does
        assert identity_of(pipe) == before
        found.add(before.digest)
    assert len(found) == 2


def test_adapters_and_their_scales_belong_to_the_identity():
    peft = pytest.importorskip("peft")
    pipe = toy_pipeline()
    seen = [identity_of(pipe).digest]
    pipe.transformer.add_adapter(
        peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"], init_lora_weights=False), "a"
    )
    seen.append(identity_of(pipe).digest)
    pipe.set_adapters(["a"], [0.5])
    seen.append(identity_of(pipe).digest)
    pipe.transformer.disable_adapters()
    seen.append(identity_of(pipe).digest)
    pipe.transformer.enable_adapters()
    pipe.transformer.fuse_lora()
    seen.append(identity_of(pipe).digest)
    assert len(set(seen)) == 5


@pytest.mark.slow
def test_processes_identify_a_pipeline_alike():
    code = (
        "from tests.conftest import toy_pipeline; from fluxnb.pipeline.identity import identity_of; "
        "print(identity_of(toy_pipeline()))"
    )
    found = set()
    for seed in ("1", "2"):  # of the hashes of text, by which sets are ordered
        run = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed},
                             capture_output=True, text=True, check=True)  # fmt: skip
        found.add(run.stdout)
    assert len(found) == 1, found
