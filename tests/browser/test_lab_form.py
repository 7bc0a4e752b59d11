"""The lab without a kernel: a fake model delivers what the kernel would send and records what is sent to it."""

from __future__ import annotations

import base64

import pytest

from fluxnb.widgets import Lab
from tests.browser.hosts import open_widget
from tests.browser.waiting import expect
from tests.widgets.test_lab import FIELDS, STOP, Engine


@pytest.fixture
def opened(page, tmp_path):
    def show(*prompts: str, **fields: str):
        lab = Lab(Engine(), {**FIELDS, **fields}, model="fake", stop=STOP, examples=["an owl", "a cat"])
        for prompt in prompts:
            lab.generate(prompt=prompt).wait(10)
        return open_widget(page, lab, "jupyterlab-light", tmp_path)

    yield show
    assert not page.errors and not page.outside


def sent(page) -> list[dict]:
    return page.evaluate("() => model.sent.map((message) => ({ ...message }))")


def field(page, name: str):
    return page.locator(f".fluxnb-{name} :is(input, textarea)")


def test_before_the_first_run_the_form_has_no_grid_below(opened):
    page = opened()
    assert page.locator(".fluxnb-form").is_visible() and not page.locator(".fluxnb-explore").is_visible()


def test_a_click_on_a_picture_enlarges_it_and_its_settings_can_be_used(opened):
    page = opened("a fox")
    field(page, "prompt").fill("something else")
    page.locator(".fluxnb-tile").nth(3).click()
    dialog = page.locator("dialog.fluxnb-viewer")
    assert dialog.locator("img").get_attribute("alt") == "seed 1, 2 steps"
    dialog.get_by_role("button", name="use settings").click()
    assert not dialog.is_visible()
    assert [field(page, name).input_value() for name in ("prompt", "seeds", "steps", "width")] == [
        "a fox",
        "1",
        "2",
        "64",
    ]


def test_the_settings_of_a_picture_without_a_negative_prompt_clear_its_field(opened):
    page = opened("a fox", negative="")
    field(page, "negative").fill("blur")
    page.locator(".fluxnb-tile").first.click()
    page.locator("dialog.fluxnb-viewer").get_by_role("button", name="use settings").click()
    assert field(page, "negative").input_value() == "" and page.evaluate("model.get('fields').negative") == ""


def test_code_recipe_and_image_can_be_copied(opened):
    page = opened('a "red" fox\'s den')
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator(".fluxnb-tile").nth(1).click()
    dialog, reply = page.locator("dialog.fluxnb-viewer"), page.locator("dialog .fluxnb-reply")
    dialog.get_by_role("button", name="copy code").click()
    reply.filter(has_text="code copied").wait_for()
    call = page.evaluate("navigator.clipboard.readText()")
    arguments = eval(call, {"fnb": type("fnb", (), {"run": lambda *args, **fields: (args, fields)}), "flux": "flux"})
    assert arguments == (("flux", 'a "red" fox\'s den'), {"seed": 0, "steps": 2, "height": 64, "width": 64})
    dialog.get_by_role("button", name="copy recipe").click()
    reply.filter(has_text="recipe copied").wait_for()
    assert '"seed":0' in page.evaluate("navigator.clipboard.readText()").replace(" ", "")
    dialog.get_by_role("button", name="copy image").click()
    reply.filter(has_text="image copied").wait_for()
    kinds = "async () => (await navigator.clipboard.read()).flatMap((item) => item.types)"
    assert "image/png" in page.evaluate(kinds)


def test_pictures_of_other_settings_than_those_of_the_form_are_labeled(opened):
    page = opened("a fox")
    stale = page.locator(".fluxnb-stale")
    assert not stale.is_visible()
    field(page, "prompt").fill("a cat")
    assert "other settings (prompt)" in stale.text_content()
    field(page, "prompt").fill("a fox")
    assert not stale.is_visible()


def test_an_example_and_random_seeds_fill_in_the_form(opened):
    page = opened(seeds="0-3")
    page.get_by_role("button", name="an owl").click()
    page.get_by_role("button", name="random seeds").click()
    seeds = [int(text) for text in field(page, "seeds").input_value().split(", ")]
    assert field(page, "prompt").input_value() == "an owl"
    assert len(seeds) == 4 and all(0 <= seed < 2**32 for seed in seeds) and seeds != [0, 1, 2, 3]


def test_enter_requests_the_texts_of_the_form_and_the_request_is_displayed(opened):
    page = opened()
    field(page, "seeds").fill("18446744073709551615")
    field(page, "seeds").press("Enter")
    (request,) = sent(page)
    assert request["kind"] == "generate" and request["fields"] == {**FIELDS, "seeds": "18446744073709551615"}


