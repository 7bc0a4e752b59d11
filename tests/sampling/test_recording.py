from __future__ import annotations

import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import InputError
from tests.conftest import toy_pipeline

WATCHED = {
    "scheduler": ("step", "set_timesteps"),
    "pipe": ("check_inputs", "encode_prompt", "prepare_latents", "maybe_free_model_hooks"),
    "image_processor": ("postprocess",),
}


def call(pipe, seed=0, steps=3, **more):
    options = {"height": 32, "width": 48, "max_sequence_length": 48, "output_type": "pt", "prompt": "a red fox"}
    generator = torch.Generator().manual_seed(seed)
    return pipe(**{**options, "num_inference_steps": steps, "generator": generator, **more}).images


def untouched(pipe):
    owners = {"scheduler": pipe.scheduler, "pipe": pipe, "image_processor": pipe.image_processor}
    return not [(o, n) for o, names in WATCHED.items() for n in names if n in vars(owners[o])]


def assert_lawful(trajectory, count):
    """A trajectory whose numbers are consistent."""
    assert trajectory.finished and len(trajectory) == count == len(trajectory.sigmas) - 1
    for step, sigma, following in zip(trajectory, trajectory.sigmas, trajectory.sigmas[1:], strict=False):
        assert (step.sigma, step.dt) == (sigma, following - sigma)
        torch.testing.assert_close(step.x.float() + step.dt * step.v.float(), step.x_next.float(), atol=0.05, rtol=0.05)
        assert step.norms["v"] == pytest.approx(float(step.v.float().norm()), rel=1e-3)
        assert step.x.device.type == "cpu" and not step.x.requires_grad
        assert step.seconds > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("steps", [1, 3, 4])
def test_a_recorded_call_gives_the_bytes_of_one_that_is_not(dtype, steps):
    pipe = toy_pipeline().to(dtype)
    pipe.set_progress_bar_config(disable=True)
    bare = call(pipe, steps=steps)
    with fnb.recording(pipe) as recorder:
        seen = call(pipe, steps=steps)
    assert torch.equal(bare, seen)
    assert_lawful(recorder.trajectories[0], steps)
    assert recorder.trajectories[0][0].v.dtype == dtype


def test_it_keeps_what_the_scheduler_was_given_and_gave(toy_pipe):
    seen = []
    original = toy_pipe.scheduler.step

    def spy(model_output, timestep, sample, **more):
        result = original(model_output, timestep, sample, **more)
        seen.append((sample.clone(), model_output.clone(), result[0].clone()))
        return result

    toy_pipe.scheduler.step = spy
    try:
        with fnb.recording(toy_pipe) as recorder:
            call(toy_pipe)
    finally:
        del toy_pipe.scheduler.step
    for step, (x, v, x_next) in zip(recorder.trajectories[0], seen, strict=True):
        assert torch.equal(step.x, x[0]) and torch.equal(step.v, v[0]) and torch.equal(step.x_next, x_next[0])


def test_the_trajectory_begins_with_the_noise_of_the_seed(toy_pipe):
    from fluxnb.records.latents import pack

    with fnb.recording(toy_pipe) as recorder:
        call(toy_pipe, seed=5)
    noise = torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(5))
    assert torch.equal(recorder.trajectories[0].x_T, pack(noise)[0])


def test_methods_are_patched_during_a_call_and_at_no_other_time(toy_pipe):
    before, during = type(toy_pipe).__call__, []

    def note(pipe, *_):
        during.append(untouched(pipe))
        return {}

    with fnb.recording(toy_pipe) as recorder:
        assert isinstance(recorder, fnb.Recorder) and untouched(toy_pipe)
        call(toy_pipe, callback_on_step_end=note)
        assert untouched(toy_pipe)
    assert during == [False, False, False]
    assert type(toy_pipe).__call__ is before


@pytest.mark.parametrize("broken_at", [0, 1, 2])
def test_a_call_that_raises_leaves_an_unfinished_trajectory_and_the_pipeline_as_before(toy_pipe, broken_at):
    bare, passed = call(toy_pipe), []

    def fail(*_):
        if len(passed) == broken_at:
            raise RuntimeError("the cable")
        passed.append(1)

    hook = toy_pipe.transformer.register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="the cable"), fnb.recording(toy_pipe) as recorder:
            call(toy_pipe)
    finally:
        hook.remove()
    assert [len(trajectory) for trajectory in recorder.trajectories] == ([broken_at] if broken_at else [])
    assert not any(trajectory.finished for trajectory in recorder.trajectories)
    assert untouched(toy_pipe) and torch.equal(call(toy_pipe), bare)


