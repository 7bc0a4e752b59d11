"""The lab with a fake sampler: its requests, its traits and messages, and its error messages."""

from __future__ import annotations

import io
import threading

import pytest
from PIL import Image

from fluxnb import records
from fluxnb.errors import InputError, RunError
from fluxnb.grid.axes import Axes
from fluxnb.records.latents import LinearRGB
from fluxnb.widgets.lab import Job, Lab, parse_numbers
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
    lab._on_message(lab, {"kind": "generate", "fields": {**lab.form["fields"], **fields}}, [])


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
    assert lab.form["fields"]["prompt"] == "a cat"


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


def test_tiles_are_displayed_before_the_images_and_filled_as_they_finish(bench):
    engine = Engine(free=False)
    lab = bench(engine).generate()
    assert lab.table["rows"] == ["seed 0", "seed 1"] and lab.table["columns"] == ["1 step", "2 steps"]
    assert [(tile["row"], tile["column"]) for tile in lab.table["tiles"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert lab.frames == [b""] * 4 and lab.state["phase"] == "running" and lab.state["total"] == 4
    engine.go.release(6)
    lab.wait(10)
    final = [(content["index"], buffers[0]) for content, buffers in lab.sent if content["step"] == 0]
    assert [index for index, _ in final] == [0, 1, 2, 3] and [frame for _, frame in final] == lab.frames
    with Image.open(io.BytesIO(lab.frames[3])) as image:
        assert image.convert("RGB").getpixel((5, 5)) == (60, 80, 90), "a small image is encoded losslessly"


def test_previews_are_sent_with_their_step(bench, monkeypatch):
    monkeypatch.setattr("fluxnb.widgets.lab.PREVIEW_INTERVAL", 0.0)
    lab = bench(Engine()).generate(seeds=0, steps=3).wait(10)
    sent = [(content["step"], content["done"]) for content, _ in lab.sent]
    assert sent == [(1, 0), (2, 0), (3, 0), (0, 1)]
    with Image.open(io.BytesIO(lab.sent[0][1][0])) as small:
        assert max(small.size) <= 16


def test_the_remaining_time_is_sent_with_each_image(bench):
    lab = bench(Engine()).generate().wait(10)
    remaining = [content["remaining"] for content, _ in lab.sent if content["step"] == 0]
    assert all(seconds >= 0 for seconds in remaining) and remaining[-1] == 0


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


@pytest.mark.parametrize("content", [{}, {"kind": "?"}, {"kind": "generate", "fields": {"no": "such"}}])
def test_an_unknown_message_is_ignored(bench, content):
    lab = bench(Engine())
    lab._on_message(lab, content, [])
    lab.wait(10)
    assert lab.state["phase"] in ("idle", "finished")


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
