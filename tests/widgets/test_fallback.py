"""The contact sheet for readers that display neither a widget nor HTML."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw

from fluxnb.widgets import explore
from fluxnb.widgets.fallback import LINE, fallback_of_cells, fallback_png
from tests.scenes import grid

PICTURE = Image.new("RGB", (32, 32), "red")


def opened(png: bytes | None) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def written(monkeypatch) -> list[str]:
    """The texts that are drawn from now on."""
    texts: list[str] = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda *args, **fields: (texts.append(args[2]), draw(*args, **fields))
    )
    return texts


def test_pictures_beyond_the_limit_are_counted(monkeypatch):
    texts = written(monkeypatch)
    fallback_png([PICTURE] * 64, side=80, limit=24)
    assert texts == ["24 of 64 pictures displayed"]


def test_each_picture_of_a_grid_has_its_seed_and_steps_and_the_prompt_stands_once(monkeypatch):
    texts = written(monkeypatch)
    sweep = grid(seeds=[3, 4], steps=[1, 2])
    fallback_of_cells(sweep.cells, sweep.axes)
    assert texts == [
        "a house on a hill",
        "seed 3",
        "1 step",
        "seed 3",
        "2 steps",
        "seed 4",
        "1 step",
        "seed 4",
        "2 steps",
    ]


def test_prompts_that_differ_stand_below_their_pictures_cut_to_the_width(monkeypatch):
    texts = written(monkeypatch)
    sweep = grid(prompts=["a house", "a barn beside a lake in the evening"], seeds=[0], steps=[1])
    fallback_of_cells(sweep.cells, sweep.axes)
    assert texts[0] == "a house" and texts[3].startswith("a barn") and texts[3].endswith("…")


def test_captions_do_not_cover_the_pictures():
    sheet = np.asarray(opened(fallback_png([PICTURE] * 2, [["seed 1"], ["seed 2"]], side=32)))
    assert (sheet[:32, :32] == (255, 0, 0)).all() and (sheet[:32, 36:] == (255, 0, 0)).all()
    assert sheet.shape[0] == 32 + LINE and sheet[32:].min() < 128


def test_without_pictures_there_is_no_sheet():
    assert fallback_png([]) is None and fallback_of_cells([], {}) is None


def test_a_row_of_the_sheet_holds_whole_rows_of_the_last_axis():
    assert opened(explore(grid(seeds=range(4), steps=[1, 2, 4]))._fallback).width == 6 * 84 - 4
