"""The `parameters` text of A1111: every field, and no text that A1111 would parse differently."""

from __future__ import annotations

import dataclasses

import pytest

from fluxnb.io.a1111 import parameters
from fluxnb.records.recipe import Recipe, ResolvedRecipe

EVERYTHING = ResolvedRecipe(
    prompt="a fox", negative="blur", seed=7, steps=2, height=32, width=48, guidance=2.123456789, sampler="renoise",
    sigmas=(1.0, 0.123456789), shift=1.75, max_sequence_length=99, model="toy", revision="main", dtype="bfloat16",
)  # fmt: skip


def test_every_field_that_has_a_value_is_in_the_text():
    text = parameters(EVERYTHING)
    for field in dataclasses.fields(EVERYTHING):
        value = getattr(EVERYTHING, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            assert str(part).removesuffix(".0").lower() in text.lower(), field.name


def test_brackets_are_escaped_since_they_would_be_weights():
    text = parameters(Recipe(prompt="a (red) [old] \\ fox"))
    assert text.splitlines()[0] == r"a \(red\) \[old\] \\ fox"


@pytest.mark.parametrize(
    "prompt",
    ["a fox\nNegative prompt: blur", "a <lora:style:1> fox", "a fox AND a cat", "a fox BREAK a cat", "a\r\nfox"],
)
def test_a_prompt_that_a1111_would_parse_differently_has_no_text(prompt):
    assert parameters(Recipe(prompt=prompt)) is None
    assert parameters(Recipe(prompt="a fox", negative=prompt)) is None
