"""The self-contained page of a trajectory, opened from a file in a real browser."""

import pytest

from fluxnb.html import page as html
from tests.browser.waiting import expect, wait_until
from tests.scenes import grid, trajectory

NASTY = "</script><script>window.owned=1</script></style> \" ' & <img src=x onerror=window.owned=2> <b>bold</b>"

# Duration in milliseconds of each of 100 slider moves, including the layout.
SCRUB = """async (range) => {
  const times = [];
  for (let i = 0; i < 100; i += 1) {
    const begin = performance.now();
    range.value = String(i % (Number(range.max) + 1));
    range.dispatchEvent(new Event("input", { bubbles: true }));
    document.body.getBoundingClientRect();
    times.push(performance.now() - begin);
  }
  return times;
}"""


@pytest.fixture
def opened(page, tmp_path):
    def show(record, **options):
        page.goto(html.write(record, tmp_path / "trajectory.html", **options).as_uri())
        page.locator(".fluxnb-scrubber[data-sigma]").wait_for()
        if page.locator("input[type=range]").count():
            assert sigma(page) == 0, "a page opens on the picture"
            page.locator("input[type=range]").press("Home")
        return page

    return show


def sigma(page) -> float:
    return float(page.locator(".fluxnb-scrubber").get_attribute("data-sigma"))


def frame(page, number: int = 0) -> str:
    return page.locator(".fluxnb-box img").nth(number).get_attribute("src")


def test_a_slider_move_takes_less_than_a_display_frame(opened):
    page = opened([trajectory(steps=n) for n in (1, 2, 4, 28)])
    times = page.locator("input[type=range]").evaluate(SCRUB)
    assert len(times) == 100 and sorted(times)[95] <= 16, sorted(times)[-5:]
    assert not page.errors and not page.outside


def test_every_step_displays_a_frame_of_its_own(opened):
    page = opened(trajectory(steps=4))
    seen = set()
    for _ in range(5):
        assert page.locator(".fluxnb-box img").evaluate("async (i) => { await i.decode(); return i.naturalWidth }") > 0
        seen.add(frame(page))
        page.locator("input[type=range]").press("ArrowRight")
    assert len(seen) == 5 and sigma(page) == 0


def test_trajectories_of_different_lengths_stay_at_equal_sigma(opened):
    page = opened([trajectory(steps=1), trajectory(steps=2), trajectory(steps=4)])
    page.locator("input[type=range]").focus()
    for expected in ("step 1 of 1|step 1 of 2|step 2 of 4", "step 1 of 1|step 2 of 2|step 3 of 4"):
        page.keyboard.press("ArrowRight")
        assert "|".join(page.locator(".fluxnb-position").all_text_contents()) == expected
    page.keyboard.press("End")
    assert page.locator(".fluxnb-position").all_text_contents() == ["the picture"] * 3


def test_every_control_has_a_key(opened):
    page = opened(trajectory(steps=4))
    root = page.locator(".fluxnb-scrubber")
    page.locator("input[type=range]").focus()
    page.keyboard.press("ArrowRight")
    assert sigma(page) == 0.75
    page.keyboard.press("ArrowLeft")
    assert sigma(page) == 1
    for key, show in (("x", "x"), ("v", "v"), ("n", "noise"), ("c", "clean")):
        page.keyboard.press(key)
        assert root.get_attribute("data-show") == show
    page.keyboard.press("+")
    assert root.get_attribute("data-zoom") == "1.5"
    page.keyboard.press("0")
    assert root.get_attribute("data-zoom") == "1"
    page.keyboard.press("End")
    assert sigma(page) == 0
    page.keyboard.press("Home")
    assert sigma(page) == 1


def test_the_displayed_keys_are_those_that_do_something(opened):
    page = opened(trajectory(steps=4), shows=["clean", "x"])
    assert "c x displayed quantity" in page.locator(".fluxnb-help").text_content()
    page = opened(trajectory(steps=4), shows=["clean"])
    assert "displayed quantity" not in page.locator(".fluxnb-help").text_content()
    assert "w next word" not in page.locator(".fluxnb-help").text_content()


def test_play_runs_to_the_final_image_and_stops(opened):
    page = opened(trajectory(steps=4))
    page.locator(".fluxnb-play").press(" ")
    page.locator(".fluxnb-play[aria-label=pause]").wait_for()
    page.locator('.fluxnb-scrubber[data-sigma="0"]').wait_for(timeout=10_000)
    page.locator(".fluxnb-play[aria-label=play]").wait_for()


def test_all_trajectories_zoom_and_pan_together(opened):
    page = opened([trajectory(steps=1), trajectory(steps=2)])
    box = page.locator(".fluxnb-box").first
    box.dblclick()
    bounds = box.bounding_box()
    page.mouse.move(bounds["x"] + 60, bounds["y"] + 60)
    page.mouse.down()
    page.mouse.move(bounds["x"] + 100, bounds["y"] + 80, steps=4)
    page.mouse.up()
    style = "(nodes) => nodes.map((node) => node.getAttribute('style'))"
    images = page.locator(".fluxnb-box img")
    wait_until(page, lambda: all("translate(0%" not in each for each in images.evaluate_all(style)))
    assert len(set(images.evaluate_all(style))) == 1


def test_markup_in_a_prompt_is_displayed_as_text(opened):
    page = opened([trajectory(prompt=NASTY, steps=1), trajectory(prompt=NASTY + "2", steps=2)])
    assert NASTY in page.locator(".fluxnb-title").text_content()
    assert NASTY in page.locator(".fluxnb-label").first.text_content()
    assert page.evaluate("window.owned") is None
    assert page.locator(".fluxnb-scrubber b, .fluxnb-scrubber script").count() == 0
    assert NASTY in page.title() and not page.errors and not page.outside


