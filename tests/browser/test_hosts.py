"""The views in fake hosts: readable in every theme."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from fluxnb.widgets import Lab, explore, scrub
from tests.browser.hosts import HOSTS, low_contrasts, open_widget
from tests.scenes import grid, trajectory
from tests.widgets.test_lab import FIELDS, STOP, Engine

SHOTS = os.environ.get("FLUXNB_SCREENSHOTS")


def shot(page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(150)
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


@pytest.fixture(scope="module")
def widgets():
    axes = {"prompts": ["a house", "a barn"], "seeds": [0, 1, 2], "steps": [1, 2, 4]}
    return {
        "scrubber": scrub([trajectory(steps=1), trajectory(steps=4, attention=True)]),
        "explore": explore(grid(**axes, trajectories=True)),
        "lab": lab_with_runs(),
    }


def lab_with_runs() -> Lab:
    """A lab with two runs, a notice and an error; its form differs from its pictures."""

    def generate(arguments, on_step):
        notices = ["CLIP reads 77 tokens of this prompt's 90 and ignores 'in the evening'."]
        return dataclasses.replace(Engine()(arguments, on_step), notices=notices)

    lab = Lab(
        generate, {**FIELDS, "guidance": "2.5"}, model="fake", stop=STOP, examples=["a cat in the snow", "an owl"]
    )
    lab.generate(prompt="a fox").wait(10)
    lab.generate(prompt="a fox in the snow", seeds="0-3").wait(10)
    lab.prompt = "a cat"
    problem = {"phase": "failed", "message": "steps='none': whole numbers are possible.", "remedy": "Try steps 4."}
    lab.state = {**lab.state, **problem}
    return lab


@pytest.mark.parametrize("host", HOSTS)
def test_the_text_of_the_scrubber_has_contrast_in_every_host(page, widgets, tmp_path, host):
    open_widget(page, widgets["scrubber"], host, tmp_path)
    page.locator(".fluxnb-word").nth(1).click()
    shot(page, f"scrubber-{host}")
    assert low_contrasts(page) == []
    assert not page.errors and not page.outside


@pytest.mark.parametrize("host", HOSTS)
def test_the_text_of_the_explorer_has_contrast_in_every_host(page, widgets, tmp_path, host):
    open_widget(page, widgets["explore"], host, tmp_path)
    page.locator(".fluxnb-tile").first.focus()
    for key in (" ", "s", "ArrowRight", " "):
        page.keyboard.press(key)
    shot(page, f"explore-{host}")
    assert low_contrasts(page) == []
    page.keyboard.press("Enter")
    page.keyboard.press("2")
    page.locator("dialog .fluxnb-divider").wait_for()
    shot(page, f"viewer-{host}")
    assert low_contrasts(page) == []
    assert not page.errors and not page.outside


@pytest.mark.parametrize("host", HOSTS)
def test_the_text_of_the_lab_has_contrast_in_every_host(page, widgets, tmp_path, host):
    open_widget(page, widgets["lab"], host, tmp_path)
    shot(page, f"lab-{host}")
    page.locator(".fluxnb-keys-button").first.click()
    assert low_contrasts(page) == []
    assert not page.errors and not page.outside


@pytest.mark.parametrize(
    ("host", "ground"),
    [
        ("jupyterlab-light", "rgb(255, 255, 255)"),
        ("jupyterlab-dark", "rgb(17, 17, 17)"),
        ("vscode-dark", "rgb(31, 31, 31)"),
        ("colab-dark", "rgb(56, 56, 56)"),
    ],
)
def test_a_view_paints_the_ground_of_its_host(page, widgets, tmp_path, host, ground):
    open_widget(page, widgets["scrubber"], host, tmp_path)
    root = page.locator(".fluxnb")
    assert root.evaluate("(node) => getComputedStyle(node).backgroundColor") == ground
    assert root.get_attribute("data-ground") == host.split("-")[1]


def test_the_accent_follows_a_change_of_the_theme(page, widgets, tmp_path):
    open_widget(page, widgets["scrubber"], "jupyterlab-light", tmp_path)
    page.evaluate(
        """() => {
          document.documentElement.style.setProperty("--jp-layout-color0", "#111");
          document.documentElement.style.setProperty("--jp-ui-font-color1", "rgba(255, 255, 255, 0.87)");
          document.body.dataset.jpThemeLight = "false";
        }"""
    )
    page.locator(".fluxnb[data-ground=dark]").wait_for()
    assert low_contrasts(page) == []
