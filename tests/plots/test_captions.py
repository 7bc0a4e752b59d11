"""Text in figures and animations stays inside its place for any prompt."""

from __future__ import annotations

import dataclasses
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageChops

from fluxnb.errors import InputError, StorageError
from fluxnb.plots import contact_sheet
from fluxnb.plots.captions import wrap
from fluxnb.plots.style import text_width, truncate
from fluxnb.visuals import animation
from fluxnb.visuals.labels import value_labels
from tests.scenes import grid

PROMPTS = {
    "markup": "</script><script>window.owned=1</script></style> \" ' & <img src=x onerror=window.owned=2> $x_1$ $$",
    "long": "a very long prompt about a house on a hill that goes on and on " * 6,
    "ideographs": "狐狸在雪地里" * 20,
    "right to left": "ثعلب أحمر في الثلج " * 8,
    "emoji": "🦊❄️👨‍👩‍👧‍👦" * 20,
    "no space": "x" * 400,
    "lines": "line\nline\n\n\tline",
}


def overlaps(figure) -> list[str]:
    """Texts that overlap a picture or leave the figure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a font without these letters draws a box in their place
        figure.canvas.draw()
        pictures = [axes.get_window_extent() for axes in figure.axes]
        boxes = {text.get_text(): text.get_window_extent() for text in figure.texts}
    right = figure.bbox.width + 1
    return [text for text, box in boxes.items() if box.x1 > right or any(box.overlaps(place) for place in pictures)]


@pytest.mark.moderate
@pytest.mark.parametrize("rows, columns", [("seed", "steps"), ("prompt", "steps"), ("seed", "prompt")])
def test_no_prompt_overlaps_a_picture_of_the_contact_sheet(rows, columns):
    sheet = contact_sheet(grid(prompts=list(PROMPTS.values()), seeds=[0, 1], steps=[1, 2]), rows=rows, columns=columns)
    assert overlaps(sheet) == []


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_a_prompt_as_the_title_stays_inside_the_figure(prompt):
    assert overlaps(contact_sheet(grid(prompts=[prompt], seeds=[0, 1], steps=[1, 2]))) == []


@given(st.text(max_size=300), st.integers(8, 40))
@settings(max_examples=200)
def test_wrapped_and_truncated_text_is_never_wider_than_its_place(text, width):
    lines = wrap(text, width).split("\n")
    assert len(lines) <= 4 and all(text_width(line) <= width for line in lines)
    assert text_width(truncate(text, width)) <= width and "\n" not in truncate(text, width)


@given(st.lists(st.text("ab ", max_size=80), min_size=1, max_size=5, unique=True))
def test_shortened_prompts_of_an_axis_stay_distinct(prompts):
    names = value_labels("prompt", prompts)
    assert len(set(names)) == len(prompts)
    assert all(name == prompt or prompt.endswith(name[1:].strip()) for name, prompt in zip(names, prompts, strict=True))


# ------------------------------------------------------------------------------------------------------ moving pictures
def frames_of(path) -> list[Image.Image]:
    with Image.open(path) as movie:
        return [movie.seek(n) or movie.convert("RGB").copy() for n in range(movie.n_frames)]


def test_with_all_other_axes_fixed_a_frame_is_one_picture_and_its_caption(tmp_path):
    frames = frames_of(animation.write_axis(grid(), tmp_path / "a.webp", axis="steps", seed=1, size=90))
    assert len(frames) == 3 and all(frame.width == 90 < frame.height for frame in frames)
    below = [frame.crop((0, 91, 90, frame.height)) for frame in frames]
    assert ImageChops.difference(below[0], below[1]).getbbox() is not None, "the captions 1 step and 2 steps differ"


def test_without_captions_a_frame_is_the_picture_alone(tmp_path):
    (first, *_) = frames_of(
        animation.write_axis(grid(), tmp_path / "a.gif", axis="steps", seed=1, size=90, captions=False)
    )
    assert first.size == (90, 90)


def test_the_remaining_axes_form_a_grid_in_each_frame(tmp_path):
    sweep = grid(prompts=["a", "b"], seeds=[0, 1, 2], steps=[1, 2])
    frames = frames_of(animation.write_axis(sweep, tmp_path / "a.webp", axis="steps", size=40, captions=False))
    assert len(frames) == 2 and frames[0].size == (3 * 42 - 2, 2 * 42 - 2)


def test_a_cell_that_was_not_sampled_is_an_empty_square(tmp_path):
    sweep = grid(seeds=[0, 1], steps=[1, 2])
    stopped = dataclasses.replace(sweep, cells=sweep.cells[:3], finished=False)
    frames = frames_of(animation.write_axis(stopped, tmp_path / "a.webp", axis="steps", size=40, captions=False))
    assert all(210 < low <= high < 245 for low, high in frames[1].crop((46, 4, 78, 36)).getextrema())


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_any_prompt_can_be_a_caption(tmp_path, prompt):
    sweep = grid(prompts=[prompt, "a house"], seeds=[0], steps=[1])
    assert len(frames_of(animation.write_axis(sweep, tmp_path / "a.gif", axis="prompt", size=64))) == 2


@pytest.mark.moderate
def test_values_that_the_grid_does_not_have_raise_an_error_and_leave_no_file(tmp_path):
    with pytest.raises(InputError, match="seed"):
        animation.write_axis(grid(), tmp_path / "a.gif", axis="steps", seed=99)
    with pytest.raises(InputError, match="axis"):
        animation.write_axis(grid(), tmp_path / "a.gif", axis="width")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        animation.write_axis(grid(), tmp_path / "file" / "a.gif", axis="steps")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
