"""A saved notebook that is opened again: every widget displays its contents, with and without kernel and trust."""

from __future__ import annotations

import json
import urllib.request

import pytest

from tests.browser.kernel import execute
from tests.browser.waiting import expect, wait_for_images, wait_for_value

SCRUB = """from tests.scenes import grid, trajectory
import fluxnb as fnb
scrubber = fnb.scrub([trajectory(steps=1), trajectory(steps=4)])
scrubber"""
EXPLORE = "explorer = fnb.explore(grid(seeds=[0, 1], steps=[1, 2], trajectories=True))\nexplorer"
STREAM = (
    "from tests.widgets.test_explore import FakeStream\nstream = fnb.explore(FakeStream(grid(seeds=[0, 1])))\nstream"
)
LAB = """from tests.widgets.test_lab import FIELDS, STOP, Engine
from fluxnb.widgets import Lab
lab = Lab(Engine(), FIELDS, model="fake", stop=STOP)
lab"""
FINISH = "lab.generate(prompt='a fox').wait(10)\nstream.wait(10)\nprint('DONE')"
ERRORS = ".jp-OutputArea :text('Error displaying widget'), .jp-OutputArea :text('Loading widget')"


def wait_for_all(page) -> None:
    page.locator(".fluxnb-scrubber[data-sigma]").first.wait_for(timeout=60_000)
    page.wait_for_function("() => document.querySelectorAll('.fluxnb-explore[data-cells]').length >= 3", timeout=60_000)


def save(page) -> None:
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_function("() => !window.jupyterapp.shell.currentWidget.context.model.dirty")


def wait_for_grids(page, *cells: str) -> None:
    """Wait until the displayed grids have these numbers of cells."""
    # A notebook hides cells outside of the window, so that only what an output itself hides counts.
    script = "(nodes) => nodes.filter((node) => !node.closest('[hidden]')).map((node) => node.dataset.cells)"
    wait_for_value(page, lambda: page.locator(".fluxnb-explore").evaluate_all(script), list(cells))


def end_kernels(lab) -> None:
    token = {"Authorization": f"token {lab.token}"}
    with urllib.request.urlopen(urllib.request.Request(f"{lab.base}/api/sessions", headers=token)) as reply:
        for session in json.load(reply):
            address = f"{lab.base}/api/sessions/{session['id']}"
            urllib.request.urlopen(urllib.request.Request(address, headers=token, method="DELETE")).close()


def reopen(page, lab, front: str, name: str) -> None:
    page.goto("about:blank")
    page.goto(f"{lab.base}/{front}/{name}?token={lab.token}{'&reset' if front == 'lab/tree' else ''}")
    page.wait_for_function("window.jupyterapp?.shell.currentWidget?.context?.isReady", timeout=60_000)


@pytest.mark.parametrize("front", ["lab/tree", "notebooks"])
def test_a_saved_notebook_displays_every_widget_again(run_notebook, page, lab, front):
    name = f"reopened-{front.split('/')[0]}.ipynb"
    run_notebook(SCRUB, EXPLORE, STREAM, LAB, FINISH, name=name, front=front)
    page.locator(".jp-OutputArea-output", has_text="DONE").wait_for(timeout=60_000)
    wait_for_all(page)
    # Live: the stars of the explorer arrive in Python, and the lab has its form.
    expect(page.locator(".fluxnb-lab")).to_have_count(1)
    wait_for_grids(page, "4", "6", "4")
    page.locator(".fluxnb-explore").first.locator(".fluxnb-tile").first.focus()
    page.keyboard.press("s")
    code = "print(explorer.stars, [len(cell.steps) if 0 else cell.recipe.seed for cell in explorer.starred])"
    wait_for_value(page, lambda: execute(page, code), "[0] [0]")
    save(page)

    # With the kernel: the outputs connect to the widgets again.
    reopen(page, lab, front, name)
    page.locator(".fluxnb-lab").wait_for(state="attached", timeout=60_000)
    wait_for_all(page)
    page.locator("[role=gridcell][aria-label$=', starred']").first.wait_for(state="attached")
    assert page.locator(ERRORS).count() == 0

    # Without a kernel, trusted: interactive, and the lab's last pictures.
    end_kernels(lab)
    stored = lab.notebooks / name
    content = json.loads(stored.read_text())
    content["metadata"]["kernelspec"]["name"] = "none-of-these"
    reopen(page, lab, front, name)
    wait_for_all(page)
    wait_for_grids(page, "4", "6", "4")
    assert page.locator(ERRORS).count() == 0

    # Not trusted: the pictures as a sheet.
    foreign = lab.notebooks / f"foreign-{name}"
    content["cells"][0]["source"] += "\n# changed elsewhere"
    content["cells"][3]["outputs"][0]["data"]["text/html"] += "<!-- changed -->"
    foreign.write_text(json.dumps(content))
    reopen(page, lab, front, foreign.name)
    page.locator(".jp-OutputArea img").first.wait_for(state="attached", timeout=60_000)
    wait_for_images(page, ".jp-OutputArea img", 1 + 4 + 6 + 4)
    assert page.locator(ERRORS).count() == 0
    assert page.locator(".fluxnb-explore").count() == 0, "no script has run"
