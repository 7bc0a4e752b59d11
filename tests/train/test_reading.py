"""`fnb.judge`: the attributes of pocket's pictures, with probabilities."""

from __future__ import annotations

import random
import re

import pytest
import torch
from PIL import Image

import fluxnb as fnb
from fluxnb.errors import InputError
from fluxnb.train.data.drawing import Renderer
from fluxnb.train.data.layouts import Shape, lay_out
from fluxnb.train.data.scenes import BACKDROPS, Scene, Thing, complete
from fluxnb.train.evaluation.reading import LABELS, judge
from fluxnb.train.networks.judge import CLASSES

pytestmark = pytest.mark.moderate

SCENES = [
    Scene((Thing("fox", color="blue"),), style="sticker", backdrop="snow", time="night"),
    Scene((Thing("robot"), Thing("owl")), style="3d", relation="left of", backdrop="gray"),
    Scene((Thing("castle", count=3),), style="flat", backdrop="beach", time="day"),
    Scene((Thing("doctor", gender="woman", tone="dark"),), style="cartoon", backdrop="room"),
    Scene((Thing("bus", facing="right"),), style="3d", backdrop="road", time="day"),
]


def drawn(scenes: list[Scene], shape: Shape) -> list[Image.Image]:
    rng = random.Random(4)
    layout = lay_out([complete(scene, rng) for scene in scenes], rng, shape)
    pictures = Renderer("cpu")(layout, shape.height, shape.width)
    return [Image.fromarray(((each / 2 + 0.5) * 255).round().byte().permute(1, 2, 0).numpy()) for each in pictures]


@pytest.fixture(scope="module")
def readings():
    return judge(drawn(SCENES, Shape(192, 192)))


def test_every_attribute_of_the_judge_has_the_names_of_its_classes():
    assert [len(names) for names in LABELS.values()] == list(CLASSES.values())


def test_things_and_their_arrangement_are_read(readings):
    assert [(r.object, r.second, r.arrangement, r.count) for r in readings] == [
        ("fox", None, "one", 1), ("robot", "owl", "side by side", 1), ("castle", None, "several", 3),
        ("doctor", None, "one", 1), ("bus", None, "one", 1),
    ]  # fmt: skip


def test_style_place_and_time_are_read(readings):
    assert [(r.style, r.place, r.time) for r in readings] == [
        ("sticker", "snow", "night"), ("3d", "gray", None), ("flat", "beach", "day"), ("cartoon", "room", None),
        ("3d", "road", "day"),
    ]  # fmt: skip


def test_colors_direction_and_people_are_read(readings):
    fox, pair, _, doctor, bus = readings
    assert fox.color == "blue" and fox.second_color is None
    assert (pair.color, pair.second_color) == ("natural", "natural")
    assert (doctor.gender, doctor.tone) == ("woman", "dark") and fox.gender is None and fox.tone is None
    assert bus.facing == "right" and doctor.facing is None


def test_probabilities_are_of_every_name_and_sum_to_one(readings):
    for reading in readings:
        for attribute, of in reading.probabilities.items():
            assert tuple(of) == LABELS[attribute] and sum(of.values()) == pytest.approx(1, abs=1e-4)
        assert reading.features.shape == (256,) and 0 <= reading.sign_probability <= 1


def test_pictures_of_several_sizes_are_read_at_once():
    shapes = [Shape(128, 128), Shape(256, 256), Shape(160, 240)]
    pictures = [picture for shape in shapes for picture in drawn(SCENES[:1], shape)]
    assert [(r.object, r.place) for r in judge(pictures)] == [("fox", "snow")] * 3


def test_one_picture_gives_a_reading_and_several_give_a_tuple_with_the_same_content(readings):
    alone = judge(drawn(SCENES, Shape(192, 192))[0])
    torch.testing.assert_close(alone.features, readings[0].features, rtol=1e-4, atol=1e-4)
    assert re.fullmatch(r"Reading\(fox \(\d+ %\), snow \(\d+ %\)\)", repr(alone)) and repr(alone) == repr(readings[0])
    assert judge([]) == ()


@pytest.mark.slow
def test_pictures_of_pocket_show_what_was_requested():
    flux = fnb.load("pocket")
    reading = fnb.judge(fnb.run(flux, "a red fox in the snow, sticker", seed=3))
    assert (reading.object, reading.place, reading.color, reading.style) == ("fox", "snow", "red", "sticker")
    sweep = fnb.sweep(flux, prompts=["a fox", "a cat"], seeds=range(8))
    found = fnb.judge(sweep)
    right = fnb.metrics.Count.of(
        r.object == cell.recipe.prompt.split()[1] for r, cell in zip(found, sweep, strict=True)
    )
    assert right.share >= 0.75 and all(reading.place in BACKDROPS for reading in found)


@pytest.mark.parametrize("given", [None, 3, "x", [1], ["x"], Image.new("RGB", (64, 128)), [Image.new("L", (64, 128))]])
def test_what_is_no_picture_of_pocket_is_refused_in_three_parts(given):
    with pytest.raises(InputError) as caught:
        judge(given)
    assert caught.value.possible and caught.value.remedy
