"""What a widget displays when its kernel restarts."""

from __future__ import annotations

from tests.browser.waiting import expect

LAB = """from tests.widgets.test_lab import FIELDS, STOP, Engine
from fluxnb.widgets import Lab
lab = Lab(Engine(), FIELDS, model="fake", stop=STOP)
lab.generate().wait(10)
lab"""


def test_a_restarted_kernel_is_reported_and_the_pictures_remain(run_notebook, page):
    run_notebook(LAB, name="restarted.ipynb")
    page.locator(".fluxnb-lab[data-phase=finished]").wait_for(timeout=60_000)
    expect(page.locator(".fluxnb-tile img")).to_have_count(4)
    page.evaluate(
        "async () => { await window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); }"
    )
    page.locator(".fluxnb-lab-reply", has_text="run this cell again").wait_for(timeout=30_000)
    expect(page.locator(".fluxnb-tile img")).to_have_count(4)
    assert not page.errors and not page.outside
