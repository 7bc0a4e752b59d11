"""Pictures walked side by side, decoded and written beside the walking, and what a grid costs before it starts."""

from __future__ import annotations

import contextlib
import errno
import inspect
import itertools
import math
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError, StorageError
from fluxnb.grid import cost_estimate as costs
from fluxnb.grid import decode_workers as finishing
from fluxnb.pipeline.flux import Flux
from tests.plain_calls import counted, plain_call

PROMPTS = ["a red fox", "a cat in the snow", "a dog"]
GRID = {"prompts": PROMPTS, "seeds": range(4), "steps": [1, 2, 3, 4], "height": 32, "width": 32}
SMALL = {"prompts": PROMPTS[:2], "seeds": [0, 1], "steps": [1, 2], "height": 32, "width": 32}


@contextlib.contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def batches(pipe):
    """The batch size of every evaluation."""
    seen = []
    hook = pipe.transformer.register_forward_hook(lambda *given: seen.append(len(given[-1][0])))
    try:
        yield seen
    finally:
        hook.remove()


def apart(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


# ------------------------------------------------------------------------------------------------------ side by side
def test_a_batch_makes_the_same_evaluations_in_fewer_calls(toy):
    with batches(toy.pipe) as seen:
        grid = fnb.sweep(toy, **GRID, batch=16)
    assert seen == [12] * 7
    assert (grid.evaluations, grid.encodes, sum(cell.evaluations for cell in grid)) == (84, 3, 84)


def test_a_picture_made_in_company_is_the_plain_one_but_for_rounding_and_says_so(toy):
    for cell in fnb.sweep(toy, **GRID, batch=5):
        assert apart(cell.image, plain_call(toy.pipe, cell.recipe)) <= 1
        assert not cell.exact and cell.numerics == "batch"


def test_who_walks_alone_is_exact_whatever_the_batch(toy):
    for cell in fnb.sweep(toy, prompts="a fox", steps=[1, 3], height=32, width=32, batch=8):
        assert cell.exact and cell.image.tobytes() == plain_call(toy.pipe, cell.recipe).tobytes()


def test_every_picture_of_a_batch_has_its_own_noise_and_prompt(toy):
    grid = fnb.sweep(toy, **SMALL, batch=8, keep=fnb.Keep())
    for cell in grid:
        alone = fnb.run(toy, cell.recipe)
        assert torch.equal(cell.trajectory.x_T, alone.x_T)
        assert torch.allclose(cell.trajectory.final, alone.final, atol=1e-4)
        assert cell.trajectory.recipe == cell.recipe and len(cell.trajectory) == cell.recipe.steps


@pytest.mark.parametrize("options", [{"sampler": "renoise"}, {"shift": 3.0}, {"sigmas": [[1.0, 0.4], [1.0, 0.4, 0.2]]}])
def test_a_batch_goes_every_way_that_a_single_picture_goes(toy, options):
    asked = {**SMALL, **options}
    if "sigmas" in options:
        asked.pop("steps")
    grid = fnb.sweep(toy, **asked, batch=4)
    assert len(grid) == 8
    for cell in grid:
        assert apart(cell.image, fnb.run(toy, cell.recipe).image) <= 1


def test_a_batch_under_true_cfg_steers_each_picture_by_its_own_prompt(toy_guided):
    with counted(toy_guided.pipe) as counts:
        grid = fnb.sweep(toy_guided, **SMALL, batch=4)
    assert counts["transformer"] == 2 * 2 and grid.evaluations == 2 * 2 * 4
    for cell in grid:
        assert apart(cell.image, fnb.run(toy_guided, cell.recipe).image) <= 1


def test_pictures_that_differ_in_more_than_prompt_and_seed_do_not_share_a_batch(toy):
    with batches(toy.pipe) as seen:
        fnb.sweep(toy, prompts="a fox", seeds=[0, 1], steps=1, height=[32, 48], width=32, batch=8)
    assert seen == [2, 2]


def test_each_picture_of_a_batch_is_told_of_each_step(toy):
    seen = []
    fnb.sweep(toy, prompts="a fox", seeds=range(3), steps=2, height=32, width=32, batch=3, on_step=seen.append)
    assert [step.index for step in seen] == [0, 0, 0, 1, 1, 1]
    assert len({float(step.x.sum()) for step in seen}) == 6


def test_a_batch_that_is_stopped_leaves_no_half_cells(toy, tmp_path):
    asked = {**SMALL, "steps": [1, 3], "batch": 4, "store": tmp_path}
    grid = fnb.sweep(toy, **asked, on_step=lambda step: fnb.STOP if step.index == 1 else None)
    assert not grid.finished and len(grid) == 4 and {cell.recipe.steps for cell in grid} == {1}
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.parametrize("batch", [1, 4])
def test_stopping_at_the_last_step_of_a_walk_keeps_it_and_goes_no_further(toy, batch):
    grid = fnb.sweep(toy, **SMALL, batch=batch, on_step=lambda step: fnb.STOP)
    assert not grid.finished and len(grid) == batch


def test_exact_cells_serve_a_batch_and_never_the_other_way_round(toy, tmp_path):
    fnb.sweep(toy, **{**SMALL, "prompts": PROMPTS[:1]}, store=tmp_path)
    company = fnb.sweep(toy, **SMALL, store=tmp_path, batch=4)
    assert [cell.exact for cell in company] == [True] * 4 + [False] * 4
    assert [cell.made for cell in company] == [False] * 4 + [True] * 4
    assert not any(cell.made for cell in fnb.sweep(toy, **SMALL, store=tmp_path, batch=4))
    exact = fnb.sweep(toy, **SMALL, store=tmp_path)
    assert all(cell.exact for cell in exact) and [cell.made for cell in exact] == [False] * 4 + [True] * 4


def test_a_not_a_number_in_a_batch_names_the_right_picture(toy):
    hook = toy.pipe.transformer.register_forward_hook(
        lambda m, i, out: (out[0].index_fill(0, torch.tensor(1), math.nan),)
    )
    try:
        with pytest.raises(fnb.RunError, match="step 0"):
            fnb.sweep(toy, **SMALL, batch=4)
    finally:
        hook.remove()
    assert len(fnb.sweep(toy, **SMALL, batch=4)) == 8


@pytest.mark.parametrize("batch", [0, -1, 257, 2.0, True, "auto"])
def test_a_batch_that_cannot_be_is_told(toy, batch):
    with pytest.raises(InputError, match="side by side"):
        fnb.sweep(toy, prompts="a", batch=batch)


# ----------------------------------------------------------------------------------------------------------- beside
@pytest.mark.parametrize("batch", [1, 4])
def test_finishing_beside_the_walking_changes_no_byte_and_no_order(toy, tmp_path, batch):
    with threads(2):
        grid = fnb.sweep(toy, **SMALL, store=tmp_path, batch=batch)
        alone = [plain_call(toy.pipe, cell.recipe) for cell in grid]
        assert torch.get_num_threads() == 2
    order = [(cell.recipe.prompt, cell.recipe.seed, cell.recipe.steps) for cell in grid]
    assert order == list(itertools.product(PROMPTS[:2], [0, 1], [1, 2]))
    for cell, picture in zip(grid, alone, strict=True):
        assert cell.image.tobytes() == picture.tobytes() if batch == 1 else apart(cell.image, picture) <= 1
    assert not list(tmp_path.rglob("*.lock")) and len(list(tmp_path.rglob("*.png"))) == 8


def test_a_full_disk_met_beside_the_walking_is_told_and_leaves_whole_cells(toy, tmp_path, monkeypatch):
    write, written = Path.write_bytes, []

    def fills_up(self, data):
        written.append(self)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", fills_up)
    with threads(2), pytest.raises(StorageError, match="is full"):
        fnb.sweep(toy, **SMALL, store=tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.lock")) and not list(tmp_path.rglob("*.part"))
    again = fnb.sweep(toy, **SMALL, store=tmp_path)
    assert [cell.made for cell in again] == [False] * 2 + [True] * 6


def test_what_was_walked_when_a_sweep_is_stopped_is_finished(toy, tmp_path):
    steps = []

    def stop_in_the_fourth(step):
        steps.append(step)
        return fnb.STOP if len(steps) == 5 else None

    with threads(2):
        grid = fnb.sweep(toy, **{**SMALL, "steps": [1, 3]}, store=tmp_path, on_step=stop_in_the_fourth)
    assert not grid.finished and len(grid) == 3 == len(list(tmp_path.rglob("*.json")))


def test_where_decoder_and_transformer_take_turns_several_pictures_are_decoded_at_once(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(Flux, "decoder_displaces_transformer", property(lambda self: True))
    at_once, decode = [], Flux.decode
    monkeypatch.setattr(Flux, "decode", lambda self, z, **how: at_once.append(len(z)) or decode(self, z, **how))
    cells = list(fnb.stream(toy, **GRID, store=tmp_path))
    assert at_once == [finishing.AT_ONCE] * 6 and len(cells) == 48
    for cell in cells[::7]:
        assert cell.image.tobytes() == plain_call(toy.pipe, cell.recipe).tobytes()


@pytest.mark.parametrize("turns", [True, False])
def test_pictures_of_several_sizes_may_wait_for_one_decoder(toy, turns, monkeypatch):
    monkeypatch.setattr(Flux, "decoder_displaces_transformer", property(lambda self: turns))
    asked = {"prompts": "a fox", "seeds": [0, 1, 2], "steps": 1, "width": 32, "height": [32, 48]}
    with threads(2):
        cells = list(fnb.stream(toy, **asked) if turns else fnb.sweep(toy, **asked, batch=2))
    assert [cell.image.size for cell in cells] == [(32, cell.recipe.height) for cell in cells]
    assert {cell.recipe.height for cell in cells} == {32, 48}


def test_small_pictures_in_company_share_a_call_of_the_decoder(toy, monkeypatch):
    at_once, decode = [], Flux.decode
    monkeypatch.setattr(Flux, "decode", lambda self, z, **how: at_once.append(len(z)) or decode(self, z, **how))
    with threads(2):
        grid = fnb.sweep(toy, **GRID, batch=16)
    assert at_once == [finishing.FEW] * 12 and len(grid) == 48


def test_large_pictures_are_decoded_one_by_one(toy, monkeypatch):
    monkeypatch.setattr(finishing, "SMALL", 0)
    at_once, decode = [], Flux.decode
    monkeypatch.setattr(Flux, "decode", lambda self, z, **how: at_once.append(len(z)) or decode(self, z, **how))
    with threads(2):
        fnb.sweep(toy, **SMALL, batch=16)
    assert set(at_once) == {1}


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_while_a_picture_is_decoded_ends_the_sweep(toy, count, monkeypatch):
    decode, calls = Flux.decode, []

    def interrupted(self, z, **how):
        calls.append(len(z))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decode(self, z, **how)

    monkeypatch.setattr(Flux, "decode", interrupted)
    with threads(count):
        grid = fnb.sweep(toy, **SMALL)
    assert not grid.finished and 1 <= len(grid) < 8


def test_walks_that_wait_for_the_decoder_are_not_lost_when_the_loop_is_left(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(Flux, "decoder_displaces_transformer", property(lambda self: True))
    steps = []
    stop = lambda step: steps.append(step) or (fnb.STOP if len(steps) == 5 else None)  # noqa: E731
    cells = list(fnb.stream(toy, **{**SMALL, "steps": [1, 3]}, store=tmp_path, on_step=stop))
    assert len(cells) == 3 == len(list(tmp_path.rglob("*.json")))


def test_two_threads_that_use_one_model_take_turns(toy):
    pictures = {}

    def trajectory(seed):
        recipe = fnb.Recipe(prompt="a fox", seed=seed, steps=3 + seed % 3, sampler=["euler", "renoise"][seed % 2])
        pictures[seed] = fnb.run(toy, recipe.replace(height=32, width=32)).image.tobytes()

    workers = [threading.Thread(target=trajectory, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    grid = fnb.sweep(toy, **SMALL)
    for worker in workers:
        worker.join()
    together = dict(pictures)
    for seed in range(8):
        trajectory(seed)
    assert together == pictures
    for cell in grid:
        assert cell.image.tobytes() == plain_call(toy.pipe, cell.recipe).tobytes()


# ----------------------------------------------------------------------------------------------- before it starts
@pytest.fixture
def nothing_timed(monkeypatch):
    monkeypatch.setattr(costs, "_SEEN", type(costs._SEEN)())


def test_a_plan_counts_and_says_that_it_does_not_know_how_long(toy, nothing_timed):
    with counted(toy.pipe) as counts:
        work = fnb.plan_sweep(toy, **GRID)
    assert sum(counts.values()) == 0
    assert (work.cells, work.missing, work.evaluations, work.alone, work.shared, work.encodes) == (
        48,
        48,
        84,
        120,
        36,
        3,
    )
    assert work.seconds is None and "unknown time" in str(work) and work.free_megabytes is None


def test_after_a_run_a_plan_knows_how_long(toy, nothing_timed):
    grid = fnb.sweep(toy, **SMALL)
    work = fnb.plan_sweep(toy, **GRID)
    spent = [cell.seconds for cell in grid]
    assert 0 < work.seconds < 100 * sum(each["denoise"] + each["decode"] + each["encode"] for each in spent)
    assert fnb.plan_sweep(toy, **{**GRID, "height": 48}).seconds is None, "another size was never timed"


def test_a_store_tells_another_process_how_long(toy, tmp_path, monkeypatch, nothing_timed):
    fnb.sweep(toy, **SMALL, store=tmp_path)
    monkeypatch.setattr(costs, "_SEEN", type(costs._SEEN)())
    work = fnb.plan_sweep(toy, **GRID, store=tmp_path)
    assert work.seconds > 0 and work.missing == 48 - 8 and work.free_megabytes > 0
    next(tmp_path.rglob("*.json")).write_text('{"recipe": 3}')
    assert fnb.plan_sweep(toy, **GRID, store=tmp_path).seconds > 0, "a damaged cell is passed over"


def test_measuring_times_one_evaluation_and_one_picture(toy, nothing_timed):
    with counted(toy.pipe) as counts:
        work = fnb.plan_sweep(toy, **GRID, measure=True)
    assert work.seconds > 0 and counts["transformer"] == counts["decoder"] == 2  # the first makes ready
    with counted(toy.pipe) as counts:
        fnb.plan_sweep(toy, **GRID, measure=True)
    assert sum(counts.values()) == 0


def test_a_plan_counts_the_walks_that_are_kept_and_warns_of_a_small_disk(toy, tmp_path, monkeypatch):
    without, kept = fnb.plan_sweep(toy, **GRID), fnb.plan_sweep(toy, **GRID, keep=fnb.Keep())
    assert kept.megabytes > without.megabytes > 0
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(costs.shutil, "disk_usage", lambda path: usage)
    assert "MORE than" in str(fnb.plan_sweep(toy, **GRID, store=tmp_path))


def test_a_guided_plan_counts_both_evaluations(toy_guided):
    work = fnb.plan_sweep(toy_guided, prompts="a", steps=[1, 2, 3, 4], height=32, width=32)
    assert (work.evaluations, work.shared) == (14, 6)


@pytest.mark.parametrize("door", [fnb.stream, fnb.plan_sweep])
def test_the_doors_show_the_arguments_that_they_hand_on(door):
    assert {"prompts", "seeds", "steps", "store", "recipe", "keep"} <= inspect.signature(door).parameters.keys()
