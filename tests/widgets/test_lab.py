"""The lab with a fake in the engine's place: what it asks, what it shows, what it says when things go wrong."""

from __future__ import annotations

import io
import threading

import pytest
from PIL import Image

from fluxnb import records
from fluxnb.errors import InputError, RunError
from fluxnb.grid.axes import Axes
from fluxnb.records.latents import LinearRGB
from fluxnb.widgets.form import numbers_in
from fluxnb.widgets.job import Job
from fluxnb.widgets.lab import Lab
from tests.scenes import trajectory
from tests.trajectories import resolved

FIELDS = {"prompt": "a fox", "seeds": "0-1", "steps": "1, 2", "width": "64", "height": "64"}
STOP = object()
GREY = LinearRGB(weight=((0.1,) * 16,) * 3, bias=(0.5, 0.5, 0.5), error=0.1)


class Engine:
    """Makes pictures one after the other; `go` lets it make the next step."""

    def __init__(self, problem: Exception | None = None, free: bool = True) -> None:
        self.asked, self.problem, self.closed = [], problem, False
        self.go = threading.Semaphore(10**6 if free else 0)
        self.steps: list[str] = []

    def __call__(self, asked, watch):
        self.asked.append(asked)
        grid = Axes.of(**asked)
        recipes = [resolved(**{k: v for k, v in vars(recipe).items() if v is not None}) for recipe in grid]

        def cells():
            try:
                for recipe in recipes:
                    for step in trajectory(steps=recipe.steps, seed=recipe.seed).steps:
                        self.go.acquire()
                        self.steps.append(f"{recipe.seed}.{recipe.steps}.{step.index}")
                        if watch(step, recipe) is STOP:
                            return
                    if self.problem is not None:
                        raise self.problem
                    picture = Image.new("RGB", (64, 64), (recipe.seed * 60 % 256, recipe.steps * 40, 90))
                    yield records.Cell(recipe=recipe, key=recipe.key(), picture=picture, evaluations=recipe.steps)
            finally:
                self.closed = True

        steps = sum(recipe.steps for recipe in recipes)
        return Job(recipes=recipes, cells=cells(), steps=steps, axes=grid.shown, model="fake", preview=GREY)


@pytest.fixture
def bench():
    made = []

    def make(engine, **fields):
        lab = Lab(engine, {**FIELDS, **fields}, model="fake", stop=STOP)
        lab.sent = []
        lab.send = lambda content, buffers=(): lab.sent.append((content, list(buffers)))
        made.append(lab)
        return lab

    yield make
    for lab in made:
        lab.close()


def press(lab, **fields):
    """What the front end sends when the button is pressed."""
    lab._hear(lab, {"kind": "generate", "fields": {**lab.form["fields"], **fields}}, [])


