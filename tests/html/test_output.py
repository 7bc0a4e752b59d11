"""HTML outputs of notebook cells: complete, bounded, and without anything that changes from run to run but the key."""

from __future__ import annotations

import io
import json
import re

import pytest
from PIL import Image

from fluxnb.html import grid_page, output
from fluxnb.html.grid_page import GridEncoder
from tests.scenes import grid


def encoded(**options):
    sweep = grid(trajectories=True, **options)
    encoder, frames, cells = GridEncoder(sweep.axes, model=sweep.model), [], []
    for cell in sweep:
        described, fresh = encoder.add(cell)
        cells.append(described)
        frames.extend(fresh)
    return {**encoder.data, "cells": cells}, frames


def stills(data):
    return grid_page.stills_of(data["cells"])


def test_an_output_has_a_picture_with_its_caption_for_every_cell():
    data, frames = encoded(seeds=[0, 1], steps=[1, 2])
    text = output.output("explore", data, frames, key="fluxnb-0", stills=stills)
    captions = re.findall(r"<figcaption>([^<]*)</figcaption>", text)
    assert sorted(captions) == sorted(cell["caption"] for cell in data["cells"])
    assert text.count("data:image/webp;base64,") == len(frames), "no frame is stored twice"


def test_outputs_of_equal_content_differ_in_their_key_alone():
    data, frames = encoded(seeds=[0], steps=[1])
    a, b = (output.output("explore", data, frames, key=key, stills=stills) for key in ("fluxnb-0a", "fluxnb-0b"))
    assert a != b and a.replace("fluxnb-0a", "fluxnb-0b") == b


def test_contents_behind_a_widget_have_a_name_of_their_own():
    data, frames = encoded(seeds=[0], steps=[1])
    text = output.output("explore", data, frames, key="fluxnb-a", stills=stills, behind=True)
    assert 'data-fluxnb="fluxnb-a-saved"' in text and '{"behind":"fluxnb-a"}' in text


def test_small_contents_are_unchanged():
    data, frames = encoded(seeds=[0], steps=[1])
    assert output.bounded(data, frames) == (data, frames)


@pytest.mark.moderate
@pytest.mark.parametrize("most", [60_000, 20_000, 6_000])
def test_large_contents_are_reduced_to_the_limit_and_the_note_says_so(monkeypatch, most):
    data, frames = encoded(seeds=range(4), steps=[1, 2, 4])
    monkeypatch.setattr(output, "MOST_BYTES", most)
    reduced, smaller = output.bounded(data, frames)
    assert sum(map(len, smaller)) * 4 / 3 <= most * 1.01
    assert "saved here at" in reduced["note"] and "widget.to_html(path)" in reduced["note"]
    assert len(reduced["cells"]) == 12 and all(0 <= cell["final"] < len(smaller) for cell in reduced["cells"])
    assert "saved here" not in data["note"], "the widget itself is unchanged"
    for frame in smaller:
        with Image.open(io.BytesIO(frame)) as image:
            assert max(image.size) < 128


@pytest.mark.moderate
def test_without_its_steps_a_grid_keeps_all_pictures(monkeypatch):
    data, frames = encoded(seeds=range(4), steps=[1, 2, 4])
    monkeypatch.setattr(output, "MOST_BYTES", 6_000)
    reduced, _ = output.bounded(data, frames)
    assert all(cell["sigmas"] == [] and cell["frames"] == {} for cell in reduced["cells"])
    json.dumps(reduced)


def test_the_text_of_an_absent_widget_is_escaped():
    assert "<b>" not in output.host("lab", key="fluxnb-a", text="<b>run</b>")
