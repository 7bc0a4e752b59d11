"""Words in the picture: what is bright, which words are shown, and what the scrubber is given of them."""

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
def seen():
    return trajectory(steps=4, looks=True)


def test_a_picture_is_untouched_where_the_word_was_looked_for_and_dark_elsewhere():
    strength = torch.zeros(8, 8)
    strength[:4] = 1
    shown = np.asarray(overlays.lit(Image.new("RGB", (64, 64), (200, 100, 50)), strength, (64, 64)), dtype=float)
    assert shown[4, 32].tolist() == [200, 100, 50]
    assert shown[60, 32].mean() < 0.2 * shown[4, 32].mean()


def test_a_word_has_one_scale_for_all_its_steps(seen):
    maps, strengths = seen.attention("hill"), overlays.strengths(seen, "hill")
    assert strengths.min() == 0 and strengths.max() == 1
    order = maps.flatten().argsort()
    assert bool((strengths.flatten()[order].diff() >= 0).all())


def test_a_word_that_is_looked_for_alike_everywhere_lights_nothing(seen):
    flat = dataclasses.replace(
        seen, steps=tuple(dataclasses.replace(s, tensors={**s.tensors, "attention": s.attention * 0}) for s in seen)
    )
    assert overlays.strengths(flat, "house").max() == 0


def test_without_names_the_words_with_most_to_see_come_in_the_prompts_order(seen):
    assert overlays.telling(seen, 2) != ("a",) and "a" in overlays.telling(seen, 4)
    chosen = overlays.telling(seen, 3)
    assert list(chosen) == [word for word in ("a", "house", "on", "hill") if word in chosen]
    assert len(pictures(plots.attention(trajectory(prompt="a b c d e f g h", looks=True)))) == 6 * 4


def test_the_figure_has_a_row_a_word_and_a_column_a_step_and_says_whose_it_is(seen):
    figure = plots.attention(seen, ["hill", "house"])
    assert len(pictures(figure)) == 2 * 4
    text = words(figure)
    assert all(part in text for part in (PROMPT, "hill", "house", "σ 0.25", "toy", "seed 3", "4 steps", "2 of 4 words"))


def test_the_brightest_frame_of_a_row_is_where_its_word_was(seen):
    figure = plots.attention(seen, ["house"])
    first = np.asarray(pictures(figure)[0].images[0].get_array(), dtype=float)
    bare = np.asarray(seen.image.resize(first.shape[1::-1], Image.Resampling.BICUBIC), dtype=float)
    share = (first + 1).sum(-1) / (bare + 1).sum(-1)
    row, column = np.unravel_index(share.argmax(), share.shape)
    hottest = divmod(int(seen.attention("house")[0].argmax()), 8)
    assert (row * 8 // share.shape[0], column * 8 // share.shape[1]) == hottest


def test_over_a_walk_without_a_picture_lies_the_clean_estimate(seen):
    figure = plots.attention(dataclasses.replace(seen, image=None), ["house"])
    assert len(pictures(figure)) == 4


@pytest.mark.parametrize("over", ["clean", "x", "picture"])
def test_steps_that_kept_no_attention_are_left_out(seen, over):
    def bare(step):
        return dataclasses.replace(step, tensors={k: v for k, v in step.tensors.items() if k != "attention"})

    some = dataclasses.replace(seen, steps=(seen[0], bare(seen[1]), seen[2], bare(seen[3])))
    figure = plots.attention(some, ["house"], over=over)
    assert len(pictures(figure)) == 2 and "σ 0.50" in words(figure) and "2 of 4 steps" in words(figure)
    assert [image is None for image in frames_of(some).veils["house"]] == [False, True, False, True]


def test_many_steps_show_the_first_and_the_last():
    figure = plots.attention(trajectory(steps=28, looks=True), ["house"], columns=5)
    assert len(pictures(figure)) == 5 and "σ 0.04" in words(figure) and "5 of 28 steps" in words(figure)


@pytest.mark.parametrize("prompt", ["<b>$x_1$</b> & $", "q" * 300, "狐狸 🦊"])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_word_can_stand_beside_a_row(prompt):
    assert len(plots.attention(trajectory(prompt=prompt, looks=True, steps=1))._repr_png_()) > 1000


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plots.attention(trajectory()), "Keep"),
        (lambda: plots.attention(trajectory(looks=True), ["cat"]), "word='cat'"),
        (lambda: plots.attention(trajectory(looks=True), []), "no word"),
        (lambda: plots.attention(trajectory(looks=True), over="y"), "over='y'"),
        (lambda: plots.attention(trajectory(looks=True), columns=1), "columns=1"),
    ],
)
def test_what_cannot_be_shown_is_told_in_three_parts(call, says):
    with pytest.raises(InputError, match=says) as caught:
        call()
    assert caught.value.possible and caught.value.remedy


def test_the_scrubber_is_given_a_veil_for_each_word_and_step(seen):
    data, frames = payload(seen, frame_sets(seen))
    assert data["words"] == ["a", "house", "on", "hill"]
    veils = data["trajectories"][0]["overlays"]
    assert [len(row) for row in veils] == [4] * 4
    with Image.open(io.BytesIO(frames[veils[1][0]])) as veil:
        assert veil.mode == "RGBA" and veil.size == (8, 8)
        clearest = np.asarray(veil)[..., 3].argmin()
    assert clearest == int(seen.attention("house")[0].argmax())


def test_walks_of_several_prompts_have_the_words_of_all_and_veils_for_their_own(seen):
    other = trajectory(prompt="a tree", looks=True, steps=1)
    data, _ = payload([seen, other], frame_sets([seen, other]))
    assert data["words"] == ["a", "house", "on", "hill", "tree"]
    assert [len(row) for row in data["trajectories"][1]["overlays"]] == [1, 0, 0, 0, 1]


def test_without_attention_there_are_no_words():
    for record in (trajectory(), grid(seeds=[0], steps=[1])):
        assert payload(record, frame_sets(record))[0]["words"] == []
