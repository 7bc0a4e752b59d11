"""Pictures in rows and columns, charts, and alternative texts."""

from __future__ import annotations

import base64

import pytest
from PIL import Image

from fluxnb import InputError, plots

RED, BLUE = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))


def test_pictures_stand_in_rows_and_an_empty_place_stays_empty():
    figure = plots.pictures([[RED, BLUE], [None, RED]], columns=["one", "two"], labels=["a", "b"])
    assert [tuple(axes.images[0].get_array()[0, 0]) for axes in figure.axes] == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]
    assert [text.get_text() for text in figure.texts] == ["one", "two", "a", "b"]


def test_a_record_with_an_image_is_a_picture():
    class Cell:
        image = BLUE

    assert len(plots.pictures([[Cell()]]).axes) == 1


@pytest.mark.parametrize("changes", [{"rows": []}, {"rows": [[]]}, {"columns": ["one"]}, {"labels": ["a", "b"]}])
def test_pictures_that_do_not_match_their_texts_are_refused(changes):
    with pytest.raises(InputError):
        plots.pictures(**{"rows": [[RED, BLUE]]} | changes)


def test_a_chart_has_axes_side_by_side():
    figure, axes = plots.chart(columns=3)
    lefts = [ax.get_position().x0 for ax in axes]
    assert figure.axes == axes and lefts == sorted(lefts)


def test_the_alternative_text_is_stored_with_the_picture():
    figure = plots.describe(plots.chart()[0], "an empty chart")
    data, metadata = figure._repr_mimebundle_()
    assert metadata == {"image/png": {"alt": "an empty chart"}}
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


def test_a_heading_is_the_alternative_text_where_none_is_given():
    assert plots.pictures([[RED]], title="One picture", note="it is red").alt == "One picture, it is red"
    assert plots.pictures([[RED]], title="One picture", alt="a red square").alt == "a red square"
