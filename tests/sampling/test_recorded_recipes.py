"""A recorded call has a recipe that repeats it, or a reason without one.

Calls are generated over the call's arguments, its callback and the state of the pipeline.
"""

from __future__ import annotations

import contextlib
import functools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fluxnb as fnb
from fluxnb.sampling import recorded_recipe
from tests.conftest import toy_pipeline

pytestmark = pytest.mark.slow

LATENTS = torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(9))


# ------------------------------------------------------------------------------------------------------- arguments
def fresh(seed=3):
    return torch.Generator().manual_seed(seed)


def used():
    generator = fresh()
    torch.randn(1, generator=generator)
    return generator


def same_twice():
    return [fresh()] * 2


ARGUMENTS = {
    "one step": {"num_inference_steps": 1},
    "three steps": {"num_inference_steps": 3},
    "prompt_2": {"prompt_2": "a blue cat"},
    "prompt in a list": {"prompt": ["a red fox"]},
    "two prompts": {"prompt": ["a red fox", "a cat"], "generator": lambda: [fresh(1), fresh(2)]},
    "two prompts, one generator": {"prompt": ["a red fox", "a cat"]},
    "two prompts, one generator twice": {"prompt": ["a red fox", "a cat"], "generator": same_twice},
    "two pictures": {"num_images_per_prompt": 2, "generator": lambda: [fresh(1), fresh(2)]},
    "empty prompt": {"prompt": ""},
    "no prompt": {"prompt": None},
    "negative prompt": {"negative_prompt": "snow"},
    "negative prompt and scale": {"negative_prompt": "snow", "true_cfg_scale": 3.0},
    "two negative prompts and scale": {"negative_prompt": ["snow", "fox"], "true_cfg_scale": 3},
    "scale alone": {"true_cfg_scale": 3.0},
    "scale of numpy": {"negative_prompt": "", "true_cfg_scale": np.float32(2.5)},
    "negative_prompt_2": {"negative_prompt": "snow", "negative_prompt_2": "cat", "true_cfg_scale": 2.0},
    "embedded guidance": {"guidance_scale": 2.0},
    "huge guidance": {"guidance_scale": 2000.0},
    "sigmas": {"sigmas": [1.0, 0.4]},
    "even sigmas": {"sigmas": [1.0, 0.5]},
    "sigmas of numpy": {"sigmas": np.array([0.9, 0.3], np.float32)},
    "sigmas that rise": {"sigmas": [0.3, 0.8]},
    "other size": {"height": 48, "width": 64},
    "odd size": {"height": 40, "width": 33},
    "default size": {"height": None, "width": None},
    "no generator": {"generator": lambda: None},
    "used generator": {"generator": used},
    "generator in a list": {"generator": lambda: [fresh(5)]},
    "largest seed": {"generator": lambda: fresh(2**64 - 1)},
    "latents": {"latents": LATENTS},
    "array": {"output_type": "np"},
    "tensor": {"output_type": "pt", "return_dict": False},
    "latent output": {"output_type": "latent"},
    "attention arguments": {"joint_attention_kwargs": {"scale": 0.5}},
    "few tokens": {"max_sequence_length": 16},
    "many tokens": {"max_sequence_length": 512},
}


# ------------------------------------------------------------------------------------------------------- callbacks
def at_last_step(change):
    def callback(pipe, index, timestep, tensors):
        return change(pipe, tensors) if index == pipe.num_timesteps - 1 else tensors

    return callback


def at_first_step(change):
    def callback(pipe, index, timestep, tensors):
        if index == 0:
            change(pipe, tensors)
        return tensors

    return callback


def borrowed_weight(pipe, index, timestep, tensors):
    """Change a weight after the first step and restore it after the last."""
    with torch.no_grad():
        weight = pipe.transformer.x_embedder.weight
        weight.mul_(2.0 if index == 0 else 0.5 if index == pipe.num_timesteps - 1 else 1.0)
    return tensors


def raising(pipe, index, timestep, tensors):
    raise ValueError("from the callback")


def another_call(pipe, tensors):
    fnb.run(fnb.load(pipe), "a cat", seed=8, steps=1, height=48, width=48)


