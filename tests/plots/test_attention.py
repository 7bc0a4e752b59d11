"""Attention to words: the overlay, the choice of words, the figure, and the data of the scrubber."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from fluxnb import plots
from fluxnb.errors import InputError
from fluxnb.visuals import overlays
from fluxnb.visuals.frames import frame_sets, frames_of, payload
from tests.plots.test_plots import pictures, words
from tests.scenes import grid, trajectory

PROMPT = "a house on a hill"


@pytest.fixture
def recorded():
    return trajectory(steps=4, attention=True)


def test_a_picture_is_unchanged_where_attention_is_high_and_dark_elsewhere():
    strength = torch.zeros(8, 8)
    strength[:4] = 1
    darkened = np.asarray(overlays.darken(Image.new("RGB", (64, 64), (200, 100, 50)), strength, (64, 64)), dtype=float)
    assert darkened[4, 32].tolist() == [200, 100, 50]
    assert darkened[60, 32].mean() < 0.2 * darkened[4, 32].mean()


def test_all_steps_of_a_word_share_one_scale(recorded):
    maps, strengths = recorded.attention("hill"), overlays.normalized_attention(recorded, "hill")
    assert strengths.min() == 0 and strengths.max() == 1
    order = maps.flatten().argsort()
    assert bool((strengths.flatten()[order].diff() >= 0).all())


def test_constant_attention_gives_a_dark_picture(recorded):
    flat = dataclasses.replace(
        recorded,
        steps=tuple(dataclasses.replace(s, tensors={**s.tensors, "attention": s.attention * 0}) for s in recorded),
    )
    assert overlays.normalized_attention(flat, "house").max() == 0


@pytest.mark.moderate
def test_without_names_the_words_with_most_contrast_are_chosen_in_the_order_of_the_prompt(recorded):
    assert overlays.words_with_most_contrast(recorded, 2) != ("a",) and "a" in overlays.words_with_most_contrast(
        recorded, 4
    )
    chosen = overlays.words_with_most_contrast(recorded, 3)
    assert list(chosen) == [word for word in ("a", "house", "on", "hill") if word in chosen]
    assert len(pictures(plots.attention(trajectory(prompt="a b c d e f g h", attention=True)))) == 6 * 4


def test_the_figure_has_a_row_for_each_word_and_a_column_for_each_step_and_names_the_trajectory(recorded):
    figure = plots.attention(recorded, ["hill", "house"])
    assert len(pictures(figure)) == 2 * 4
    text = words(figure)
    assert all(part in text for part in (PROMPT, "hill", "house", "σ 0.25", "toy", "seed 3", "4 steps", "2 of 4 words"))


def test_a_row_is_brightest_where_the_attention_to_its_word_is_highest(recorded):
    figure = plots.attention(recorded, ["house"])
    first = np.asarray(pictures(figure)[0].images[0].get_array(), dtype=float)
    original = np.asarray(recorded.image.resize(first.shape[1::-1], Image.Resampling.BICUBIC), dtype=float)
    share = (first + 1).sum(-1) / (original + 1).sum(-1)
    row, column = np.unravel_index(share.argmax(), share.shape)
    highest = divmod(int(recorded.attention("house")[0].argmax()), 8)
    assert (row * 8 // share.shape[0], column * 8 // share.shape[1]) == highest


def test_without_a_final_picture_the_clean_estimate_is_below_the_overlay(recorded):
    figure = plots.attention(dataclasses.replace(recorded, image=None), ["house"])
    assert len(pictures(figure)) == 4


@pytest.mark.parametrize("over", ["clean", "x", "picture"])
def test_steps_without_attention_are_left_out(recorded, over):
    def without_attention(step):
        return dataclasses.replace(step, tensors={k: v for k, v in step.tensors.items() if k != "attention"})

    partly = dataclasses.replace(
        recorded, steps=(recorded[0], without_attention(recorded[1]), recorded[2], without_attention(recorded[3]))
    )
    figure = plots.attention(partly, ["house"], over=over)
    assert len(pictures(figure)) == 2 and "σ 0.50" in words(figure) and "2 of 4 steps" in words(figure)
    assert [image is None for image in frames_of(partly).overlays["house"]] == [False, True, False, True]


def test_of_many_steps_the_first_and_the_last_are_drawn():
    figure = plots.attention(trajectory(steps=28, attention=True), ["house"], columns=5)
    assert len(pictures(figure)) == 5 and "σ 0.04" in words(figure) and "5 of 28 steps" in words(figure)


@pytest.mark.moderate
@pytest.mark.parametrize("prompt", ["<b>$x_1$</b> & $", "q" * 300, "狐狸 🦊"])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_text_can_be_the_label_of_a_row(prompt):
    assert len(plots.attention(trajectory(prompt=prompt, attention=True, steps=1))._repr_png_()) > 1000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.attention(trajectory()), "Keep"),
        (lambda: plots.attention(trajectory(attention=True), ["cat"]), "word='cat'"),
        (lambda: plots.attention(trajectory(attention=True), []), "words="),
        (lambda: plots.attention(trajectory(attention=True), over="y"), "over='y'"),
        (lambda: plots.attention(trajectory(attention=True), columns=1), "columns=1"),
    ],
)
def test_wrong_arguments_raise_a_three_part_error(call, message):
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert caught.value.possible and caught.value.remedy


def test_attention_without_words_is_an_error(recorded):
    with pytest.raises(InputError, match="attention without words"):
        plots.attention(dataclasses.replace(recorded, words=()))


def test_the_scrubber_gets_an_overlay_for_each_word_and_step(recorded):
    data, frames = payload(recorded, frame_sets(recorded))
    assert data["words"] == ["a", "house", "on", "hill"]
    rows = data["trajectories"][0]["overlays"]
    assert [len(row) for row in rows] == [4] * 4
    with Image.open(io.BytesIO(frames[rows[1][0]])) as image:
        assert image.mode == "RGBA" and image.size == (8, 8)
        most_transparent = np.asarray(image)[..., 3].argmin()
    assert most_transparent == int(recorded.attention("house")[0].argmax())


def test_trajectories_of_several_prompts_share_one_word_list_and_have_overlays_for_their_own_words(recorded):
    other = trajectory(prompt="a tree", attention=True, steps=1)
    data, _ = payload([recorded, other], frame_sets([recorded, other]))
    assert data["words"] == ["a", "house", "on", "hill", "tree"]
    assert [len(row) for row in data["trajectories"][1]["overlays"]] == [1, 0, 0, 0, 1]


def test_without_attention_the_payload_has_no_words():
    for record in (trajectory(), grid(seeds=[0], steps=[1])):
        assert payload(record, frame_sets(record))[0]["words"] == []
