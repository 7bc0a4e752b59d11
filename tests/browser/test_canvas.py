"""The canvas in Chromium: drawing with mouse, finger and keyboard, and the points that arrive in a kernel."""

from __future__ import annotations

import numpy as np
import pytest

from fluxnb.widgets import canvas
from fluxnb.widgets.drawing import MOST_POINTS
from tests.browser.hosts import HOSTS, low_contrasts, open_widget
from tests.browser.kernel import execute
from tests.browser.test_access import RUN, swipe
from tests.browser.waiting import expect, wait_for_value

CELL = """import fluxnb as fnb
drawing = fnb.canvas()
drawing"""


@pytest.fixture
def opened(page, tmp_path):
    def show(points=(), host: str = "jupyterlab-light"):
        return open_widget(page, canvas(points), host, tmp_path)

    yield show
    assert not page.errors and not page.outside


def points(page) -> np.ndarray:
    return np.array(page.evaluate("model.get('points')"), dtype=float).reshape(-1, 2)


def plane(page):
    return page.locator(".fluxnb-plane")


def drag(page, *places: tuple[float, float]) -> None:
    """Draw a stroke through places of the plane."""
    box = plane(page).bounding_box()
    corners = [(box["x"] + (x / 5 + 0.5) * box["width"], box["y"] + (0.5 - y / 5) * box["height"]) for x, y in places]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:]:
        page.mouse.move(*corner, steps=10)
    page.mouse.up()


def test_a_stroke_of_the_mouse_scatters_points_along_it_in_the_coordinates_of_the_plane(opened):
    page = opened()
    drag(page, (-2, 1), (2, 1))
    drawn = points(page)
    assert 150 < len(drawn) < 400 and np.abs(drawn[:, 1] - 1).mean() < 0.15
    assert drawn[:, 0].min() < -1.8 and drawn[:, 0].max() > 1.8
    expect(page.locator(".fluxnb-count")).to_have_text(f"{len(drawn)} points")


def test_a_wider_brush_scatters_farther(opened):
    page = opened()
    drag(page, (-2, 1), (2, 1))
    narrow = points(page)[:, 1].std()
    page.get_by_role("button", name="clear").click()
    page.get_by_role("slider").fill("0.3")
    drag(page, (-2, 1), (2, 1))
    assert points(page)[:, 1].std() > 2 * narrow


def test_a_stroke_a_clearing_and_a_shape_are_undone_one_by_one(opened):
    page = opened("ring")
    drag(page, (0, 0), (1, 0))
    counts = [len(points(page))]
    page.get_by_role("button", name="clear").click()
    counts.append(len(points(page)))
    page.get_by_role("button", name="spiral").click()
    counts.append(len(points(page)))
    assert counts[0] > 600 and counts[1:] == [0, 600]
    undo = page.get_by_role("button", name="undo")
    for expected in (0, counts[0], 600):
        undo.click()
        assert len(points(page)) == expected
    assert undo.is_disabled()


def test_points_that_python_sets_are_displayed_and_can_be_undone(opened):
    page = opened("ring")
    page.evaluate("model.set('points', [[1, 1], [0.5, -1]])")
    expect(page.locator(".fluxnb-count")).to_have_text("2 points")
    assert page.locator(".fluxnb-dots").get_attribute("d") == "M1 -1h0M0.5 1h0"
    page.get_by_role("button", name="undo").click()
    assert len(points(page)) == 600


def test_a_drawing_ends_at_the_limit(opened):
    page = opened([[0, 0]] * (MOST_POINTS - 5))
    drag(page, (-1, 0), (1, 0))
    assert len(points(page)) == MOST_POINTS
    expect(page.locator(".fluxnb-count")).to_contain_text("the canvas is full")
    drag(page, (-1, 0), (1, 0))  # adds nothing, and is nothing to undo
    page.get_by_role("button", name="undo").click()
    assert len(points(page)) == MOST_POINTS - 5


def test_everything_can_be_done_with_the_keyboard(opened):
    page = opened()
    plane(page).focus()
    for _ in range(10):
        page.keyboard.press("ArrowUp")
    page.keyboard.press(" ")
    dab = points(page)
    assert len(dab) == 12 and np.abs(dab.mean(0) - (0, 1)).max() < 0.1
    page.keyboard.down("Shift")
    for _ in range(15):
        page.keyboard.press("ArrowRight")
    page.keyboard.up("Shift")
    stroke = points(page)[12:]
    assert len(stroke) > 60 and stroke[:, 0].max() > 1.3
    page.keyboard.press("u")
    assert len(points(page)) == 12, "arrows with Shift held are one stroke"
    page.keyboard.press("Delete")
    assert len(points(page)) == 0
    page.keyboard.press("Control+z")
    assert len(points(page)) == 12
    page.keyboard.press("+")
    assert float(page.get_by_role("slider").input_value()) == pytest.approx(0.1)
    page.keyboard.press("?")
    expect(page.locator(".fluxnb-key-list")).to_be_visible()
    page.get_by_role("button", name="ring").press("Enter")
    assert len(points(page)) == 600


def test_a_finger_draws_instead_of_scrolling_the_page(chromium, tmp_path):
    context = chromium.new_context(viewport={"width": 390, "height": 500}, has_touch=True, is_mobile=True)
    page = context.new_page()
    open_widget(page, canvas(), "jupyterlab-light", tmp_path)
    swipe(page, plane(page).bounding_box())
    wait_for_value(page, lambda: len(points(page)) > 50, True)
    assert page.evaluate("scrollY") == 0
    context.close()


@pytest.mark.parametrize("host", HOSTS)
def test_axe_finds_no_serious_violation_and_text_has_contrast(opened, axe, host):
    page = opened("two moons", host)
    page.evaluate(axe)
    plane(page).focus()
    page.keyboard.press("?")
    assert page.evaluate(RUN) == []
    assert low_contrasts(page) == []


def test_points_arrive_in_the_kernel_and_come_from_it(run_notebook, page):
    run_notebook(CELL, name="canvas.ipynb")
    plane(page).wait_for(timeout=60_000)
    drag(page, (-2, -1), (2, -1))
    count = len(page.locator(".fluxnb-dots").get_attribute("d").split("M")) - 1
    assert count > 100
    wait_for_value(page, lambda: execute(page, "print(drawing.points.shape)"), f"({count}, 2)")
    assert float(execute(page, "print(drawing.points[:, 1].mean())")) == pytest.approx(-1, abs=0.1)
    execute(page, "drawing.points = 'ring'")
    expect(page.locator(".fluxnb-count")).to_have_text("600 points")
    assert not page.errors
