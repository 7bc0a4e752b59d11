"""The lab with a fake sampler: its requests, its traits and messages, and its error messages."""

from __future__ import annotations

import dataclasses
import io
import threading

import numpy as np
import pytest
import traitlets
from PIL import Image

from fluxnb import records
from fluxnb.errors import InputError, RunError
from fluxnb.grid.axes import Axes
from fluxnb.records.latents import LinearRGB
from fluxnb.widgets.form import parse_numbers
from fluxnb.widgets.lab import Job, Lab
from tests.scenes import trajectory
from tests.trajectories import resolved

FIELDS = {"prompt": "a fox", "seeds": "0-1", "steps": "1, 2", "width": "64", "height": "64"}
STOP = object()
GREY = LinearRGB(weight=((0.1,) * 16,) * 3, bias=(0.5, 0.5, 0.5), error=0.1)


class Engine:
    """Samples images one after the other; each step waits for the semaphore `go`."""

    def __init__(self, problem: Exception | None = None, free: bool = True) -> None:
        self.requests, self.problem, self.closed = [], problem, False
        self.go = threading.Semaphore(10**6 if free else 0)
        self.steps: list[str] = []

    def __call__(self, arguments, on_step):
        self.requests.append(arguments)
        grid = Axes.of(**arguments)
        recipes = [resolved(**{k: v for k, v in vars(recipe).items() if v is not None}) for recipe in grid]

        def cells():
            try:
                for recipe in recipes:
                    for step in trajectory(steps=recipe.steps, seed=recipe.seed).steps:
                        self.go.acquire()
                        self.steps.append(f"{recipe.seed}.{recipe.steps}.{step.index}")
                        if on_step(step, recipe) is STOP:
                            return
                    if self.problem is not None:
                        raise self.problem
                    picture = Image.new("RGB", (64, 64), (recipe.seed * 60 % 256, recipe.steps * 40, 90))
                    yield records.Cell(recipe=recipe, key=recipe.key(), picture=picture, evaluations=recipe.steps)
            finally:
                self.closed = True

        steps = sum(recipe.steps for recipe in recipes)
        return Job(recipes=recipes, cells=cells(), steps=steps, axes=grid.displayed, model="fake", preview=GREY)


@pytest.fixture
def bench():
    labs = []

    def make(engine, **fields):
        lab = Lab(engine, {**FIELDS, **fields}, model="fake", stop=STOP)
        lab.sent = []
        lab.send = lambda content, buffers=(): lab.sent.append((content, list(buffers)))
        labs.append(lab)
        return lab

    yield make
    for lab in labs:
        lab.close()


def press(lab, **fields):
    """Send the message of the front end when the button is pressed."""
    lab._on_message(lab, {"kind": "generate", "fields": {**lab.fields, **fields}}, [])


def test_a_press_requests_the_values_of_the_form(bench):
    engine = Engine()
    lab = bench(engine, guidance="2,5", negative="blur")
    press(lab, prompt="a cat", seeds="0-1, 18446744073709551615", steps="1 4", width="128")
    lab.wait(10)
    assert engine.requests == [
        {
            "prompts": "a cat",
            "seeds": [0, 1, 2**64 - 1],
            "steps": [1, 4],
            "height": 64,
            "width": 128,
            "guidance": 2.5,
            "negative": "blur",
        }
    ]
    assert lab.fields["prompt"] == lab.prompt == "a cat" and lab.seeds == (0, 1, 2**64 - 1)


def test_the_result_is_a_sweep_in_the_order_of_its_axes(bench):
    lab = bench(Engine()).generate().wait(10)
    assert [(cell.recipe.seed, cell.recipe.steps) for cell in lab.grid] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert lab.grid.finished and lab.grid.axes["seed"] == (0, 1) and lab.grid.axes["steps"] == (1, 2)
    assert repr(lab) == "Lab(fake, finished, 4 of 4 pictures)"
    assert lab.state["phase"] == "finished" and lab.state["elapsed"] > 0
    lab.generate(seeds=[5], steps=1).wait(10)
    assert [len(grid) for grid in lab.grids] == [4, 1]


def test_explore_accepts_the_grid_of_a_lab(bench):
    from fluxnb.widgets import explore

    assert "4 of 4 cells" in repr(explore(bench(Engine()).generate().wait(10).grid))


def test_before_the_first_image_grid_raises_an_error_with_a_remedy(bench):
    with pytest.raises(InputError, match="Press generate"):
        _ = bench(Engine()).grid


def sent(lab, kind):
    return [(content, buffers) for content, buffers in lab.sent if content["kind"] == kind]


