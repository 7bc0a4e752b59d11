"""Sweeps and streams: exact sharing, the store, interruption and several processes."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError
from fluxnb.grid import decode_workers
from fluxnb.pipeline.state import state_of
from tests.plain_calls import counted, plain_call

PROMPTS = ["a red fox", "a cat in the snow", "a dog"]
ROOT = Path(__file__).parents[2]


@pytest.mark.moderate
def test_a_grid_costs_84_evaluations_and_3_encodes_and_has_the_bytes_of_plain_calls(toy):
    axes = {"prompts": PROMPTS, "seeds": range(4), "steps": [1, 2, 3, 4], "height": 32, "width": 32}
    _ = toy.preview  # the fit of the preview decodes a few images
    state_of(toy.pipe).encodings.clear()
    with counted(toy.pipe) as counts:
        grid = fnb.sweep(toy, **axes)
    assert (counts["transformer"], counts["text_encoder_2"], counts["decoder"]) == (84, 3, 48)
    assert (grid.evaluations, grid.encodes, len(grid), grid.finished) == (84, 3, 48, True)
    order = [(c.recipe.prompt, c.recipe.seed, c.recipe.steps) for c in grid]
    assert order == list(itertools.product(PROMPTS, range(4), [1, 2, 3, 4]))
    for cell in grid:
        assert cell.exact and cell.image.tobytes() == plain_call(toy.pipe, cell.recipe).tobytes()
    cost = fnb.plan_sweep(toy, **axes)
    assert (cost.cells, cost.missing, cost.evaluations) == (48, 48, 84)
    assert (cost.unshared_evaluations, cost.encodes) == (120, 3)


@pytest.mark.moderate
def test_sharing_is_exact_in_bfloat16(toy_folder):
    flux = fnb.load(toy_folder, dtype="bfloat16")
    for cell in fnb.sweep(flux, prompts="a fox", steps=[4, 3, 2, 1], height=32, width=32):
        assert cell.image.tobytes() == plain_call(flux.pipe, cell.recipe).tobytes()


@pytest.mark.moderate
@pytest.mark.parametrize("options", [{"sampler": "renoise"}, {"shift": 3.0}, {"sampler": "renoise", "shift": 2.0}])
def test_sharing_is_exact_for_other_samplers_and_shifts(toy, options):
    for cell in fnb.sweep(toy, prompts="a fox", steps=[3, 1, 4], height=32, width=32, **options):
        assert cell.image.tobytes() == fnb.run(toy, cell.recipe).image.tobytes()


@pytest.mark.moderate
def test_sharing_is_exact_under_true_cfg_and_counts_both_evaluations(toy_guided):
    with counted(toy_guided.pipe) as counts:
        grid = fnb.sweep(toy_guided, prompts="a fox", steps=[1, 2, 3], height=32, width=32)
    assert counts["transformer"] == grid.evaluations == 2 * 4
    for cell in grid:
        assert cell.image.tobytes() == fnb.run(toy_guided, cell.recipe).image.tobytes()


@pytest.mark.moderate
def test_custom_schedules_share_their_common_prefix(toy):
    lists = [[1.0, 0.5], [1.0, 0.5, 0.2], [1.0, 0.7]]
    with counted(toy.pipe) as counts:
        grid = fnb.sweep(toy, prompts="a fox", sigmas=lists, height=32, width=32)
    assert counts["transformer"] == 4
    for cell in grid:
        assert cell.image.tobytes() == fnb.run(toy, cell.recipe).image.tobytes()


@pytest.mark.moderate
def test_sharing_is_exact_with_a_dynamic_shift():
    from diffusers import FlowMatchEulerDiscreteScheduler

    from tests.conftest import toy_pipeline

    pipe = toy_pipeline(guidance_embeds=True)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    pipe.set_progress_bar_config(disable=True)
    grid = fnb.sweep(fnb.load(pipe), prompts="a fox", steps=[1, 2, 3], height=32, width=32)
    assert grid.evaluations == 4
    for cell in grid:
        assert cell.image.tobytes() == plain_call(pipe, cell.recipe, guidance_scale=cell.recipe.guidance).tobytes()


def test_any_field_can_be_an_axis(toy):
    grid = fnb.sweep(toy, prompts="a fox", steps=1, height=[32, 48], width=32, sampler=["euler", "renoise"])
    assert list(grid.axes) == ["prompt", "seed", "steps", "height", "sampler"]
    assert [cell.image.size for cell in grid] == [(32, 32), (32, 32), (32, 48), (32, 48)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": ["a", ""]}, "at least one word"),
        ({"prompts": "a", "seeds": "12"}, "whole number"),
        ({"prompts": "a", "steps": [0]}, "at least 1"),
        ({"prompts": "a", "seed": [1]}, "Type seeds="),
        ({"prompts": "a", "heigth": 32}, "height"),
    ],
)
def test_an_invalid_grid_is_refused_before_anything_is_computed(toy, arguments, message):
    with counted(toy.pipe) as counts, pytest.raises(InputError, match=message):
        fnb.sweep(toy, **arguments)
    assert sum(counts.values()) == 0


@pytest.mark.moderate
def test_keep_retains_the_trajectories_of_cells(toy):
    grid = fnb.sweep(toy, prompts="a fox", steps=[1, 3], height=32, width=32, keep=fnb.Keep())
    for cell in grid:
        single = fnb.run(toy, cell.recipe)
        assert cell.trajectory.sigmas == single.sigmas and len(cell.trajectory) == len(single)
        for a, b in zip(cell.trajectory, single, strict=True):
            assert torch.equal(a.x, b.x) and torch.equal(a.v, b.v) and torch.equal(a.x_next, b.x_next)
            assert (a.index, a.sigma, a.dt) == (b.index, b.sigma, b.dt)
    assert all(cell.trajectory is None for cell in fnb.sweep(toy, prompts="a fox", steps=1, height=32, width=32))


SMALL = {"prompts": PROMPTS[:2], "seeds": [0, 1], "steps": [1, 2], "height": 32, "width": 32}


@pytest.mark.moderate
def test_stored_cells_are_not_sampled_again(toy, tmp_path):
    first = fnb.sweep(toy, **SMALL, store=tmp_path)
    with counted(toy.pipe) as counts:
        again = fnb.sweep(toy, **SMALL, store=tmp_path)
    assert sum(counts.values()) == 0 and not any(cell.made for cell in again)
    assert [c.image.tobytes() for c in again] == [c.image.tobytes() for c in first]
    assert fnb.plan_sweep(toy, **SMALL, store=tmp_path).evaluations == 0


@pytest.mark.moderate
def test_only_missing_cells_are_sampled(toy, tmp_path):
    fnb.sweep(toy, **{**SMALL, "prompts": PROMPTS[:1]}, store=tmp_path)
    state_of(toy.pipe).encodings.clear()
    with counted(toy.pipe) as counts:
        grid = fnb.sweep(toy, **SMALL, store=tmp_path)
    assert (counts["transformer"], counts["text_encoder_2"]) == (4, 1)
    assert [cell.made for cell in grid] == [False] * 4 + [True] * 4


def test_a_changed_prompt_finds_no_stored_cell(toy, tmp_path):
    fnb.sweep(toy, prompts="a red fox", steps=1, height=32, width=32, store=tmp_path)
    grid = fnb.sweep(toy, prompts="a blue fox", steps=1, height=32, width=32, store=tmp_path)
    assert grid[0].made


@pytest.mark.moderate
def test_another_model_finds_no_stored_cell(toy, tmp_path):
    from tests.conftest import toy_pipeline

    fnb.sweep(toy, prompts="a fox", steps=1, height=32, width=32, store=tmp_path)
    other = fnb.load(toy_pipeline(seed=3))
    assert fnb.sweep(other, prompts="a fox", steps=1, height=32, width=32, store=tmp_path)[0].made


@pytest.mark.moderate
def test_a_damaged_cell_is_sampled_again(toy, tmp_path):
    first = fnb.sweep(toy, **SMALL, store=tmp_path)
    data = bytearray(first[3].path.read_bytes())
    data[len(data) // 2] ^= 1
    first[3].path.write_bytes(data)
    again = fnb.sweep(toy, **SMALL, store=tmp_path)
    assert [cell.made for cell in again] == [i == 3 for i in range(8)]
    assert again[3].image.tobytes() == first[3].image.tobytes()


def test_stored_trajectories_are_read_with_their_cells(toy, tmp_path):
    fnb.sweep(toy, prompts="a fox", steps=2, height=32, width=32, store=tmp_path, keep=fnb.Keep())
    again = fnb.sweep(toy, prompts="a fox", steps=2, height=32, width=32, store=tmp_path, keep=fnb.Keep())
    assert not again[0].made and len(again[0].trajectory) == 2


def test_an_image_in_the_store_contains_its_recipe(toy, tmp_path):
    cell = fnb.sweep(toy, prompts="a fox", steps=1, height=32, width=32, store=tmp_path)[0]
    assert fnb.open_recipe(cell.path) == cell.recipe


@pytest.mark.moderate
def test_stream_yields_cells_as_they_finish_and_stops_when_the_loop_is_left(toy, tmp_path):
    with counted(toy.pipe) as counts:
        for count, cell in enumerate(fnb.stream(toy, **SMALL, store=tmp_path), start=1):
            assert cell.path.is_file()
            if count == 2:
                break
    assert counts["transformer"] == 2
    assert sum(not cell.made for cell in fnb.sweep(toy, **SMALL, store=tmp_path)) == 2
    assert not list(tmp_path.rglob("*.lock"))


@pytest.mark.moderate
def test_an_interrupt_while_a_cell_is_completed_ends_a_stream(toy, monkeypatch):
    class Interrupted(Future):
        def set_result(self, result):
            super().set_result(result)
            raise KeyboardInterrupt

    monkeypatch.setattr(decode_workers, "Future", Interrupted)
    assert list(fnb.stream(toy, prompts="a fox", seeds=range(2), steps=1)) == []


def test_a_stopped_sweep_returns_the_finished_cells(toy, tmp_path):
    steps = []

    def stop_at_the_fifth_step(step):
        steps.append(step)
        return fnb.STOP if len(steps) == 5 else None

    grid = fnb.sweep(toy, **{**SMALL, "steps": [1, 3]}, store=tmp_path, on_step=stop_at_the_fifth_step)
    assert not grid.finished and len(grid) == 3
    assert not list(tmp_path.rglob("*.lock"))
    rest = fnb.sweep(toy, **{**SMALL, "steps": [1, 3]}, store=tmp_path)
    assert rest.finished and [cell.made for cell in rest] == [False] * 3 + [True] * 5


SCRIPT = """
import sys, fluxnb as fnb
grid = fnb.sweep(fnb.load(sys.argv[1]), prompts=["a fox", "a cat", "a dog"], seeds=range(4), steps=[1, 2, 3, 4],
                 height=32, width=32, store=sys.argv[2])
