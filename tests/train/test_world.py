"""Scenes, captions, held-out combinations and tokenizers."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("sentencepiece")

from fluxnb.train.config import POCKET
from fluxnb.train.data import world
from fluxnb.train.data.tokens import Tokens
from fluxnb.train.data.world import Scene, draw_captioned, draw_scene, is_held_out


def test_the_numbers_of_objects_colors_and_places():
    assert len(world.NAMES) >= 120 and len(world.COLORS) >= 10 and len(world.PLACES) == 6


def test_the_caption_of_a_cat_with_a_sign():
    scene = Scene(("cat",), "meadow", sign="hello world")
    assert scene.caption(with_background=False) == "a cat holding a sign that says hello world"


def test_about_a_tenth_of_combinations_is_held_out():
    pairs = [(name, where) for name in world.NAMES for where in world.BACKGROUNDS]
    assert 0.08 < sum(is_held_out(*pair) for pair in pairs) / len(pairs) < 0.12


@pytest.mark.moderate
def test_training_scenes_have_no_held_out_combination():
    rng = random.Random(0)
    assert not any(draw_scene(rng).held_out for _ in range(2000))


def test_held_out_scenes_can_be_requested():
    rng = random.Random(0)
    assert all(draw_scene(rng, held_out=True).held_out for _ in range(200))


@pytest.mark.moderate
def test_every_caption_fits_the_text_encoders():
    tokens = Tokens.of(POCKET.sizes)
    captions = [caption for _, caption in draw_captioned(random.Random(1), 3000)]
    longest = max(len(ids) for ids in tokens.t5(captions).input_ids + tokens.clip(captions).input_ids)
    assert longest <= POCKET.sizes.text_tokens


def test_a_known_word_is_one_token_and_other_words_are_split_into_letters():
    tokens = Tokens.of(POCKET.sizes)
    assert tokens.t5.tokenize("a fox zyx") == ["▁a", "▁fox", "▁", "z", "y", "x"]


def test_tokenizers_ignore_case():
    tokens = Tokens.of(POCKET.sizes)
    assert tokens.t5("A Fox").input_ids == tokens.t5("a fox").input_ids
    assert tokens.clip("A Fox").input_ids == tokens.clip("a fox").input_ids


@pytest.mark.moderate
def test_captions_have_no_unknown_token():
    tokens = Tokens.of(POCKET.sizes)
    captions = [caption for _, caption in draw_captioned(random.Random(2), 2000)]
    assert not any(tokens.t5.unk_token_id in ids for ids in tokens.t5(captions).input_ids)
    assert not any(tokens.clip.unk_token_id in ids for ids in tokens.clip(captions).input_ids)
