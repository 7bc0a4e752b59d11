"""The scrubber in JupyterLab, with a live kernel behind it."""

import os
from pathlib import Path

from tests.browser.kernel import execute
from tests.browser.waiting import expect, wait_for_silence, wait_for_value

NASTY = "</script><script>window.owned=1</script></style> \" ' <img src=x onerror=window.owned=2>"

CELL = f"""from tests.scenes import trajectory
from fluxnb.widgets import scrub
widget = scrub([trajectory(steps=n, prompt={NASTY!r}) for n in (1, 4, 28)])
widget"""

SCRUB = """(range) => {
  for (let i = 0; i < 100; i += 1) {
    range.value = String(i % (Number(range.max) + 1));
    range.dispatchEvent(new Event("input", { bubbles: true }));
  }
  return Number(range.max);
}"""


def test_the_scrubber_works_in_jupyterlab_and_sends_few_messages(run_notebook, page):
    sent: list[str] = []
    page.on("websocket", lambda socket: socket.on("framesent", lambda data: sent.append(str(data)[:80])))
    run_notebook(CELL, "widget.sigma = 0.5")
    root = page.locator(".fluxnb-scrubber[data-sigma]")
    root.wait_for(timeout=30_000)
    expect(root.locator(".fluxnb-title")).to_contain_text(NASTY)
    assert page.evaluate("window.owned") is None
    expect(root).to_have_attribute("data-sigma", "0.5")  # a sigma set in Python moves the slider
    assert root.locator("img").first.evaluate("async (i) => { await i.decode(); return i.src.slice(0, 5) }") == "blob:"

    wait_for_silence(page, sent)  # the remaining messages of the run itself
    sent.clear()
    slider = root.locator("input[type=range]")
    assert slider.evaluate(SCRUB) >= 28
    slider.focus()
    page.keyboard.press("Home")
    for expected in (27 / 28, 26 / 28):
        page.keyboard.press("ArrowRight")
        assert abs(float(root.get_attribute("data-sigma")) - expected) < 1e-6
    # Letters are commands of the notebook: x cuts a cell, c copies it, v pastes it.
    for key, show in (("x", "x"), ("v", "v"), ("n", "noise"), ("c", "clean")):
        page.keyboard.press(key)
        assert root.get_attribute("data-show") == show
    wait_for_silence(page, sent)
    assert len(sent) < 16, "of 106 moves, at most one is sent in a tenth of a second"
    slider.press("End")
    wait_for_value(page, lambda: execute(page, "print(widget.sigma)"), "0.0")  # the last move arrives in Python
    assert page.locator(".jp-Notebook .jp-CodeCell").count() == 2
    assert not page.errors and not page.outside
    if shots := os.environ.get("FLUXNB_SCREENSHOTS"):
        page.keyboard.press("End")
        page.screenshot(path=str(Path(shots) / "lab.png"))


def test_a_busy_kernel_does_not_block_the_scrubber(run_notebook, page):
    run_notebook(CELL, name="busy.ipynb")
    root = page.locator(".fluxnb-scrubber[data-sigma]")
    root.wait_for(timeout=30_000)
    page.evaluate(
        """() => {
          const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
          kernel.requestExecute({ code: "import time; time.sleep(4)" });
        }"""
    )
    root.locator("input[type=range]").press("End", timeout=2000)
    assert root.get_attribute("data-sigma") == "0"
    assert root.locator(".fluxnb-position").all_text_contents() == ["the picture"] * 3
