"""The scrubber in Notebook 7 with a live kernel, and in the HTML output of nbconvert without one."""

import os
from pathlib import Path

import pytest

from tests.browser.waiting import expect, wait_for_silence

ROOT = Path(__file__).parents[2]

CELL = """from tests.scenes import trajectory
from fluxnb.widgets import scrub
scrub(trajectory(steps=4, attention=True))"""


def test_the_scrubber_works_in_notebook_7(run_notebook, page):
    pytest.importorskip("notebook")
    sent: list[str] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda data: sent.append(str(data)[:80])))
    run_notebook(CELL, name="seven.ipynb", front="notebooks")
    root = page.locator(".fluxnb-scrubber[data-sigma]")
    root.wait_for(timeout=60_000)
    assert root.locator("img").first.evaluate("async (i) => { await i.decode(); return i.src.slice(0, 5) }") == "blob:"
    wait_for_silence(page, sent)  # the remaining messages of the run itself
    sent.clear()
    root.locator("input[type=range]").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert root.get_attribute("data-sigma") == "0.5"
    for key in ("x", "w"):
        page.keyboard.press(key)
    assert (root.get_attribute("data-show"), root.get_attribute("data-word")) == ("x", "a")
    wait_for_silence(page, sent)
    assert len(sent) <= 6, "a move is sent to Python, a quantity and a word are not"
    assert page.locator(".jp-Notebook .jp-CodeCell").count() == 1
    assert not page.outside
    if shots := os.environ.get("FLUXNB_SCREENSHOTS"):
        page.screenshot(path=str(Path(shots) / "notebook.png"))


def test_the_scrubber_works_in_the_html_of_nbconvert_without_kernel_and_network(page, tmp_path):
    exporters = pytest.importorskip("nbconvert.exporters")
    text, _ = exporters.HTMLExporter().from_filename(str(ROOT / "notebooks" / "01_step_by_step.ipynb"))
    path = tmp_path / "notebook.html"
    path.write_text(text, encoding="utf-8")
    page.context.route("http*://**/*", lambda route: route.abort())  # MathJax and RequireJS, which are not needed
    page.goto(path.as_uri())
    root = page.locator(".fluxnb-scrubber[data-sigma]")
    root.wait_for()
    assert root.locator("img").first.evaluate("async (i) => { await i.decode(); return i.naturalWidth }") > 0
    before = root.locator("img").first.get_attribute("src")
    root.locator("input[type=range]").press("End" if root.get_attribute("data-sigma") == "1" else "Home")
    assert root.locator("img").first.get_attribute("src") != before
    root.locator(".fluxnb-word").first.click()
    expect(root.locator(".fluxnb-box img").nth(1)).to_be_visible()
    if shots := os.environ.get("FLUXNB_SCREENSHOTS"):
        root.scroll_into_view_if_needed()
        page.screenshot(path=str(Path(shots) / "nbconvert.png"))
