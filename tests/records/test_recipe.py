from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxnb.errors import InputError
from fluxnb.grid.axes import Axes
from fluxnb.records.recipe import Recipe, ResolvedRecipe
from tests.trajectories import resolved

words = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=60).filter(str.strip)
sigmas = st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=8, unique=True).map(
    lambda s: tuple(sorted(s, reverse=True))
)
sizes = st.integers(1, 64).map(lambda n: 16 * n)


@st.composite
def recipes(draw):
    own = draw(st.none() | sigmas)
    return Recipe(
        prompt=draw(words),
        negative=draw(st.none() | st.text(st.characters(blacklist_categories=("Cs",)), max_size=20)),
        seed=draw(st.integers(0, 2**64 - 1)),
        steps=len(own) if own else draw(st.integers(1, 1000)),
        height=draw(st.none() | sizes),
        width=draw(st.none() | sizes),
        guidance=draw(st.none() | st.floats(0, 100)),
        sampler=draw(st.sampled_from(["euler", "renoise"])),
        sigmas=own,
        shift=draw(st.none() | st.floats(0.01, 100)),
        max_sequence_length=draw(st.none() | st.integers(1, 512)),
        model=draw(st.none() | words),
        dtype=draw(st.sampled_from([None, "float32", "bfloat16"])),
    )


@pytest.mark.moderate
@given(recipes())
def test_json_gives_the_same_recipe_back(recipe):
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_json(recipe.to_json()).key() == recipe.key()


@pytest.mark.moderate
@given(recipes())
def test_the_json_is_one_line_of_ascii_with_sorted_keys(recipe):
    text = recipe.to_json()
    assert text.isascii() and "\n" not in text
    assert list(json.loads(text)) == sorted(json.loads(text))


@pytest.mark.moderate
@given(recipes(), st.integers(0, 2**64 - 1))
def test_two_recipes_have_one_key_only_if_they_are_equal(recipe, seed):
    other = recipe.replace(seed=seed)
    assert (other.key() == recipe.key()) == (other == recipe)


def test_the_key_is_the_same_in_another_process():
    code = (
        "from fluxnb.records.recipe import Recipe; "
        "print(Recipe(prompt='ein Fuchs im Schnee ❄', seed=2**64-1).key({'a': '1'}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == Recipe(prompt="ein Fuchs im Schnee ❄", seed=2**64 - 1).key({"a": "1"})


def test_library_versions_are_part_of_the_key():
    recipe = Recipe(prompt="a fox")
    assert len({recipe.key(), recipe.key({"torch": "1"}), recipe.key({"torch": "2"})}) == 3


def test_equal_numbers_of_different_types_give_equal_keys():
    plain = Recipe(prompt="a", seed=3, guidance=2.0, height=64)
    assert Recipe(prompt="a", seed=np.uint64(3), guidance=2, height=np.int32(64)).key() == plain.key()
    assert Recipe(prompt="a", guidance=-0.0).key() == Recipe(prompt="a", guidance=0.0).key()


@pytest.mark.parametrize("seed", [0, 1, 2**53 + 1, 2**64 - 1])
def test_any_unsigned_64_bit_seed_is_valid(seed):
    assert Recipe.from_json(Recipe(prompt="a", seed=seed).to_json()).seed == seed


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", "", "at least one word"),
        ("prompt", " \n\t", "at least one word"),
        ("prompt", None, "text"),
        ("prompt", ["a fox"], "text"),
        ("prompt", "x" * 20_001, "20000"),
        ("prompt", "a \ud83d", "lone surrogate"),
        ("steps", 0, "at least 1"),
        ("steps", -3, "at least 1"),
        ("steps", 1001, "at most 1000"),
        ("steps", 2.0, "whole number"),
        ("steps", True, "whole number"),
        ("seed", -1, "at least 0"),
        ("seed", 2**64, "at most 18446744073709551615"),
        ("seed", "3", "whole number"),
        ("seed", True, "whole number"),
        ("seed", np.True_, "whole number"),
        ("seed", math.nan, "whole number"),
        ("seed", None, "whole number"),
        ("height", 100, "96 or 112"),
        ("width", 8, "at least 16"),
        ("width", 8208, "at most 8192"),
        ("width", 64.0, "whole number"),
        ("guidance", math.nan, "0 to 100"),
        ("guidance", math.inf, "0 to 100"),
        ("guidance", "3.5", "0 to 100"),
        ("guidance", True, "0 to 100"),
        ("guidance", 10**400, "0 to 100"),
        ("shift", 0, "0.01 to 100"),
        ("sigmas", (), "1 to 1000"),
        ("sigmas", (1.0, 1.0), "fall strictly"),
        ("sigmas", (0.5, 0.0), "above 0"),
        ("sigmas", (1.0, math.nan), "0 to 1"),
        ("sigmas", "abc", "list of numbers"),
        ("sampler", "eular", "try sampler='euler'"),
        ("sampler", 3, "sampler=3"),
        ("dtype", "float8", "float16"),
        ("max_sequence_length", 513, "at most 512"),
        ("model", 3, "text"),
    ],
)
def test_an_invalid_value_raises_an_error_in_three_parts(field, value, message):
    with pytest.raises(InputError) as caught:
        Recipe(**{"prompt": "a fox", field: value})
    assert message.lower() in str(caught.value).lower()
    assert caught.value.given and caught.value.possible and caught.value.remedy


