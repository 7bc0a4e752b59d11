"""A sweep, a run and the plain call give the same bytes, whatever the schedule is and whether the network caches."""

from __future__ import annotations

import pytest
import torch

import fluxnb as fnb
from tests.conftest import toy_pipeline
from tests.pipeline.test_identity import require_working_cache

SIZE = {"height": 32, "width": 32}
STEPS = [1, 2, 3, 4, 8]
SCHEDULES = {
    "linear": {},
    "Karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "dynamic": {"use_dynamic_shifting": True},
    "shift": {"shift": 3.0},
    "shift to a terminal level": {"shift_terminal": 0.1, "use_dynamic_shifting": True},
}


def pipeline(schedule, cached):
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **SCHEDULES[schedule])
    if cached:
        require_working_cache()
        from diffusers import FirstBlockCacheConfig

        pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    return pipe


def plain(pipe, steps, **more):
    generator = torch.Generator().manual_seed(3)
    options = {"num_inference_steps": steps, "max_sequence_length": 48, **SIZE, **more}
    return pipe("a red fox", generator=generator, **options).images[0].tobytes()


@pytest.mark.moderate
@pytest.mark.parametrize("cached", [False, True], ids=["no cache", "first block cache"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_sweep_run_and_plain_call_agree(schedule, cached):
    if schedule == "beta":
        pytest.importorskip("scipy")
    pipe = pipeline(schedule, cached)
    flux = fnb.load(pipe)
    # With one step there is no level to stretch to the terminal one, and diffusers divides by zero.
    counts = STEPS[1:] if schedule == "shift to a terminal level" else STEPS
    for cell in fnb.sweep(flux, prompts="a red fox", seeds=3, steps=counts, **SIZE):
        expected = plain(pipe, cell.recipe.steps)
        assert cell.image.tobytes() == expected, f"sweep, {cell.recipe.steps} steps"
        assert fnb.run(flux, cell.recipe).image.tobytes() == expected, f"run, {cell.recipe.steps} steps"


EXPLICIT = [
    (1.0,), (1.0, 0.5), (0.9, 0.4), (1.0, 0.6, 0.3), (1.0, 0.9, 0.5, 0.1),
    (1.0, 0.95, 0.8, 0.65, 0.5, 0.3, 0.2, 0.05),
]  # fmt: skip


@pytest.mark.moderate
@pytest.mark.parametrize("cached", [False, True], ids=["no cache", "first block cache"])
def test_explicit_sigmas_agree_too(cached):
    pipe = pipeline("linear", cached)
    flux = fnb.load(pipe)
    grid = fnb.sweep(flux, prompts="a red fox", seeds=3, sigmas=EXPLICIT, **SIZE)
    assert [cell.recipe.sigmas for cell in grid] == EXPLICIT
    for cell in grid:
        expected = plain(pipe, len(cell.recipe.sigmas), sigmas=list(cell.recipe.sigmas))
        assert cell.image.tobytes() == expected
        assert fnb.run(flux, cell.recipe).image.tobytes() == expected


@pytest.mark.moderate
def test_steps_are_shared_where_that_is_exact_and_only_there():
    def evaluations(schedule, cached):
        return fnb.sweep(
            fnb.load(pipeline(schedule, cached)), prompts="a red fox", seeds=3, steps=[1, 2, 3, 4], **SIZE
        ).evaluations

    assert evaluations("linear", cached=False) == 7
    assert evaluations("Karras", cached=False) == 9  # a single remaining level is not bent
    assert evaluations("linear", cached=True) == 10


@pytest.mark.moderate
def test_the_cost_estimate_counts_the_evaluations_that_the_sweep_makes():
    for schedule in ("linear", "Karras"):
        flux = fnb.load(pipeline(schedule, cached=False))
        request = {"prompts": "a red fox", "seeds": 3, "steps": [1, 2, 3, 4], **SIZE}
        assert fnb.plan_sweep(flux, **request).evaluations == fnb.sweep(flux, **request).evaluations


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "FlowMatchLCMScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_a_scheduler_that_a_recipe_does_not_describe_is_refused_before_anything_runs(name):
    import diffusers

    pipe = toy_pipeline()
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
    with pytest.raises(fnb.InputError, match="FlowMatchEulerDiscreteScheduler"):
        fnb.run(fnb.load(pipe), "a fox", steps=2, **SIZE)


@pytest.mark.moderate
def test_no_run_draws_from_the_global_generator():
    pipe = toy_pipeline()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=True)
    flux, state = fnb.load(pipe), torch.get_rng_state()
    with pytest.raises(fnb.InputError, match='sampler="renoise"'):
        fnb.run(flux, "a fox", steps=2, **SIZE)
    first, second = (fnb.run(flux, "a fox", steps=2, sampler="renoise", **SIZE) for _ in range(2))
    assert first.image.tobytes() == second.image.tobytes()
    assert torch.equal(state, torch.get_rng_state())