def test_the_slider_moves_all_cells_of_a_grid(opened):
    page = opened(grid(seeds=[0, 1], steps=[1, 2, 4], trajectories=True))
    assert page.locator(".fluxnb-trajectory").count() == 6
    page.locator("input[type=range]").press("End")
    assert page.locator(".fluxnb-position").all_text_contents() == ["the picture"] * 6


def test_a_grid_without_trajectories_has_no_slider(opened):
    page = opened(grid(seeds=[0, 1], steps=[1, 2]))
    assert page.locator(".fluxnb-trajectory").count() == 4 and page.locator("input[type=range]").count() == 0
    width = "async (image) => { await image.decode(); return image.naturalWidth; }"
    assert page.locator(".fluxnb-box img").first.evaluate(width) == 128


def test_without_javascript_the_pictures_and_their_captions_are_displayed(chromium, tmp_path):
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(html.write([trajectory(steps=1), trajectory(steps=4, seed=5)], tmp_path / "trajectory.html").as_uri())
    assert page.locator("img").count() == 2
    assert page.locator("img").first.get_attribute("alt").startswith("a house on a hill")
    assert "4 steps" in page.locator("figcaption").nth(1).text_content()
    context.close()


def overlay(page) -> str | None:
    image = page.locator(".fluxnb-overlay").first
    return image.get_attribute("data-frame") if image.is_visible() else None


def test_the_attention_overlay_of_a_word_follows_the_steps(opened):
    page = opened(trajectory(steps=4, attention=True))
    root, words = page.locator(".fluxnb-scrubber"), page.locator(".fluxnb-word")
    assert words.all_text_contents() == ["a", "house", "on", "hill"] and overlay(page) is None
    words.nth(1).click()
    assert root.get_attribute("data-word") == "house" and words.nth(1).get_attribute("aria-pressed") == "true"
    seen = set()
    for _ in range(4):
        decoded = page.locator(".fluxnb-overlay").evaluate("async (i) => { await i.decode(); return i.naturalWidth }")
        assert decoded == 8
        seen.add(overlay(page))
        page.locator("input[type=range]").press("ArrowRight")
    assert len(seen) == 4 and sigma(page) == 0 and overlay(page) in seen
    page.keyboard.press("w")
    assert root.get_attribute("data-word") == "on"
    page.keyboard.press("w")
    page.keyboard.press("w")
    assert root.get_attribute("data-word") == "" and overlay(page) is None
    assert not page.errors and not page.outside


def test_the_attention_overlay_zooms_with_the_image(opened):
    page = opened(trajectory(steps=2, attention=True))
    page.keyboard.press("Tab")
    page.locator("input[type=range]").press("w")
    page.keyboard.press("+")
    styles = {page.locator(f".fluxnb-box img:nth-child({n})").get_attribute("style") for n in (1, 2)}
    assert len(styles) == 1 and "scale(1.5)" in styles.pop()


def test_markup_in_a_word_is_displayed_as_text(opened):
    page = opened(trajectory(prompt="<img/src=x/onerror=window.owned=3> </script><b>x", attention=True, steps=1))
    assert page.locator(".fluxnb-word").first.text_content() == "<img/src=x/onerror=window.owned=3>"
    assert page.evaluate("window.owned") is None and page.locator(".fluxnb-scrubber b").count() == 0


def test_a_trajectory_without_attention_has_no_word_buttons(opened):
    assert opened(trajectory()).locator(".fluxnb-words").count() == 0


def test_a_page_has_one_heading_of_the_first_level_inside_its_main_part(opened, chromium, tmp_path):
    page = opened([trajectory(steps=1), trajectory(steps=4)])
    expect(page.get_by_role("main").get_by_role("heading", level=1)).to_have_text("a house on a hill")
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(html.write(trajectory(steps=1), tmp_path / "page.html").as_uri())
    expect(page.get_by_role("main").get_by_role("heading", level=1)).to_have_count(1)
    context.close()


ADDED = """<script>window.owned = "script"</script><img src="x" onerror="window.owned = 'handler'">
<style>h1 { display: none }</style><base href="https://example.org/"></body>"""


@pytest.mark.parametrize("write", [lambda path: html.write(trajectory(), path), lambda path: grid().to_html(path)])
def test_markup_added_to_a_page_runs_no_script_and_sets_no_style(page, tmp_path, write):
    path = write(tmp_path / "page.html")
    path.write_text(path.read_text().replace("</body>", ADDED + "<h1>a heading</h1>"))
    violations = []
    page.on("console", lambda entry: violations.append(entry.text))
    page.goto(path.as_uri())
    page.locator(".fluxnb-scrubber[data-sigma], .fluxnb-explore").first.wait_for()
    assert page.evaluate("window.owned") is None and page.locator("h1", has_text="a heading").is_visible()
    assert page.evaluate("document.baseURI") == path.as_uri()
    wait_until(page, lambda: sum("Content Security Policy" in text for text in violations) >= 4)
    assert not page.outside


@pytest.mark.parametrize("write", [lambda path: html.write(trajectory(), path), lambda path: grid().to_html(path)])
def test_a_page_violates_its_own_policy_nowhere(page, tmp_path, write):
    entries = []
    page.on("console", lambda entry: entries.append(entry.text))
    page.goto(write(tmp_path / "page.html").as_uri())
    page.locator(".fluxnb-scrubber[data-sigma], .fluxnb-explore").first.wait_for()
    assert page.evaluate("getComputedStyle(document.body).maxWidth") == "1080px"
    assert not entries and not page.errors