def test_a_press_asks_what_the_form_says(bench):
    engine = Engine()
    lab = bench(engine, guidance="2,5", negative="blur")
    press(lab, prompt="a cat", seeds="0-1, 18446744073709551615", steps="1 4", width="128")
    lab.wait(10)
    assert engine.asked == [
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


def test_what_was_made_is_a_sweep_in_the_order_of_its_axes(bench):
    lab = bench(Engine()).generate().wait(10)
    assert [(cell.recipe.seed, cell.recipe.steps) for cell in lab.grid] == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert lab.grid.finished and lab.grid.axes["seed"] == (0, 1) and lab.grid.axes["steps"] == (1, 2)
    assert repr(lab) == "Lab(fake, finished, 4 of 4 pictures)"
    assert lab.state["phase"] == "finished" and lab.state["spent"] > 0
    lab.generate(seeds=[5], steps=1).wait(10)
    assert [len(grid) for grid in lab.grids] == [4, 1]


def test_explore_takes_what_a_lab_made(bench):
    from fluxnb.widgets import explore

    assert "4 of 4 cells" in repr(explore(bench(Engine()).generate().wait(10).grid))


def test_before_the_first_picture_there_is_no_grid_and_it_says_so(bench):
    with pytest.raises(InputError, match="Press generate"):
        _ = bench(Engine()).grid


def test_squares_are_laid_before_pictures_come_and_filled_as_they_do(bench):
    engine = Engine(free=False)
    lab = bench(engine).generate()
    assert lab.board["rows"] == ["seed 0", "seed 1"] and lab.board["columns"] == ["1 step", "2 steps"]
    assert [(square["row"], square["column"]) for square in lab.board["squares"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert lab.frames == [b""] * 4 and lab.state["phase"] == "running" and lab.state["total"] == 4
    engine.go.release(6)
    lab.wait(10)
    final = [(content["place"], buffers[0]) for content, buffers in lab.sent if content["step"] == 0]
    assert [place for place, _ in final] == [0, 1, 2, 3] and [frame for _, frame in final] == lab.frames
    with Image.open(io.BytesIO(lab.frames[3])) as shown:
        assert shown.convert("RGB").getpixel((5, 5)) == (60, 80, 90), "a small picture is shown without loss"


def test_estimates_on_the_way_are_shown_with_their_step(bench, monkeypatch):
    monkeypatch.setattr("fluxnb.widgets.lab.PREVIEW_EVERY", 0.0)
    lab = bench(Engine()).generate(seeds=0, steps=3).wait(10)
    told = [(content["step"], content["done"]) for content, _ in lab.sent]
    assert told == [(1, 0), (2, 0), (3, 0), (0, 1)]
    with Image.open(io.BytesIO(lab.sent[0][1][0])) as small:
        assert max(small.size) <= 16


def test_the_time_left_is_told_once_a_picture_is_there(bench):
    lab = bench(Engine()).generate().wait(10)
    lefts = [content["left"] for content, _ in lab.sent if content["step"] == 0]
    assert all(left >= 0 for left in lefts) and lefts[-1] == 0


def test_cancelling_makes_no_further_step(bench):
    engine = Engine(free=False)
    lab = bench(engine).generate(seeds="0-2", steps="3")
    engine.go.release(4)  # the first picture, and one of the three steps of the second
    while len(engine.steps) < 4:
        threading.Event().wait(0.001)
    lab._hear(lab, {"kind": "cancel"}, [])
    engine.go.release(100)
    lab.wait(10)
    assert len(engine.steps) <= 5 and engine.closed
    assert lab.state["phase"] == "stopped" and lab.state["done"] == 1 and not lab.grid.finished


def test_a_second_press_while_pictures_are_made_is_refused(bench):
    engine = Engine(free=False)
    lab = bench(engine).generate()
    with pytest.raises(InputError, match=r"lab\.cancel"):
        lab.generate()
    lab.cancel()
    engine.go.release(100)
    lab.wait(10)


def test_what_goes_wrong_on_the_way_stands_in_the_widget_with_what_to_do(bench):
    lab = bench(Engine(RunError("512 px ran out of GPU memory", "smaller pictures need less", "try height=256")))
    press(lab)
    with pytest.raises(RunError):
        lab.wait(10)
    assert lab.state["phase"] == "failed"
    assert lab.state["what"] == "512 px ran out of GPU memory: smaller pictures need less."
    assert lab.state["remedy"] == "Try height=256."


def test_a_failure_that_is_no_error_of_ours_is_named(bench):
    lab = bench(Engine(ZeroDivisionError("division by zero")))
    press(lab)
    with pytest.raises(ZeroDivisionError):
        lab.wait(10)
    assert lab.state["what"] == "ZeroDivisionError: division by zero" and "lab.problem" in lab.state["remedy"]


def test_after_a_failure_a_lab_works_again(bench):
    engine = Engine(ZeroDivisionError("division by zero"))
    lab = bench(engine)
    press(lab)
    lab._thread.join(10)
    engine.problem = None
    press(lab)
    assert len(lab.wait(10).grid) == 4 and lab.problem is None and lab.state["what"] == ""


@pytest.mark.parametrize(
    ("fields", "says"),
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
def test_a_form_that_cannot_be_is_told_in_the_widget_and_nothing_is_made(bench, fields, says):
    engine = Engine()
    lab = bench(engine)
    press(lab, **fields)
    assert lab.state["phase"] == "failed" and says in lab.state["what"] and lab.state["remedy"]
    assert engine.steps == [] and lab._thread is None


@pytest.mark.parametrize("content", [{}, {"kind": "?"}, {"kind": "generate", "fields": {"no": "such"}}])
def test_a_message_that_means_nothing_harms_nothing(bench, content):
    lab = bench(Engine())
    lab._hear(lab, content, [])
    lab.wait(10)
    assert lab.state["phase"] in ("idle", "finished")


def test_numbers_are_read_as_people_type_them():
    assert numbers_in("seeds", " 0 - 2,7;9  11 ") == [0, 1, 2, 7, 9, 11]
    assert numbers_in("seeds", "1..3, 5–6") == [1, 2, 3, 5, 6]


def test_closing_stops_the_work(bench):
    engine = Engine(free=False)
    lab = bench(engine).generate()
    lab.close()
    engine.go.release(100)
    lab._thread.join(10)
    assert engine.closed and len(engine.steps) <= 2


def test_a_finished_lab_leaves_a_picture_for_readers_without_a_kernel(bench):
    lab = bench(Engine())
    assert lab._still is None
    lab.generate().wait(10)
    with Image.open(io.BytesIO(lab._still)) as left:
        assert left.format == "PNG"