print(sum(cell.made for cell in grid), len(grid))
"""


def worker(folder, store):
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-c", SCRIPT, str(folder), str(store)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@pytest.mark.slow
def test_two_processes_sample_each_cell_once(toy_folder, tmp_path):
    workers = [worker(toy_folder, tmp_path) for _ in range(2)]
    outputs = [w.communicate(timeout=120) for w in workers]
    assert [w.returncode for w in workers] == [0, 0], outputs
    sampled = [int(out.split()[0]) for out, _ in outputs]
    assert sum(sampled) == 48


@pytest.mark.moderate
def test_seeds_and_steps_that_are_left_out_are_those_of_the_base_recipe_or_the_model(toy):
    base = fnb.Recipe(prompt="a fox", seed=7, steps=2)
    axes = {
        name: fnb.plan_sweep(toy, prompts=["a fox"], recipe=recipe) for name, recipe in (("own", base), ("none", None))
    }
    assert axes["own"].evaluations == 2 and axes["none"].evaluations == toy.defaults.steps
    stream = fnb.stream(toy, prompts=["a fox"], recipe=base)
    assert (stream.axes["seed"], stream.axes["steps"]) == ((7,), (2,))
    other = toy.with_defaults(steps=3)
    assert fnb.stream(other, prompts=["a fox"]).axes["steps"] == (3,) == (len(fnb.run(other, "a fox")),)
