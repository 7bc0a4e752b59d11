"""Figures, tested through their artists: places of frames, texts, points of lines."""

import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from fluxnb import plots
from fluxnb.errors import InputError
from tests.scenes import grid, trajectory

CURVES = [plots.sigma_curve, plots.velocity, plots.lock_in, plots.path]


def words(figure: Figure) -> str:
    from matplotlib.text import Text

    return "\n".join(text.get_text() for text in figure.findobj(Text))


def pictures(figure: Figure):
    return [axes for axes in figure.axes if axes.images]


def test_filmstrip_has_a_frame_for_each_step_and_row_and_the_picture_at_the_end():
    figure = plots.filmstrip(trajectory(steps=4))
    assert len(pictures(figure)) == 4 * 4 + 1
    assert all(word in words(figure) for word in ("σ 1.00", "σ 0.75", "σ 0", "velocity", "clean estimate"))


def test_filmstrip_frames_have_one_size_and_do_not_overlap():
    boxes = [axes.get_position() for axes in pictures(plots.filmstrip(trajectory(steps=3)))]
    assert {(round(box.width, 6), round(box.height, 6)) for box in boxes}.__len__() == 1
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)


def test_filmstrip_of_many_steps_draws_the_first_and_the_last_and_states_how_many():
    figure = plots.filmstrip(trajectory(steps=28), columns=6, shows=["clean"])
    assert len(pictures(figure)) == 7
    assert "σ 1.00" in words(figure) and "σ 0.04" in words(figure) and "6 of 28 steps shown" in words(figure)


@pytest.mark.moderate
@pytest.mark.parametrize("view", [plots.filmstrip, plots.latent_channels, *CURVES])
def test_every_figure_of_a_trajectory_names_model_seed_and_steps(view):
    text = words(view(trajectory(seed=11, steps=3, model="toy-base")))
    assert "toy-base" in text and "seed 11" in text and "3 steps" in text and "a house on a hill" in text


def test_contact_sheet_names_prompt_model_and_the_value_of_every_row_and_column():
    text = words(plots.contact_sheet(grid()))
    for word in ("a house on a hill", "toy", "seed 0", "seed 3", "1 step", "2 steps", "4 steps"):
        assert word in text.split("\n") or word in text


def test_contact_sheet_places_each_cell_by_its_labels():
    sweep = grid(seeds=[0, 1], steps=[1, 4])
    shown = pictures(plots.contact_sheet(sweep))
    for axes, cell in zip(sorted(shown, key=lambda a: (-a.get_position().y0, a.get_position().x0)), sweep, strict=True):
        np.testing.assert_array_equal(axes.images[0].get_array(), np.asarray(cell.image))


def test_contact_sheet_of_three_axes_makes_a_block_per_prompt():
    figure = plots.contact_sheet(grid(prompts=["one house", "two houses"], seeds=[0, 1], steps=[1, 2]))
    assert len(pictures(figure)) == 8
    assert "one house" in words(figure) and "two houses" in words(figure)


def test_contact_sheet_rows_and_columns_can_be_exchanged():
    figure = plots.contact_sheet(grid(seeds=[0, 1], steps=[1, 2, 4]), rows="steps", columns="seed")
    tops = {round(axes.get_position().y0, 4) for axes in pictures(figure)}
    assert len(tops) == 3


def test_a_cell_that_was_not_sampled_stays_an_empty_square():
    import dataclasses

    sweep = dataclasses.replace(grid(seeds=[0, 1], steps=[1, 2]), finished=False)
    sweep = dataclasses.replace(sweep, cells=sweep.cells[:3])
    figure = plots.contact_sheet(sweep)
    assert len(pictures(figure)) == 3 and len(figure.axes) == 4 and "unfinished" in words(figure)


def test_compare_places_frames_by_sigma_and_not_by_index():
    figure = plots.compare([trajectory(steps=2), trajectory(steps=4)])
    boxes = [axes.get_position() for axes in pictures(figure)]
    rows = sorted({round(box.y0, 4) for box in boxes}, reverse=True)
    two, four = ([round(b.x0, 4) for b in boxes if round(b.y0, 4) == row] for row in rows)
    assert len(two) == 3 and len(four) == 5
    assert two[1] == four[2]  # the second frame of two steps and the third of four were both made at sigma 0.5
    assert two[0] == four[0] and two[-1] == four[-1]


def test_compare_leaves_out_frames_that_would_overlap():
    boxes = [axes.get_position() for axes in pictures(plots.compare([trajectory(steps=50)]))]
    assert 3 < len(boxes) < 12
    for a, b in itertools.combinations(boxes, 2):
        assert not a.overlaps(b)