def test_sigmas_decide_the_count_of_steps():
    assert Recipe(prompt="a", sigmas=[1.0, 0.5]).steps == 2
    with pytest.raises(InputError, match="steps=3 with 2 sigmas"):
        Recipe(prompt="a", steps=3, sigmas=[1.0, 0.5])


def test_replace_checks_values_and_field_names():
    recipe = Recipe(prompt="a", sigmas=(1.0, 0.5))
    assert recipe.replace(steps=3).sigmas is None
    assert recipe.replace(sigmas=(0.9, 0.5, 0.1)).steps == 3
    with pytest.raises(InputError, match="at least one word"):
        recipe.replace(prompt="")
    with pytest.raises(InputError, match="Type seed=3"):
        recipe.replace(sead=3)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "[" * 100_000,
        b"\xff\xfe{}",
        '{"fluxnb_recipe": 1}',
        '{"fluxnb_recipe": 3, "prompt": "a"}',
        '{"fluxnb_recipe": 2, "prompt": "a", "numerics": "exact"}',
        '{"fluxnb_recipe": 1, "prompt": "a", "numerics": 1}',
        '{"fluxnb_recipe": true, "prompt": "a"}',
        '{"prompt": "a"}',
        '{"fluxnb_recipe": 1, "prompt": "a", "prompt": "b"}',
        '{"fluxnb_recipe": 1, "prompt": "a", "__class__": "os.system"}',
        '{"fluxnb_recipe": 1, "prompt": "a", "seed": "0"}',
        '{"fluxnb_recipe": 1, "prompt": "a", "seed": 1.5}',
        '{"fluxnb_recipe": 1, "prompt": "a", "guidance": NaN}',
        '{"fluxnb_recipe": 1, "prompt": {"a": 1}}',
        '{"fluxnb_recipe": 1, "prompt": "a", "seed": ' + "9" * 10_000 + "}",
        '{"fluxnb_recipe": 1, "prompt": "a", "steps": 1e400}',
        " " * 1_000_001,
        7,
    ],
)
def test_hostile_json_is_an_input_error(text):
    with pytest.raises(InputError):
        Recipe.from_json(text)


@pytest.mark.moderate
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_no_json_value_crashes_the_reader(value):
    with pytest.raises(InputError):
        Recipe.from_json(json.dumps({"fluxnb_recipe": 1, "prompt": value, "seed": value, "steps": value}))


def test_axes_are_the_product_with_the_last_axis_fastest():
    grid = Axes(Recipe(prompt="a"), prompt=["a", "b"], steps=(1, 2))
    assert [(r.prompt, r.steps) for r in grid] == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert (len(grid), grid.shape) == (4, (2, 2))


def test_equal_values_of_an_axis_count_once():
    assert len(Axes(Recipe(prompt="a"), seed=[3, np.int64(3), 4])) == 2


@pytest.mark.parametrize(
    ("axis", "message"),
    [({"sead": [1]}, "seed"), ({"seed": 3}, "list"), ({"seed": []}, "at least one"), ({"seed": "12"}, "list")],
)
def test_an_invalid_axis_is_an_input_error(axis, message):
    with pytest.raises(InputError, match=message):
        Axes(Recipe(prompt="a"), **axis)


def test_format_1_opens_and_its_numerics_are_dropped():
    text = '{"fluxnb_recipe": 1, "prompt": "a fox", "seed": 3, "numerics": "gguf-q8"}'
    assert Recipe.from_json(text) == Recipe(prompt="a fox", seed=3)


def test_the_numerics_of_the_answer_are_part_of_the_key():
    recipe = Recipe(prompt="a fox")
    assert recipe.key() == recipe.key(numerics="exact") != recipe.key(numerics="batch")


def test_a_resolved_recipe_equals_the_recipe_with_the_same_values():
    recipe = resolved()
    plain = Recipe.from_json(recipe.to_json())
    assert type(plain) is Recipe and plain == recipe and hash(plain) == hash(recipe) and plain.key() == recipe.key()


@pytest.mark.parametrize("field", ["height", "width", "max_sequence_length", "model", "revision", "dtype"])
def test_a_resolved_recipe_needs_a_value_for_each_field_of_the_model(field):
    with pytest.raises(InputError, match=f"{field}=None"):
        resolved(**{field: None})
    fields = json.loads(resolved().to_json())
    del fields[field]
    with pytest.raises(InputError, match=f"without {field}"):
        ResolvedRecipe.from_json(json.dumps(fields))


def test_a_resolved_recipe_comes_back_from_its_json():
    recipe = ResolvedRecipe.from_json(resolved(seed=2**64 - 1).to_json())
    assert type(recipe) is ResolvedRecipe and recipe == resolved(seed=2**64 - 1)


def test_replacing_a_field_of_a_resolved_recipe_gives_one_to_resolve_again():
    changed = resolved().replace(height=None, steps=1)
    assert type(changed) is Recipe and changed.height is None and changed.steps == 1
