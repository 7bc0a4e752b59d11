"""The scrubber where notebooks are read: live in Notebook 7, and without any kernel in what nbconvert makes of one."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CELL = """from tests.scenes import walk
from fluxnb.widgets import scrub
scrub(walk(steps=4, looks=True))"""


def test_the_scrubber_lives_in_notebook_7(run_notebook, page):
    pytest.importorskip("notebook")
    sent: list[str] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda data: sent.append(str(data)[:80])))
    run_notebook(CELL, name="seven.ipynb", front="notebooks")
    root = page.locator(".fluxnb-scrubber[data-sigma]")
    root.wait_for(timeout=60_000)
    assert root.locator("img").first.evaluate("async (i) => { await i.decode(); return i.src.slice(0, 5) }") == "blob:"
    page.wait_for_timeout(500)  # what the run itself still had to say
    sent.clear()
    root.locator("input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert root.get_attribute("data-sigma") == "0.5"
    for key in ("x", "w"):
        page.keyboard.press(key)
    assert (root.get_attribute("data-show"), root.get_attribute("data-word")) == ("x", "a")
    page.wait_for_timeout(300)
    assert sent == [], "a scrub is nothing the kernel hears of"
    assert page.locator(".jp-Notebook .jp-CodeCell").count() == 1
    assert not page.outside
    if shots := os.environ.get("FLUXNB_SCREENSHOTS"):
        page.screenshot(path=str(Path(shots) / "notebook.png"))


def test_what_nbconvert_makes_of_a_notebook_holds_a_scrubber_that_works_without_kernel_and_network(page, tmp_path):
    exporters = pytest.importorskip("nbconvert.exporters")
    text, _ = exporters.HTMLExporter().from_filename(str(ROOT / "notebooks" / "01_step_by_step.ipynb"))
    made = tmp_path / "notebook.html"
    made.write_text(text, encoding="utf-8")
    page.context.route("http*://**/*", lambda route: route.abort())  # mathjax and require.js, which it can do without
    page.goto(made.as_uri())
    root = page.locator(".fluxnb-scrubber[data-sigma]")
    root.wait_for()
    assert root.locator("img").first.evaluate("async (i) => { await i.decode(); return i.naturalWidth }") > 0
    before = root.locator("img").first.get_attribute("src")
    root.locator("input[type=range]").press("End")
    assert root.get_attribute("data-sigma") == "0"
    assert root.locator("img").first.get_attribute("src") != before
    root.locator(".fluxnb-word").first.click()
    assert root.locator(".fluxnb-veil").is_visible()
    if shots := os.environ.get("FLUXNB_SCREENSHOTS"):
        root.scroll_into_view_if_needed()
        page.screenshot(path=str(Path(shots) / "nbconvert.png"))
