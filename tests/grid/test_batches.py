"""Batches, decode workers and cost estimates of grids."""

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
from fluxnb.grid import decode_workers
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.state import state_of
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
    """Record the batch size of every evaluation."""
    seen = []
    hook = pipe.transformer.register_forward_hook(lambda *given: seen.append(len(given[-1][0])))
    try:
        yield seen
    finally:
        hook.remove()


def max_difference(a, b):
    return np.abs(np.asarray(a, int) - np.asarray(b, int)).max()


# -------------------------------------------------------------------------------------------------------------- batches
@pytest.mark.moderate
def test_a_batch_computes_the_same_evaluations_in_fewer_calls(toy):
    with batches(toy.pipe) as seen:
        grid = fnb.sweep(toy, **GRID, batch=16)
    assert seen == [12] * 7
    assert (grid.evaluations, grid.encodes, sum(cell.evaluations for cell in grid)) == (84, 3, 84)


@pytest.mark.moderate
def test_an_image_of_a_batch_equals_the_plain_one_up_to_rounding_and_is_marked(toy):
    for cell in fnb.sweep(toy, **GRID, batch=5):
        assert max_difference(cell.image, plain_call(toy.pipe, cell.recipe)) <= 1
        assert not cell.exact and cell.numerics == "batch"


@pytest.mark.moderate
def test_a_batch_of_one_is_exact_for_any_batch_argument(toy):
    for cell in fnb.sweep(toy, prompts="a fox", steps=[1, 3], height=32, width=32, batch=8):
        assert cell.exact and cell.image.tobytes() == plain_call(toy.pipe, cell.recipe).tobytes()


@pytest.mark.moderate
def test_every_image_of_a_batch_has_its_own_noise_and_prompt(toy):
    grid = fnb.sweep(toy, **SMALL, batch=8, keep=fnb.Keep())
    for cell in grid:
        single = fnb.run(toy, cell.recipe)
        assert torch.equal(cell.trajectory.x_T, single.x_T)
        assert torch.allclose(cell.trajectory.final, single.final, atol=1e-4)
        assert cell.trajectory.recipe == cell.recipe and len(cell.trajectory) == cell.recipe.steps


@pytest.mark.moderate
@pytest.mark.parametrize("options", [{"sampler": "renoise"}, {"shift": 3.0}, {"sigmas": [[1.0, 0.4], [1.0, 0.4, 0.2]]}])
def test_a_batch_supports_every_sampler_and_schedule(toy, options):
    axes = {**SMALL, **options}
    if "sigmas" in options:
        axes.pop("steps")
    grid = fnb.sweep(toy, **axes, batch=4)
    assert len(grid) == 8
    for cell in grid:
        assert max_difference(cell.image, fnb.run(toy, cell.recipe).image) <= 1


@pytest.mark.moderate
def test_a_batch_under_true_cfg_guides_each_image_by_its_own_prompt(toy_guided):
    with counted(toy_guided.pipe) as counts:
        grid = fnb.sweep(toy_guided, **SMALL, batch=4)
    assert counts["transformer"] == 2 * 2 and grid.evaluations == 2 * 2 * 4
    for cell in grid:
        assert max_difference(cell.image, fnb.run(toy_guided, cell.recipe).image) <= 1


def test_images_that_differ_in_more_than_prompt_and_seed_do_not_share_a_batch(toy):
    with batches(toy.pipe) as seen:
        fnb.sweep(toy, prompts="a fox", seeds=[0, 1], steps=1, height=[32, 48], width=32, batch=8)
    assert seen == [2, 2]


def test_on_step_is_called_for_each_image_of_a_batch(toy):
    seen = []
    fnb.sweep(toy, prompts="a fox", seeds=range(3), steps=2, height=32, width=32, batch=3, on_step=seen.append)
    assert [step.index for step in seen] == [0, 0, 0, 1, 1, 1]
    assert len({float(step.x.sum()) for step in seen}) == 6