def test_a_call_after_one_that_raised_inside_the_block_is_recorded_whole(toy_pipe):
    with fnb.recording(toy_pipe) as recorder:
        with pytest.raises(ValueError):
            call(toy_pipe, callback_on_step_end=lambda *_: 1 / 0 if False else (_ for _ in ()).throw(ValueError()))
        call(toy_pipe)
    assert [trajectory.finished for trajectory in recorder.trajectories] == [False, True]


@pytest.mark.moderate
def test_blocks_nest_and_each_records_its_own_calls(toy_pipe):
    with fnb.recording(toy_pipe) as outer:
        call(toy_pipe)
        with fnb.recording(toy_pipe) as inner:
            call(toy_pipe, seed=1)
        call(toy_pipe)
    assert (len(outer.trajectories), len(inner.trajectories)) == (3, 1)
    assert torch.equal(outer.trajectories[1].final, inner.trajectories[0].final)
    assert untouched(toy_pipe)


def test_blocks_that_end_out_of_order_leave_nothing_behind(toy_pipe):
    first, second = fnb.recording(toy_pipe), fnb.recording(toy_pipe)
    a, b = first.__enter__(), second.__enter__()
    first.__exit__(None, None, None)
    call(toy_pipe)
    second.__exit__(None, None, None)
    assert (len(a.trajectories), len(b.trajectories)) == (0, 1)
    assert untouched(toy_pipe)


def test_a_run_inside_a_block_is_recorded_too(toy):
    with fnb.recording(toy.pipe) as recorder:
        trajectory = fnb.run(toy, "a fox", steps=2, sampler="renoise")
    assert torch.equal(recorder.trajectories[0].final, trajectory.final)
    assert untouched(toy.pipe)


def test_a_batch_gives_one_trajectory_per_picture(toy_pipe):
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    bare = call(toy_pipe, prompt=["a fox", "a cat"], generator=[g.clone_state() for g in generators])
    with fnb.recording(toy_pipe) as recorder:
        seen = call(toy_pipe, prompt=["a fox", "a cat"], generator=generators)
    assert torch.equal(bare, seen)
    assert [(w.recipe.prompt, w.recipe.seed) for w in recorder.trajectories] == [("a fox", 3), ("a cat", 4)]
    for index, trajectory in enumerate(recorder.trajectories):
        assert_lawful(trajectory, 3)
        expected = (seen[index].permute(1, 2, 0).float() * 255).round().to(torch.uint8)
        assert trajectory.image.tobytes() == expected.numpy().tobytes()
        assert (
            trajectory[0].x.untyped_storage().nbytes() == trajectory[0].x.nbytes
        )  # no view that keeps the batch alive


def test_true_cfg_is_recorded_as_the_combined_velocity(toy_pipe):
    options = {"negative_prompt": "snow", "true_cfg_scale": 2.5}
    bare = call(toy_pipe, **options)
    with fnb.recording(toy_pipe) as recorder:
        seen = call(toy_pipe, **options)
    assert torch.equal(bare, seen)
    assert_lawful(recorder.trajectories[0], 3)
    assert recorder.trajectories[0].recipe is None  # the scale passes by nowhere that can be watched


def test_image_to_image_starts_at_the_step_of_its_strength(toy_pipe):
    from diffusers import FluxImg2ImgPipeline

    pipe = FluxImg2ImgPipeline(**toy_pipe.components)
    pipe.set_progress_bar_config(disable=True)
    options = {"image": torch.full((1, 3, 32, 48), 0.5), "strength": 0.5}
    bare = call(pipe, steps=4, **options)
    with fnb.recording(pipe) as recorder:
        seen = call(pipe, steps=4, **options)
    assert torch.equal(bare, seen)
    trajectory = recorder.trajectories[0]
    assert_lawful(trajectory, 2)
    assert trajectory.sigmas == (0.5, 0.25, 0.0) and trajectory.recipe is None and trajectory.image is not None


