"""The evaluation: answers by attribute, planted shares, and the report of a whole run."""

import json
import math
import random
import shutil

import numpy as np
import pytest
import torch

from fluxnb.train.__main__ import EVALUATION, main
from fluxnb.train.config import TINY
from fluxnb.train.data.layouts import lay_out
from fluxnb.train.data.scenes import Scene, Thing, complete, partial_scene
from fluxnb.train.evaluation import evaluator
from fluxnb.train.evaluation.figure import MET, MISSED, MOST, evaluation_figure
from fluxnb.train.networks.judge import ATTRIBUTES, correctness, layout_attributes

pytestmark = pytest.mark.moderate


def read_of(scenes):
    rng = random.Random(0)
    return layout_attributes(lay_out([complete(scene, rng) for scene in scenes], rng))


def answers(asked, drawn):
    """The answers to a caption for the picture of another scene, without what the caption leaves open."""
    found = correctness([asked], read_of([drawn]))
    return {name: values[0] for name, values in found.items() if not math.isnan(values[0])}


@pytest.mark.parametrize("held_out", [False, True])
def test_a_correct_picture_has_everything_that_its_caption_specifies(held_out):
    rng = random.Random(1)
    scenes = [partial_scene(rng, held_out=held_out) for _ in range(300)]
    found = correctness(scenes, read_of(scenes))
    assert set(found) == set(ATTRIBUTES)
    assert all(np.nanmin(values) == 1 for values in found.values())
    assert all(
        0 < np.isnan(found[name]).mean() < 1 for name in ("style", "color", "count", "place", "relation", "sign")
    )


FOX, OWL = Thing("fox"), Thing("owl")
SIGN = Scene((Thing("robot"),), sign="hello world")


@pytest.mark.parametrize(
    ("asked", "drawn", "wrong"),
    [
        (Scene((FOX,)), Scene((OWL,)), "object"),
        (Scene((FOX,), style="3d"), Scene((FOX,), style="flat"), "style"),
        (Scene((Thing("car", color="red"),)), Scene((Thing("car", color="blue"),)), "color"),
        (Scene((Thing("fox", count=2),)), Scene((Thing("fox", count=3),)), "count"),
        (Scene((Thing("fox", count=None),)), Scene((FOX,)), "count"),
        (Scene((FOX,), backdrop="snow"), Scene((FOX,), backdrop="desert"), "place"),
        (Scene((FOX,), backdrop="snow", time="night"), Scene((FOX,), backdrop="snow", time="day"), "time"),
        (Scene((FOX, OWL), relation="left of"), Scene((FOX, OWL), relation="right of"), "relation"),
        (Scene((FOX, OWL), relation="above"), Scene((FOX, OWL), relation="left of"), "relation"),
        (SIGN, Scene((Thing("robot"),), sign="hello worle"), "sign"),
        (Scene((Thing("doctor", gender="woman"),)), Scene((Thing("doctor", gender="man"),)), "look"),
    ],
)
def test_a_wrong_attribute_is_found_and_no_other(asked, drawn, wrong):
    found = answers(asked, drawn)
    assert {name for name, value in found.items() if value == 0} == {wrong, "everything"}


def test_the_color_of_one_of_two_things_is_read_from_that_thing():
    red, blue = Thing("car", color="red"), Thing("book", color="blue")
    asked = Scene((red, Thing("book")), relation="and")
    assert answers(asked, Scene((red, blue), relation="below"))["color"] == 1
    assert (
        answers(asked, Scene((Thing("car", color="blue"), Thing("book", color="red")), relation="below"))["color"] == 0
    )


def test_two_things_side_by_side_or_stacked_are_both_an_and():
    asked = Scene((FOX, OWL), relation="and")
    assert answers(asked, Scene((OWL, FOX), relation="left of"))["relation"] == 1
    assert answers(asked, Scene((OWL, FOX), relation="below"))["relation"] == 1


def test_the_planted_shares_are_those_of_completed_scenes():
    for prompt in evaluator.planted():
        read = getattr(read_of([prompt.scene] * 400), prompt.attribute)
        share = float((read == prompt.value).float().mean())
        assert abs(share - prompt.share) < 4 * math.sqrt(max(0.01, prompt.share * (1 - prompt.share)) / 400), (
            prompt.name
        )