@pytest.mark.moderate
def test_a_stopped_batch_leaves_no_incomplete_cell(toy, tmp_path):
    arguments = {**SMALL, "steps": [1, 3], "batch": 4, "store": tmp_path}
    grid = fnb.sweep(toy, **arguments, on_step=lambda step: fnb.STOP if step.index == 1 else None)
    assert not grid.finished and len(grid) == 4 and {cell.recipe.steps for cell in grid} == {1}
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.moderate
@pytest.mark.parametrize("batch", [1, 4])
def test_a_stop_at_the_last_step_of_a_trajectory_keeps_its_cell(toy, batch):
    grid = fnb.sweep(toy, **SMALL, batch=batch, on_step=lambda step: fnb.STOP)
    assert not grid.finished and len(grid) == batch


@pytest.mark.moderate
def test_a_batch_accepts_exact_cells_but_not_vice_versa(toy, tmp_path):
    fnb.sweep(toy, **{**SMALL, "prompts": PROMPTS[:1]}, store=tmp_path)
    batch = fnb.sweep(toy, **SMALL, store=tmp_path, batch=4)
    assert [cell.exact for cell in batch] == [True] * 4 + [False] * 4
    assert [cell.made for cell in batch] == [False] * 4 + [True] * 4
    assert not any(cell.made for cell in fnb.sweep(toy, **SMALL, store=tmp_path, batch=4))
    exact = fnb.sweep(toy, **SMALL, store=tmp_path)
    assert all(cell.exact for cell in exact) and [cell.made for cell in exact] == [False] * 4 + [True] * 4


@pytest.mark.moderate
def test_a_nan_in_a_batch_raises_an_error(toy):
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
def test_an_invalid_batch_is_refused(toy, batch):
    with pytest.raises(InputError, match="images per call"):
        fnb.sweep(toy, prompts="a", batch=batch)


# ------------------------------------------------------------------------------------------------------- decode workers
@pytest.mark.moderate
@pytest.mark.parametrize("batch", [1, 4])
def test_background_decoding_changes_neither_bytes_nor_order(toy, tmp_path, batch):
    with threads(2):
        grid = fnb.sweep(toy, **SMALL, store=tmp_path, batch=batch)
        plain = [plain_call(toy.pipe, cell.recipe) for cell in grid]
        assert torch.get_num_threads() == 2
    order = [(cell.recipe.prompt, cell.recipe.seed, cell.recipe.steps) for cell in grid]
    assert order == list(itertools.product(PROMPTS[:2], [0, 1], [1, 2]))
    for cell, picture in zip(grid, plain, strict=True):
        assert cell.image.tobytes() == picture.tobytes() if batch == 1 else max_difference(cell.image, picture) <= 1
    assert not list(tmp_path.rglob("*.lock")) and len(list(tmp_path.rglob("*.png"))) == 8


@pytest.mark.moderate
def test_a_full_disk_during_background_writing_raises_and_leaves_complete_cells(toy, tmp_path, monkeypatch):
    write, written = Path.write_bytes, []

    def write_until_full(self, data):
        written.append(self)
        if len(written) > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    with threads(2), pytest.raises(StorageError, match="is full"):
        fnb.sweep(toy, **SMALL, store=tmp_path)
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.lock")) and not list(tmp_path.rglob("*.part"))
    with threads(2):  # the number of threads belongs to the key
        again = fnb.sweep(toy, **SMALL, store=tmp_path)
    assert [cell.made for cell in again] == [False] * 2 + [True] * 6


@pytest.mark.moderate
def test_complete_trajectories_become_cells_when_a_sweep_is_stopped(toy, tmp_path):
    steps = []

    def stop_at_the_fifth(step):
        steps.append(step)
        return fnb.STOP if len(steps) == 5 else None

    with threads(2):
        grid = fnb.sweep(toy, **{**SMALL, "steps": [1, 3]}, store=tmp_path, on_step=stop_at_the_fifth)
    assert not grid.finished and len(grid) == 3 == len(list(tmp_path.rglob("*.json")))


