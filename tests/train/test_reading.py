"""`fnb.judge`: the attributes of pocket's pictures, with probabilities."""

from __future__ import annotations

import random
import re

import pytest
import torch
from PIL import Image

import fluxnb as fnb
from fluxnb.errors import InputError
from fluxnb.train.data.render import Renderer, lay_out
from fluxnb.train.data.world import BACKGROUNDS, Scene
from fluxnb.train.evaluation.reading import LABELS, WEIGHTS, judge
from fluxnb.train.networks.judge import load_judge

SCENES = [
    Scene(("fox",), "snow"), Scene(("teapot",), "gray"), Scene(("robot", "cat"), "night", relation="left of"),
    Scene(("castle", "sun"), "meadow", relation="below"), Scene(("cat",), "blue", sign="hello world"),
    Scene(("bear",), "beach", sign="flux"),
]  # fmt: skip


@pytest.fixture(scope="module")
def drawn() -> list[Image.Image]:
    pictures = Renderer("cpu")(lay_out(SCENES, random.Random(0)))
    return [Image.fromarray(((each / 2 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()) for each in pictures]


@pytest.mark.moderate
def test_drawings_are_read_as_what_was_drawn(drawn):
    readings = judge(drawn)
    assert [(r.object, r.second, r.place, r.arrangement, r.sign) for r in readings] == [
        ("fox", None, "snow", "one", ""), ("teapot", None, "gray", "one", ""),
        ("robot", "cat", "night", "side by side", ""), ("sun", "castle", "meadow", "stacked", ""),
        ("cat", None, "blue", "sign", "hello world"), ("bear", None, "beach", "sign", "flux"),
    ]  # fmt: skip


@pytest.mark.moderate
def test_probabilities_are_of_every_name_and_sum_to_one(drawn):
    for reading in judge(drawn):
        for attribute, of in reading.probabilities.items():
            assert tuple(of) == LABELS[attribute] and sum(of.values()) == pytest.approx(1, abs=1e-4)
        assert 0.5 < reading.probabilities["object"][reading.object] <= 1
        assert 0.2 < reading.sign_probability <= 1 and reading.features.shape == (128,)


@pytest.mark.moderate
def test_one_picture_gives_a_reading_and_several_give_a_tuple_with_the_same_content(drawn):
    alone, (first, _) = judge(drawn[0]), judge(drawn[:2])
    assert repr(alone) == repr(first)
    assert re.fullmatch(r"Reading\(fox \(9\d %\), snow \(9\d %\)\)", repr(alone))
    torch.testing.assert_close(alone.features, first.features, rtol=1e-4, atol=1e-4)
    assert judge([]) == ()
    assert "sign 'hello world'" in repr(judge(drawn[4]))


@pytest.mark.slow
def test_pictures_of_pocket_show_what_was_requested():
    flux = fnb.load("pocket")
    trajectory = fnb.run(flux, "a fox in the snow", seed=3)
    reading = fnb.judge(trajectory)
    assert (reading.object, reading.place) == ("fox", "snow")
    sweep = fnb.sweep(flux, prompts=["a fox", "a cat"], seeds=range(8))
    found = fnb.judge(sweep)
    right = fnb.metrics.Count.of(
        r.object == cell.recipe.prompt.split()[1] for r, cell in zip(found, sweep, strict=True)
    )
    assert right.share >= 0.75 and all(reading.place in BACKGROUNDS for reading in found)
    assert fnb.judge(next(iter(sweep))).features.shape == (128,)


@pytest.mark.parametrize("given", [None, 3, "x", [1], ["x"], Image.new("RGB", (64, 128)), [Image.new("L", (256, 256))]])
def test_what_is_no_picture_of_pocket_is_refused_in_three_parts(given):
    with pytest.raises(InputError) as caught:
        judge(given)
    assert caught.value.possible and caught.value.remedy


def test_the_weights_ship_and_are_small():
    assert WEIGHTS.stat().st_size < 3e6
    assert sum(weight.numel() for weight in load_judge(WEIGHTS).parameters()) < 1.5e6
