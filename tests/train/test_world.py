"""What a scene is, how it is said, and that the held-out tenth stays out."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("sentencepiece")

from fluxnb.train.config import POCKET
from fluxnb.train.data import world
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.data.world import Scene, draw_captioned, draw_scene, is_held_out


def test_the_world_has_the_objects_and_places_it_promises():
    assert len(world.NAMES) >= 120 and len(world.COLOURS) >= 10 and len(world.PLACES) == 6


def test_the_cat_with_the_sign_is_said_as_people_say_it():
    scene = Scene(("cat",), "meadow", sign="hello world")
    assert scene.caption(say_background=False) == "a cat holding a sign that says hello world"


def test_about_a_tenth_of_combinations_is_held_out():
    pairs = [(name, where) for name in world.NAMES for where in world.BACKGROUNDS]
    assert 0.08 < sum(is_held_out(*pair) for pair in pairs) / len(pairs) < 0.12


def test_training_never_draws_a_held_out_combination():
    rng = random.Random(0)
    assert not any(draw_scene(rng).held_out for _ in range(2000))


def test_a_held_out_scene_can_be_asked_for():
    rng = random.Random(0)
    assert all(draw_scene(rng, held_out=True).held_out for _ in range(200))


def test_every_caption_fits_the_text_encoders():
    tokens = Tokens.of(POCKET.sizes)
    captions = [caption for _, caption in draw_captioned(random.Random(1), 3000)]
    longest = max(len(ids) for ids in tokens.t5(captions).input_ids + tokens.clip(captions).input_ids)
    assert longest <= POCKET.sizes.text_tokens


def test_a_known_word_is_one_token_and_an_unknown_one_its_letters():
    tokens = Tokens.of(POCKET.sizes)
    assert tokens.t5.tokenize("a fox zyx") == ["▁a", "▁fox", "▁", "z", "y", "x"]


def test_capital_letters_change_no_token():
    tokens = Tokens.of(POCKET.sizes)
    assert tokens.t5("A Fox").input_ids == tokens.t5("a fox").input_ids
    assert tokens.clip("A Fox").input_ids == tokens.clip("a fox").input_ids


def test_no_character_of_a_caption_is_unknown():
    tokens = Tokens.of(POCKET.sizes)
    captions = [caption for _, caption in draw_captioned(random.Random(2), 2000)]
    assert not any(tokens.t5.unk_token_id in ids for ids in tokens.t5(captions).input_ids)
    assert not any(tokens.clip.unk_token_id in ids for ids in tokens.clip(captions).input_ids)
