"""Device memory over time, as drawn lines and labels."""

from __future__ import annotations

import pytest

from fluxnb.errors import InputError
from fluxnb.plots import memory

COURSES = {"lean": [(0.0, 16.5), (0.1, 16.9), (0.8, 18.7), (0.9, 18.7)], "stream": [(0.0, 0.5), (5.0, 2.6)]}


def test_each_series_is_a_line_labeled_with_its_peak():
    axes = memory(COURSES).axes[0]
    lines = {tuple(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) > 2 or line.get_xdata()[0] != 0}
    assert (16.5, 16.9, 18.7, 18.7) in lines
    texts = [text.get_text() for text in axes.texts]
    assert "lean, 18.7" in texts and "stream, 2.6" in texts


def test_cards_are_horizontal_lines_at_their_sizes():
    axes = memory(COURSES, cards=(8, 24)).axes[0]
    assert {8, 24} <= {line.get_ydata()[0] for line in axes.lines}
    assert "24 GB card" in [text.get_text() for text in axes.texts] and axes.get_ylim()[1] > 24


def test_a_given_peak_replaces_the_highest_point_in_the_label():
    texts = [text.get_text() for text in memory(COURSES, peaks={"lean": 19.04}).axes[0].texts]
    assert "lean, 19.0" in texts and "stream, 2.6" in texts


def test_labels_of_lines_with_equal_ends_do_not_overlap():
    axes = memory({name: [(0.0, 1.0), (4.0, 2.6)] for name in ("a", "b", "c")}).axes[0]
    axes.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text().endswith(", 2.6")]
    assert len(boxes) == 3 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_name_is_not_parsed_as_mathematics():
    axes = memory({"$\\frac{$": [(0.0, 1.0), (1.0, 1.0)]}).axes[0]
    axes.figure.canvas.draw()


@pytest.mark.parametrize("courses", [{}, {"lean": []}])
def test_no_series_or_an_empty_one_raises_an_error(courses):
    with pytest.raises(InputError, match="without points"):
        memory(courses)
