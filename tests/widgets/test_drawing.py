"""The canvas by its traits, without a front end, and the shapes that it offers."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fluxnb.errors import InputError
from fluxnb.html.front_end import script
from fluxnb.widgets import Canvas, canvas, shape
from fluxnb.widgets.drawing import MOST_POINTS
from fluxnb.widgets.shapes import HALF, SHAPES


def test_a_canvas_is_empty_unless_points_are_given():
    assert canvas().points.shape == (0, 2) and repr(canvas()) == "Canvas(0 points)"
    assert repr(canvas([[0.5, 1]])) == "Canvas(1 point)"


@pytest.mark.parametrize(
    "points", [[[0.5, -1], [2, 0]], np.array([[0.5, -1], [2, 0]]), torch.tensor([[0.5, -1.0], [2.0, 0.0]])],
    ids=["lists", "array", "tensor"],
)  # fmt: skip
def test_points_are_set_from_any_kind_of_numbers(points):
    widget = canvas()
    widget.points = points
    assert widget.points.dtype == np.float32 and widget.points.tolist() == [[0.5, -1.0], [2.0, 0.0]]


def test_points_are_set_by_the_name_of_a_shape():
    assert np.array_equal(canvas("ring").points, shape("ring"))


def test_points_cannot_be_changed_in_place():
    with pytest.raises(ValueError, match="read-only"):
        canvas("ring").points[0] = 0


def test_an_array_of_the_caller_is_copied():
    given = np.zeros((3, 2), np.float32)
    widget = canvas(given)
    given[:] = 1
    assert not widget.points.any()


def test_points_reach_the_front_end_with_three_digits():
    state = canvas([[1.23456, -0.1]]).get_state()
    assert json.loads(json.dumps(state["points"])) == [[1.235, -0.1]]


def test_points_of_the_front_end_arrive_and_are_observed():
    widget, seen = canvas("ring"), []
    widget.observe(lambda change: seen.append(change["new"].tolist()), "points")
    widget.set_state({"points": [[0.5, 0.25]]})
    widget.set_state({"points": []})
    assert seen == [[[0.5, 0.25]], []] and widget.points.shape == (0, 2)


@pytest.mark.parametrize(
    ("points", "reason"),
    [([[1, 2, 3]], "(n, 2)"), ([1, 2], "(n, 2)"), ([["a", "b"]], "(n, 2)"), (None, "(n, 2)"), ([[0, 2.6]], "-2.5"),
     ([[0, np.nan]], "-2.5"), (np.zeros((MOST_POINTS + 1, 2)), "at most 2000"), ("rign", "'ring'")],
    ids=["space", "row", "text", "none", "outside", "nan", "too many", "unknown"],
)  # fmt: skip
def test_impossible_points_are_refused_in_three_parts_and_the_drawing_remains(points, reason):
    widget = canvas("ring")
    with pytest.raises(InputError) as caught:
        widget.points = points
    assert reason in caught.value.possible and caught.value.given and caught.value.remedy
    assert len(widget.points) == 600


def test_the_fallback_picture_has_the_points_where_they_are():
    bundle, _ = canvas([[1.25, 1.25]])._repr_mimebundle_()
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(bundle["image/png"]))).convert("RGB")).astype(int)
    rows, columns = np.nonzero(picture[..., 2] - picture[..., 0] > 100)
    assert (rows.mean() / picture.shape[0], columns.mean() / picture.shape[1]) == pytest.approx((0.25, 0.75), abs=0.01)


def test_the_saved_output_has_the_points_and_a_description_for_readers_without_scripts(monkeypatch):
    monkeypatch.setenv("FLUXNB_DISPLAY", "html")
    html = canvas([[0.5, 1.25]])._repr_mimebundle_()[0]["text/html"]
    assert '"points":[[0.5,1.25]]' in html and 'alt="a drawing of 1 point"' in html


def test_the_front_end_neither_parses_text_as_markup_nor_uses_the_network():
    source = script("canvas").replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", source)
    assert not re.search(r"https?://|import\s*\(|fetch\(|XMLHttpRequest", source)


def test_the_front_end_has_the_points_of_every_shape():
    settings = Canvas().settings
    assert list(settings["shapes"]) == list(SHAPES) and settings["limit"] == MOST_POINTS
    assert all(len(points) == 600 for points in settings["shapes"].values())


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_within_the_canvas_and_repeatable_by_its_seed(name):
    points = shape(name, count=500, seed=3)
    assert points.shape == (500, 2) and points.dtype == np.float32 and np.abs(points).max() <= HALF
    assert np.array_equal(points, shape(name, count=500, seed=3))
    assert not np.array_equal(points, shape(name, count=500, seed=4))


def test_scribbles_of_two_seeds_are_two_drawings():
    means = [shape("scribble", seed=seed).mean(0) for seed in range(6)]
    assert min(np.linalg.norm(a - b) for i, a in enumerate(means) for b in means[:i]) > 0.05


@pytest.mark.parametrize("arguments", [{"name": "moon"}, {"count": 0}, {"count": 10**6}, {"seed": -1}])
def test_an_impossible_shape_is_refused(arguments):
    with pytest.raises(InputError) as caught:
        shape(**{"name": "ring", **arguments})
    assert caught.value.possible and caught.value.remedy