EMBEDS = {"callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
CALLBACKS = {
    "harmless": {"callback_on_step_end": lambda pipe, index, timestep, tensors: tensors},
    "returns nothing new": {"callback_on_step_end": lambda pipe, index, timestep, tensors: {}},
    "without tensors": {
        "callback_on_step_end": lambda pipe, index, timestep, tensors: {},
        "callback_on_step_end_tensor_inputs": [],
    },
    "reads embeddings": {"callback_on_step_end": lambda pipe, index, timestep, tensors: tensors, **EMBEDS},
    "writes into x": {"callback_on_step_end": at_first_step(lambda pipe, tensors: tensors["latents"].mul_(0.9))},
    "writes into x.data": {
        "callback_on_step_end": at_first_step(lambda pipe, tensors: tensors["latents"].data.mul_(0.9))
    },
    "writes by numpy": {
        "callback_on_step_end": at_last_step(lambda pipe, tensors: (tensors["latents"].numpy().fill(0.1), tensors)[1])
    },
    "returns another x at the end": {
        "callback_on_step_end": at_last_step(lambda pipe, tensors: {"latents": tensors["latents"] * 0.5})
    },
    "returns other embeddings": {
        "callback_on_step_end": lambda pipe, i, t, tensors: {"prompt_embeds": tensors["prompt_embeds"] * 0},
        **EMBEDS,
    },
    "writes embeddings": {
        "callback_on_step_end": at_first_step(lambda pipe, tensors: tensors["prompt_embeds"].mul_(0)),
        **EMBEDS,
    },
    "sets guidance": {"callback_on_step_end": at_first_step(lambda pipe, _: setattr(pipe, "_guidance_scale", 0.0))},
    "sets attention arguments": {
        "callback_on_step_end": at_first_step(lambda pipe, _: setattr(pipe, "_joint_attention_kwargs", {"scale": 0.1}))
    },
    "adds an attention argument": {
        "callback_on_step_end": at_first_step(lambda pipe, _: pipe._joint_attention_kwargs.update(scale=0.1))
    },
    "interrupts": {"callback_on_step_end": at_first_step(lambda pipe, _: setattr(pipe, "_interrupt", True))},
    "changes a level": {"callback_on_step_end": at_first_step(lambda pipe, _: pipe.scheduler.sigmas[1].mul_(0.9))},
    "borrows a weight": {"callback_on_step_end": borrowed_weight},
    "scales an adapter": {
        "callback_on_step_end": at_first_step(lambda pipe, _: pipe.transformer.set_adapters(["style"], [0.3]))
    },
    "runs another picture": {"callback_on_step_end": at_first_step(another_call)},
    "raises": {"callback_on_step_end": raising},
}


# ---------------------------------------------------------------------------------------------------------- states
def adapter(pipe, scale=1.0):
    from peft import LoraConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        pipe.transformer.add_adapter(
            LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "style"
        )
    pipe.transformer.set_adapters(["style"], [scale])


def scheduler(pipe, kind="FlowMatchEulerDiscreteScheduler", **config):
    import diffusers

    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **config)


def noisy_step(pipe):
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda *args, **kwargs: tuple(part * 0.9 for part in step(*args, **kwargs))


def own_processor(pipe):
    from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

    class Halved(FluxAttnProcessor):
        def __call__(self, *args, **kwargs):
            return tuple(part * 0.5 for part in super().__call__(*args, **kwargs))

    pipe.transformer.transformer_blocks[0].attn.set_processor(Halved())


def own_prepare_latents(pipe):
    original = pipe.prepare_latents

    def prepare_latents(*args, **kwargs):
        latents, ids = original(*args, **kwargs)
        return latents * 0.5, ids

    pipe.prepare_latents = prepare_latents


def edited(pipe):
    with torch.no_grad():
        pipe.transformer.proj_out.weight.mul_(1.1)


def counting_hook(pipe):
    count = []
    pipe.transformer.register_forward_hook(lambda module, args, out: (out[0] / (1 + count.append(1) or len(count)),))


def cached(pipe):
    from diffusers import FirstBlockCacheConfig

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.5))


STATES = {
    "adapter": adapter,
    "weak adapter": functools.partial(adapter, scale=0.2),
    "Karras": functools.partial(scheduler, use_karras_sigmas=True),
    "dynamic shift": functools.partial(scheduler, use_dynamic_shifting=True),
    "shift": functools.partial(scheduler, shift=3.0),
    "shift set later": lambda pipe: pipe.scheduler.set_shift(2.0),
    "stochastic": functools.partial(scheduler, stochastic_sampling=True),
    "LCM": functools.partial(scheduler, kind="FlowMatchLCMScheduler"),
    "Heun": functools.partial(scheduler, kind="FlowMatchHeunDiscreteScheduler"),
    "wrapped step": noisy_step,
    "own processor": own_processor,
    "own prepare_latents": own_prepare_latents,
    "edited weight": edited,
    "fused projections": lambda pipe: pipe.transformer.fuse_qkv_projections(),
    "tiling": lambda pipe: pipe.vae.enable_tiling(),
    "hook": counting_hook,
    "hook that writes": lambda pipe: pipe.transformer.proj_out.register_forward_hook(
        lambda module, args, out: (out.mul_(0.9), None)[1]
    ),
    "hook on arguments": lambda pipe: pipe.transformer.proj_out.register_forward_pre_hook(
        lambda module, args: (args[0] * torch.rand(1),)
    ),
    "silent hook": lambda pipe: pipe.transformer.register_forward_hook(lambda *_: None),
    "dropout": lambda pipe: (setattr(pipe.text_encoder_2.encoder.block[0].layer[0].dropout, "p", 0.5),
                             pipe.text_encoder_2.train()),
    "cache": cached,
    "true CFG": lambda pipe: None,
    "embedded": lambda pipe: None,
    "autocast": lambda pipe: None,
}  # fmt: skip


