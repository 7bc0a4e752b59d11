"""The grid in a real browser: as a page from a file, and in JupyterLab while pocket fills it."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import fluxnb as fnb
from tests.scenes import grid

NASTY = "</script><script>window.owned=1</script></style> \" ' & <img src=x onerror=window.owned=2> <b>bold</b>"
SHOTS = os.environ.get("FLUXNB_SCREENSHOTS")


@pytest.fixture
def opened(page, tmp_path):
    def show(record=None, **options):
        record = record or grid(prompts=["a house", "a barn"], seeds=[0, 1, 2], steps=[1, 2, 4], trajectories=True)
        page.goto(record.to_html(tmp_path / "grid.html", **options).as_uri())
        page.locator(".fluxnb-explore[data-cells]").wait_for()
        return page

    yield show
    assert not page.errors and not page.outside


def root(page):
    return page.locator(".fluxnb-explore")


def here(page) -> str:
    """What has the focus, as a screen reader would say it."""
    return page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.className")


def press(page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def into_the_grid(page) -> None:
    page.locator(".fluxnb-square[tabindex='0']").focus()


def viewer(page):
    return page.locator("dialog.fluxnb-viewer")


def compare(page, mode: str) -> None:
    """The first three cells of a row in the viewer."""
    into_the_grid(page)
    press(page, " ", "ArrowRight", " ", "ArrowRight", " ", "Enter", mode)
    viewer(page).wait_for()


def shot(page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(200)
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


def matrix_scale(transform: str) -> float:
    return round(float(re.findall(r"-?[\d.]+", transform)[0]), 3)


# ------------------------------------------------------------------------------------------------ rows, columns, pages
def test_labels_name_only_what_differs(opened):
    page = opened(grid(seeds=[0, 1], steps=[1, 2]))
    assert page.locator("[role=columnheader]").all_text_contents() == ["", "1 step", "2 steps"]
    assert page.locator("[role=rowheader]").all_text_contents() == ["seed 0", "seed 1"]
    assert page.locator(".fluxnb-title").text_content() == "a house on a hill"
    assert page.locator(".fluxnb-page").count() == 0, "two axes leave nothing to turn"


def test_prompts_that_begin_alike_are_told_apart_where_they_part(opened):
    common = "a photograph of a house on a hill in the evening, "
    page = opened(grid(prompts=[common + "pencil", common + "oil"], seeds=[0, 1], steps=[1]))
    names = page.locator("[role=rowheader]")
    assert names.all_text_contents() == ["… pencil", "… oil"]
    assert names.first.get_attribute("title") == common + "pencil"


def test_rows_and_columns_are_chosen_and_the_rest_is_turned(opened):
    page = opened()
    assert (root(page).get_attribute("data-rows"), root(page).get_attribute("data-columns")) == ("seed", "steps")
    assert page.locator(".fluxnb-square").count() == 9
    before = page.locator(".fluxnb-square img").first.get_attribute("alt")
    page.get_by_label("next prompt").click()
    assert page.locator(".fluxnb-square img").first.get_attribute("alt") == before.replace("a house", "a barn")
    assert here(page) == "next prompt", "the focus stays where the hand is"
    page.locator(".fluxnb-axis", has_text="rows").locator("select").select_option(label="prompt")
    assert page.locator("[role=rowheader]").all_text_contents() == ["a house", "a barn"]
    page.get_by_label("swap rows and columns").click()
    assert (root(page).get_attribute("data-rows"), root(page).get_attribute("data-columns")) == ("steps", "prompt")
    page.locator(".fluxnb-axis", has_text="columns").locator("select").select_option(label="steps")
    assert (root(page).get_attribute("data-rows"), root(page).get_attribute("data-columns")) == ("prompt", "steps")


def test_a_cell_that_was_never_made_is_an_empty_place(opened):
    import dataclasses

    whole = grid(seeds=[0, 1], steps=[1, 2])
    page = opened(dataclasses.replace(whole, cells=whole.cells[:3], finished=False))
    assert page.locator(".fluxnb-empty").count() == 1
    assert "3 of 4 cells" in page.locator(".fluxnb-status").text_content()


# --------------------------------------------------------------------------------------------------------- the keyboard
def test_the_grid_is_one_stop_of_the_tab_key_and_arrows_move_in_it(opened):
    page = opened()
    assert page.locator(".fluxnb-square[tabindex='0']").count() == 1
    into_the_grid(page)
    press(page, "ArrowRight", "ArrowDown")
    assert here(page) == "a house, seed 1, 2 steps"
    press(page, "Home")
    assert here(page) == "a house, seed 1, 1 step"
    press(page, "End", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown")
    assert here(page) == "a house, seed 2, 4 steps", "it stops at the edges"
    press(page, "PageDown")
    assert here(page) == "a barn, seed 2, 4 steps"
    assert page.locator(".fluxnb-square[tabindex='0']").count() == 1


def test_the_keyboard_reaches_everything(opened):
    page = opened()
    into_the_grid(page)
    press(page, " ")
    assert page.locator("[role=gridcell][aria-selected=true]").count() == 1
    press(page, "s")
    assert page.locator("[role=gridcell][aria-label$=', starred']").count() == 1
    press(page, ",")
    assert root(page).get_attribute("data-sigma") == "0.25"
    press(page, "x")
    assert root(page).get_attribute("data-show") == "x"
    press(page, "c", ".", "t")
    assert (root(page).get_attribute("data-show"), root(page).get_attribute("data-rows")) == ("clean", "steps")
    wide = page.locator(".fluxnb-square").first.bounding_box()["width"]
    press(page, "+")
    assert page.locator(".fluxnb-square").first.bounding_box()["width"] > wide
    into_the_grid(page)
    press(page, "Escape")
    assert page.locator("[role=gridcell][aria-selected=true]").count() == 0
    press(page, "Enter")
    viewer(page).wait_for()
    press(page, "Escape")
    assert not viewer(page).is_visible() and here(page).startswith("a house"), "and back where one was"


def test_every_control_says_what_it_is(opened):
    page = opened()
    into_the_grid(page)
    press(page, " ", "s")
    names = page.locator("button:visible, select:visible, input:visible").evaluate_all(
        "(nodes) => nodes.map((n) => n.getAttribute('aria-label') || n.textContent || n.labels?.[0]?.textContent)"
    )
    assert all(name and name.strip() for name in names) and len(names) > 10
    wanting = "button:not([data-lm-suppress-shortcuts]), [tabindex]:not([data-lm-suppress-shortcuts])"
    assert root(page).locator(wanting).count() == 0, "JupyterLab would take its keys away"


# ---------------------------------------------------------------------------------------------------------- the scrub
def test_a_scrub_moves_all_cells_to_the_same_noise(opened):
    page = opened()
    # The pictures of seed 0: at sigma 0.5 the walks of 2 and of 4 steps each show the step that had begun by then.
    shown = "(n) => n.map((i) => i.getAttribute('src'))"
    finals = page.locator(".fluxnb-square img").evaluate_all(shown)
    page.get_by_label("noise level").fill("0")
    starts = page.locator(".fluxnb-square img").evaluate_all(shown)
    assert root(page).get_attribute("data-sigma") == "1" and not set(starts) & set(finals)
    assert starts[0] == starts[1] == starts[2], "all step counts of a seed start with the same estimate"
    page.get_by_label("noise level").fill("2")
    middle = page.locator(".fluxnb-square img").evaluate_all(shown)
    assert root(page).get_attribute("data-sigma") == "0.5"
    assert middle[0] == starts[0] and middle[1] != starts[1] and middle[2] != starts[2]


def test_a_grid_without_steps_has_no_scrub_and_says_why(opened):
    page = opened(grid())
    assert not page.get_by_label("noise level").is_visible()
    assert "keep=fnb.Keep()" in page.locator(".fluxnb-why").text_content()


def test_every_picture_shown_is_one(opened):
    page = opened()
    for at in ("0", "1", "2", "3"):
        page.get_by_label("noise level").fill(at)
        widths = page.locator(".fluxnb-square img").evaluate_all(
            "(n) => Promise.all(n.map(async (i) => { await i.decode(); return i.naturalWidth; }))"
        )
        assert all(width > 0 for width in widths)


# ---------------------------------------------------------------------------------------------------------- the viewer
def test_a_click_shows_one_picture_large_and_arrows_go_to_its_neighbours(opened):
    page = opened()
    page.locator(".fluxnb-square").nth(4).click()
    assert viewer(page).locator("img").count() == 1
    assert viewer(page).locator("img").get_attribute("alt") == "a house, seed 1, 2 steps"
    press(page, "ArrowRight", "ArrowUp")
    assert viewer(page).locator("img").get_attribute("alt") == "a house, seed 0, 4 steps"
    assert "seed 0" in page.locator(".fluxnb-facts").text_content()
    press(page, "Escape")
    assert here(page) == "a house, seed 0, 4 steps"


def test_the_viewer_names_only_what_differs_between_the_compared(opened):
    page = opened()
    compare(page, "1")
    assert viewer(page).locator("figcaption").all_text_contents() == ["1 step", "2 steps", "4 steps"]
    assert page.locator(".fluxnb-differs").inner_text().split() == ["steps", "1", "2", "4"]
    assert "prompt a house" in page.locator(".fluxnb-same").text_content()


def test_the_slider_divides_two_pictures(opened):
    page = opened()
    compare(page, "2")
    box = viewer(page).locator(".fluxnb-box")
    place = box.bounding_box()
    clip = "(n) => getComputedStyle(n).clipPath"
    assert box.locator("img").count() == 2 and "50%" in box.locator(".fluxnb-over").evaluate(clip)
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + 50)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] / 4, place["y"] + 50, steps=4)
    page.mouse.up()
    assert "25%" in box.locator(".fluxnb-over").evaluate(clip)
    press(page, "d", "ArrowRight")
    assert "26%" in box.locator(".fluxnb-over").evaluate(clip), "the divider has keys of its own"
    page.locator(".fluxnb-stage").focus()
    press(page, "ArrowRight")
    assert box.locator(".fluxnb-over img").get_attribute("alt") == "4 steps", "the arrows choose the other B"
    press(page, "w")
    assert box.locator(".fluxnb-over img").get_attribute("alt") == "1 step"


def test_a_flick_changes_the_picture_in_its_place(opened):
    page = opened()
    compare(page, "3")
    image = viewer(page).locator("img")
    spot, first = image.bounding_box(), image.get_attribute("src")
    press(page, "ArrowRight")
    assert image.get_attribute("src") != first and image.bounding_box() == spot
    press(page, " ", " ")
    assert image.get_attribute("src") == first, "three flicks through three pictures"
    press(page, "f")
    page.wait_for_function("(src) => document.querySelector('dialog img').getAttribute('src') !== src", arg=first)
    press(page, "f")


def test_the_difference_is_that_of_the_pixels(opened):
    sweep = grid(seeds=[0], steps=[1, 2])
    page = opened(sweep)
    compare_two = [" ", "ArrowRight", " ", "Enter", "4"]
    into_the_grid(page)
    press(page, *compare_two)
    canvas = viewer(page).locator("canvas[data-mean]")
    canvas.wait_for()
    a, b = (cell.image.convert("RGB").tobytes() for cell in sweep)
    apart = [abs(x - y) for x, y in zip(a, b, strict=True)]
    assert abs(float(canvas.get_attribute("data-mean")) - sum(apart) / len(apart)) < 1e-6
    middle = canvas.evaluate("(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    rgb = [value for i, value in enumerate(middle) if i % 4 != 3]
    assert rgb == [min(255, 4 * value) for value in apart]
    assert f"largest {max(apart)}" in page.locator(".fluxnb-numbers").text_content()


def test_zoom_and_place_are_one_for_all_pictures(opened):
    page = opened()
    compare(page, "1")
    box = viewer(page).locator(".fluxnb-box").first
    place = box.bounding_box()
    page.mouse.move(place["x"] + 40, place["y"] + 40)
    for _ in range(3):
        page.mouse.wheel(0, -100)
    page.wait_for_function("() => Number(document.querySelector('dialog').dataset.zoom) > 1.5")
    page.mouse.down()
    page.mouse.move(place["x"] + 90, place["y"] + 70, steps=4)
    page.mouse.up()
    matrix = "(n) => n.map((i) => getComputedStyle(i).transform)"
    moved = viewer(page).locator("img").evaluate_all(matrix)
    assert len(moved) == 3 and len(set(moved)) == 1 and "none" not in moved
    scale, x = float(viewer(page).get_attribute("data-zoom")), float(moved[0].split(",")[4])
    assert abs(x) <= (scale - 1) / 2 * place["width"] + 1, "a picture is not moved out of its frame"
    press(page, "2")
    sliding = {matrix_scale(each) for each in viewer(page).locator("img").evaluate_all(matrix)}
    assert sliding == {round(scale, 3)}, "another way to compare keeps the place"
    press(page, "0")
    assert viewer(page).get_attribute("data-zoom") == "1"


def test_the_viewer_scrubs_too(opened):
    page = opened()
    compare(page, "4")
    canvas = viewer(page).locator("canvas[data-mean]")
    canvas.wait_for()
    before = canvas.get_attribute("data-mean")
    press(page, ",", ",", ",", ",")
    page.wait_for_function("(before) => document.querySelector('dialog canvas').dataset.mean !== before", arg=before)
    assert root(page).get_attribute("data-sigma") == "1"


# ------------------------------------------------------------------------------------------------------ stars and files
def test_one_starred_picture_is_a_png_with_its_recipe_and_its_pixels(opened):
    sweep = grid(seeds=[2**64 - 1, 1], steps=[1, 2])
    page = opened(sweep)
    into_the_grid(page)
    press(page, "s")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="download").click()
    path = waiting.value.path()
    assert waiting.value.suggested_filename.endswith(".png") and fnb.open_recipe(path) == sweep[0].recipe
    with Image.open(path) as saved:
        assert saved.convert("RGB").tobytes() == sweep[0].image.convert("RGB").tobytes()


def test_several_are_a_zip_of_such(opened):
    sweep = grid(prompts=[NASTY], seeds=[0, 1], steps=[1, 2])
    page = opened(sweep)
    into_the_grid(page)
    press(page, "s", "ArrowRight", "s", "ArrowDown", "s")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="download").click()
    with zipfile.ZipFile(waiting.value.path()) as bundle:
        assert bundle.testzip() is None
        recipes = [fnb.open_recipe(io.BytesIO(bundle.read(name))) for name in bundle.namelist()]
    assert recipes == [sweep[0].recipe, sweep[1].recipe, sweep[3].recipe]


# ------------------------------------------------------------------------------------------------------------- and text
def test_a_hostile_prompt_is_text_wherever_it_stands(opened):
    page = opened(grid(prompts=[NASTY, "a barn"], seeds=[0, 1], steps=[1, 2]))
    assert page.locator(".fluxnb-page option").first.get_attribute("title") == NASTY
    assert page.locator(".fluxnb-page option").first.text_content() == NASTY[:47] + "…"
    page.locator(".fluxnb-axis", has_text="rows").locator("select").select_option(label="prompt")
    assert page.locator("[role=rowheader]").first.text_content() == NASTY
    compare(page, "1")
    assert NASTY in page.locator(".fluxnb-facts").text_content()
    assert page.evaluate("window.owned") is None
    assert page.locator(".fluxnb-explore :is(script, b:not(.fluxnb-chip b), style)").count() == 0


def test_it_fits_a_narrow_page(opened):
    page = opened(grid(prompts=["a very long prompt " * 12], seeds=[0, 1], steps=[1, 2, 4], trajectories=True))
    page.set_viewport_size({"width": 380, "height": 780})
    page.locator(".fluxnb-narrow").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= 380")
    page.locator(".fluxnb-square").first.click()
    place = viewer(page).locator("img").bounding_box()
    assert place["x"] >= 0 and place["x"] + place["width"] <= 380
    shot(page, "explore-narrow")


def test_inside_a_frame_the_viewer_stands_in_the_place_of_the_grid(page, tmp_path):
    grid(trajectories=True).to_html(tmp_path / "grid.html")
    outer = tmp_path / "outer.html"
    outer.write_text('<iframe src="grid.html" width="700" height="2400"></iframe>')
    page.goto(outer.as_uri())
    inner = page.frame_locator("iframe")
    inner.locator(".fluxnb-square").nth(1).click()
    inner.locator("dialog.fluxnb-viewer img").wait_for()
    assert not inner.locator(".fluxnb-grid").is_visible()
    assert inner.locator("dialog.fluxnb-viewer").bounding_box()["height"] < 800
    press(page, "Escape")
    assert inner.locator(".fluxnb-grid").is_visible() and not inner.locator("dialog").is_visible()


def test_without_script_a_picture_and_its_name_are_there(chromium, tmp_path):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(grid().to_html(tmp_path / "grid.html").as_uri())
    assert page.locator("img").get_attribute("alt") == "a house on a hill"
    context.close()


# ------------------------------------------------------------------------------------------------------- in JupyterLab
LIVE = f"""import time
import fluxnb as fnb
flux = fnb.load("pocket")
asked = dict(prompts=["a red fox", {NASTY!r}], seeds=range(3), steps=[1, 2, 3, 4])
widget = fnb.explore(fnb.stream(flux, **asked, keep=fnb.Keep()), folder="best")
widget"""

BUSY = """before = len(widget.cells)
time.sleep(4)
print("GREW", before, len(widget.cells))"""

# What the front end shows while the second cell of the notebook is marked as running.
WATCH = """window.seen = [];
setInterval(() => {
  const made = document.querySelector(".fluxnb-explore")?.dataset.cells;
  const second = document.querySelectorAll(".jp-Notebook .jp-CodeCell")[1];
  if (made !== undefined && second?.querySelector(".jp-InputPrompt")?.textContent.includes("*")) window.seen.push(made);
}, 50);"""


def test_a_grid_fills_in_jupyterlab_while_another_cell_runs(run_notebook, page, lab):
    page.add_init_script(WATCH)
    run_notebook(LIVE, BUSY, name="explore.ipynb")
    grew = page.locator(".jp-OutputArea-output", has_text="GREW").text_content().split()
    assert int(grew[2]) > int(grew[1]), "the kernel was free for another cell while the grid was made"
    seen = [int(count) for count in page.evaluate("window.seen")]
    assert len(set(seen)) > 2 and seen == sorted(seen), "and cells came into view one after the other"
    page.locator(".fluxnb-explore[data-state=finished]").wait_for(timeout=120_000)
    assert root(page).get_attribute("data-cells") == "24"
    assert page.locator(".fluxnb-empty").count() == 0
    assert page.locator(".fluxnb-page option").nth(1).get_attribute("title") == NASTY
    assert page.evaluate("window.owned") is None

    into_the_grid(page)
    press(page, "ArrowRight", "s", ",", "x")
    assert (root(page).get_attribute("data-sigma"), root(page).get_attribute("data-show")) == ("0.25", "x")
    press(page, "c", ".")
    assert page.locator(".jp-Notebook .jp-CodeCell").count() == 2, "x, c and v are commands of the notebook"
    page.get_by_role("button", name="save to folder").click()
    page.locator(".fluxnb-heard", has_text="1 picture written to best").wait_for(timeout=30_000)
    (saved,) = (lab.notebooks / "best").glob("*.png")
    assert (fnb.open_recipe(saved).steps, fnb.open_recipe(saved).seed) == (2, 0)
    shot(page, "explore-lab-light")

    into_the_grid(page)
    press(page, " ", "ArrowRight", " ", "Enter", "2")
    viewer(page).locator(".fluxnb-divider").wait_for()
    shot(page, "explore-lab-slider")
    press(page, "4")
    viewer(page).locator("canvas[data-mean]").wait_for()
    press(page, "Escape")
    assert not viewer(page).is_visible() and here(page).endswith("3 steps")
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    shot(page, "explore-lab-dark")
    assert not page.errors and not page.outside


def test_a_view_opened_later_shows_what_came_before_and_shares_its_stars(run_notebook, page):
    cells = [
        "import threading\nimport fluxnb as fnb\nfrom tests.widgets.test_explore import Coming\n"
        "from tests.scenes import grid\ngate = threading.Semaphore(7)\n"
        "widget = fnb.explore(Coming(grid(), gate=gate))\nwidget",
        "import time; time.sleep(1)\nwidget",
        "for _ in range(6): gate.release()\nwidget.stars = [3]\nwidget.wait(20.0)\nprint('DONE')",
    ]
    run_notebook(*cells, name="twice.ipynb")
    page.locator(".fluxnb-explore[data-state=finished]").nth(1).wait_for(timeout=30_000)
    assert [root(page).nth(i).get_attribute("data-cells") for i in (0, 1)] == ["12", "12"]
    assert page.locator(".fluxnb-empty").count() == 0
    assert page.locator("[role=gridcell][aria-label='seed 1, 1 step, starred']").count() == 2
    assert not page.errors and not page.outside


def test_a_making_that_breaks_says_what_to_do(run_notebook, page):
    run_notebook(
        "import fluxnb as fnb\nfrom tests.widgets.test_explore import Coming\nfrom tests.scenes import grid\n"
        "fnb.explore(Coming(grid(), breaks_at=2))",
        name="broken.ipynb",
    )
    page.locator(".fluxnb-heard", has_text="Try height=512").wait_for(timeout=30_000)
    assert "2 of 12 cells, broken off" in page.locator(".fluxnb-status").text_content()


def test_the_state_of_the_page_is_json_that_names_no_path(tmp_path):
    text = grid().to_html(tmp_path / "grid.html").read_text()
    assert str(tmp_path) not in text and json.loads(text.split("const { data, urls } = ")[1].split(";\nmount")[0])
