"""Prompts that were encoded before: the same bytes, and encoded again after a change of what encodes them."""

from __future__ import annotations

import copy

import pytest
import torch

import fluxnb as fnb
from fluxnb.pipeline.state import ENCODINGS, state_of
from fluxnb.planning.presets import PRESETS
from fluxnb.runtime.assembly import assemble
from tests.conftest import toy_pipeline
from tests.offload import group_offload

pytestmark = pytest.mark.moderate
SIZE = {"steps": 1, "height": 32, "width": 32}


@pytest.fixture
def flux():
    return fnb.load(toy_pipeline())


@pytest.fixture
def calls(flux, monkeypatch):
    """The prompts that were encoded."""
    found = []
    original = type(flux.pipe).encode_prompt

    def encode(pipe, prompt, *args, **kwargs):
        if kwargs.get("prompt_embeds") is None:
            found.append(prompt)
        return original(pipe, prompt, *args, **kwargs)

    monkeypatch.setattr(type(flux.pipe), "encode_prompt", encode)
    return found


def embeds(flux, prompt="a fox"):
    return flux.encode(flux.resolve(fnb.Recipe(prompt=prompt, **SIZE))).embeds


def test_further_seeds_of_a_prompt_do_not_encode_it_again(flux, calls):
    for seed in range(3):
        fnb.run(flux, "a fox", seed=seed, **SIZE)
    assert len(calls) == 1


def test_a_remembered_encoding_gives_the_bytes_of_a_new_one(flux):
    first, second = (fnb.run(flux, "a fox", seed=1, **SIZE).image.tobytes() for _ in range(2))
    assert first == second == fnb.run(fnb.load(toy_pipeline()), "a fox", seed=1, **SIZE).image.tobytes()


def test_another_prompt_is_encoded(flux, calls):
    assert not torch.equal(embeds(flux), embeds(flux, "an owl"))
    assert len(calls) == 2


def test_the_prompt_that_was_used_the_longest_time_ago_is_forgotten(flux, calls):
    prompts = [f"a fox {number}" for number in range(ENCODINGS + 1)]
    for prompt in (*prompts, prompts[1], prompts[-1]):
        embeds(flux, prompt)
    assert len(calls) == len(prompts)
    embeds(flux, prompts[0])
    assert len(calls) == len(prompts) + 1


def weight_in_place(pipe):
    with torch.no_grad():
        next(pipe.text_encoder_2.parameters()).add_(0.5)


def weight_replaced(pipe):
    pipe.text_encoder_2.shared.weight = torch.nn.Parameter(pipe.text_encoder_2.shared.weight * 2, requires_grad=False)


def encoder_replaced(pipe):
    pipe.text_encoder_2 = copy.deepcopy(pipe.text_encoder_2)


def hook_added(pipe):
    pipe.text_encoder_2.encoder.final_layer_norm.register_forward_hook(lambda module, inputs, output: output * 2)


def forward_replaced(pipe):
    forward = pipe.text_encoder_2.forward
    pipe.text_encoder_2.forward = lambda *args, **kwargs: forward(*args, **kwargs)


def method_replaced(pipe):
    encode = pipe.encode_prompt
    pipe.encode_prompt = lambda *args, **kwargs: encode(*args, **kwargs)


def token_added(pipe):
    pipe.tokenizer_2.add_tokens(["<new>"])


def tokenizer_replaced(pipe):
    pipe.tokenizer_2 = copy.deepcopy(pipe.tokenizer_2)


@pytest.mark.parametrize(
    "change",
    [
        weight_in_place,
        weight_replaced,
        encoder_replaced,
        hook_added,
        forward_replaced,
        method_replaced,
        token_added,
        tokenizer_replaced,
    ],
)
def test_a_change_of_what_encodes_encodes_again(flux, calls, change):
    embeds(flux)
    change(flux.pipe)
    embeds(flux)
    assert len(calls) == 2


def test_a_hook_whose_state_changes_is_called_for_every_run(flux):
    strength = [1.0]
    flux.pipe.text_encoder_2.register_forward_hook(
        lambda module, inputs, output: type(output)(last_hidden_state=output[0] * strength[0])
    )
    first = embeds(flux)
    strength[0] = 2.0
    assert torch.equal(embeds(flux), first * 2)


@pytest.mark.parametrize("preset", ["lean", "stream-mapped"])
def test_a_preset_that_reads_the_encoders_by_layer_remembers_prompts(toy_folder, preset):
    with group_offload():
        pipe = assemble(toy_folder, PRESETS[preset], device=torch.device("cpu"), dtype=torch.float32)
    flux, reads = fnb.load(pipe), []
    flux.pipe.text_encoder_2.register_forward_hook(_Counting(reads))
    assert torch.equal(embeds(flux), embeds(flux)) and len(reads) == 2  # the hook is the user's
    flux.pipe.text_encoder_2._forward_hooks.popitem()
    embeds(flux)
    assert len(state_of(flux.pipe).encodings) == 1


class _Counting:
    """A hook that counts its calls."""

    def __init__(self, calls: list) -> None:
        self.calls = calls

    def __call__(self, *_) -> None:
        self.calls.append(1)


def test_a_random_encoder_encodes_every_time(flux, calls):
    flux.pipe.text_encoder_2.train()
    embeds(flux)
    embeds(flux)
    assert len(calls) == 2


def test_an_encoding_that_fails_is_not_remembered(flux, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no")

    with monkeypatch.context() as patched:
        patched.setattr(type(flux.pipe), "encode_prompt", fail)
        with pytest.raises(RuntimeError):
            embeds(flux)
    assert torch.isfinite(embeds(flux)).all()
