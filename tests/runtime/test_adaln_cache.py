from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxnb as fnb
from fluxnb.runtime import adaln_cache
from fluxnb.runtime.adaln_cache import (
    ON_DEVICE,
    STANDARD_STEPS,
    AdaLNCache,
    CachedModulation,
    expected_timesteps,
    expecting,
    modulation_layers,
)
from tests.conftest import toy_pipeline
from tests.interrupts import Opcodes


def lean(transformer, **options):
    """A copy of the transformer with cache, and the weights it no longer holds."""
    weights = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    mine = copy.deepcopy(transformer)
    return mine, AdaLNCache(mine, weights, **options)


def inputs_for(transformer, sigmas, *, seed=0, tokens=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    rows, config = len(sigmas), transformer.config
    guidance = torch.linspace(1.0, 4.0, rows) if config.guidance_embeds else None
    return {
        "hidden_states": torch.randn(rows, tokens, config.in_channels, generator=generator).to(dtype),
        "encoder_hidden_states": torch.randn(rows, 3, config.joint_attention_dim, generator=generator).to(dtype),
        "pooled_projections": torch.randn(rows, config.pooled_projection_dim, generator=generator).to(dtype),
        "timestep": torch.tensor(sigmas, dtype=torch.float32).to(dtype),
        "guidance": guidance,
        "img_ids": torch.zeros(tokens, 3),
        "txt_ids": torch.zeros(3, 3),
        "return_dict": False,
    }


@pytest.fixture(scope="module", params=[False, True], ids=["schnell", "dev"])
def pair(request):
    plain = toy_pipeline(guidance_embeds=request.param).transformer
    mine, cache = lean(plain)
    return plain, mine, cache


@pytest.mark.moderate
@settings(max_examples=40)
@given(
    sigmas=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=3),
    seed=st.integers(0, 3),
)
def test_any_sigmas_and_prompts_give_the_bits_of_the_plain_network(pair, sigmas, seed):
    plain, mine, _ = pair
    inputs = inputs_for(plain, sigmas, seed=seed)
    with torch.no_grad():
        assert torch.equal(mine(**inputs)[0], plain(**inputs)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_bits_of_the_plain_network(dtype):
    plain = toy_pipeline(seed=2).transformer.to(dtype)
    mine, _ = lean(plain)
    for sigma in (1.0, 0.667, 0.3333, 0.01):
        inputs = inputs_for(plain, [sigma], dtype=dtype)
        with torch.no_grad():
            assert torch.equal(mine(**inputs)[0], plain(**inputs)[0])


def test_the_modulation_layers_hold_no_weights(toy_pipe):
    plain = toy_pipe.transformer
    names = modulation_layers(plain)
    mine, _ = lean(plain)
    gone = {name for name, _ in plain.named_parameters()} - {name for name, _ in mine.named_parameters()}
    assert gone == {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    assert len(names) == 2 * len(plain.transformer_blocks) + len(plain.single_transformer_blocks) + 1
    assert modulation_layers(mine) == names and all(
        isinstance(mine.get_submodule(name), CachedModulation) for name in names
    )


@pytest.mark.moderate
def test_rows_of_all_standard_step_counts_are_computed_in_one_read(toy_pipe):
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    plain = fnb.sweep(fnb.load(toy_pipe), prompts=["a fox"], seeds=[0, 1], steps=[1, 2, 3, 4])
    pipe.transformer, cache = lean(pipe.transformer, expected=lambda: expected_timesteps(pipe)())
    grid = fnb.sweep(fnb.load(pipe), prompts=["a fox"], seeds=[0, 1], steps=[1, 2, 3, 4])
    assert [cell.image.tobytes() for cell in grid] == [cell.image.tobytes() for cell in plain]
    assert cache.reads == 1


@pytest.mark.moderate
@pytest.mark.parametrize("steps", [5, 7, 12])
def test_rows_of_another_step_count_are_computed_in_one_read(steps):
    pipe = toy_pipeline().to(dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer, cache = lean(pipe.transformer, expected=lambda: expected_timesteps(pipe)())
    fnb.run(fnb.load(pipe), "a fox", steps=steps)
    assert cache.reads == 1


def test_a_scheduler_that_was_never_set_expects_nothing():
    pipe = toy_pipeline()
    assert expected_timesteps(pipe)() == ()
    pipe.transformer, cache = lean(pipe.transformer, expected=expected_timesteps(pipe))
    with torch.no_grad():
        pipe.transformer(**inputs_for(pipe.transformer, [0.3]))
    assert len(cache) <= 1 + sum(STANDARD_STEPS)


def test_a_call_with_a_scheduler_of_its_own_names_it():
    pipe, scheduler = toy_pipeline(), toy_pipeline().scheduler
    scheduler.set_timesteps(6)
    with expecting(scheduler):
        assert expected_timesteps(pipe)() == tuple(scheduler.timesteps.tolist())
    assert expected_timesteps(pipe)() == ()


@pytest.mark.moderate
def test_a_new_prompt_adds_rows_and_a_known_one_does_not(toy_pipe):
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer, cache = lean(pipe.transformer)
    flux, plain = fnb.load(pipe), fnb.load(toy_pipe)
    for prompt, reads in (("a fox", 1), ("a cat", 2), ("a fox", 2)):
        here = fnb.run(flux, prompt, seed=1, steps=2)
        assert here.image.tobytes() == fnb.run(plain, prompt, seed=1, steps=2).image.tobytes()
        assert cache.reads == reads


@pytest.mark.moderate
def test_guidance_by_a_negative_prompt_gives_the_same_bytes(toy_guided):
    pipe = toy_pipeline(seed=1)
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer, cache = lean(pipe.transformer)
    flux = fnb.load(pipe).with_defaults(guidance_kind="true_cfg", guidance=2.5)
    inputs = {"seed": 4, "steps": 3, "negative": "a dog"}
    assert fnb.run(flux, "a fox", **inputs).image.tobytes() == fnb.run(toy_guided, "a fox", **inputs).image.tobytes()
    assert cache.reads == 2


def test_image_to_image_strengths_give_the_same_bytes():
    from diffusers import FluxImg2ImgPipeline
    from PIL import Image

    picture = Image.effect_noise((64, 64), 80).convert("RGB")
    plain, mine = (FluxImg2ImgPipeline(**toy_pipeline().components) for _ in range(2))
    mine.transformer, _ = lean(mine.transformer)

    def draw(pipe, strength):
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe(
            "a fox",
            image=picture,
            strength=strength,
            num_inference_steps=6,
            height=64,
            width=64,
            max_sequence_length=48,
            generator=generator,
        ).images[0]

    for strength in (0.35, 0.8):
        assert draw(mine, strength).tobytes() == draw(plain, strength).tobytes()


def test_rows_beyond_the_limit_are_computed_again(toy_pipe):
    mine, cache = lean(toy_pipe.transformer, limit=7)
    first, *others = ([sigma] for sigma in (0.9, 0.8, 0.7))
    for sigmas in (first, *others, first):
        with torch.no_grad():
            got = mine(**inputs_for(mine, sigmas, seed=int(sigmas[0] * 10)))[0]
            assert torch.equal(got, toy_pipe.transformer(**inputs_for(mine, sigmas, seed=int(sigmas[0] * 10)))[0])
    assert cache.reads == 4 and len(cache) <= 7


@pytest.mark.moderate
def test_pocket_with_an_adaln_cache_gives_the_same_bytes():
    flux, plain = fnb.load("pocket-base"), fnb.load("pocket-base")
    flux.pipe.transformer, _ = lean(flux.pipe.transformer)
    inputs = {"seed": 7, "steps": 3, "height": 64, "width": 64}
    assert fnb.run(flux, "a fox", **inputs).image.tobytes() == fnb.run(plain, "a fox", **inputs).image.tobytes()


def test_repr_names_layers_and_rows(toy_pipe):
    assert repr(lean(toy_pipe.transformer)[1]).startswith("AdaLNCache(4 layers, 0 rows of ")


def test_recently_used_rows_stay_on_the_device():
    plain = toy_pipeline(seed=3).transformer
    mine, cache = lean(plain)
    with torch.no_grad():
        for sigma in torch.linspace(0.05, 1.0, 2 * ON_DEVICE).tolist():
            mine(**inputs_for(plain, [sigma]))
    assert len(cache._on_device) == ON_DEVICE
    for sigma in (0.05, 1.0, 0.05):
        inputs = inputs_for(plain, [sigma])
        with torch.no_grad():
            assert torch.equal(mine(**inputs)[0], plain(**inputs)[0])


@pytest.mark.moderate
def test_an_interrupt_never_leaves_the_row_of_one_timestep_under_another():
    mine, cache = lean(toy_pipeline().transformer)

    def rows(sigma, interrupt=None):
        with torch.no_grad(), interrupt or contextlib.nullcontext():
            mine.time_text_embed(torch.tensor([1000 * sigma]), torch.ones(1, 32))
        return torch.cat([layer.row for layer in cache._layers.values()], dim=1)

    expected = {sigma: rows(sigma) for sigma in (0.5, 0.25)}
    with Opcodes(file=adaln_cache.__file__) as dry:
        rows(0.5)
    assert len(dry.places) > 50 and not torch.equal(expected[0.5], expected[0.25])
    for index, place in enumerate(dry.places):
        rows(0.25)
        with contextlib.suppress(KeyboardInterrupt):
            rows(0.5, Opcodes(index, file=adaln_cache.__file__))
        assert torch.equal(rows(0.25), expected[0.25]), place
