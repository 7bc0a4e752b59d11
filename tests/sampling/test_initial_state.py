"""Runs that begin from a given noise, or from a picture that is mixed with noise."""

import numpy as np
import pytest
import torch
from PIL import Image

import fluxnb as fnb
from fluxnb.errors import ArgumentError, InputError, RunError
from fluxnb.flow import interpolate
from tests.conftest import toy_pipeline
from tests.families import tiny

pytestmark = pytest.mark.moderate
FOX = "a red fox"


@pytest.fixture(scope="module")
def flux():
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return fnb.load(pipe)


@pytest.fixture(scope="module")
def plain(flux):
    return fnb.run(flux, FOX, seed=3, steps=4)


def test_the_noise_of_a_run_gives_its_picture_again(flux, plain):
    again = fnb.run(flux, FOX, seed=9, steps=4, noise=plain.x_T)
    assert again.image.tobytes() == plain.image.tobytes() and torch.equal(again.final, plain.final)


def test_the_initial_noise_of_a_recipe_is_that_of_its_run(flux, plain):
    assert torch.equal(flux.initial_noise(plain.recipe)[0], plain.x_T)


def test_another_noise_gives_the_picture_of_the_plain_call_with_these_latents(flux, plain):
    noise = torch.randn(plain.x_T.shape, generator=torch.Generator().manual_seed(5))
    ours = fnb.run(flux, FOX, steps=2, noise=noise)
    size = {"height": plain.height, "width": plain.width, "max_sequence_length": plain.recipe.max_sequence_length}
    theirs = flux.pipe(FOX, latents=noise[None], num_inference_steps=2, guidance_scale=0.0, **size).images[0]
    assert ours.image.tobytes() == theirs.tobytes()


def test_no_recipe_claims_to_repeat_such_a_run(flux, plain):
    from_noise = fnb.run(flux, FOX, steps=1, noise=plain.x_T)
    from_image = fnb.run(flux, FOX, steps=2, image=plain.image)
    assert from_noise.recipe is None and from_noise.recipe_missing == "the initial noise was given"
    assert from_image.recipe is None and from_image.recipe_missing == "the run began from a picture"


def test_a_run_at_full_strength_ignores_the_image(flux, plain):
    again = fnb.run(flux, FOX, seed=3, steps=4, image=Image.new("RGB", plain.image.size, "red"), strength=1)
    assert again.image.tobytes() == plain.image.tobytes() and again.sigmas == plain.sigmas


def test_a_run_from_an_image_begins_at_its_noise_level(flux, plain):
    run = fnb.run(flux, FOX, seed=3, steps=4, image=plain.image, strength=0.5)
    assert run.finished and run.sigmas == plain.sigmas[2:] and [step.index for step in run.steps] == [0, 1]
    clean = flux.geometry.arrange(flux.encode_image(plain.image))
    assert torch.equal(run.x_T, interpolate(clean, plain.x_T, plain.sigmas[2]))


def test_each_step_from_an_image_is_followed(flux, plain):
    seen = []
    fnb.run(
        flux, FOX, steps=4, image=plain.image, strength=0.5, on_step=lambda step: seen.append((step.index, step.sigma))
    )
    assert seen == [(0, plain.sigmas[2]), (1, plain.sigmas[3])]


def test_the_last_step_of_a_run_from_an_image_is_kept_where_the_last_is_to_be_kept(flux, plain):
    run = fnb.run(flux, FOX, steps=4, image=plain.image, strength=0.5, keep=fnb.Keep(steps=(-1,)))
    assert [bool(step.tensors) for step in run.steps] == [False, True]


def test_the_size_of_a_run_is_that_of_the_image(flux):
    run = fnb.run(flux, FOX, steps=2, image=Image.new("RGB", (96, 64)), strength=0.5)
    assert run.image.size == (96, 64)


@pytest.mark.parametrize("build", [lambda: tiny.klein(distilled=True), lambda: tiny.z_image(turbo=True)])
def test_other_families_begin_from_an_image_too(build):
    flux = fnb.load(build())
    plain = fnb.run(flux, FOX, steps=3, height=64, width=64)
    run = fnb.run(flux, FOX, steps=3, image=plain.image, strength=0.6)
    assert len(run) == 2 and run.image.size == plain.image.size
    again = fnb.run(flux, FOX, steps=3, height=64, width=64, noise=plain.x_T)
    assert again.image.tobytes() == plain.image.tobytes()


def test_pocket_repeats_a_picture_from_its_latents():
    flux = fnb.load("pocket")
    plain = fnb.run(flux, FOX, seed=1)
    latents = flux.encode_image(plain.image)
    assert latents.shape == (16, plain.image.height // 8, plain.image.width // 8)
    (again,) = flux.decode(latents[None])
    difference = np.asarray(again, float) - np.asarray(plain.image, float)
    assert np.sqrt((difference**2).mean()) < 8  # of 255


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": torch.zeros(3, 3)}, "its shape is"),
        ({"noise": torch.full((16, 64), float("nan"))}, "not finite"),
        ({"strength": 0.5}, "without an image"),
        ({"image": Image.new("RGB", (64, 64)), "strength": 0}, "0 to 1 is possible"),
        ({"image": Image.new("RGB", (64, 64)), "strength": float("nan")}, "0 to 1 is possible"),
        ({"image": Image.new("RGB", (64, 64)), "height": 96}, "same size"),
    ],
)
def test_an_impossible_beginning_is_refused(flux, arguments, message):
    with pytest.raises(InputError, match=message):
        fnb.run(flux, FOX, **arguments)


def test_latents_that_are_not_finite_are_refused(plain):
    pipe = toy_pipeline()
    flux = fnb.load(pipe)
    with torch.no_grad():
        next(iter(pipe.vae.encoder.parameters())).fill_(float("nan"))
    with pytest.raises(RunError, match="encoded are not finite"):
        fnb.run(flux, FOX, image=plain.image)


def test_an_image_of_a_size_that_no_model_draws_is_refused(flux):
    with pytest.raises(InputError, match=r"resize\(\(48, 64\)\)"):
        flux.encode_image(Image.new("RGB", (50, 70)))


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ({"image": "fox.png"}, "image=trajectory.image"),
        ({"noise": [0.0]}, "noise=trajectory.x_T"),
        ({"latents": 0}, "noise="),
    ],
)
def test_arguments_of_another_type_are_answered(flux, arguments, remedy):
    with pytest.raises(ArgumentError, match=remedy):
        fnb.run(flux, FOX, **arguments)


def test_a_sweep_names_the_function_that_takes_an_image(flux):
    with pytest.raises(ArgumentError, match=r"image is an argument of fnb\.run"):
        fnb.sweep(flux, prompts=[FOX], image=Image.new("RGB", (64, 64)))


def test_a_schedule_that_cannot_begin_in_the_middle_is_refused(plain):
    pipe = toy_pipeline()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, use_karras_sigmas=True)
    with pytest.raises(InputError, match="cannot begin in the middle"):
        fnb.run(fnb.load(pipe), FOX, steps=4, image=plain.image, strength=0.5)


def test_the_prompt_of_such_a_run_is_in_its_caption_and_its_file(flux, plain, tmp_path):
    run = fnb.run(flux, FOX, steps=2, noise=plain.x_T)
    fnb.save(run, tmp_path / "run.safetensors")
    again = fnb.open_trajectory(tmp_path / "run.safetensors")
    assert again.prompt == run.prompt == FOX and again.recipe is None
    assert again.caption == run.caption == "a red fox, pipeline, 2 steps"
    assert again.recipe_missing == "the initial noise was given"