# --------------------------------------------------------------------------------------------------------- the check
def recorded(pipe, target, arguments, state):
    """What a recorded call returned or raised, and its trajectories."""
    values = {"prompt": "a red fox", "height": 32, "width": 32, "num_inference_steps": 2, "max_sequence_length": 48}
    values |= {"generator": fresh, **arguments}
    values["generator"] = values["generator"]()
    precision = torch.autocast("cpu", dtype=torch.bfloat16) if state == "autocast" else contextlib.nullcontext()
    result = None
    with warnings.catch_warnings(), fnb.recording(target) as recorder, precision:
        warnings.simplefilter("ignore")  # of diffusers, about prompts; those of fluxnb are errors
        warnings.simplefilter("error", fnb.RecordingWarning)
        try:
            result = pipe(**values)
        except Exception as problem:
            assert not type(problem).__module__.startswith("fluxnb"), problem
    return result, recorder.trajectories


def assert_repeats(flux, trajectory):
    again = fnb.run(flux, trajectory.recipe)
    exact = trajectory.numerics == "exact"
    for mine, theirs in zip(trajectory, again, strict=trajectory.finished):
        torch.testing.assert_close(mine.v, theirs.v, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-4)
        assert mine.sigma == theirs.sigma
    if trajectory.image is not None:
        difference = np.asarray(again.image, int) - np.asarray(trajectory.image, int)
        assert abs(difference).max() <= (0 if exact else 1)


def check(arguments, callback, state, loaded_after, by_handle):
    """Record one call and run its recipes; returns how many it had."""
    pipe = toy_pipeline(guidance_embeds=state == "embedded", size=32)
    pipe.set_progress_bar_config(disable=True)
    flux = None if loaded_after else fnb.load(pipe)
    STATES.get(state, lambda pipe: None)(pipe)
    if callback == "scales an adapter" and "adapter" not in state:
        adapter(pipe)
    flux = flux or fnb.load(pipe)
    if state == "true CFG":
        flux = flux.with_defaults(guidance_kind="true_cfg", guidance=1.5)
    given = {name: value for each in arguments for name, value in ARGUMENTS[each].items()}
    target = flux if by_handle or state == "true CFG" else pipe
    _, trajectories = recorded(pipe, target, {**given, **CALLBACKS.get(callback, {})}, state)
    for trajectory in trajectories:
        assert (trajectory.recipe is None) == bool(trajectory.recipe_missing)
        if trajectory.recipe is not None:
            assert_repeats(flux, trajectory)
    return sum(trajectory.recipe is not None for trajectory in trajectories)


calls = {
    "arguments": st.lists(st.sampled_from(sorted(ARGUMENTS)), max_size=2, unique=True),
    "callback": st.sampled_from(["none"] * len(CALLBACKS) + sorted(CALLBACKS)),
    "state": st.sampled_from(["plain"] * len(STATES) + sorted(STATES)),
    "loaded_after": st.booleans(),
    "by_handle": st.booleans(),
}