def test_places_are_displayed_before_the_images_and_filled_as_they_finish(bench):
    engine = Engine(free=False)
    lab = bench(engine).generate()
    assert [axis["values"] for axis in lab.data["axes"]] == [["a fox"], ["seed 0", "seed 1"], ["1 step", "2 steps"]]
    assert lab.cells == lab.frames == [] and lab.data["total"] == 4
    assert lab.state["phase"] == "running" and lab.state["total"] == 4 and lab.running
    engine.go.release(6)
    lab.wait(10)
    assert [cell["position"] for cell in lab.cells] == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert not lab.running
    with Image.open(io.BytesIO(lab.frames[lab.cells[3]["final"]])) as image:
        assert image.convert("RGB").getpixel((5, 5)) == (60, 80, 90), "a small image is encoded losslessly"


def test_previews_are_sent_with_their_step_and_place(bench, monkeypatch):
    monkeypatch.setattr("fluxnb.widgets.lab.PREVIEW_INTERVAL", 0.0)
    lab = bench(Engine()).generate(seeds=0, steps=3).wait(10)
    previews = sent(lab, "preview")
    assert [(content["step"], content["position"], content["run"]) for content, _ in previews] == [
        (1, [0, 0, 0], 1),
        (2, [0, 0, 0], 1),
        (3, [0, 0, 0], 1),
    ]
    with Image.open(io.BytesIO(previews[0][1][0])) as small:
        assert max(small.size) <= 16


def test_the_remaining_time_is_sent_with_each_image(bench):
    lab = bench(Engine()).generate().wait(10)
    progress = [content for content, _ in sent(lab, "progress")]
    assert all(each["remaining"] >= 0 for each in progress if each["done"]) and progress[-1]["remaining"] == 0
    assert progress[-1]["done"] == 4 and progress[-1]["fraction"] == 1


def test_cancel_ends_the_sampling_within_one_step(bench):
    engine = Engine(free=False)
    lab = bench(engine).generate(seeds="0-2", steps="3")
    engine.go.release(4)  # the first image and one of the three steps of the second
    while len(engine.steps) < 4:
        threading.Event().wait(0.001)
    lab._on_message(lab, {"kind": "cancel"}, [])
    engine.go.release(100)
    lab.wait(10)
    assert len(engine.steps) <= 5 and engine.closed
    assert lab.state["phase"] == "stopped" and lab.state["done"] == 1 and not lab.grid.finished


def test_generate_while_sampling_is_refused(bench):
    engine = Engine(free=False)
    lab = bench(engine).generate()
    with pytest.raises(InputError, match=r"lab\.cancel"):
        lab.generate()
    lab.cancel()
    engine.go.release(100)
    lab.wait(10)


def test_a_second_press_while_sampling_is_refused_and_the_sampling_goes_on(bench):
    engine = Engine(free=False)
    lab = bench(engine)
    press(lab)
    lab._on_message(lab, {"kind": "generate", "request": 2, "fields": dict(lab.fields)}, [])
    assert lab.state["phase"] == "running" and lab.problem is None
    ((reply, _),) = [each for each in sent(lab, "reply") if each[0]["request"] == 2]
    assert "lab.cancel" in reply["text"]
    engine.go.release(100)
    assert lab.wait(10).state["phase"] == "finished"


def test_an_error_while_sampling_is_displayed_with_its_remedy(bench):
    lab = bench(Engine(RunError("512 px ran out of GPU memory", "smaller pictures need less", "try height=256")))
    press(lab)
    with pytest.raises(RunError):
        lab.wait(10)
    assert lab.state["phase"] == "failed"
    assert lab.state["message"] == "512 px ran out of GPU memory: smaller pictures need less."
    assert lab.state["remedy"] == "Try height=256."


def test_a_foreign_exception_is_displayed_with_its_type(bench):
    lab = bench(Engine(ZeroDivisionError("division by zero")))
    press(lab)
    with pytest.raises(ZeroDivisionError):
        lab.wait(10)
    assert lab.state["message"] == "ZeroDivisionError: division by zero" and "lab.problem" in lab.state["remedy"]


def test_a_lab_works_again_after_a_failure(bench):
    engine = Engine(ZeroDivisionError("division by zero"))
    lab = bench(engine)
    press(lab)
    lab._worker.join(10)
    engine.problem = None
    press(lab)
    assert len(lab.wait(10).grid) == 4 and lab.problem is None and lab.state["message"] == ""


