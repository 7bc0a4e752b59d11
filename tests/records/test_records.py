from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxnb.errors import InputError
from fluxnb.records import Cell, Keep, Sweep
from tests.trajectories import noise, resolved, sample_trajectory

SIGMAS = (1.0, 0.75, 0.5, 0.25, 0.0)


@pytest.fixture
def trajectory():
    return sample_trajectory(lambda x, s: x.sin(), noise().float(), SIGMAS)


def test_x_is_the_mixture_of_the_estimates_to_float_precision(trajectory):
    for step in trajectory:
        torch.testing.assert_close((1 - step.sigma) * step.clean + step.sigma * step.noise, step.x)


def test_estimates_of_bfloat16_steps_are_float32():
    trajectory = sample_trajectory(lambda x, s: x.sin(), noise().bfloat16(), SIGMAS)
    assert trajectory[1].x.dtype == torch.bfloat16 and trajectory[1].clean.dtype == torch.float32


def test_records_cannot_be_changed(trajectory):
    with pytest.raises(dataclasses.FrozenInstanceError):
        trajectory.finished = False
    with pytest.raises(TypeError):
        trajectory.seconds["encode"] = 3
    with pytest.raises(TypeError):
        trajectory.steps[0].tensors["x"] = None


def test_latents_are_the_tokens_unpacked(trajectory):
    from fluxnb.records.latents import pack

    assert trajectory[0].latents("x").shape == (16, 4, 4)
    assert torch.equal(pack(trajectory[0].latents("v")), trajectory[0].v)
    with pytest.raises(InputError, match="Try what="):
        trajectory[0].latents("y")


def test_reading_a_tensor_that_was_not_kept_is_an_error(trajectory):
    bare = dataclasses.replace(trajectory[0], tensors={"x": trajectory[0].x})
    assert not bare.kept
    with pytest.raises(InputError, match="v of step 0: this run kept x of it"):
        _ = bare.clean


def test_shared_tensors_are_counted_once(trajectory):
    number = trajectory.steps[0].x.nbytes
    assert trajectory.nbytes == 9 * number  # five points and four velocities


def test_reprs_contain_no_memory_address(trajectory):
    cell = Cell(recipe=trajectory.recipe, key="0" * 64, picture=trajectory.image)
    grid = Sweep(cells=(cell,), axes={"seed": (7,)})
    for record in (trajectory, trajectory[0], cell, grid, Keep(), trajectory.recipe):
        assert "0x" not in repr(record) and " at " not in repr(record)


def test_the_caption_holds_prompt_model_seed_and_steps(trajectory):
    assert trajectory.caption == "a fox, toy, seed 7, 4 steps"
    assert dataclasses.replace(trajectory, finished=False).caption.endswith("4 of 4 steps, unfinished")
    without = dataclasses.replace(trajectory, recipe=None)
    assert without.caption == "a fox, toy, 4 steps"
    assert dataclasses.replace(without, prompt="").caption == "no recipe, toy, 4 steps"


@pytest.mark.moderate
def test_a_trajectory_displays_as_png(trajectory):
    assert trajectory._repr_png_().startswith(b"\x89PNG")


def test_select_finds_cells_by_their_recipe():
    cells = tuple(Cell(recipe=resolved(prompt="a", seed=s, steps=n), key=f"{s}{n}") for s in (1, 2) for n in (1, 4))
    grid = Sweep(cells=cells, axes={"seed": (1, 2), "steps": (1, 4)})
    assert [c.key for c in grid.select(seed=2)] == ["21", "24"]
    assert [c.key for c in grid.select(seed=2, steps=4)] == ["24"]


def test_select_accepts_sigmas_as_a_list():
    grid = Sweep(cells=(Cell(recipe=resolved(sigmas=(0.9, 0.5)), key="0"),), axes={"seed": (0,)})
    assert len(grid.select(sigmas=[0.9, 0.5])) == 1 and grid.select(sigmas=[0.9, 0.4]) == ()


def test_keep_takes_negative_indices_and_always_the_last_of_every_n():
    assert [Keep(steps=(0, -1)).wants(i, 4) for i in range(4)] == [True, False, False, True]
    assert [Keep(every=3).wants(i, 6) for i in range(6)] == [True, False, False, True, False, True]
    assert not any(Keep.nothing().wants(i, 4) for i in range(4))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tensors": ("y",)}, "tensors='y'"),
        ({"every": 0}, "at least 1"),
        ({"every": True}, "at least 1"),
        ({"steps": ("0",)}, "indices"),
    ],
)
def test_an_invalid_keep_is_an_input_error(wrong, message):
    with pytest.raises(InputError, match=message):
        Keep(**wrong)


@pytest.mark.moderate
@given(
    st.none() | st.lists(st.integers(-5, 5), max_size=4).map(tuple),
    st.integers(1, 3),
    st.sets(st.sampled_from(["x", "v", "x_next"])).map(tuple),
)
def test_the_memory_predicted_by_keep_is_the_memory_used(steps, every, tensors):
    keep = Keep(steps=steps, every=every, tensors=tensors)
    trajectory = sample_trajectory(lambda x, s: x.sin(), noise().float(), SIGMAS)
    thin = dataclasses.replace(trajectory, steps=tuple(step.reduced(keep, 4) for step in trajectory))
    assert thin.nbytes == keep.nbytes(32, 32, steps=4)
