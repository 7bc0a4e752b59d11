"""What a public function answers to wrong arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fluxnb.arguments import entry_point
from fluxnb.errors import ArgumentError


@entry_point(flux='flux = fnb.load("pocket")', path='path="out.png"', names='names=["a"]')
def make(
    flux: dict,
    prompt: str = "",
    *,
    steps: int = 4,
    seed: int = 0,
    path: str | Path = "out.png",
    names: Sequence[str] | None = None,
    on_step: Callable[[int], None] | None = None,
    preset: str = "auto",
):
    return prompt, steps, seed


@entry_point()
def spread(*, prompts, seeds=0, **axes):
    return prompts, seeds, axes


def test_right_arguments_pass():
    assert make({}, "a fox", steps=2) == ("a fox", 2, 0)
    assert spread(prompts="a", guidance=2) == ("a", 0, {"guidance": 2})


@pytest.mark.parametrize(
    ("keyword", "value", "remedy"),
    [
        ("num_inference_steps", 3, "type steps=3"),
        ("callback_on_step_end", print, "type on_step="),
        ("device", "cuda", 'type preset="auto"'),
        ("setps", 3, "type steps=3"),
        ("prompts", ["a"], "type prompt=['a']"),
    ],
)
def test_an_unknown_keyword_is_answered_with_the_right_one(keyword, value, remedy):
    with pytest.raises(ArgumentError) as caught:
        make({}, **{keyword: value})
    assert caught.value.remedy.startswith(remedy) and keyword in caught.value.given


def test_a_generator_is_answered_with_its_seed():
    import torch

    with pytest.raises(ArgumentError, match="Type seed=7"):
        make({}, generator=torch.Generator().manual_seed(7))


def test_a_keyword_of_diffusers_is_answered_where_further_keywords_are_allowed():
    with pytest.raises(ArgumentError, match="Type prompts='a fox'"):
        spread(prompt="a fox")
    with pytest.raises(ArgumentError, match=r"Type seeds=3"):
        spread(prompts="a fox", seed=3)


def test_a_missing_argument_is_answered_with_what_to_type():
    with pytest.raises(ArgumentError, match="make without flux"):
        make()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"path": 3}, "path is text or a Path"),
        ({"names": [1]}, "names is a list of text or None"),
        ({"names": 1}, "names is a list of text or None"),
    ],
)
def test_a_value_of_a_wrong_type_is_answered_in_words(given, words):
    with pytest.raises(ArgumentError, match=words):
        make({}, **given)


def test_the_error_is_a_type_error_and_a_value_error():
    assert issubclass(ArgumentError, TypeError) and issubclass(ArgumentError, ValueError)


def test_the_signature_and_the_docstring_stay():
    import inspect

    assert list(inspect.signature(make).parameters)[:2] == ["flux", "prompt"]


def test_an_error_inside_the_function_is_not_taken_for_a_wrong_call():
    @entry_point()
    def broken(x):
        return len(x)

    with pytest.raises(TypeError, match="object of type 'int'") as caught:
        broken(3)
    assert not isinstance(caught.value, ArgumentError)


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(True), np.float64(0.5)])
def test_a_truth_value_and_a_fraction_are_no_whole_numbers(value):
    @entry_point(count="count=1")
    def repeat(count: int):
        return count

    assert repeat(np.int64(2)) == repeat(torch.tensor(2)) == 2
    with pytest.raises(ArgumentError, match="count is a whole number"):
        repeat(value)