@pytest.mark.moderate
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seeds": "three"}, "whole numbers"),
        ({"seeds": ""}, "whole numbers"),
        ({"seeds": "-1"}, "whole numbers"),
        ({"seeds": "1.5"}, "whole numbers"),
        ({"seeds": "٣"}, "whole numbers"),
        ({"seeds": "5-1"}, "upwards"),
        ({"seeds": "0-99999999999"}, "at most"),
        ({"seeds": "0-600", "steps": "1-2"}, "at most"),
        ({"seeds": "18446744073709551616"}, "at most"),
        ({"steps": "0"}, "at least 1"),
        ({"width": "100"}, "multiples of 16"),
        ({"height": "wide"}, "pixels"),
        ({"prompt": "  "}, "at least one word"),
        ({"guidance": "strong"}, "0 to 100"),
        ({"guidance": "nan"}, "0 to 100"),
    ],
)
def test_an_invalid_form_displays_an_error_and_samples_nothing(bench, fields, message):
    engine = Engine()
    lab = bench(engine)
    press(lab, **fields)
    assert lab.state["phase"] == "failed" and message in lab.state["message"] and lab.state["remedy"]
    assert engine.steps == [] and lab._worker is None


@pytest.mark.parametrize("content", [{}, {"kind": "?"}, {"kind": ["generate"]}])
def test_an_unknown_message_is_ignored(bench, content):
    lab = bench(Engine())
    lab._on_message(lab, content, [])
    lab.wait(10)
    assert lab.state["phase"] in ("idle", "finished")


@pytest.mark.parametrize("seeds", [{1}, (1 for _ in range(1)), np.arange(1, 2), range(1, 2), "1", 1])
def test_seeds_are_a_text_a_number_or_any_numbers(bench, seeds):
    lab = bench(Engine()).generate(seeds=seeds, steps=1).wait(10)
    assert [cell.recipe.seed for cell in lab.grid] == [1]


def test_numbers_and_ranges_are_parsed():
    assert parse_numbers("seeds", " 0 - 2,7;9  11 ") == [0, 1, 2, 7, 9, 11]
    assert parse_numbers("seeds", "1..3, 5–6") == [1, 2, 3, 5, 6]


def test_close_stops_the_sampling(bench):
    engine = Engine(free=False)
    lab = bench(engine).generate()
    lab.close()
    engine.go.release(100)
    lab._worker.join(10)
    assert engine.closed and len(engine.steps) <= 2


def test_a_finished_lab_has_a_fallback_image_for_readers_without_a_kernel(bench):
    lab = bench(Engine())
    assert lab._fallback is None
    lab.generate().wait(10)
    with Image.open(io.BytesIO(lab._fallback)) as image:
        assert image.format == "PNG"


# --------------------------------------------------------------------------------------------------- values and history
def test_a_request_with_an_unknown_field_is_refused(bench):
    engine = Engine()
    lab = bench(engine)
    press(lab, no="such")
    assert lab.state["phase"] == "failed" and "no=" in lab.state["message"] and engine.requests == []
    with pytest.raises(InputError, match="field='no'"):
        lab.fields = {"no": "such"}


def test_setting_a_value_changes_the_form_and_the_form_changes_the_value(bench):
    lab, changes = bench(Engine()), []
    lab.observe(lambda change: changes.append(change["new"]), "seeds")
    lab.prompt, lab.seeds, lab.steps = "a cat", range(5), 4
    assert (lab.fields["prompt"], lab.fields["seeds"], lab.fields["steps"]) == ("a cat", "0-4", "4")
    lab.fields = {**lab.fields, "seeds": "7 8", "steps": "1..3"}
    assert lab.seeds == (7, 8) and lab.steps == (1, 2, 3) and lab.fields["seeds"] == "7 8", "the text remains as typed"
    lab.fields = {**lab.fields, "seeds": "7-"}
    assert lab.seeds == (7, 8), "an incomplete text is no value"
    assert changes == [(0, 1, 2, 3, 4), (7, 8)]


def test_a_value_that_is_not_possible_is_refused(bench):
    lab = bench(Engine())
    with pytest.raises(InputError, match="whole numbers"):
        lab.seeds = "three"
    with pytest.raises(traitlets.TraitError):
        lab.prompt = 3
    assert lab.seeds == (0, 1)


def test_running_grid_and_problem_can_be_observed(bench):
    engine, seen = Engine(), []
    lab = bench(engine)
    lab.observe(lambda change: seen.append((change["name"], change["new"])), ["running", "grid", "problem"])
    lab.generate().wait(10)
    engine.problem = RunError("no memory", "smaller pictures need less", "try height=256")
    with pytest.raises(RunError):
        lab.generate().wait(10)
    assert [name for name, _ in seen] == ["running", "grid", "running", "running", "problem", "running"]
    assert seen[1][1] is lab.grid and seen[4][1] is engine.problem