@pytest.mark.parametrize(
    "examples", [24, pytest.param(200, marks=pytest.mark.long)], ids=["a few calls", "two hundred calls"]
)
def test_a_recorded_call_has_no_recipe_or_one_that_repeats_it(examples):
    found = []

    @settings(max_examples=examples, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(**calls)
    def run(**call):
        found.append(check(**call))

    run()
    assert sum(count > 0 for count in found) >= len(found) // 6  # the check is not an empty one


PLAIN = {"arguments": [], "callback": "none", "state": "plain", "loaded_after": False, "by_handle": False}


@pytest.mark.long
@pytest.mark.parametrize("callback", CALLBACKS)
def test_each_callback_alone_has_no_recipe_or_one_that_repeats_it(callback):
    check(**{**PLAIN, "callback": callback, "arguments": ["three steps"]})


KNOWN = {
    "one step", "three steps", "prompt in a list", "two prompts", "two prompts, one generator twice", "two pictures",
    "negative prompt", "scale alone",
    "embedded guidance", "huge guidance", "sigmas", "even sigmas", "sigmas of numpy", "other size", "odd size",
    "default size", "generator in a list", "largest seed", "array", "tensor", "latent output", "few tokens",
    "many tokens",
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_recipe_is_present_exactly_where_the_arguments_are_those_of_a_recipe(name):
    assert bool(check(**{**PLAIN, "arguments": [name]})) == (name in KNOWN)


WITHOUT_EFFECT = {"harmless", "returns nothing new", "without tensors", "reads embeddings", "runs another picture"}
IN_THE_IDENTITY = {
    "edited weight", "adapter", "weak adapter", "shift", "shift set later", "Karras", "dynamic shift", "tiling",
    "fused projections", "silent hook", "embedded", "true CFG",
}  # fmt: skip


@pytest.mark.parametrize("callback", [*sorted(WITHOUT_EFFECT), "writes by numpy", "borrows a weight", "raises"])
def test_only_a_callback_that_changes_nothing_leaves_the_recipe(callback):
    known = callback in WITHOUT_EFFECT or callback == "raises"  # the steps that it took are those of a recipe
    assert bool(check(**{**PLAIN, "callback": callback})) == known


@pytest.mark.parametrize("state", STATES)
def test_only_a_state_that_is_part_of_the_identity_leaves_the_recipe(state):
    assert bool(check(**{**PLAIN, "state": state})) == (state in IN_THE_IDENTITY)


@pytest.mark.parametrize("change", ["edited weight", "adapter", "tiling", "fused projections", "Karras"])
def test_the_revision_of_a_recipe_is_that_of_the_pipeline_at_the_time_of_the_call(change):
    pipe = toy_pipeline(size=32)
    pipe.set_progress_bar_config(disable=True)
    flux = fnb.load(pipe)
    with fnb.recording(pipe) as recorder:
        for change_first in (False, True):
            if change_first:
                STATES[change](pipe)
            pipe("a fox", height=32, width=32, num_inference_steps=1, generator=fresh(), max_sequence_length=48)
    before, after = (each.recipe.revision for each in recorder.trajectories)
    assert before == flux.revision != after
    flux.refresh()
    assert flux.revision == after


def test_the_reason_is_displayed_and_stored(toy_pipe, tmp_path):
    with fnb.recording(toy_pipe) as recorder:
        toy_pipe("a fox", prompt_2="a cat", height=32, width=32, num_inference_steps=1, max_sequence_length=48)
    (trajectory,) = recorder.trajectories
    assert trajectory.recipe_missing == "prompt_2 is not part of a recipe"
    assert "no recipe: prompt_2" in repr(trajectory)
    assert fnb.open_trajectory(trajectory.save(tmp_path / "a")).recipe_missing == trajectory.recipe_missing


def test_the_models_are_compared_once_after_the_decoding_and_before_the_picture_is_converted(toy_pipe, monkeypatch):
    order, compare = [], recorded_recipe.Surroundings.reason_afterwards
    convert = type(toy_pipe.image_processor).postprocess

    def compared(self, pipe):
        order.append("compared")
        return compare(self, pipe)

    def converted(self, *args, **kwargs):
        order.append("converted")
        return convert(self, *args, **kwargs)

    monkeypatch.setattr(recorded_recipe.Surroundings, "reason_afterwards", compared)
    monkeypatch.setattr(type(toy_pipe.image_processor), "postprocess", converted)
    with fnb.recording(toy_pipe) as recorder:
        for _ in range(2):  # previews of the first call are fitted to decoded pictures
            order.clear()
            toy_pipe(["a fox", "a dog"], num_inference_steps=2, height=32, width=32, max_sequence_length=48,
                     generator=[fresh(1), fresh(2)], guidance_scale=0.0)  # fmt: skip
    assert order == ["compared", "converted"] and all(each.recipe for each in recorder.trajectories)


def test_a_callback_that_converts_a_picture_and_then_changes_a_weight_leaves_no_recipe():
    pipe = toy_pipeline()

    def callback(pipe, index, timestep, tensors):
        if index == 1:  # the last step
            pipe.image_processor.postprocess(torch.zeros(1, 3, 32, 32))
            with torch.no_grad():
                pipe.vae.decoder.conv_out.bias.add_(1)
        return tensors

    with fnb.recording(pipe) as recorder:
        pipe("a fox", num_inference_steps=2, height=32, width=32, max_sequence_length=48, guidance_scale=0.0,
             generator=fresh(1), callback_on_step_end=callback)  # fmt: skip
    assert recorder.trajectories[0].recipe is None