def test_compare_states_how_many_frames_are_left_out():
    assert "left out" not in words(plots.compare([trajectory(steps=4)]))
    figure = plots.compare([trajectory(steps=40), trajectory(steps=4)])
    drawn = len(pictures(figure))
    assert f"{40 + 4 + 2 - drawn} frames that would overlap are left out" in words(figure)


@pytest.mark.parametrize("view", CURVES)
def test_curves_draw_into_given_axes(view):
    figure = Figure()
    axes = figure.add_subplot()
    assert view([trajectory(steps=2), trajectory(steps=4)], ax=axes) is figure
    assert axes.get_legend() is not None


@pytest.mark.moderate
@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plots.filmstrip(trajectory(), ax=ax),
        lambda ax: plots.compare([trajectory(), trajectory(steps=2)], ax=ax),
        lambda ax: plots.contact_sheet(grid(), ax=ax),
        lambda ax: plots.latent_channels(trajectory(), ax=ax),
        lambda ax: plots.attention(trajectory(attention=True), ax=ax),
    ],
)
def test_figures_of_pictures_draw_into_given_axes_as_one_picture(draw):
    figure = Figure()
    axes = figure.add_subplot()
    assert draw(axes) is figure
    (picture,) = axes.images
    assert min(picture.get_array().shape[:2]) > 200 and not axes.get_xticks().size


def test_curves_plot_the_numbers_of_the_trajectory():
    record = trajectory(steps=4)
    (line,) = plots.sigma_curve(record).axes[0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), record.sigmas)
    lock = plots.lock_in(record).axes[0].get_lines()[0]
    assert lock.get_ydata()[0] == 1.0 and lock.get_ydata()[-1] == 0.0
    assert list(lock.get_xdata()) == list(record.sigmas)


def test_velocity_is_the_root_mean_square_over_all_elements():
    record = trajectory(steps=2)
    line = plots.velocity(record).axes[0].get_lines()[0]
    expected = [float(step.v.pow(2).mean().sqrt()) for step in record.steps]
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-5)


def test_the_path_of_one_step_is_its_straight_line():
    figure = plots.path(trajectory(steps=1))
    straight, sampled = figure.axes[0].get_lines()[:2]
    np.testing.assert_allclose(straight.get_xydata(), sampled.get_xydata())


def test_steps_that_were_not_sampled_are_dotted():
    lines = plots.sigma_curve(trajectory(steps=4, stop_after=2)).axes[0].get_lines()
    assert [len(line.get_xdata()) for line in lines] == [3, 3] and lines[1].get_linestyle() == ":"


@pytest.mark.moderate
def test_all_channels_share_one_symmetric_scale():
    images = [
        axes.images[0] for axes in pictures(plots.latent_channels(trajectory())) if axes.images[0].get_array().ndim == 2
    ]
    limits = {image.get_clim() for image in images[:16]}
    assert len(images) >= 16 and len(limits) == 1
    low, high = limits.pop()
    assert low == -high


@pytest.mark.moderate
@pytest.mark.parametrize("prompt", ["<b>$x_1$</b> & $", "a\nnew\tline", "q" * 500, "狐狸 🦊"])
@pytest.mark.filterwarnings("ignore:Glyph")
def test_any_prompt_can_be_the_title(prompt):
    record = trajectory(prompt=prompt, steps=1)
    assert len(plots.filmstrip(record)._repr_png_()) > 1000
    assert len(plots.path(record)._repr_png_()) > 1000


@pytest.mark.moderate
def test_a_figure_displays_as_png_and_does_not_change_the_matplotlib_style():
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    figure = plots.filmstrip(trajectory(steps=1))
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before
    assert "0x" not in repr(figure)


def test_a_trajectory_without_tensors_raises_an_error_that_names_keep():
    for view in (plots.lock_in, plots.path):
        with pytest.raises(InputError, match="keep"):
            view(trajectory(keep=False))


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: plots.filmstrip(trajectory(), columns=1), "columns=1"),
        (lambda: plots.filmstrip(trajectory(), shows=["z"]), "shows"),
        (lambda: plots.compare([trajectory()], show="z"), "show"),
        (lambda: plots.contact_sheet(grid(), rows="size"), "rows"),
        (lambda: plots.contact_sheet(grid(), rows="seed", columns="seed"), "rows='seed'"),
        (lambda: plots.latent_channels(trajectory(steps=2), 7), "step=7"),
        (lambda: plots.sigma_curve([]), "no trajectory"),
        (lambda: plots.path([trajectory(), trajectory(size=64)]), "different sizes"),
    ],
)
def test_wrong_arguments_raise_a_three_part_error(call, word):
    with pytest.raises(InputError) as caught:
        call()
    assert word in str(caught.value) and caught.value.possible and caught.value.remedy