def test_starred_and_chosen_cells_are_traits_in_both_directions(bench):
    lab, seen = bench(Engine()).generate().wait(10), []
    lab.observe(lambda change: seen.append(change["new"]), "starred")
    lab.stars = [2, 0]
    assert lab.starred == (lab.grid[0], lab.grid[2]) == seen[0]
    lab.chosen = [lab.grid[3], lab.grid[1]]
    assert lab.choices == [3, 1]
    lab.generate(seeds="5").wait(10)
    assert lab.starred == lab.chosen == () and lab.stars == lab.choices == [], "another run has its own stars"


def test_earlier_runs_are_displayed_again_with_their_settings_and_stars(bench):
    lab = bench(Engine()).generate().wait(10)
    lab.stars = [1]
    lab.generate(prompt="a cat", seeds="5").wait(10)
    assert [(each["run"], each["fields"]["prompt"], each["done"], each["state"]) for each in lab.history] == [
        (1, "a fox", 4, "finished"),
        (2, "a cat", 2, "finished"),
    ]
    lab._on_message(lab, {"kind": "show", "run": 1}, [])
    assert lab.data["run"] == 1 and len(lab.cells) == 4 and lab.stars == [1] and lab.prompt == "a fox"
    assert lab.grid.axes["seed"] == (5,), "the latest grid remains the latest"


def test_only_the_latest_runs_remain_in_memory(bench, monkeypatch):
    monkeypatch.setattr("fluxnb.widgets.lab.MAX_RUNS", 2)
    lab = bench(Engine())
    for seed in range(3):
        lab.generate(seeds=seed, steps=1).wait(10)
    assert [each["run"] for each in lab.history] == [2, 3] and len(lab.grids) == 3
    lab._on_message(lab, {"kind": "show", "run": 1, "request": 7}, [])
    assert lab.sent[-1][0]["request"] == 7 and "run 1" in lab.sent[-1][0]["text"]


def test_a_cell_that_arrives_while_an_earlier_run_is_displayed_belongs_to_its_own_run(bench):
    engine = Engine(free=False)
    lab = bench(engine)
    engine.go.release(6)
    lab.generate().wait(10)
    lab.generate(prompt="a cat")
    lab._on_message(lab, {"kind": "show", "run": 1}, [])
    engine.go.release(100)
    lab.wait(10)
    assert lab.data["run"] == 1 and lab.grid.axes["prompt"] == ("a cat",)
    assert {dict(cell["facts"])["prompt"] for cell in lab.cells} == {"a fox"}


def test_a_dropped_picture_fills_in_the_form(bench):
    from fluxnb.io.png import encode_png
    from fluxnb.records.recipe import Recipe

    lab = bench(Engine())
    recipe = Recipe(prompt="an owl", seed=2**64 - 1, steps=3, height=128, width=64, sampler="renoise", guidance=2.0)
    lab._on_message(lab, {"kind": "recipe", "request": 1}, [encode_png(Image.new("RGB", (64, 128)), recipe)])
    assert lab.fields == {**FIELDS, "prompt": "an owl", "seeds": str(2**64 - 1), "steps": "3", "height": "128"}
    assert "guidance, sampler" in lab.sent[-1][0]["text"]
    lab._on_message(lab, {"kind": "recipe", "request": 2}, [b"GIF89a"])
    assert "GIF89a" in lab.sent[-1][0]["text"]


def test_a_dropped_picture_without_a_negative_prompt_clears_its_field(bench):
    from fluxnb.io.png import encode_png
    from fluxnb.records.recipe import Recipe

    lab = bench(Engine(), negative="blur")
    picture = encode_png(Image.new("RGB", (64, 64)), Recipe(prompt="an owl", height=64, width=64))
    lab._on_message(lab, {"kind": "recipe", "request": 1}, [picture])
    assert lab.fields["prompt"] == "an owl" and lab.fields["negative"] == ""


def test_notices_of_the_job_are_displayed(bench):
    def generate(arguments, on_step):
        return dataclasses.replace(Engine()(arguments, on_step), notices=["CLIP reads 77 tokens."])

    lab = bench(generate).generate().wait(10)
    assert lab.state["notices"] == ["CLIP reads 77 tokens."]


def test_every_request_with_a_number_is_answered(bench):
    lab = bench(Engine())
    for kind in ("save", "cancel", "show", "recipe", "generate"):
        lab._on_message(lab, {"kind": kind, "request": 3}, [])
        assert [content["request"] for content, _ in sent(lab, "reply")][-1] == 3
    lab.wait(10)