@pytest.mark.moderate
def test_several_images_are_decoded_at_once_where_the_decoder_displaces_the_transformer(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(Flux, "decoder_displaces_transformer", property(lambda self: True))
    sizes, decode = [], Flux.decode
    monkeypatch.setattr(Flux, "decode", lambda self, z, **how: sizes.append(len(z)) or decode(self, z, **how))
    cells = list(fnb.stream(toy, **GRID, store=tmp_path))
    assert sizes == [decode_workers.SWAP_BATCH] * 6 and len(cells) == 48
    for cell in cells[::7]:
        assert cell.image.tobytes() == plain_call(toy.pipe, cell.recipe).tobytes()


@pytest.mark.moderate
@pytest.mark.parametrize("displaces", [True, False])
def test_images_of_several_sizes_are_decoded(toy, displaces, monkeypatch):
    monkeypatch.setattr(Flux, "decoder_displaces_transformer", property(lambda self: displaces))
    axes = {"prompts": "a fox", "seeds": [0, 1, 2], "steps": 1, "width": 32, "height": [32, 48]}
    with threads(2):
        cells = list(fnb.stream(toy, **axes) if displaces else fnb.sweep(toy, **axes, batch=2))
    assert [cell.image.size for cell in cells] == [(32, cell.recipe.height) for cell in cells]
    assert {cell.recipe.height for cell in cells} == {32, 48}


@pytest.mark.moderate
def test_small_images_of_a_batch_share_a_decoder_call(toy, monkeypatch):
    sizes, decode = [], Flux.decode
    monkeypatch.setattr(Flux, "decode", lambda self, z, **how: sizes.append(len(z)) or decode(self, z, **how))
    with threads(2):
        grid = fnb.sweep(toy, **GRID, batch=16)
    assert sizes == [decode_workers.SMALL_BATCH] * 12 and len(grid) == 48


@pytest.mark.moderate
def test_large_images_are_decoded_one_by_one(toy, monkeypatch):
    monkeypatch.setattr(decode_workers, "SMALL_PIXELS", 0)
    sizes, decode = [], Flux.decode
    monkeypatch.setattr(Flux, "decode", lambda self, z, **how: sizes.append(len(z)) or decode(self, z, **how))
    with threads(2):
        fnb.sweep(toy, **SMALL, batch=16)
    assert set(sizes) == {1}


@pytest.mark.parametrize("count", [1, 2])
def test_ctrl_c_during_decoding_ends_the_sweep(toy, count, monkeypatch):
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


@pytest.mark.moderate
def test_trajectories_that_wait_for_the_decoder_become_cells_at_a_stop(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(Flux, "decoder_displaces_transformer", property(lambda self: True))
    steps = []

    def stop_at_the_fifth(step):
        steps.append(step)
        return fnb.STOP if len(steps) == 5 else None

    cells = list(fnb.stream(toy, **{**SMALL, "steps": [1, 3]}, store=tmp_path, on_step=stop_at_the_fifth))
    assert len(cells) == 3 == len(list(tmp_path.rglob("*.json")))


@pytest.mark.moderate
def test_several_threads_that_use_one_model_get_their_own_bytes(toy):
    images = {}

    def sample(seed):
        recipe = fnb.Recipe(prompt="a fox", seed=seed, steps=3 + seed % 3, sampler=["euler", "renoise"][seed % 2])
        images[seed] = fnb.run(toy, recipe.replace(height=32, width=32)).image.tobytes()

    workers = [threading.Thread(target=sample, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    grid = fnb.sweep(toy, **SMALL)
    for worker in workers:
        worker.join()
    concurrent = dict(images)
    for seed in range(8):
        sample(seed)
    assert concurrent == images
    for cell in grid:
        assert cell.image.tobytes() == plain_call(toy.pipe, cell.recipe).tobytes()


# ------------------------------------------------------------------------------------------------------- cost estimates
@pytest.fixture
def no_timings(toy, monkeypatch):
    monkeypatch.setattr(state_of(toy.pipe), "timings", {})


def test_a_plan_without_timings_counts_evaluations_and_has_no_seconds(toy, no_timings):
    with counted(toy.pipe) as counts:
        cost = fnb.plan_sweep(toy, **GRID)
    assert sum(counts.values()) == 0
    assert (
        cost.cells,
        cost.missing,
        cost.evaluations,
        cost.unshared_evaluations,
        cost.saved_evaluations,
        cost.encodes,
    ) == (
        48,
        48,
        84,
        120,
        36,
        3,
    )
    assert cost.seconds is None and "unknown time" in str(cost) and cost.free_megabytes is None


@pytest.mark.moderate
def test_a_plan_after_a_run_has_seconds(toy, no_timings):
    grid = fnb.sweep(toy, **SMALL)
    cost = fnb.plan_sweep(toy, **GRID)
    seconds = [cell.seconds for cell in grid]
    assert 0 < cost.seconds < 100 * sum(each["denoise"] + each["decode"] + each["encode"] for each in seconds)
    assert fnb.plan_sweep(toy, **{**GRID, "height": 48}).seconds is None, "another size has not been timed"


@pytest.mark.moderate
def test_a_plan_uses_the_timings_of_the_store(toy, tmp_path, monkeypatch, no_timings):
    fnb.sweep(toy, **SMALL, store=tmp_path)
    monkeypatch.setattr(state_of(toy.pipe), "timings", {})
    cost = fnb.plan_sweep(toy, **GRID, store=tmp_path)
    assert cost.seconds > 0 and cost.missing == 48 - 8 and cost.free_megabytes > 0
    next(tmp_path.rglob("*.json")).write_text('{"recipe": 3}')
    assert fnb.plan_sweep(toy, **GRID, store=tmp_path).seconds > 0, "a damaged cell is skipped"


@pytest.mark.moderate
def test_a_plan_uses_the_timings_of_a_stored_batch(toy, tmp_path, monkeypatch, no_timings):
    with threads(2):
        fnb.sweep(toy, **SMALL, store=tmp_path, batch=4)
        monkeypatch.setattr(state_of(toy.pipe), "timings", {})
        assert fnb.plan_sweep(toy, **GRID, store=tmp_path).seconds is not None


@pytest.mark.moderate
def test_measure_times_one_evaluation_and_one_image(toy, no_timings):
    with counted(toy.pipe) as counts:
        cost = fnb.plan_sweep(toy, **GRID, measure=True)
    assert cost.seconds > 0 and counts["transformer"] == counts["decoder"] == 2  # the first is a warm-up
    with counted(toy.pipe) as counts:
        fnb.plan_sweep(toy, **GRID, measure=True)
    assert sum(counts.values()) == 0


@pytest.mark.moderate
def test_a_plan_includes_retained_trajectories_and_warns_of_a_small_disk(toy, tmp_path, monkeypatch):
    without, with_trajectories = fnb.plan_sweep(toy, **GRID), fnb.plan_sweep(toy, **GRID, keep=fnb.Keep())
    assert with_trajectories.megabytes > without.megabytes > 0
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(costs.shutil, "disk_usage", lambda path: usage)
    assert "MORE than" in str(fnb.plan_sweep(toy, **GRID, store=tmp_path))


@pytest.mark.moderate
def test_a_guided_plan_counts_both_evaluations(toy_guided):
    cost = fnb.plan_sweep(toy_guided, prompts="a", steps=[1, 2, 3, 4], height=32, width=32)
    assert (cost.evaluations, cost.saved_evaluations) == (14, 6)


@pytest.mark.parametrize("function", [fnb.stream, fnb.plan_sweep])
def test_the_signature_shows_the_parameters_that_are_passed_on(function):
    assert {"prompts", "seeds", "steps", "store", "recipe", "keep"} <= inspect.signature(function).parameters.keys()


@pytest.mark.moderate
@pytest.mark.parametrize("size", [32, 128])
def test_an_image_sampled_alone_is_decoded_exactly_by_several_threads_too(toy, size):
    axes = {"prompts": "a red fox", "steps": [1, 2, 3, 4], "height": size, "width": size}
    with threads(2):
        for cell in fnb.sweep(toy, **axes, batch=8):
            assert cell.exact and cell.image.tobytes() == plain_call(toy.pipe, cell.recipe).tobytes()


@pytest.mark.moderate
def test_a_cell_that_shares_steps_with_a_batch_is_not_exact(toy, tmp_path):
    axes = {"prompts": "a red fox", "height": 32, "width": 32, "store": tmp_path}
    fnb.sweep(toy, **axes, seeds=1, steps=2)
    cells = {(c.recipe.seed, c.recipe.steps): c for c in fnb.sweep(toy, **axes, seeds=[0, 1], steps=[1, 2], batch=2)}
    assert cells[0, 1].numerics == cells[1, 1].numerics == "batch" and cells[1, 2].exact
    assert cells[0, 2].evaluations == 1 and cells[0, 2].numerics == "batch"
    assert fnb.sweep(toy, **axes, seeds=0, steps=2)[0].made
