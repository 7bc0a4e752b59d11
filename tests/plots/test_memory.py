from __future__ import annotations

import pytest

from fluxnb.errors import InputError
from fluxnb.plots import memory

COURSES = {"lean": [(0.0, 16.5), (0.1, 16.9), (0.8, 18.7), (0.9, 18.7)], "stream": [(0.0, 0.5), (5.0, 2.6)]}


def test_each_course_is_a_line_of_its_levels_and_its_peak_is_written():
    axes = memory(COURSES).axes[0]
    lines = {tuple(line.get_ydata()) for line in axes.lines if len(line.get_xdata()) > 2 or line.get_xdata()[0] != 0}
    assert (16.5, 16.9, 18.7, 18.7) in lines
    texts = [text.get_text() for text in axes.texts]
    assert "lean, 18.7" in texts and "stream, 2.6" in texts


def test_cards_are_rules_at_their_sizes():
    axes = memory(COURSES, cards=(8, 24)).axes[0]
    assert {8, 24} <= {line.get_ydata()[0] for line in axes.lines}
    assert "24 GB card" in [text.get_text() for text in axes.texts] and axes.get_ylim()[1] > 24


def test_a_peak_that_is_known_better_than_the_points_is_the_one_that_is_written():
    texts = [text.get_text() for text in memory(COURSES, peaks={"lean": 19.04}).axes[0].texts]
    assert "lean, 19.0" in texts and "stream, 2.6" in texts


def test_names_of_lines_that_end_alike_do_not_lie_on_each_other():
    axes = memory({name: [(0.0, 1.0), (4.0, 2.6)] for name in ("a", "b", "c")}).axes[0]
    axes.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text().endswith(", 2.6")]
    assert len(boxes) == 3 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_name_is_text_whatever_is_in_it():
    axes = memory({"$\\frac{$": [(0.0, 1.0), (1.0, 1.0)]}).axes[0]
    axes.figure.canvas.draw()


@pytest.mark.parametrize("courses", [{}, {"lean": []}])
def test_nothing_to_draw_is_told(courses):
    with pytest.raises(InputError, match="without points"):
        memory(courses)
