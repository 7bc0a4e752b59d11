"""The shipped pair: pictures at every size that it was trained for, and many looks of one prompt."""

from __future__ import annotations

import pytest

import fluxnb as fnb

SEEDS = 24


@pytest.fixture(scope="module")
def pocket() -> fnb.Flux:
    return fnb.load("pocket")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "tokens"), [(128, 128, 48), (256, 256, 48), (160, 240, 48), (240, 160, 48), (192, 192, 512)]
)
def test_a_picture_shows_its_prompt_at_every_size_and_number_of_text_tokens(pocket, height, width, tokens):
    size = {"height": height, "width": width, "max_sequence_length": tokens}
    prompts = ("a red fox", "a green apple on a pink background", "a robot in space")
    pictures = [fnb.run(pocket, fnb.Recipe(prompt=prompt, seed=5, steps=4, **size)).image for prompt in prompts]
    fox, apple, robot = (fnb.judge(picture) for picture in pictures)
    assert (fox.object, fox.color) == ("fox", "red")
    assert (apple.object, apple.color, apple.place) == ("apple", "green", "pink")
    assert (robot.object, robot.place) == ("robot", "space")


@pytest.mark.slow
def test_seeds_give_a_cat_in_at_least_three_styles_and_five_backdrops(pocket):
    cats = [fnb.judge(fnb.run(pocket, "a cat", seed=seed, steps=4).image) for seed in range(SEEDS)]
    assert sum(cat.object == "cat" for cat in cats) >= SEEDS - 1
    assert len({cat.style for cat in cats}) >= 3 and len({cat.place for cat in cats}) >= 5