def test_the_professions_range_from_few_to_many_women():
    shares = [prompt.share for prompt in evaluator.planted() if prompt.attribute == "gender"]
    assert len(shares) >= 10 and min(shares) < 0.35 and max(shares) > 0.65


def test_the_defaults_of_the_command_are_those_of_the_evaluation():
    assert evaluator.Size(**EVALUATION) == evaluator.Size()


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory):
    """The run with a judge, a student and an evaluation."""
    out = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(run, out, dirs_exist_ok=True)
    common = ["--preset", "tiny", "--out", str(out)]
    for stage in ("judge", "student"):
        main([stage, *common])
    small = ["--count", "6", "--seeds", "2", "--prompts", "2", "--noises", "3", "--shares", "2"]
    main(["evaluate", *common, *small])
    return out


@pytest.mark.slow
def test_a_run_is_evaluated_by_one_command(evaluated):
    results = json.loads((evaluated / "evaluation.json").read_text())
    settings = {"renders", "teacher-28", "teacher-4", "student-4", "student-1", "warm-4", "warm-1"}
    assert set(results["shares"]) == set(results["frechet"]) == set(results["diversity"]) == settings
    assert len(results["targets"]) == 7 + 2 * 8
    assert results["shares"]["renders"]["held_out"]["everything"]["n"] == 12
    assert {"teacher-28 at 1.0", "teacher-28 at 2.5", "student-1"} <= set(results["planted"])
    table = (evaluated / "evaluation.md").read_text()
    assert "| student-1 | held out |" in table and table.count("| no |") + table.count("| yes |") == 23


@pytest.mark.slow
def test_a_measurement_that_exists_is_not_repeated(evaluated, tmp_path):
    again = tmp_path / "run"
    shutil.copytree(evaluated, again)
    for path in (again / "evaluation").glob("*.npz"):
        path.touch()
    before = {path.name: path.stat().st_mtime_ns for path in (again / "evaluation").glob("*.npz")}
    next((again / "evaluation").glob("warm-1.open.npz")).unlink()
    small = ["--count", "6", "--seeds", "2", "--prompts", "2", "--noises", "3", "--shares", "2"]
    main(["evaluate", "--preset", "tiny", "--out", str(again), *small])
    after = {path.name: path.stat().st_mtime_ns for path in (again / "evaluation").glob("*.npz")}
    assert {name for name in before if before[name] != after[name]} == {"warm-1.open.npz"}


@pytest.mark.slow
def test_a_student_is_selected_by_its_pictures(evaluated):
    found = evaluator.Evaluator(TINY, evaluated, evaluator.Size(), torch.device("cpu"))
    assert set(found.monitor(found.teacher, count=6)) == {"everything_4", "everything_1", "fd_4"}


@pytest.mark.slow
def test_the_planted_shares_are_measured_on_renders_and_on_every_model(evaluated):
    planted = json.loads((evaluated / "evaluation.json").read_text())["planted"]
    assert {"renders", "teacher-28", "student-4", "student-1"} < set(planted)
    assert all(entry["low"] <= entry["share"] <= entry["high"] for rows in planted.values() for entry in rows)


@pytest.mark.slow
def test_each_target_has_an_interval(evaluated):
    targets = json.loads((evaluated / "evaluation.json").read_text())["targets"]
    distances = [row["value"] for row in targets if row["quantity"] == "Fréchet distance"]
    assert len(distances) == 2 and all(value["low"] <= value["high"] for value in distances)


def test_the_figure_has_a_check_mark_or_a_cross_for_every_target(evaluated):
    results = json.loads((evaluated / "evaluation.json").read_text())
    words = [text.get_text() for axes in evaluation_figure(results).axes for text in axes.texts]
    met = [target["met"] for target in results["targets"]]
    assert sum(word.startswith(MET) for word in words) == met.count(True)
    assert sum(word.startswith(MISSED) for word in words) == met.count(False)


def test_a_measurement_outside_the_axis_is_at_its_end(evaluated):
    results = json.loads((evaluated / "evaluation.json").read_text())
    target = results["targets"][0]
    target["value"] |= {"value": 7.0, "low": 6.0, "high": 8.0}
    axes = evaluation_figure(results | {"targets": [target]}).axes[0]
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "o"]
    assert dots == [MOST]
    assert any("7.000 (6.000 to 8.000)" in text.get_text() for text in axes.texts)
