"""Words that pocket was not trained on are named; captions of its own kind raise no false alarm."""

from __future__ import annotations

import random
import warnings
from types import SimpleNamespace

import pytest

import fluxnb as fnb
from fluxnb.checkpoints.sources import POCKET
from fluxnb.pipeline.vocabulary import EXAMPLES, vocabulary_of, warn_of_unknown_words

# Prompts as a visitor types them, each with the words that pocket was not trained on.
PROMPTS = {
    "a pirate": "pirate",
    "a harbor": "harbor",
    "seven wildcats": "seven wildcats",
    "a beautiful cat": "beautiful",
    "a photo of a fox": "photo",
    "a knight riding a donkey": "knight riding donkey",
    "a cat, highly detailed, 8k": "highly detailed 8k",
    "a knight holding a sign that says hello": "knight",
    "a gigantic frog": "gigantic",
    "a fox running through the snow": "running through",
    "portrait of a nurse": "portrait nurse",
    "a village at night": "village",
    "a river": "river",
    "a watercolor drawing of a sparrow": "watercolor drawing sparrow",
    "a bicycle without pedals": "without pedals",
    "nine apricots": "nine apricots",
    "a foxx": "foxx",
    "a dwarf in the snow": "dwarf",
    "hello world": "hello world",
    "eine Katze": "eine Katze",
    "un renard dans la neige": "un renard dans la neige",
    "a Ferrari": "Ferrari",
    "a dancing robot": "dancing",
    "a close-up of a bee": "close-up",
    "cinematic lighting": "cinematic lighting",
    "a house made of cheese": "made",
    "a lawyer": "lawyer",
    "the queen of spades": "queen spades",
    "a cat and a dinosaurus": "dinosaurus",
    "a dog holding a sign that says stop in the fog": "fog",
    "a dog holding a sign that says 'big sale' near a wall": "near",
    "an electric heater": "electric heater",
    "a man's hat": "man's",
    "A GIRAFFE AND AN ANTELOPE": "ANTELOPE",
    "a fox_trot": "trot",
    "teenagers playing football": "teenagers playing",
    "a sausage on a plate": "sausage plate",
    "sunrise over the lagoon": "sunrise lagoon",
    "a car driving fast": "driving fast",
    "a swamp": "swamp",
    "an ancient castle": "ancient",
    "a fluffy poodle-cross": "fluffy poodle-cross",
    "café terrace": "café terrace",
    "a \u732b": "\u732b",
    "a cat in zero-gravity": "zero-gravity",
    "a ghost wearing earrings": "wearing earrings",
    "a bowl of soup": "bowl soup",
    "a red marble": "marble",
    "a glider in the clearing": "glider clearing",
    "a mouse eating cheese": "eating",
}


@pytest.fixture(scope="module")
def vocabulary():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(POCKET / "base" / "tokenizer_2")
    return vocabulary_of("pocket", SimpleNamespace(tokenizer_2=tokenizer))


@pytest.mark.parametrize("prompt", PROMPTS)
def test_unknown_words_of_a_prompt_are_named(vocabulary, prompt):
    assert " ".join(vocabulary.unknown(prompt)) == PROMPTS[prompt]


def test_captions_of_the_training_data_raise_no_false_alarm(vocabulary):
    from fluxnb.train.data import captions, scenes

    rng = random.Random(0)
    texts = [captions.caption(scenes.partial_scene(rng, held_out=None), rng) for _ in range(500)]
    assert [text for text in texts if vocabulary.unknown(text)] == []


def test_the_words_of_the_shipped_tokenizer_are_those_of_the_training_data(vocabulary):
    from fluxnb.train.data.vocabulary import words

    assert sorted(vocabulary.words) == sorted(words())


def test_example_prompts_have_known_words_only(vocabulary):
    assert [example for example in EXAMPLES["pocket"] if vocabulary.unknown(example)] == []


def test_a_warning_names_the_word_similar_words_and_an_example(vocabulary):
    with pytest.warns(fnb.PromptWarning) as caught:
        warn_of_unknown_words("pocket", vocabulary, "a foxx")
    message = str(caught[0].message)
    assert all(part in message for part in ("not trained on 'foxx'", "similar spelling: fox", "'a fox in the snow'"))


def test_a_warning_of_many_unknown_words_is_short(vocabulary):
    with pytest.warns(fnb.PromptWarning) as caught:
        warn_of_unknown_words("pocket", vocabulary, " ".join(f"word{n}" for n in range(500)))
    assert "and 492 more" in str(caught[0].message) and len(str(caught[0].message)) < 600


def test_a_prompt_of_known_words_gives_no_warning(vocabulary):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unknown_words("pocket", vocabulary, "A fox in the snow.")


def test_other_models_have_no_vocabulary():
    assert vocabulary_of("schnell", SimpleNamespace()) is None


@pytest.mark.parametrize("pipe", [SimpleNamespace(), SimpleNamespace(tokenizer_2=None)], ids=["no part", "None"])
def test_pocket_without_its_tokenizer_has_no_vocabulary(pipe):
    assert vocabulary_of("pocket", pipe) is None


@pytest.mark.slow
def test_a_run_of_pocket_warns_of_unknown_words():
    with pytest.warns(fnb.PromptWarning, match="not trained on 'harbor'"):
        fnb.run(fnb.load("pocket"), "a harbor", steps=1, height=64, width=64)
