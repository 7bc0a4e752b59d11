"""Pairs state what their distillation keeps, and every comparison displays it."""

from __future__ import annotations

import dataclasses

import pytest

import fluxnb as fnb
from fluxnb.errors import InputError
from fluxnb.families.registry import pair_of
from fluxnb.records import Pair
from tests.scenes import trajectory

KLEIN = Pair(teacher="klein-base", student="klein", kind="distribution")
POCKET = Pair(teacher="pocket-base", student="pocket", kind="trajectory")


def pair_of_trajectories(pair):
    return [dataclasses.replace(trajectory(size=32), model=name, pair=pair) for name in (pair.student, pair.teacher)]


def texts(figure):
    from matplotlib.text import Text

    return " ".join(text.get_text() for text in figure.findobj(Text)).replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("pocket", "trajectory"),
        ("klein", "distribution"),
        ("z-image-turbo", "distribution"),
        ("Tongyi-MAI/Z-Image", "distribution"),
    ],
)
def test_a_model_of_a_pair_has_its_kind(name, kind):
    assert pair_of(name).kind == kind


@pytest.mark.parametrize("name", ["schnell", "dev", "", "pipeline"])
def test_a_model_without_a_public_partner_has_no_pair(name):
    assert pair_of(name) is None


def test_an_unknown_kind_is_an_input_error():
    with pytest.raises(InputError, match="kind="):
        Pair(teacher="a", student="b", kind="same")


@pytest.mark.parametrize(
    ("pair", "sentence"),
    [
        (KLEIN, "klein matches the distribution only: the same seed promises a similar layout at best"),
        (POCKET, "pocket keeps the teacher's map"),
    ],
)
def test_every_comparison_displays_the_kind(pair, sentence, tmp_path):
    several = pair_of_trajectories(pair)
    assert sentence in texts(fnb.compare(several))
    for curve in (fnb.plots.velocity, fnb.plots.sigma_curve, fnb.plots.lock_in, fnb.plots.path):
        assert sentence in texts(curve(several))
    assert sentence in fnb.scrub(several).data["note"]


@pytest.mark.moderate
def test_one_model_alone_displays_no_kind():
    one = pair_of_trajectories(KLEIN)[:1] * 2
    assert "distribution" not in texts(fnb.compare(one)) and "distribution" not in fnb.scrub(one).data["note"]


def test_the_pair_comes_back_from_a_file(tmp_path):
    made = pair_of_trajectories(KLEIN)[0]
    assert fnb.open_trajectory(fnb.save(made, tmp_path / "a")).pair == KLEIN


@pytest.mark.moderate
def test_the_clean_estimate_of_a_flow_map_is_named_where_the_step_points():
    made = dataclasses.replace(trajectory(size=32), predicts="mean velocity")
    assert "where the step points" in texts(fnb.filmstrip(made)) and "clean estimate" not in texts(fnb.filmstrip(made))
    assert "where the step points" in texts(fnb.compare([made, made]))
    assert {"key": "clean", "name": "where the step points"} in fnb.scrub(made).data["shows"]
