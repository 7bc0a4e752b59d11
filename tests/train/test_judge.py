"""The judge: the attributes of layouts, and its training with the smallest preset."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file

from fluxnb.train.__main__ import main
from fluxnb.train.config import TINY
from fluxnb.train.data.layouts import lay_out
from fluxnb.train.data.scenes import COLORS, Scene, Thing, complete
from fluxnb.train.networks import judge
from fluxnb.train.networks.weights import save_weights

pytestmark = pytest.mark.moderate


def attributes(scene, seed=0):
    rng = random.Random(seed)
    read = judge.layout_attributes(lay_out([complete(scene, rng)], rng))
    return {field: int(getattr(read, field)[0]) for field in judge.CLASSES} | {"letters": read.letters[0]}


def names(read):
    return judge.NAMES[read["first"]], (*judge.NAMES, "none")[read["second"]]


@pytest.mark.parametrize(
    ("relation", "arrangement", "expected"),
    [
        ("left of", "side by side", ("fox", "owl")),
        ("right of", "side by side", ("owl", "fox")),
        ("above", "stacked", ("fox", "owl")),
        ("below", "stacked", ("owl", "fox")),
    ],
)
def test_the_first_thing_is_the_left_or_the_upper_one(relation, arrangement, expected):
    for seed in range(5):
        read = attributes(Scene((Thing("fox"), Thing("owl")), relation=relation), seed)
        assert names(read) == expected and judge.ARRANGEMENTS[read["arrangement"]] == arrangement
        assert read["count"] == 0


def test_colors_follow_the_order_of_the_things():
    scene = Scene((Thing("car", color="red"), Thing("book", color="blue")), relation="right of")
    read = attributes(scene)
    assert (read["first_color"], read["second_color"]) == (list(COLORS).index("blue"), list(COLORS).index("red"))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_several_of_one_noun_are_counted(count):
    read = attributes(Scene((Thing("fox", count=count),)))
    assert read["count"] == count - 1 and names(read) == ("fox", "none")
    assert judge.ARRANGEMENTS[read["arrangement"]] == ("one" if count == 1 else "several")


def test_gender_tone_and_direction_are_those_of_the_emoji():
    read = attributes(Scene((Thing("doctor", gender="woman", tone="dark"),)))
    assert (judge.GENDERS[read["gender"]], judge.TONES[read["tone"]]) == ("woman", "dark")
    read = attributes(Scene((Thing("car", facing="right"),)))
    assert judge.FACINGS[read["facing"]] == "right" and judge.GENDERS[read["gender"]] == "none"


def test_the_time_of_day_is_none_indoors():
    assert judge.DAYTIMES[attributes(Scene((Thing("fox"),), backdrop="room"))["time"]] == "none"
    assert judge.DAYTIMES[attributes(Scene((Thing("fox"),), backdrop="snow", time="night"))["time"]] == "night"


def test_a_sign_is_an_arrangement_with_letters():
    read = attributes(Scene((Thing("robot"),), sign="hi"))
    assert judge.ARRANGEMENTS[read["arrangement"]] == "sign" and read["letters"][:3].tolist() == [8, 9, 0]


@pytest.mark.slow
def test_the_judge_trains_and_reads_pictures_of_any_size(tmp_path):
    main(["judge", "--preset", "tiny", "--out", str(tmp_path)])
    network = judge.load_judge(tmp_path / "judge.safetensors", TINY)
    read, features = judge.classify(network, torch.rand(3, 3, 96, 144) * 2 - 1)
    assert (
        features.shape == (3, TINY.judge_width) and read.letters.shape == (3, 14) and read.first.max() < judge.NO_NOUN
    )


@pytest.mark.slow
def test_a_judge_continues_from_a_saved_one(tmp_path):
    torch.manual_seed(1)
    save_weights(judge.build_judge(TINY), tmp_path / "start.safetensors")
    common = ["judge", "--preset", "tiny", "--out", str(tmp_path), "--rate", "0"]
    main([*common, "--pretrained", str(tmp_path / "start.safetensors")])
    start, end = (load_file(tmp_path / f"{name}.safetensors") for name in ("start", "judge"))
    assert all(torch.allclose(start[name], end[name], atol=1e-3) for name in start)
    lines = [json.loads(line) for line in (tmp_path / "judge.jsonl").read_text().splitlines()]
    assert lines[0]["start"] == "start.safetensors"
