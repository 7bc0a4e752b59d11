"""FLUX.2 klein and Z-Image, teacher and student: recorded, sampled, swept and displayed, on tiny random instances."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError
from fluxnb.families.registry import FAMILIES, MODELS, family_of
from fluxnb.pipeline.prompts import truncations
from tests.families.tiny import PIPELINES

pytestmark = pytest.mark.slow  # importing the classes of two families takes seconds

NAMES = tuple(PIPELINES)
HEIGHT, WIDTH, LENGTH, STEPS = 64, 96, 48, 3


@pytest.fixture(scope="module")
def pipes():
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = PIPELINES[name]()
        return made[name]

    return get


def arguments(name: str, **more: Any) -> dict[str, Any]:
    """The arguments of a plain call, as the card of the model has them."""
    guidance = {"klein": 1.0, "klein-base": 4.0, "z-image": 4.0, "z-image-turbo": 0.0}[name]
    size = {"height": HEIGHT, "width": WIDTH, "max_sequence_length": LENGTH}
    return {"num_inference_steps": STEPS, "guidance_scale": guidance, **size, **more}


def scale_of(name: str) -> float | None:
    """The scale of the guidance of `arguments`."""
    return {"klein": None, "klein-base": 4.0, "z-image": 5.0, "z-image-turbo": None}[name]


def plain(pipe: Any, name: str, prompt: Any = "a red fox", seed: int = 3, **more: Any) -> Any:
    return pipe(prompt=prompt, generator=torch.Generator().manual_seed(seed), **arguments(name, **more)).images


def recorded(pipe: Any, name: str, **more: Any) -> Any:
    with fnb.recording(pipe) as recorder:
        images = plain(pipe, name, **more)
    return images, recorder.trajectories


def flux_of(pipe: Any) -> Any:
    flux = fnb.load(pipe)
    return flux.with_defaults(size=64, max_sequence_length=LENGTH)


def bytes_of(images: Any) -> list[bytes]:
    return [image.tobytes() for image in images]


# ------------------------------------------------------------------------------------------------------- recording
@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_call_has_the_bytes_of_a_plain_one(pipes, name):
    pipe = pipes(name)
    images, (trajectory,) = recorded(pipe, name)
    assert bytes_of(images) == bytes_of(plain(pipe, name)) == bytes_of([trajectory.image])
    assert (trajectory.height, trajectory.width) == (HEIGHT, WIDTH) and trajectory.finished


@pytest.mark.parametrize("name", NAMES)
def test_every_recorded_step_is_an_euler_step(pipes, name):
    _, (trajectory,) = recorded(pipes(name), name)
    assert trajectory.sigmas[0] == 1.0 and trajectory.sigmas[-1] == 0.0 and len(trajectory) == STEPS
    for step in trajectory:
        assert torch.equal(step.x + step.dt * step.v, step.x_next)
    for step, after in itertools.pairwise(trajectory):
        assert torch.equal(step.x_next, after.x)


@pytest.mark.parametrize("name", NAMES)
def test_the_estimates_rebuild_x(pipes, name):
    _, (trajectory,) = recorded(pipes(name), name)
    for step in trajectory:
        torch.testing.assert_close((1 - step.sigma) * step.clean + step.sigma * step.noise, step.x)
    torch.testing.assert_close(trajectory[0].noise, trajectory.x_T)  # at sigma 1, x is the noise


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_velocity_leads_to_the_decoded_picture(pipes, name):
    pipe = pipes(name)
    _, (trajectory,) = recorded(pipe, name)
    last = trajectory[-1].latents("x_next")[None]
    assert bytes_of(flux_of(pipe).decode(last)) == bytes_of([trajectory.image])


@pytest.mark.parametrize("name", NAMES)
def test_two_calls_give_two_records(pipes, name):
    pipe = pipes(name)
    with fnb.recording(pipe) as recorder:
        images = plain(pipe, name, seed=3) + plain(pipe, name, seed=4)
    assert [len(trajectory) for trajectory in recorder.trajectories] == [STEPS, STEPS]
    assert bytes_of(images) == bytes_of(trajectory.image for trajectory in recorder.trajectories)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_two_gives_the_steps_of_each_picture(pipes, name):
    pipe = pipes(name)
    seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    with fnb.recording(pipe) as recorder:
        pipe(prompt=["a red fox", "a dog"], generator=seeds, **arguments(name))
    alone = [recorded(pipe, name, prompt=p, seed=s)[1][0] for p, s in (("a red fox", 3), ("a dog", 4))]
    for one, together in zip(alone, recorder.trajectories, strict=True):
        assert torch.equal(one.x_T, together.x_T) and together.recipe == one.recipe
        torch.testing.assert_close(one.final, together.final, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_call_leaves_its_steps_and_the_pipeline_as_it_was(pipes, name):
    pipe = pipes(name)
    before = plain(pipe, name)
    attributes = {part: set(vars(part)) for part in (pipe, pipe.scheduler)}

    def stop(pipe: Any, index: int, *_: Any) -> Any:
        if index == 1:
            raise KeyboardInterrupt
        return {}

    with fnb.recording(pipe) as recorder, pytest.raises(KeyboardInterrupt):
        plain(pipe, name, callback_on_step_end=stop)
    (trajectory,) = recorder.trajectories
    assert len(trajectory) == 2 and not trajectory.finished and trajectory.image is None
    assert bytes_of(plain(pipe, name)) == bytes_of(before)
    assert all(set(vars(part)) == names for part, names in attributes.items())


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_of_a_recorded_call_repeats_it(pipes, name):
    pipe = pipes(name)
    images, (trajectory,) = recorded(pipe, name)
    assert trajectory.recipe is not None, trajectory.recipe_missing
    assert trajectory.recipe.guidance == scale_of(name)
    again = fnb.run(flux_of(pipe), trajectory.recipe)
    assert bytes_of([again.image]) == bytes_of(images)


# ------------------------------------------------------------------------------------------------- run and sweep
@pytest.mark.parametrize("name", NAMES)
def test_run_has_the_bytes_of_the_plain_call(pipes, name):
    pipe = pipes(name)
    more = {} if scale_of(name) is None else {"guidance": scale_of(name)}
    trajectory = fnb.run(flux_of(pipe), "a red fox", seed=3, steps=STEPS, height=HEIGHT, width=WIDTH, **more)
    assert bytes_of([trajectory.image]) == bytes_of(plain(pipe, name))
    assert trajectory.geometry == family_of(pipe).geometry and trajectory.numerics == "exact"


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_shares_the_first_evaluation_and_has_the_bytes_of_plain_calls(pipes, name):
    pipe = pipes(name)
    more = {} if scale_of(name) is None else {"guidance": scale_of(name)}
    grid = fnb.sweep(
        flux_of(pipe), prompts=["a red fox", "a dog"], seeds=3, steps=[1, 2, 3], height=HEIGHT, width=WIDTH, **more
    )
    assert grid.finished and len(grid) == 6
    evaluations = 2 * (1 + 1 + 2) if scale_of(name) is None else 4 * (1 + 1 + 2)
    assert grid.evaluations == evaluations
    for cell in grid:
        recipe = cell.recipe
        expected = plain(pipe, name, prompt=recipe.prompt, num_inference_steps=recipe.steps)
        assert cell.exact and bytes_of([cell.image]) == bytes_of(expected), recipe


@pytest.mark.parametrize("name", NAMES)
def test_the_disk_space_of_kept_steps_is_estimated_by_the_geometry(pipes, name):
    flux = flux_of(pipes(name))
    grid = {"prompts": "a red fox", "steps": 2, "height": HEIGHT, "width": WIDTH}
    with_steps, without = (fnb.plan_sweep(flux, **grid, keep=keep).megabytes for keep in (fnb.Keep(), None))
    held = fnb.sweep(flux, **grid, keep=fnb.Keep())[0].trajectory.nbytes
    assert with_steps - without == pytest.approx(held / 1e6)


@pytest.mark.parametrize("name", NAMES)
def test_own_sigmas_and_a_stopped_run_work(pipes, name):
    flux = flux_of(pipes(name))
    given = fnb.run(flux, "a red fox", sigmas=(1.0, 0.6))
    assert len(given) == 2 and given.finished
    stopped = fnb.run(flux, "a red fox", steps=3, on_step=lambda step: fnb.STOP if step.index == 1 else None)
    assert len(stopped) == 2 and not stopped.finished and stopped.image is not None


@pytest.mark.parametrize("name", NAMES)
def test_fresh_noise_at_each_step_is_repeated_by_its_seed(pipes, name):
    flux = flux_of(pipes(name))
    grid = fnb.sweep(flux, prompts="a red fox", steps=[2, 3], sampler="renoise")
    assert bytes_of([grid[1].image]) == bytes_of([fnb.run(flux, grid[1].recipe).image])


@pytest.mark.parametrize("name", ["klein", "z-image-turbo"])
def test_a_student_takes_no_guidance(pipes, name):
    with pytest.raises(InputError, match="takes none"):
        fnb.run(flux_of(pipes(name)), "a red fox", guidance=4.0)


@pytest.mark.parametrize("name", ["klein-base", "z-image"])
def test_a_teacher_takes_a_negative_prompt(pipes, name):
    flux = flux_of(pipes(name))
    one, other = (fnb.run(flux, "a red fox", steps=2, negative=negative) for negative in ("", "a dog"))
    assert not torch.equal(one.final, other.final)


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_are_those_of_the_named_model(pipes, name):
    defaults = fnb.load(pipes(name)).defaults
    stated = MODELS[name].defaults
    assert {field: getattr(defaults, field) for field in stated} == dict(stated) and defaults.size == 1024


@pytest.mark.parametrize("name", NAMES)
def test_what_a_long_prompt_loses_is_quoted(pipes, name):
    with pytest.warns(fnb.PromptWarning, match=r"Qwen3 reads 48 tokens .* ignores .*snow"):
        fnb.run(flux_of(pipes(name)), "a red fox " * 20 + "in the snow", steps=1)


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_negative_prompt_loses_nothing_at_any_length(pipes, name):
    pipe = pipes(name)
    assert truncations(pipe, family_of(pipe), "", 4) == []


# ---------------------------------------------------------------------------------------------------------- views
@pytest.mark.parametrize("name", NAMES)
def test_every_view_renders(pipes, name, tmp_path):
    flux = flux_of(pipes(name))
    several = [fnb.run(flux, "a red fox", seed=seed, steps=2) for seed in (1, 2)]
    trajectory = several[0]
    assert trajectory.preview is not None and len(trajectory.preview.weight[0]) == trajectory.geometry.channels
    for figure in (fnb.filmstrip(trajectory), fnb.compare(several), fnb.plots.velocity(trajectory)):
        figure.savefig(io.BytesIO(), format="png", dpi=30)
    assert trajectory.to_html(tmp_path / "a.html").stat().st_size > 1000
    for decode in (None, flux.decode):
        assert fnb.scrub(several, decode=decode) is not None
    for by in ("vae", "linear"):
        assert len(fnb.film(flux, trajectory, by=by)) == 2
    grid = fnb.sweep(flux, prompts="a red fox", seeds=[1, 2], steps=1, keep=fnb.Keep())
    assert fnb.explore(grid) is not None and grid.to_html(tmp_path / "grid.html").exists()
    fnb.contact_sheet(grid).savefig(io.BytesIO(), format="png", dpi=30)
    opened = fnb.open_trajectory(fnb.save(trajectory, tmp_path / "a.safetensors"))
    assert torch.equal(opened[1].latents("clean"), trajectory[1].latents("clean"))
    assert opened.geometry == trajectory.geometry and fnb.metrics.straightness(opened) >= 0


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_in_a_png_repeats_the_picture(pipes, name, tmp_path):
    flux = flux_of(pipes(name))
    made = fnb.sweep(flux, prompts="a red fox", seeds=5, steps=2, store=tmp_path / "store")
    recipe = fnb.open_recipe(made[0].path)
    assert bytes_of([fnb.run(flux, recipe).image]) == bytes_of([made[0].image])
    again = fnb.sweep(flux, prompts="a red fox", seeds=5, steps=2, store=tmp_path / "store")
    assert not again[0].made


@pytest.mark.parametrize("name", NAMES)
def test_the_lab_samples(pipes, name):
    widget = fnb.lab(flux_of(pipes(name))).generate(prompt="a red fox", seeds="1-2", steps="2").wait(60)
    assert len(widget.grid) == 2 and widget.grid.finished
    assert ("guidance" in widget.fields) == (scale_of(name) is not None)
    widget.close()


# ------------------------------------------------------------------------------------------------------- the seam
def test_every_name_belongs_to_one_family():
    names = [name for family in FAMILIES for name in family.models]
    assert len(names) == len(set(names)) and set(NAMES) < set(names)


def test_the_pipelines_of_every_family_are_in_the_oldest_supported_diffusers():
    import diffusers

    assert all(family.since <= "0.39" for family in FAMILIES)
    assert all(hasattr(diffusers, name) for family in FAMILIES for name in family.pipelines)


def test_every_pair_names_models_of_its_family():
    for family in FAMILIES:
        for pair in family.pairs:
            assert {pair.teacher, pair.student} <= set(family.models)


@pytest.mark.parametrize("name", NAMES)
def test_attention_of_another_family_is_refused(pipes, name):
    with pytest.raises(InputError, match=r"only the attention|not supported"):
        fnb.run(flux_of(pipes(name)), "a red fox", keep=fnb.Keep(attention="all"))
