"""The explorer in a real browser: as a page from a file, and in JupyterLab while pocket samples a grid."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fluxnb as fnb
from tests.browser.hosts import open_widget
from tests.browser.test_page import SCRUB
from tests.browser.waiting import expect, wait_until
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


def focused(page) -> str:
    """The accessible name of the focused element."""
    return page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.className")


def press(page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def focus_table(page) -> None:
    page.locator(".fluxnb-tile[tabindex='0']").focus()


def viewer(page):
    return page.locator("dialog.fluxnb-viewer")


def compare(page, mode: str) -> None:
    """Open the first three cells of a row in the viewer."""
    focus_table(page)
    press(page, " ", "ArrowRight", " ", "ArrowRight", " ", "Enter", mode)
    viewer(page).wait_for()


def shot(page, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(200)
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"))


def matrix_scale(transform: str) -> float:
    return round(float(re.findall(r"-?[\d.]+", transform)[0]), 3)


# ------------------------------------------------------------------------------------------------- rows, columns, pages
def test_headers_name_only_what_differs(opened):
    page = opened(grid(seeds=[0, 1], steps=[1, 2]))
    assert page.locator("[role=columnheader]").all_text_contents() == ["", "1 step", "2 steps"]
    assert page.locator("[role=rowheader]").all_text_contents() == ["seed 0", "seed 1"]
    assert page.locator(".fluxnb-title").text_content() == "a house on a hill"
    assert page.locator(".fluxnb-page").count() == 0, "two axes need no pages"


def test_prompts_with_a_common_prefix_are_named_by_the_rest(opened):
    common = "a photograph of a house on a hill in the evening, "
    page = opened(grid(prompts=[common + "pencil", common + "oil"], seeds=[0, 1], steps=[1]))
    names = page.locator("[role=rowheader]")
    assert names.all_text_contents() == ["… pencil", "… oil"]
    assert names.first.get_attribute("title") == common + "pencil"


def test_rows_and_columns_are_selectable_and_further_axes_are_pages(opened):
    page = opened()
    assert (root(page).get_attribute("data-rows"), root(page).get_attribute("data-columns")) == ("seed", "steps")
    assert page.locator(".fluxnb-tile").count() == 9
    before = page.locator(".fluxnb-tile img").first.get_attribute("alt")
    page.get_by_label("next prompt").click()
    assert page.locator(".fluxnb-tile img").first.get_attribute("alt") == before.replace("a house", "a barn")
    assert focused(page) == "next prompt", "the pressed button keeps the focus"
    page.locator(".fluxnb-axis", has_text="rows").locator("select").select_option(label="prompt")
    assert page.locator("[role=rowheader]").all_text_contents() == ["a house", "a barn"]
    page.get_by_label("swap rows and columns").click()
    assert (root(page).get_attribute("data-rows"), root(page).get_attribute("data-columns")) == ("steps", "prompt")
    page.locator(".fluxnb-axis", has_text="columns").locator("select").select_option(label="steps")
    assert (root(page).get_attribute("data-rows"), root(page).get_attribute("data-columns")) == ("prompt", "steps")


def test_rows_beyond_what_one_table_holds_are_pages(opened):
    page = opened(grid(seeds=range(130), steps=[1, 2], size=16))
    expect(page.locator(".fluxnb-tile")).to_have_count(240)
    assert page.locator(".fluxnb-page option").all_text_contents() == ["seed 0 – seed 119", "seed 120 – seed 129"]
    page.get_by_label("next seed").click()
    expect(page.locator(".fluxnb-tile")).to_have_count(20)
    assert page.locator("[role=rowheader]").first.text_content() == "seed 120"
    assert page.locator(".fluxnb-tile img").first.get_attribute("alt") == "seed 120, 1 step"
    focus_table(page)
    press(page, "PageDown")
    assert page.locator("[role=rowheader]").first.text_content() == "seed 0"


def test_a_grid_of_200_cells_follows_the_slider_within_a_display_frame(opened):
    page = opened(grid(seeds=range(50), steps=[1, 2, 3, 4], size=32, trajectories=True))
    times = page.get_by_label("noise level").evaluate(SCRUB)
    assert len(times) == 100 and sorted(times)[95] <= 20, sorted(times)[-5:]  # 50 frames a second


def test_tiles_outside_of_the_window_have_the_current_frame_when_they_come_into_view(opened):
    page = opened(grid(seeds=range(50), steps=[1, 2, 3, 4], size=32, trajectories=True))
    page.get_by_label("noise level").fill("0")
    last = page.locator(".fluxnb-row").last.locator(".fluxnb-tile img")
    last.last.scroll_into_view_if_needed()
    sources = "(nodes) => nodes.map((node) => node.getAttribute('src'))"
    wait_until(page, lambda: len(set(last.evaluate_all(sources))) == 1)  # all steps start with the same estimate


def test_a_page_has_one_heading_of_the_first_level_inside_its_main_part(opened):
    page = opened()
    headings = page.get_by_role("main").get_by_role("heading", level=1)
    expect(headings).to_have_count(1)
    expect(headings).to_have_text("2 prompts × 3 seeds × 3 step counts, toy")


def test_an_unfinished_cell_is_an_empty_tile(opened):
    import dataclasses

    finished = grid(seeds=[0, 1], steps=[1, 2])
    page = opened(dataclasses.replace(finished, cells=finished.cells[:3], finished=False))
    assert page.locator(".fluxnb-empty").count() == 1
    assert "3 of 4 cells" in page.locator(".fluxnb-status").text_content()


# --------------------------------------------------------------------------------------------------------- the keyboard
def test_the_table_is_one_tab_stop_and_arrows_move_inside(opened):
    page = opened()
    assert page.locator(".fluxnb-tile[tabindex='0']").count() == 1
    focus_table(page)
    press(page, "ArrowRight", "ArrowDown")
    assert focused(page) == "a house, seed 1, 2 steps"
    press(page, "Home")
    assert focused(page) == "a house, seed 1, 1 step"
    press(page, "End", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowDown")
    assert focused(page) == "a house, seed 2, 4 steps", "the focus stops at the edges"
    press(page, "PageDown")
    assert focused(page) == "a barn, seed 2, 4 steps"
    assert page.locator(".fluxnb-tile[tabindex='0']").count() == 1


def test_every_control_has_a_key(opened):
    page = opened()
    focus_table(page)
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
    width = page.locator(".fluxnb-tile").first.bounding_box()["width"]
    press(page, "+")
    wait_until(page, lambda: page.locator(".fluxnb-tile").first.bounding_box()["width"] > width)
    focus_table(page)
    press(page, "Escape")
    assert page.locator("[role=gridcell][aria-selected=true]").count() == 0
    press(page, "Enter")
    viewer(page).wait_for()
    press(page, "Escape")
    expect(viewer(page)).to_be_hidden()
    wait_until(page, lambda: focused(page).startswith("a house"))  # the focus returns to the cell


def test_every_control_has_an_accessible_name(opened):
    page = opened()
    focus_table(page)
    press(page, " ", "s")
    names = page.locator("button:visible, select:visible, input:visible").evaluate_all(
        "(nodes) => nodes.map((n) => n.getAttribute('aria-label') || n.textContent || n.labels?.[0]?.textContent)"
    )
    assert all(name and name.strip() for name in names) and len(names) > 10
    unprotected = "button:not([data-lm-suppress-shortcuts]), [tabindex]:not([data-lm-suppress-shortcuts])"
    assert root(page).locator(unprotected).count() == 0, "JupyterLab would handle its keys"


# ---------------------------------------------------------------------------------------------------------------- sigma
def test_the_slider_moves_all_cells_to_the_same_sigma(opened):
    page = opened()
    # Seed 0: at sigma 0.5 the trajectories of 2 and 4 steps each display the last step with a level of at least that.
    sources = "(n) => n.map((i) => i.getAttribute('src'))"
    finals = page.locator(".fluxnb-tile img").evaluate_all(sources)
    page.get_by_label("noise level").fill("0")
    starts = page.locator(".fluxnb-tile img").evaluate_all(sources)
    assert root(page).get_attribute("data-sigma") == "1" and not set(starts) & set(finals)
    assert starts[0] == starts[1] == starts[2], "all step counts of a seed start with the same estimate"
    page.get_by_label("noise level").fill("2")
    middle = page.locator(".fluxnb-tile img").evaluate_all(sources)
    assert root(page).get_attribute("data-sigma") == "0.5"
    assert middle[0] == starts[0] and middle[1] != starts[1] and middle[2] != starts[2]


def test_a_page_of_a_grid_without_steps_has_no_slider_and_no_advice_for_its_author(opened):
    page = opened(grid())
    assert not page.get_by_label("noise level").is_visible()
    assert "Keep" not in root(page).inner_text()


def test_every_displayed_frame_decodes(opened):
    page = opened()
    for at in ("0", "1", "2", "3"):
        page.get_by_label("noise level").fill(at)
        widths = page.locator(".fluxnb-tile img").evaluate_all(
            "(n) => Promise.all(n.map(async (i) => { await i.decode(); return i.naturalWidth; }))"
        )
        assert all(width > 0 for width in widths)


# ----------------------------------------------------------------------------------------------------------- the viewer
def test_a_click_opens_the_viewer_and_arrows_go_to_the_neighbors(opened):
    page = opened()
    page.locator(".fluxnb-tile").nth(4).click()
    expect(viewer(page).locator("img")).to_have_count(1)
    assert viewer(page).locator("img").get_attribute("alt") == "a house, seed 1, 2 steps"
    press(page, "ArrowRight", "ArrowUp")
    assert viewer(page).locator("img").get_attribute("alt") == "a house, seed 0, 4 steps"
    assert "seed 0" in page.locator(".fluxnb-facts").text_content()
    press(page, "Escape")
    assert focused(page) == "a house, seed 0, 4 steps"


def test_the_viewer_names_only_what_differs_between_compared_cells(opened):
    page = opened()
    compare(page, "1")
    assert viewer(page).locator("figcaption").all_text_contents() == ["1 step", "2 steps", "4 steps"]
    assert page.locator(".fluxnb-differences").inner_text().split() == ["steps", "1", "2", "4"]
    assert "prompt a house" in page.locator(".fluxnb-common").text_content()


def test_the_slider_divides_two_images(opened):
    page = opened()
    compare(page, "2")
    box = viewer(page).locator(".fluxnb-box")
    place = box.bounding_box()
    clip = "(n) => getComputedStyle(n).clipPath"
    assert box.locator("img").count() == 2 and "50%" in box.locator(".fluxnb-top-layer").evaluate(clip)
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + 50)
    page.mouse.down()
    page.mouse.move(place["x"] + place["width"] / 4, place["y"] + 50, steps=4)
    page.mouse.up()
    wait_until(page, lambda: "25%" in box.locator(".fluxnb-top-layer").evaluate(clip))
    press(page, "d", "ArrowRight")  # the divider has its own keys
    wait_until(page, lambda: "26%" in box.locator(".fluxnb-top-layer").evaluate(clip))
    page.locator(".fluxnb-stage").focus()
    press(page, "ArrowRight")
    assert box.locator(".fluxnb-top-layer img").get_attribute("alt") == "4 steps", "the arrows choose another B"
    press(page, "w")
    assert box.locator(".fluxnb-top-layer img").get_attribute("alt") == "1 step"


def test_flicking_replaces_the_image_in_place(opened):
    page = opened()
    compare(page, "3")
    image = viewer(page).locator("img")
    bounds, first = image.bounding_box(), image.get_attribute("src")
    press(page, "ArrowRight")
    assert image.get_attribute("src") != first and image.bounding_box() == bounds
    press(page, " ", " ")
    assert image.get_attribute("src") == first, "three flicks through three images"
    press(page, "f")
    page.wait_for_function("(src) => document.querySelector('dialog img').getAttribute('src') !== src", arg=first)
    press(page, "f")


def test_the_difference_image_is_four_times_the_pixel_difference(opened):
    sweep = grid(seeds=[0], steps=[1, 2])
    page = opened(sweep)
    compare_two = [" ", "ArrowRight", " ", "Enter", "4"]
    focus_table(page)
    press(page, *compare_two)
    canvas = viewer(page).locator("canvas[data-mean]")
    canvas.wait_for()
    a, b = (cell.image.convert("RGB").tobytes() for cell in sweep)
    deltas = [abs(x - y) for x, y in zip(a, b, strict=True)]
    assert abs(float(canvas.get_attribute("data-mean")) - sum(deltas) / len(deltas)) < 1e-6
    rgba = canvas.evaluate("(c) => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]")
    rgb = [value for i, value in enumerate(rgba) if i % 4 != 3]
    assert rgb == [min(255, 4 * value) for value in deltas]
    expect(page.locator(".fluxnb-difference-text")).to_contain_text(f"largest {max(deltas)}")


def test_all_images_zoom_and_pan_together(opened):
    page = opened()
    compare(page, "1")
    box = viewer(page).locator(".fluxnb-box").first
    place = box.bounding_box()
    page.mouse.move(place["x"] + 40, place["y"] + 40)
    for _ in range(3):
        page.mouse.wheel(0, -100)
    zoomed = math.exp(3 * 80 / 300)  # a turn of the wheel counts as at most 80 pixels
    wait_until(page, lambda: abs(float(viewer(page).get_attribute("data-zoom")) - zoomed) < 1e-9)
    page.mouse.down()
    page.mouse.move(place["x"] + 90, place["y"] + 70, steps=4)
    page.mouse.up()
    matrix = "(n) => n.map((i) => getComputedStyle(i).transform)"
    moved = viewer(page).locator("img").evaluate_all(matrix)
    assert len(moved) == 3 and len(set(moved)) == 1 and "none" not in moved
    scale, x = float(viewer(page).get_attribute("data-zoom")), float(moved[0].split(",")[4])
    assert abs(x) <= (scale - 1) / 2 * place["width"] + 1, "an image is not moved out of its frame"
    press(page, "2")
    scales = {matrix_scale(each) for each in viewer(page).locator("img").evaluate_all(matrix)}
    assert scales == {round(scale, 3)}, "another comparison keeps the zoom"
    press(page, "0")
    assert viewer(page).get_attribute("data-zoom") == "1"


def test_sigma_can_be_changed_in_the_viewer(opened):
    page = opened()
    compare(page, "4")
    canvas = viewer(page).locator("canvas[data-mean]")
    canvas.wait_for()
    before = canvas.get_attribute("data-mean")
    press(page, ",", ",", ",", ",")
    page.wait_for_function("(before) => document.querySelector('dialog canvas').dataset.mean !== before", arg=before)
    assert root(page).get_attribute("data-sigma") == "1"


# ------------------------------------------------------------------------------------------------------ stars and files
def test_one_starred_cell_is_downloaded_as_png_with_its_recipe_and_pixels(opened):
    sweep = grid(seeds=[2**64 - 1, 1], steps=[1, 2])
    page = opened(sweep)
    focus_table(page)
    press(page, "s")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="download").click()
    path = waiting.value.path()
    assert waiting.value.suggested_filename.endswith(".png") and fnb.open_recipe(path) == sweep[0].recipe
    with Image.open(path) as saved:
        assert saved.convert("RGB").tobytes() == sweep[0].image.convert("RGB").tobytes()


def test_several_starred_cells_are_downloaded_as_a_zip(opened):
    sweep = grid(prompts=[NASTY], seeds=[0, 1], steps=[1, 2])
    page = opened(sweep)
    focus_table(page)
    press(page, "s", "ArrowRight", "s", "ArrowDown", "s")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="download").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert archive.testzip() is None
        recipes = [fnb.open_recipe(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    assert recipes == [sweep[0].recipe, sweep[1].recipe, sweep[3].recipe]


def test_with_a_kernel_downloads_and_differences_use_the_original_pixels(page, tmp_path):
    sweep = grid(seeds=[0, 1], steps=[1], size=320)
    cells = [cell.image.convert("RGB") for cell in sweep]
    widget = fnb.explore(sweep, size=100)
    open_widget(page, widget, "jupyterlab-light", tmp_path)
    originals = [base64.b64encode(widget._original({"run": 0, "number": n}, [])).decode() for n in range(2)]
    page.evaluate(
        """(originals) => {
          const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
          model.send = ({ kind, request, number }) => kind === "original" && setTimeout(() =>
            model.trigger("msg:custom", { kind: "reply", request, text: "" }, [bytes(originals[number])]), 20);
        }""",
        originals,
    )
    focus_table(page)
    press(page, "s", " ", "ArrowRight", " ")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="download").click()
    assert "preview" not in waiting.value.suggested_filename
    with Image.open(waiting.value.path()) as saved:
        assert saved.convert("RGB").tobytes() == cells[0].tobytes() and saved.size == (320, 320)
    focus_table(page)
    press(page, "Enter", "4")
    deltas = np.abs(np.asarray(cells[0], dtype=int) - np.asarray(cells[1], dtype=int))
    text = f"mean {deltas.mean():.1f} of 255 · largest {deltas.max()}"
    page.wait_for_function(
        "() => /^4×/.test(document.querySelector('.fluxnb-difference-text').textContent)", timeout=10_000
    )
    expect(page.locator(".fluxnb-difference-text")).to_contain_text(text)
    mean = float(viewer(page).locator("canvas").get_attribute("data-mean"))
    assert abs(mean - deltas.mean()) < 1e-9
    assert not page.errors


def test_a_copied_image_has_the_original_pixels_or_is_called_a_preview(opened, page):
    opened(grid(seeds=[0, 1], steps=[2], size=320, trajectories=True), size=100)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".fluxnb-tile").first.click()
    reply, copy = page.locator("dialog .fluxnb-reply"), viewer(page).get_by_role("button", name="copy image")
    copy.click()
    expect(reply).to_have_text("preview copied, 100 px")
    page.locator(".fluxnb-stage").focus()
    press(page, ",")
    copy.click()
    expect(reply).to_have_text("preview of this step copied")


def test_with_a_kernel_the_original_pixels_are_copied(page, tmp_path):
    widget = fnb.explore(grid(seeds=[0], steps=[1], size=320), size=100)
    open_widget(page, widget, "jupyterlab-light", tmp_path)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.evaluate(
        """(png) => {
          const buffer = () => new DataView(Uint8Array.from(atob(png), (c) => c.charCodeAt(0)).buffer);
          model.send = ({ kind, request }) => kind === "original" && setTimeout(() =>
            model.trigger("msg:custom", { kind: "reply", request, text: "" }, [buffer()]), 20);
        }""",
        base64.b64encode(widget._original({"run": 0, "number": 0}, [])).decode(),
    )
    page.locator(".fluxnb-tile").first.click()
    viewer(page).get_by_role("button", name="copy image").click()
    expect(page.locator("dialog .fluxnb-reply")).to_have_text("image copied")
    size = """async () => {
      const [item] = await navigator.clipboard.read();
      const image = await createImageBitmap(await item.getType("image/png"));
      return image.width;
    }"""
    assert page.evaluate(size) == 320
    assert not page.errors


def test_original_pixels_that_arrive_after_the_noise_level_has_changed_are_not_displayed(page, tmp_path):
    widget = fnb.explore(grid(seeds=[0, 1], steps=[4], size=320, trajectories=True), size=100)
    open_widget(page, widget, "jupyterlab-light", tmp_path)
    originals = [base64.b64encode(widget._original({"run": 0, "number": n}, [])).decode() for n in range(2)]
    focus_table(page)
    press(page, " ", "ArrowRight", " ", "Enter", "4")
    text = page.locator(".fluxnb-difference-text")
    text.filter(has_text="preview, 100 px").wait_for()
    press(page, ",")
    text.filter(has_text="preview, 40 px").wait_for()  # the linear preview of a step
    before = text.text_content()
    page.evaluate(
        """(originals) => {
          const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
          for (const { kind, request, number } of model.sent.filter(({ kind }) => kind === "original"))
            model.trigger("msg:custom", { kind: "reply", request, text: "" }, [bytes(originals[number])]);
        }""",
        originals,
    )
    page.wait_for_timeout(300)
    assert text.text_content() == before
    assert page.evaluate("model.sent.filter(({ kind }) => kind === 'original').length") == 2


# ----------------------------------------------------------------------------------------------------------------- text
def test_markup_in_a_prompt_is_displayed_as_text_everywhere(opened):
    page = opened(grid(prompts=[NASTY, "a barn"], seeds=[0, 1], steps=[1, 2]))
    assert page.locator(".fluxnb-page option").first.get_attribute("title") == NASTY
    assert page.locator(".fluxnb-page option").first.text_content() == NASTY[:47] + "…"
    page.locator(".fluxnb-axis", has_text="rows").locator("select").select_option(label="prompt")
    assert page.locator("[role=rowheader]").first.text_content() == NASTY
    compare(page, "1")
    assert NASTY in page.locator(".fluxnb-facts").text_content()
    assert page.evaluate("window.owned") is None
    assert page.locator(".fluxnb-explore :is(script, b:not(.fluxnb-chip b), style)").count() == 0


def test_the_explorer_fits_a_narrow_page(opened):
    page = opened(grid(prompts=["a very long prompt " * 12], seeds=[0, 1], steps=[1, 2, 4], trajectories=True))
    page.set_viewport_size({"width": 380, "height": 780})
    page.locator(".fluxnb-narrow").wait_for()
    page.wait_for_function("() => document.documentElement.scrollWidth <= 380")
    page.locator(".fluxnb-tile").first.click()
    image = viewer(page).locator("img")
    wait_until(page, lambda: (place := image.bounding_box())["x"] >= 0 and place["x"] + place["width"] <= 380)
    shot(page, "explore-narrow")


def test_inside_an_iframe_the_viewer_replaces_the_grid(page, tmp_path):
    grid(trajectories=True).to_html(tmp_path / "grid.html")
    outer = tmp_path / "outer.html"
    outer.write_text('<iframe src="grid.html" width="700" height="2400"></iframe>')
    page.goto(outer.as_uri())
    inner = page.frame_locator("iframe")
    inner.locator(".fluxnb-tile").nth(1).click()
    inner.locator("dialog.fluxnb-viewer img").wait_for()
    expect(inner.locator(".fluxnb-grid")).to_be_hidden()
    wait_until(page, lambda: inner.locator("dialog.fluxnb-viewer").bounding_box()["height"] < 800)
    press(page, "Escape")
    expect(inner.locator(".fluxnb-grid")).to_be_visible()
    expect(inner.locator("dialog")).to_be_hidden()


def test_without_javascript_and_on_paper_every_cell_is_displayed(chromium, tmp_path):
    path = grid(seeds=[0, 1], steps=[1, 2]).to_html(tmp_path / "grid.html")
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("figcaption:visible").count() == 4
    context.close()
    context = chromium.new_context()
    page = context.new_page()
    page.goto(path.as_uri())
    page.locator(".fluxnb-explore").wait_for()
    expect(page.locator("figcaption:visible")).to_have_count(0)
    page.emulate_media(media="print")
    expect(page.locator(".fluxnb-sheet figcaption:visible")).to_have_count(4)
    expect(page.locator(".fluxnb-explore")).to_be_hidden()
    context.close()


def test_a_hundred_downloaded_pictures_have_the_pixels_of_their_cells(opened):
    sweep = grid(seeds=range(25), steps=[1, 2, 3, 4], size=64)
    page = opened(sweep)
    page.locator(".fluxnb-star").evaluate_all("(nodes) => nodes.forEach((node) => node.click())")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="download").click()
    with zipfile.ZipFile(waiting.value.path()) as archive:
        pictures = [Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist()]
    pairs = zip(pictures, sweep, strict=True)
    assert sum(png.convert("RGB").tobytes() == cell.image.convert("RGB").tobytes() for png, cell in pairs) == 100


def test_a_preview_is_named_as_such_in_the_file_the_facts_and_the_difference(opened):
    page = opened(grid(seeds=[0, 1], steps=[1], size=320), size=100)
    focus_table(page)
    press(page, "s", " ", "ArrowRight", " ")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="download").click()
    assert waiting.value.suggested_filename.endswith("-preview-100px.png")
    expect(page.locator(".fluxnb-message")).to_contain_text("preview")
    focus_table(page)
    press(page, "Enter", "4")
    page.locator(".fluxnb-difference-text", has_text="preview, 100 px").wait_for()
    expect(page.locator(".fluxnb-facts")).to_contain_text("pixels preview, 100 px")


# -------------------------------------------------------------------------------------------------------- in JupyterLab
LIVE = f"""import time
import fluxnb as fnb
flux = fnb.load("pocket")
axes = dict(prompts=["a red fox", {NASTY!r}], seeds=range(3), steps=[1, 2, 3, 4])
widget = fnb.explore(fnb.stream(flux, **axes, keep=fnb.Keep()), folder="best")
widget"""

BUSY = """before = len(widget.cells)
time.sleep(4)
print("GREW", before, len(widget.cells))"""

# The number of cells that the front end displays while the second cell of the notebook is running.
WATCH = """window.seen = [];
setInterval(() => {
  const count = document.querySelector(".fluxnb-explore")?.dataset.cells;
  const second = document.querySelectorAll(".jp-Notebook .jp-CodeCell")[1];
  const running = second?.querySelector(".jp-InputPrompt")?.textContent.includes("*");
  if (count !== undefined && running) window.seen.push(count);
}, 50);"""


def test_a_grid_fills_in_jupyterlab_while_another_cell_runs(run_notebook, page, lab):
    page.add_init_script(WATCH)
    run_notebook(LIVE, BUSY, name="explore.ipynb")
    grew = page.locator(".jp-OutputArea-output", has_text="GREW").text_content().split()
    assert int(grew[2]) > int(grew[1]), "the kernel was free for another cell during the sampling"
    seen = [int(count) for count in page.evaluate("window.seen")]
    assert len(set(seen)) > 2 and seen == sorted(seen), "cells were displayed one after the other"
    page.locator(".fluxnb-explore[data-state=finished]").wait_for(timeout=120_000)
    expect(root(page)).to_have_attribute("data-cells", "24")
    expect(page.locator(".fluxnb-empty")).to_have_count(0)
    expect(page.locator(".fluxnb-page option").nth(1)).to_have_attribute("title", NASTY)
    assert page.evaluate("window.owned") is None

    focus_table(page)
    press(page, "ArrowRight", "s", ",", "x")
    assert (root(page).get_attribute("data-sigma"), root(page).get_attribute("data-show")) == ("0.25", "x")
    press(page, "c", ".")
    assert page.locator(".jp-Notebook .jp-CodeCell").count() == 2, "x, c and v are also notebook commands"
    page.get_by_role("button", name="save to folder").click()
    page.locator(".fluxnb-message", has_text="1 picture written to best").wait_for(timeout=30_000)
    (saved,) = (lab.notebooks / "best").glob("*.png")
    assert (fnb.open_recipe(saved).steps, fnb.open_recipe(saved).seed) == (2, 0)
    shot(page, "explore-lab-light")

    focus_table(page)
    press(page, " ", "ArrowRight", " ", "Enter", "2")
    viewer(page).locator(".fluxnb-divider").wait_for()
    shot(page, "explore-lab-slider")
    press(page, "4")
    viewer(page).locator("canvas[data-mean]").wait_for()
    press(page, "Escape")
    expect(viewer(page)).to_be_hidden()
    wait_until(page, lambda: focused(page).endswith("3 steps"))
    page.evaluate("window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
    page.locator("body[data-jp-theme-light=false]").wait_for(state="attached")
    shot(page, "explore-lab-dark")
    assert not page.errors and not page.outside


def test_a_view_opened_later_shows_all_cells_and_shares_the_stars(run_notebook, page):
    cells = [
        "import threading\nimport fluxnb as fnb\nfrom tests.widgets.test_explore import FakeStream\n"
        "from tests.scenes import grid\ngate = threading.Semaphore(7)\n"
        "widget = fnb.explore(FakeStream(grid(), gate=gate))\nwidget",
        "import time; time.sleep(1)\nwidget",
        "for _ in range(6): gate.release()\nwidget.stars = [3]\nwidget.wait(20.0)\nprint('DONE')",
    ]
    run_notebook(*cells, name="twice.ipynb")
    page.locator(".fluxnb-explore[data-state=finished]").nth(1).wait_for(timeout=30_000)
    for i in (0, 1):
        expect(root(page).nth(i)).to_have_attribute("data-cells", "12")
    expect(page.locator(".fluxnb-empty")).to_have_count(0)
    expect(page.locator("[role=gridcell][aria-label='seed 1, 1 step, starred']")).to_have_count(2)
    assert not page.errors and not page.outside


def test_an_error_while_sampling_is_displayed_with_its_remedy(run_notebook, page):
    run_notebook(
        "import fluxnb as fnb\nfrom tests.widgets.test_explore import FakeStream\nfrom tests.scenes import grid\n"
        "fnb.explore(FakeStream(grid(), breaks_at=2))",
        name="broken.ipynb",
    )
    page.locator(".fluxnb-message", has_text="Try height=512").wait_for(timeout=30_000)
    expect(page.locator(".fluxnb-status")).to_contain_text("2 of 12 cells, failed")


def test_the_data_of_a_page_contains_no_path(tmp_path):
    text = grid().to_html(tmp_path / "grid.html").read_text()
    assert str(tmp_path) not in text and json.loads(text.split("const { data, urls } = ")[1].split(";\nmount")[0])
