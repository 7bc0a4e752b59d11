"""Replaying evaluations, with a fake recording that computes again what it recorded."""

from __future__ import annotations

import logging

import pytest
import torch

import fluxnb as fnb
from fluxnb.planning.requirements import Workload
from fluxnb.runtime.adaln_cache import AdaLNCache
from fluxnb.runtime.compilation import evaluation_inputs
from fluxnb.runtime.cuda_graphs import LIMIT, GraphReplay, free_graphs
from tests.conftest import toy_pipeline
from tests.runtime.test_adaln_cache import inputs_for, lean


class Recorder:
    """Like a CUDA graph: reads and writes the tensors of the recording, and runs no hooks."""

    def __init__(self):
        self.recorded, self.replayed = 0, 0

    def __call__(self, call):
        self.recorded += 1
        answer = self.alone(call)

        def again():
            self.replayed += 1
            answer.copy_(self.alone(call))

        return again, answer

    @staticmethod
    def alone(call):
        served = AdaLNCache._set_row
        AdaLNCache._set_row = lambda *_: None
        try:
            return call()
        finally:
            AdaLNCache._set_row = served


@pytest.fixture(params=[False, True], ids=["schnell", "dev"])
def pair(request):
    """A plain transformer, and one with an adaLN cache that is replayed."""
    plain = toy_pipeline(guidance_embeds=request.param).transformer
    mine, _ = lean(plain)
    recorder = Recorder()
    return plain, mine, GraphReplay(mine, recorder), recorder


@pytest.fixture
def replayed():
    transformer, recorder = toy_pipeline().transformer, Recorder()
    return transformer, GraphReplay(transformer, recorder), recorder


def ask(transformer, sigmas=(1.0,), **options):
    with torch.no_grad():
        return transformer(**inputs_for(transformer, list(sigmas), **options))[0]


@pytest.mark.moderate
def test_replays_have_the_bits_of_the_plain_network(pair):
    plain, mine, _, recorder = pair
    for sigma, seed in ((1.0, 0), (0.75, 0), (0.5, 1), (1.0, 2)):
        assert torch.equal(ask(mine, [sigma], seed=seed), ask(plain, [sigma], seed=seed))
    assert (recorder.recorded, recorder.replayed) == (1, 3)


@pytest.mark.moderate
def test_alternating_shapes_read_their_own_rows(pair):
    plain, mine, _, recorder = pair
    for sigmas in ([1.0], [1.0, 0.5], [0.5], [0.5, 0.25], [0.75], [1.0, 0.75]):
        assert torch.equal(ask(mine, sigmas), ask(plain, sigmas))
    assert recorder.recorded == 2


def test_an_output_is_not_overwritten_by_the_next(pair):
    _, mine, _, _ = pair
    ask(mine)
    first = ask(mine, [1.0])
    before = first.clone()
    ask(mine, [0.25], seed=4)
    assert torch.equal(first, before)


def test_the_first_call_of_a_shape_is_not_recorded(replayed):
    transformer, _, recorder = replayed
    ask(transformer)
    assert recorder.recorded == 0


def test_a_hook_on_a_submodule_fires_in_every_evaluation(replayed):
    transformer, _, recorder = replayed
    ask(transformer), ask(transformer)
    fired = []
    handle = transformer.transformer_blocks[0].attn.register_forward_hook(lambda *_: fired.append(1))
    ask(transformer)
    handle.remove()
    ask(transformer)
    assert fired == [1] and recorder.replayed == 2


def test_a_hook_on_the_transformer_fires_in_replays_too(replayed):
    transformer, _, _ = replayed
    fired = []
    transformer.register_forward_hook(lambda *_: fired.append(1))
    for _ in range(3):
        ask(transformer)
    assert fired == [1, 1, 1]


def test_weights_that_moved_are_recorded_again(replayed):
    transformer, _, recorder = replayed
    ask(transformer), ask(transformer), ask(transformer)
    for weight in transformer.single_transformer_blocks[-1].parameters():
        weight.data = weight.data.clone()
    ask(transformer)
    assert (recorder.recorded, recorder.replayed) == (1, 2)
    ask(transformer)
    assert recorder.recorded == 2


def test_weights_that_change_in_place_are_replayed(replayed):
    transformer, _, recorder = replayed
    ask(transformer), ask(transformer)
    with torch.no_grad():
        transformer.proj_out.weight.mul_(2.0)
    ask(transformer)
    assert (recorder.recorded, recorder.replayed) == (1, 2)


def test_calls_with_gradients_are_evaluated(replayed):
    transformer, _, recorder = replayed
    for _ in range(3):
        assert transformer(**inputs_for(transformer, [1.0]))[0].requires_grad
    assert recorder.recorded == 0


def test_calls_with_an_adapter_are_evaluated(replayed):
    transformer, _, recorder = replayed
    ask(transformer), ask(transformer)
    transformer._hf_peft_config_loaded = True
    ask(transformer)
    assert recorder.replayed == 1


