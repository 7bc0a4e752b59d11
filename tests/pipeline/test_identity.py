"""Whatever changes the pictures of a pipeline changes its identity, and what changes nothing leaves it."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest
import torch

from fluxnb.pipeline.identity import change_markers, deep_markers, identity_of
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