def test_enter_in_a_field_while_sampling_requests_nothing_and_escape_stops(opened):
    page = opened("a fox")
    page.evaluate("() => model.set('state', { ...model.get('state'), phase: 'running' })")
    field(page, "seeds").press("Enter")
    field(page, "seeds").press("Control+Enter")
    assert sent(page) == []
    field(page, "seeds").press("Escape")
    assert [message["kind"] for message in sent(page)] == ["cancel"]


def test_stars_and_choices_of_another_run_remain_in_whichever_order_its_traits_arrive(opened):
    page = opened("a fox")
    for run, names in enumerate((["data", "stars", "choices"], ["stars", "choices", "data"]), start=2):
        page.evaluate(
            """([names, run]) => {
              const traits = { data: { ...model.get("data"), run }, stars: [1], choices: [2, 0] };
              for (const name of names) model.set(name, traits[name]);
            }""",
            [names, run],
        )
        assert page.locator(".fluxnb-tile").nth(1).get_attribute("aria-label").endswith("starred"), names
        assert page.locator(".fluxnb-badge").all_text_contents() == ["2", "", "1", ""], names


def test_an_earlier_run_is_requested_by_its_button(opened):
    page = opened("a fox", "a cat")
    runs = page.locator(".fluxnb-run")
    assert runs.all_text_contents() == ["a cat", "a fox"] and runs.first.get_attribute("aria-pressed") == "true"
    assert "seeds: 0-1" in runs.nth(1).get_attribute("title")
    runs.nth(1).click()
    assert sent(page)[-1]["kind"] == "show" and sent(page)[-1]["run"] == 1


def test_choices_and_stars_are_sent_to_python(opened):
    page = opened("a fox")
    page.locator(".fluxnb-tile").first.hover()
    page.locator(".fluxnb-badge").nth(0).click()
    page.locator(".fluxnb-tile").nth(2).hover()
    page.locator(".fluxnb-badge").nth(2).click()
    page.locator(".fluxnb-star").nth(2).click()
    assert page.evaluate("[model.get('choices'), model.get('stars')]") == [[0, 2], [2]]
    page.get_by_role("button", name="compare").click()
    expect(page.locator("dialog.fluxnb-viewer img")).to_have_count(2)


def test_a_preview_is_displayed_with_its_step_until_the_picture_arrives(opened):
    page = opened("a fox")
    page.evaluate(
        """() => {
          const data = { ...model.get("data"), run: 2, state: "running" };
          const [cell] = model.get("cells");
          const [frame] = model.get("frames");
          window.late = { cell: { ...cell, position: [0, 1, 1] }, frame };
          model.set("cells", []); model.set("frames", []); model.set("data", data);
          model.trigger("msg:custom", { kind: "preview", run: 2, position: [0, 1, 1], step: 1, steps: 2,
                                        width: 64, height: 64 }, [frame]);
        }"""
    )
    tile = page.locator(".fluxnb-tile").nth(3)
    expect(tile.locator(".fluxnb-step")).to_have_text("1 of 2")
    expect(tile.locator("img")).to_be_visible()
    page.evaluate(
        """() => {
          const message = { kind: "cell", run: 2, number: 0, first_frame: 0, cell: window.late.cell };
          model.trigger("msg:custom", message, [window.late.frame]);
        }"""
    )
    assert tile.locator(".fluxnb-step").text_content() == "" and page.locator(".fluxnb-empty").count() == 3
    page.evaluate(
        "() => model.trigger('msg:custom', { kind: 'preview', run: 1, position: [0, 0, 0] }, [window.late.frame])"
    )
    assert page.locator(".fluxnb-empty").count() == 3, "a preview of an earlier run is not displayed"


def test_a_dropped_file_is_sent_to_the_kernel(opened):
    page = opened()
    data = base64.b64encode(b"PNG bytes").decode()
    page.evaluate(
        """async (data) => {
          const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], "fox.png", { type: "image/png" }));
          const send = model.send;
          model.send = (message, _, buffers) => {
            window.dropped = new TextDecoder().decode(buffers[0]);
            send(message);
          };
          document.querySelector(".fluxnb-lab").dispatchEvent(
            new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
        }""",
        data,
    )
    page.wait_for_function("() => window.dropped !== undefined")
    assert page.evaluate("window.dropped") == "PNG bytes" and sent(page)[-1]["kind"] == "recipe"


def test_a_kernel_that_does_not_reply_is_reported_with_what_to_do(opened):
    page = opened("a fox", "a cat")
    page.evaluate("() => { model.widget_manager = { kernel: { status: 'dead' } }; }")
    page.locator(".fluxnb-run").nth(1).click()
    reply = page.locator(".fluxnb-lab-reply")
    assert "waiting for the kernel" in reply.text_content()
    expect(reply).to_contain_text("Restart it and run this cell again")
