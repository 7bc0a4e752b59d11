"""Records survive pickle, copy.deepcopy and a spawned process with equal contents."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import multiprocessing
import pickle

import pytest
import torch
from PIL import Image

import fluxnb as fnb
from fluxnb.errors import InputError, UnavailableError
from fluxnb.records import Film, Keep, Trajectory
from fluxnb.records.frozen_dict import FrozenDict
from fluxnb.records.recipe import Recipe
from tests.scenes import grid, trajectory
from tests.trajectories import resolved

COPIES = {"pickle": lambda record: pickle.loads(pickle.dumps(record)), "deepcopy": copy.deepcopy}


@pytest.fixture(params=COPIES.values(), ids=COPIES)
def copied(request):
    return request.param


def assert_equal_trajectories(one: Trajectory, other: Trajectory) -> None:
    assert (one.recipe, one.sigmas, one.seconds, one.versions) == (
        other.recipe, other.sigmas, other.seconds, other.versions,
    )  # fmt: skip
    assert (one.finished, one.model, one.preset, one.numerics, one.words, one.preview) == (
        other.finished, other.model, other.preset, other.numerics, other.words, other.preview,
    )  # fmt: skip
    assert one.image.tobytes() == other.image.tobytes()
    for mine, theirs in zip(one.steps, other.steps, strict=True):
        assert (mine.index, mine.sigma, mine.dt, mine.norms) == (theirs.index, theirs.sigma, theirs.dt, theirs.norms)
        assert mine.tensors.keys() == theirs.tensors.keys()
        for name, tensor in mine.tensors.items():
            assert tensor.dtype == theirs.tensors[name].dtype and torch.equal(tensor, theirs.tensors[name])


@pytest.mark.parametrize("value", [Recipe(prompt="a fox", sigmas=(1.0, 0.5)), resolved(), Keep(attention=(0, 1))])
def test_a_value_is_equal_after_a_copy(value, copied):
    assert copied(value) == value and type(copied(value)) is type(value)


def test_a_trajectory_is_equal_after_a_copy(copied):
    made = trajectory(attention=True)
    assert_equal_trajectories(copied(made), made)


def test_a_step_is_equal_after_a_copy(copied):
    step = trajectory()[0]
    assert torch.equal(copied(step).v, step.v) and copied(step).norms == step.norms


def test_a_copy_is_read_only(copied):
    made = copied(trajectory())
    with pytest.raises(TypeError):
        made.seconds["encode"] = 3
    with pytest.raises(TypeError):
        made[0].tensors["x"] = None
    with pytest.raises(AttributeError):
        made[0].tensors.anything = 1


def test_a_copy_shares_no_memory_with_the_original(copied):
    made = trajectory()
    other = copied(made)
    other[0].x.zero_()
    assert made[0].x.abs().sum() > 0


def test_steps_of_a_copy_share_memory_as_those_of_the_original_do(copied, toy_trajectory):
    assert copied(toy_trajectory).nbytes == toy_trajectory.nbytes
    assert len(pickle.dumps(toy_trajectory)) < 1.5 * toy_trajectory.nbytes + 100_000


def test_a_view_into_a_batch_is_pickled_without_the_batch():
    step = trajectory()[0]
    batch = step.x.expand(64, *step.x.shape).clone()
    made = dataclasses.replace(trajectory(), steps=(dataclasses.replace(step, tensors={"x": batch[3]}),))
    assert len(pickle.dumps(made)) < batch.nbytes / 8
    assert torch.equal(pickle.loads(pickle.dumps(made))[0].x, step.x)


def test_a_sweep_and_its_cells_are_equal_after_a_copy(copied):
    sweep = grid(trajectories=True, seeds=[0, 1], steps=[1, 2])
    other = copied(sweep)
    assert (other.axes, other.model, other.finished) == (sweep.axes, sweep.model, sweep.finished)
    for mine, theirs in zip(sweep, other, strict=True):
        assert (mine.recipe, mine.key, mine.numerics, mine.seconds) == (
            theirs.recipe, theirs.key, theirs.numerics, theirs.seconds,
        )  # fmt: skip
        assert mine.image.tobytes() == theirs.image.tobytes()
        assert_equal_trajectories(mine.trajectory, theirs.trajectory)


def test_a_film_is_equal_after_a_copy(copied):
    film = Film(
        frames=(Image.new("RGB", (8, 8), (1, 2, 3)),), what="clean", by="vae", sigmas=(1.0,), steps=(0,), caption="a"
    )
    assert copied(film)[0].tobytes() == film[0].tobytes() and copied(film).sigmas == film.sigmas


def test_an_error_is_equal_after_a_copy(copied):
    error = copied(UnavailableError("x of step 0", "nothing was kept", "run again"))
    assert str(error) == "x of step 0: nothing was kept. Run again." and error.remedy == "run again"


def _sums(sweep):
    return sweep, [float(cell.trajectory[0].v.sum()) for cell in sweep]


@pytest.mark.moderate
def test_records_can_be_sent_to_a_spawned_process_and_back():
    sweep = grid(trajectories=True, seeds=[0], steps=[1, 2])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        other, sums = pool.apply(_sums, (sweep,))
    assert sums == [float(cell.trajectory[0].v.sum()) for cell in sweep]
    for mine, theirs in zip(sweep, other, strict=True):
        assert_equal_trajectories(mine.trajectory, theirs.trajectory)


def test_a_frozen_dict_is_a_mapping_with_the_order_and_the_items_it_was_given():
    items = FrozenDict({"b": 1, "a": 2})
    assert list(items) == ["b", "a"] and items == {"b": 1, "a": 2} and {**items, "c": 3}["c"] == 3
    assert repr(items) == "{'b': 1, 'a': 2}" and len(items) == 2


# --------------------------------------------------------------------------------------------- properties without value
@pytest.mark.parametrize("name", ["x", "v", "x_next", "attention", "clean", "noise"])
def test_a_step_without_tensors_has_no_attribute_for_them(name):
    step = trajectory(keep=False)[0]
    assert not hasattr(step, name)
    with pytest.raises(InputError, match=r"Run again with keep=fnb\.Keep"):
        getattr(step, name)


def test_incomplete_records_can_be_inspected():
    empty = dataclasses.replace(trajectory(), steps=(), finished=False)
    without = fnb.Cell(recipe=resolved(), key="0")
    for record in (trajectory(keep=False), trajectory(keep=False)[0], empty, without, grid()):
        names = {name for name, _ in inspect.getmembers(record)}
        assert "__init__" in names
    assert not hasattr(without, "image") and not hasattr(empty, "final") and not hasattr(empty, "x_T")