def test_inpainting_keeps_both_what_came_out_and_what_went_in_next(toy_pipe):
    from diffusers import FluxInpaintPipeline

    pipe = FluxInpaintPipeline(**toy_pipe.components)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 32, 48)
    mask[..., :24] = 1
    options = {"image": torch.full((1, 3, 32, 48), 0.5), "mask_image": mask, "strength": 1.0}
    bare = call(pipe, steps=4, **options)
    with fnb.recording(pipe) as recorder:
        seen = call(pipe, steps=4, **options)
    assert torch.equal(bare, seen)
    trajectory = recorder.trajectories[0]
    assert_lawful(trajectory, 4)
    assert not torch.equal(trajectory[0].x_next, trajectory[1].x)  # the known half was put back in between


def test_a_callback_that_writes_into_the_latents_is_recorded_truly(toy_pipe):
    def nudge(pipe, index, timestep, given):
        given["latents"].mul_(0.5)  # in place: the very tensor the scheduler returned
        return given

    with fnb.recording(toy_pipe) as recorder:
        call(toy_pipe, callback_on_step_end=nudge)
    trajectory = recorder.trajectories[0]
    torch.testing.assert_close(trajectory[1].x, trajectory[0].x_next * 0.5)


def test_inference_mode_is_recorded_too(toy_pipe):
    with torch.inference_mode(), fnb.recording(toy_pipe) as recorder:
        call(toy_pipe)
    assert_lawful(recorder.trajectories[0], 3)


@pytest.mark.moderate
def test_a_compiled_transformer_is_recorded(toy_pipe):
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    bare = call(pipe)
    with fnb.recording(pipe) as recorder:
        assert torch.equal(call(pipe), bare)
    assert_lawful(recorder.trajectories[0], 3)


def test_keep_determines_which_tensors_remain(toy_pipe):
    with fnb.recording(toy_pipe, keep=fnb.Keep(steps=(1,), tensors=("v",))) as recorder:
        call(toy_pipe)
    assert [sorted(step.tensors) for step in recorder.trajectories[0]] == [[], ["v"], []]
    assert all(step.norms["x"] > 0 for step in recorder.trajectories[0])


@pytest.mark.moderate
def test_no_record_holds_the_pipeline():
    import gc
    import weakref

    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with fnb.recording(pipe) as recorder:
        call(pipe)
    gone = weakref.ref(pipe.transformer)
    del pipe
    gc.collect()
    assert gone() is None and len(recorder.trajectories) == 1


@pytest.mark.parametrize(
    ("options", "known"),
    [
        ({}, True),
        ({"sigmas": [1.0, 0.4]}, True),
        ({"generator": None}, False),
        ({"latents": torch.zeros(1, 6, 64)}, False),
        ({"prompt": ""}, False),
    ],
)
def test_a_call_has_a_recipe_where_its_arguments_determine_one(toy_pipe, options, known):
    with fnb.recording(toy_pipe) as recorder:
        seen = call(toy_pipe, **options)
    recipe = recorder.trajectories[0].recipe
    assert (recipe is not None) == known
    if recipe is not None:
        again = fnb.run(fnb.load(toy_pipe), recipe)
        expected = (seen[0].permute(1, 2, 0) * 255).round().to(torch.uint8)
        assert again.image.tobytes() == expected.numpy().tobytes()


def test_a_used_generator_has_no_known_seed(toy_pipe):
    generator = torch.Generator().manual_seed(3)
    torch.randn(1, generator=generator)
    with fnb.recording(toy_pipe) as recorder:
        call(toy_pipe, generator=generator)
    assert recorder.trajectories[0].recipe is None


def test_an_object_that_is_no_pipeline_is_refused():
    with pytest.raises(InputError, match="scheduler"), fnb.recording("pocket"):
        pass


def test_the_prompt_of_each_picture_is_recorded_without_a_recipe_too(toy_pipe):
    settings = {"num_inference_steps": 1, "height": 64, "width": 64, "max_sequence_length": 48}
    with fnb.recording(toy_pipe) as recorder:
        toy_pipe(["a fox", "a cat"], num_images_per_prompt=2, **settings)
    assert [each.prompt for each in recorder.trajectories] == ["a fox", "a fox", "a cat", "a cat"]
    assert all(each.recipe is None for each in recorder.trajectories)
    embeds = toy_pipe.encode_prompt("a fox", "a fox", max_sequence_length=48)[:2]
    with fnb.recording(toy_pipe) as recorder:
        toy_pipe(prompt_embeds=embeds[0], pooled_prompt_embeds=embeds[1], **settings)
    assert recorder.trajectories[0].prompt == "" and recorder.trajectories[0].caption.startswith("no recipe")
