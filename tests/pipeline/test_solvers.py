"""The samplers "heun" and "midpoint": their levels, their order of accuracy, and their records."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError
from fluxnb.flow import schedule
from fluxnb.pipeline.schedule import prepared_scheduler
from tests.families.tiny import PIPELINES

LINEAR = 1.5  # v = LINEAR x, so that x(0) = x(1) exp(-LINEAR)
FACTORS = {"euler": 2, "heun": 4, "midpoint": 4}


def solve(toy, sampler: str, steps: int, velocity) -> float:
    """Follow a velocity field with the scheduler of a recipe, from x = 1 at sigma 1 to sigma 0."""
    recipe = toy.resolve(fnb.Recipe(prompt="a fox", steps=steps, sampler=sampler))
    scheduler = prepared_scheduler(toy.pipe, toy.family, recipe, torch.Generator(), device=torch.device("cpu"))
    scheduler.set_begin_index(0)
    x = torch.ones(1, 1, 1)
    levels = scheduler.sigmas.tolist()
    for index, t in enumerate(scheduler.timesteps):
        x = scheduler.step(velocity(x, levels[index]), t, x, return_dict=False)[0]
    return float(x)


@pytest.mark.parametrize("sampler", FACTORS)
def test_the_error_falls_with_the_order_of_the_sampler(toy, sampler):
    errors = [abs(solve(toy, sampler, steps, lambda x, s: LINEAR * x) - math.exp(-LINEAR)) for steps in (16, 32, 64)]
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine == pytest.approx(FACTORS[sampler], rel=0.15)


@pytest.mark.parametrize("sampler", ["heun", "midpoint"])
def test_a_velocity_that_is_linear_in_sigma_is_solved_exactly_up_to_the_last_step_of_heun(toy, sampler):
    end = solve(toy, sampler, 4, lambda x, s: torch.full_like(x, 2 * s))  # x(0) = 1 - 1 = 0
    last = 0.25**2 if sampler == "heun" else 0.0  # Euler from 0.25 to 0: the error is the square of the step
    assert end == pytest.approx(-last, abs=1e-6)


@pytest.mark.parametrize(("sampler", "levels"), [
    ("heun", (1.0, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0.0)),
    ("midpoint", (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0)),
])  # fmt: skip
def test_every_evaluation_is_a_step_at_its_level(toy, sampler, levels):
    trajectory = fnb.run(toy, "a fox", seed=1, steps=4, sampler=sampler)
    assert trajectory.sigmas == levels == toy.schedule(trajectory.recipe)
    assert [step.sigma for step in trajectory] == list(levels[:-1])
    assert [step.sigma + step.dt for step in trajectory] == pytest.approx(levels[1:])
    assert len(trajectory) == trajectory.recipe.evaluations == toy.evaluations_of(trajectory.recipe) == len(levels) - 1
    assert trajectory.step_count == 4 and f"4 steps ({len(levels) - 1} evaluations), {sampler}" in trajectory.caption
    for step, following in itertools.pairwise(trajectory):
        assert torch.equal(step.x_next, following.x)


def test_the_records_of_heun_are_the_formula_of_heun(toy):
    trajectory = fnb.run(toy, "a fox", seed=1, steps=3, sampler="heun")
    first, second, third = trajectory[0], trajectory[1], trajectory[2]
    h = second.sigma - first.sigma
    torch.testing.assert_close(second.x, first.x + h * first.v)
    torch.testing.assert_close(third.x, first.x + h * (first.v + second.v) / 2)
    torch.testing.assert_close(trajectory.final, trajectory[4].clean)


def test_the_records_of_midpoint_are_the_formula_of_midpoint(toy):
    trajectory = fnb.run(toy, "a fox", seed=1, steps=2, sampler="midpoint")
    first, middle, second = trajectory[0], trajectory[1], trajectory[2]
    torch.testing.assert_close(middle.x, first.x + (middle.sigma - first.sigma) * first.v)
    torch.testing.assert_close(second.x, first.x + (second.sigma - first.sigma) * middle.v)


def test_one_step_of_heun_is_one_step_of_euler(toy):
    euler, heun = (fnb.run(toy, "a fox", seed=1, steps=1, sampler=each) for each in ("euler", "heun"))
    assert heun.image.tobytes() == euler.image.tobytes() and len(heun) == 1


@pytest.mark.parametrize("sampler", ["heun", "midpoint"])
def test_a_recipe_with_a_sampler_repeats_its_picture_and_has_a_key_of_its_own(toy, sampler, tmp_path):
    trajectory = fnb.run(toy, "a fox", seed=1, steps=3, sampler=sampler)
    recipe = fnb.open_recipe(trajectory.save_png(tmp_path / "a.png"))
    assert recipe == trajectory.recipe and recipe.key() != recipe.replace(sampler="euler").key()
    assert fnb.run(toy, recipe).image.tobytes() == trajectory.image.tobytes()
    opened = fnb.open_trajectory(trajectory.save(tmp_path / "a.safetensors"))
    assert opened.sigmas == trajectory.sigmas and len(opened) == len(trajectory)


@pytest.mark.parametrize("sampler", ["heun", "midpoint"])
def test_a_recipe_without_a_step_of_its_own_in_another_program_is_refused_by_a_graph(sampler):
    with pytest.raises(InputError, match='Try sampler="euler"'):
        fnb.comfy_workflow(fnb.Recipe(prompt="a", model="schnell", height=64, width=64, sampler=sampler))


@pytest.mark.moderate
@pytest.mark.parametrize("sampler", ["heun", "midpoint"])
def test_a_sweep_counts_the_evaluations_and_stores_the_same_bytes(toy, sampler, tmp_path):
    axes = {"prompts": "a fox", "seeds": [1, 2], "steps": [1, 2, 4], "sampler": sampler}
    plan = fnb.plan_sweep(toy, **axes)
    grid = fnb.sweep(toy, **axes, store=tmp_path)
    each = sum(fnb.Recipe(prompt="a", steps=steps, sampler=sampler).evaluations for steps in (1, 2, 4))
    assert plan.evaluations == plan.unshared_evaluations == grid.evaluations == 2 * each
    for cell in grid:
        assert cell.image.tobytes() == fnb.run(toy, cell.recipe).image.tobytes()
    assert fnb.sweep(toy, **axes, store=tmp_path).evaluations == 0


@pytest.mark.parametrize("sampler", ["heun", "midpoint"])
def test_a_store_keeps_every_evaluation(toy, sampler, tmp_path):
    axes = {"prompts": "a fox", "seeds": 1, "steps": 8, "sampler": sampler, "keep": fnb.Keep(), "store": tmp_path}
    first, again = fnb.sweep(toy, **axes), fnb.sweep(toy, **axes)
    (a,), (b,) = first, again
    assert again.evaluations == 0 and not b.made
    assert b.trajectory.sigmas == a.trajectory.sigmas and torch.equal(b.trajectory.final, a.trajectory.final)


def test_a_run_without_a_recipe_counts_its_steps(toy, tmp_path):
    noise = fnb.run(toy, "a fox", seed=1, steps=1).x_T
    trajectory = fnb.run(toy, "a fox", noise=noise, steps=4, sampler="heun")
    assert trajectory.recipe is None and trajectory.step_count == 4 and "4 steps (7 evaluations)" in trajectory.caption
    assert fnb.open_trajectory(trajectory.save(tmp_path / "a.safetensors")).step_count == 4


def test_a_sweep_over_samplers_has_one_picture_for_each(toy):
    grid = fnb.sweep(toy, prompts="a fox", seeds=1, steps=2, sampler=["euler", "heun", "midpoint"])
    assert len({cell.image.tobytes() for cell in grid}) == 3 and grid.evaluations == 2 + 3 + 4
    assert grid[0].image.tobytes() == fnb.run(toy, "a fox", seed=1, steps=2).image.tobytes()


@pytest.mark.parametrize("sampler", ["heun", "midpoint"])
def test_a_run_from_a_picture_takes_a_share_of_the_steps(toy, sampler):
    picture = fnb.run(toy, "a fox", seed=1, steps=1).image
    trajectory = fnb.run(toy, "a fox", image=picture, strength=0.5, steps=4, sampler=sampler)
    full = toy.schedule(toy.resolve(fnb.Recipe(prompt="a fox", steps=4, sampler=sampler)))
    assert trajectory.sigmas == full[4:] and trajectory[0].sigma == schedule(4)[2]
    assert len(trajectory) == len(full) - 1 - 4


def test_a_run_that_is_stopped_counts_evaluations(toy):
    stopped = fnb.run(toy, "a fox", steps=4, sampler="heun", on_step=lambda step: fnb.STOP if step.index == 2 else None)
    assert len(stopped) == 3 and not stopped.finished and "3 of 7 evaluations, unfinished" in stopped.caption


@pytest.mark.moderate
@pytest.mark.parametrize("name", ["klein", "z-image-turbo"])
def test_other_families_take_two_evaluations_a_step_and_are_inverted(name):
    flux = fnb.load(PIPELINES[name]())
    trajectory = fnb.run(flux, "a fox", seed=1, steps=2, height=64, width=64, sampler="heun")
    first, second, third = trajectory
    expected = first.x + (second.sigma - first.sigma) * (first.v + second.v) / 2
    torch.testing.assert_close(third.x, expected)
    inverted = fnb.invert(flux, trajectory, "a fox", steps=2)
    assert inverted.sigmas == (trajectory.sigmas[3], trajectory.sigmas[1], trajectory.sigmas[0])
    assert torch.equal(inverted.x_T, trajectory.final)


def test_a_stochastic_scheduler_is_refused(toy):
    pipe = toy.pipe
    original = pipe.scheduler
    pipe.scheduler = type(original).from_config(original.config, stochastic_sampling=True)
    try:
        with pytest.raises(InputError, match="renoise"):
            fnb.run(toy, "a fox", steps=2, sampler="heun")
    finally:
        pipe.scheduler = original


@pytest.mark.moderate
@pytest.mark.parametrize("sampler", ["heun", "midpoint"])
def test_the_views_draw_a_trajectory_with_two_evaluations_a_step(toy, sampler, tmp_path):
    trajectory = fnb.run(toy, "a fox", seed=1, steps=3, sampler=sampler)
    for view in (fnb.filmstrip, fnb.plots.sigma_curve, fnb.plots.lock_in, fnb.plots.velocity, fnb.plots.path):
        assert view(trajectory) is not None
    euler = fnb.run(toy, "a fox", seed=1, steps=3)
    assert fnb.compare([euler, trajectory]) is not None
    assert trajectory.to_html(tmp_path / "a.html").stat().st_size > 1000
    assert fnb.metrics.length(trajectory) > 0 and sum(-step.dt for step in trajectory) == pytest.approx(1)
