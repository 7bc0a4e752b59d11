"""Accessibility: axe finds no serious violation, and everything can be done by touch."""

from __future__ import annotations

import zipfile

import pytest

from fluxnb.widgets import explore, scrub
from tests.browser.hosts import HOSTS, open_widget
from tests.browser.test_hosts import lab_with_runs
from tests.browser.waiting import expect
from tests.scenes import grid, trajectory

RUN = """async () => {
  const { violations } = await axe.run(document, { resultTypes: ["violations"] });
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  return serious.flatMap(({ id, nodes }) => nodes.map((node) => `${id}: ${node.html} ${node.failureSummary}`));
}"""


@pytest.fixture(scope="module")
def widgets():
    axes = {"prompts": ["a house", "a barn"], "seeds": [0, 1], "steps": [1, 2, 4]}
    return [
        scrub([trajectory(steps=1), trajectory(steps=4, attention=True)]),
        explore(grid(**axes, trajectories=True)),
        lab_with_runs(),
    ]


@pytest.mark.parametrize("host", HOSTS)
def test_axe_finds_no_serious_violation(page, widgets, axe, tmp_path, host):
    for widget in widgets:
        open_widget(page, widget, host, tmp_path)
        page.evaluate(axe)
        assert page.evaluate(RUN) == []
        tiles = page.locator(".fluxnb-tile")
        if tiles.count():
            tiles.first.focus()
            for key in (" ", "s", "ArrowRight", " ", "?", "Enter", "2"):
                page.keyboard.press(key)
            page.locator("dialog.fluxnb-viewer .fluxnb-divider").wait_for()
            assert page.evaluate(RUN) == []


@pytest.mark.parametrize("viewport", [{"width": 390, "height": 844}, {"width": 844, "height": 390}])
def test_by_touch_cells_are_chosen_compared_swiped_starred_and_exported(chromium, tmp_path, viewport):
    path = grid(seeds=[0, 1], steps=[1, 2, 4]).to_html(tmp_path / "grid.html")
    context = chromium.new_context(viewport=viewport, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(path.as_uri())
    page.locator(".fluxnb-explore[data-cells]").wait_for()
    page.wait_for_function("() => document.documentElement.scrollWidth <= innerWidth")  # nothing lies beside the page
    for number in (0, 4):
        page.locator(".fluxnb-badge").nth(number).tap()
        page.locator(".fluxnb-star").nth(number).tap()
        expect(page.locator(".fluxnb-star").nth(number)).to_have_text("★")
    page.get_by_role("button", name="compare").tap()
    dialog = page.locator("dialog.fluxnb-viewer")
    expect(dialog.locator("img")).to_have_count(2)
    box = dialog.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= viewport["width"]
    dialog.get_by_role("button", name="close").tap()
    expect(dialog).to_be_hidden()

    page.locator(".fluxnb-tile").nth(0).tap(position={"x": 40, "y": 60})
    image = dialog.locator("img")
    expect(image).to_have_count(1)
    before = image.get_attribute("alt")
    swipe(page, dialog.locator(".fluxnb-box").bounding_box())
    page.wait_for_function("(alt) => document.querySelector('dialog img').alt !== alt", arg=before)
    for _ in range(3):  # a browser takes a tap soon after a swipe as the end of the movement
        page.wait_for_timeout(500)
        if dialog.is_visible():
            dialog.get_by_role("button", name="close").tap()
    dialog.wait_for(state="hidden")

    with page.expect_download() as waiting:
        page.get_by_role("button", name="download").tap()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert len(archive.namelist()) == 2
    context.close()


def swipe(page, box) -> None:
    """A finger that moves to the left across a box."""
    client = page.context.new_cdp_session(page)
    y = box["y"] + box["height"] / 2
    positions = [box["x"] + box["width"] * share for share in (0.8, 0.6, 0.4, 0.2)]
    for kind, x in zip(("touchStart", "touchMove", "touchMove", "touchMove"), positions, strict=True):
        client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
    client.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