def test_calls_under_a_cache_of_diffusers_are_evaluated(replayed):
    from diffusers import FirstBlockCacheConfig

    transformer, _, recorder = replayed
    ask(transformer), ask(transformer)
    transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with transformer.cache_context("cond"):
        ask(transformer)
    transformer.disable_cache()
    ask(transformer)
    assert recorder.replayed == 2


@pytest.mark.parametrize(
    "change",
    [{"return_dict": True}, {"controlnet_block_samples": [torch.zeros(1)]}, {"joint_attention_kwargs": {"scale": 0.5}}],
)
def test_calls_with_other_arguments_are_evaluated(replayed, change):
    transformer, replay, recorder = replayed
    passed = []
    replay._forward = lambda **given: passed.append(given)
    with torch.no_grad():
        for _ in range(3):
            transformer(**{**inputs_for(transformer, [1.0]), **change})
    assert len(passed) == 3 and recorder.recorded == 0


def test_no_more_shapes_than_the_limit_are_recorded(replayed):
    transformer, _, recorder = replayed
    for tokens in range(2, LIMIT + 4):
        for _ in range(2):
            ask(transformer, tokens=tokens)
    assert recorder.recorded == LIMIT


def test_remove_restores_the_transformer(replayed):
    transformer, replay, recorder = replayed
    replay.remove()
    for _ in range(3):
        ask(transformer)
    assert recorder.recorded == 0 and "forward" not in vars(transformer)


def test_remove_restores_a_forward_set_on_the_instance():
    transformer = toy_pipeline().transformer
    forward = transformer.forward = transformer.forward
    GraphReplay(transformer, Recorder()).remove()
    assert vars(transformer)["forward"] is forward


def test_a_call_that_cannot_be_recorded_is_evaluated_with_one_warning(caplog):
    transformer, calls = toy_pipeline().transformer, []

    def fail(call):
        calls.append(call)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    plain = ask(transformer)
    GraphReplay(transformer, fail)
    with caplog.at_level(logging.WARNING):
        outputs = [ask(transformer) for _ in range(4)]
    assert all(torch.equal(answer, plain) for answer in outputs) and len(calls) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "evaluated without a CUDA graph, recording failed: operation not permitted when stream is capturing"
    ]


def test_a_recording_that_runs_out_of_memory_is_evaluated():
    transformer = toy_pipeline().transformer
    plain = ask(transformer)

    def full(call):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    GraphReplay(transformer, full)
    assert all(torch.equal(ask(transformer), plain) for _ in range(3))


@pytest.mark.moderate
def test_a_replayed_picture_and_its_steps_have_the_same_bytes():
    flux = fnb.load(toy_pipeline())
    options = {"seed": 1, "steps": 4, "height": 64, "width": 64}
    plain = fnb.run(flux, "a fox", **options)
    recorder = Recorder()
    GraphReplay(flux.pipe.transformer, recorder)
    trajectory = fnb.run(flux, "a fox", **options)
    assert trajectory.image.tobytes() == plain.image.tobytes() and recorder.replayed == 3
    assert all(torch.equal(one.v, other.v) for one, other in zip(trajectory.steps, plain.steps, strict=True))


@pytest.mark.moderate
def test_attention_is_recorded_although_evaluations_are_replayed():
    flux = fnb.load(toy_pipeline())
    options = {"seed": 1, "steps": 2, "height": 64, "width": 64}
    fnb.run(flux, "a fox", **options)
    GraphReplay(flux.pipe.transformer, Recorder())
    fnb.run(flux, "a fox", **options)
    trajectory = fnb.run(flux, "a fox", **options, keep=fnb.Keep(tensors=("attention",)))
    assert all("attention" in step.tensors for step in trajectory.steps)


def test_the_order_of_the_arguments_does_not_matter(replayed):
    transformer, _, recorder = replayed
    inputs = inputs_for(transformer, [1.0])
    with torch.no_grad():
        transformer(**inputs), transformer(**inputs), transformer(**dict(reversed(inputs.items())))
    assert (recorder.recorded, recorder.replayed) == (1, 2)


def test_a_picture_replays_the_evaluation_that_compilation_measured():
    pipe, recorder = toy_pipeline(), Recorder()
    GraphReplay(pipe.transformer, recorder)
    inputs = evaluation_inputs(pipe.transformer, torch.device("cpu"), Workload(size=64, text=16))
    with torch.no_grad():
        pipe.transformer(**inputs), pipe.transformer(**inputs)
    pipe("a fox", height=64, width=64, num_inference_steps=3, guidance_scale=3.5, max_sequence_length=16)
    assert (recorder.recorded, recorder.replayed) == (1, 4)


def test_freed_graphs_are_recorded_again(replayed):
    transformer, _, recorder = replayed
    ask(transformer), ask(transformer), ask(transformer)
    free_graphs()
    ask(transformer)
    assert (recorder.recorded, recorder.replayed) == (2, 3)
