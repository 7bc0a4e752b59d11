"""`fnb.invert`: from a picture to noise and back."""

from __future__ import annotations

import itertools

import pytest
import torch
from PIL import Image

import fluxnb as fnb
from fluxnb.errors import InputError
from fluxnb.flow import schedule


def rms(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).pow(2).mean().sqrt())


@pytest.fixture(scope="module")
def picture(toy) -> fnb.Trajectory:
    return fnb.run(toy, "a fox", seed=1, steps=4)


@pytest.fixture(scope="module")
def inverted(toy, picture) -> fnb.Trajectory:
    return fnb.invert(toy, picture, "a fox", steps=4)


def test_an_inversion_goes_from_the_picture_up_to_sigma_one(inverted, picture):
    assert inverted.sigmas == schedule(4)[::-1] and inverted.finished and len(inverted) == 4
    assert torch.equal(inverted.x_T, picture.final)
    for step, (low, high) in zip(inverted, itertools.pairwise(inverted.sigmas), strict=True):
        assert (step.sigma, step.sigma + step.dt) == pytest.approx((low, high))
        torch.testing.assert_close(step.x_next, step.x + (high - low) * step.v)


def test_an_inversion_has_no_picture_and_no_recipe_and_states_why(inverted):
    assert inverted.image is None and inverted.recipe is None and inverted.prompt == "a fox"
    assert inverted.recipe_missing == "the run inverted a picture"


@pytest.mark.moderate
def test_the_network_is_evaluated_at_the_upper_level_of_each_step(toy, monkeypatch, picture):
    seen = []
    forward = toy.pipe.transformer.forward

    def spy(*args, **kwargs):
        seen.append(float(kwargs["timestep"][0]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(toy.pipe.transformer, "forward", spy)
    fnb.invert(toy, picture, "a fox", steps=4)
    assert seen == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_an_image_and_its_latents_give_the_same_inversion(toy, picture):
    of_image = fnb.invert(toy, picture.image, "a fox", steps=2)
    of_latents = fnb.invert(toy, toy.encode_image(picture.image), "a fox", steps=2)
    assert torch.equal(of_image.final, of_latents.final)
    assert (of_image.height, of_image.width) == (picture.height, picture.width)


def test_a_velocity_that_does_not_depend_on_x_is_inverted_exactly(toy, monkeypatch, picture):
    forward = toy.pipe.transformer.forward

    def of_sigma_alone(*args, hidden_states, timestep, **kwargs):
        out = forward(*args, hidden_states=hidden_states, timestep=timestep, **kwargs)
        return (torch.ones_like(out[0]) * timestep.view(-1, 1, 1), *out[1:])

    monkeypatch.setattr(toy.pipe.transformer, "forward", of_sigma_alone)
    inverted = fnb.invert(toy, picture, "a fox", steps=3)
    back = fnb.run(toy, "a fox", noise=inverted.final, steps=3)
    assert rms(back.final, picture.final) < 1e-6


def test_the_plain_call_after_an_inversion_is_what_it_was(toy, picture, inverted):
    assert fnb.run(toy, "a fox", seed=1, steps=4).image.tobytes() == picture.image.tobytes()


def test_an_inversion_that_is_stopped_is_unfinished(toy, picture):
    stopped = fnb.invert(toy, picture, "a fox", steps=4, on_step=lambda step: fnb.STOP if step.index == 1 else None)
    assert not stopped.finished and len(stopped) == 2 and stopped.image is None


@pytest.mark.moderate
def test_an_inversion_is_saved_and_drawn(inverted, tmp_path):
    opened = fnb.open_trajectory(inverted.save(tmp_path / "a.safetensors"))
    assert opened.sigmas == inverted.sigmas and torch.equal(opened.final, inverted.final)
    for view in (fnb.filmstrip, fnb.plots.sigma_curve, fnb.plots.lock_in, fnb.plots.velocity, fnb.plots.path):
        assert view(inverted) is not None
    assert inverted.to_html(tmp_path / "a.html").exists()
    assert fnb.metrics.coarseness(inverted) == 0.25 and fnb.metrics.straightness(inverted) >= 0


@pytest.mark.parametrize(
    "given",
    [torch.zeros(3, 8, 8), torch.zeros(16, 7, 8), torch.full((16, 8, 8), torch.nan), Image.new("RGB", (50, 64))],
)
def test_a_picture_of_another_form_is_refused_in_three_parts(toy, given):
    with pytest.raises(InputError) as caught:
        fnb.invert(toy, given, "a fox")
    assert caught.value.possible and caught.value.remedy


@pytest.mark.parametrize("sampler", ["heun", "renoise"])
def test_a_recipe_with_another_sampler_is_refused(toy, picture, sampler):
    with pytest.raises(InputError, match="Euler steps"):
        fnb.invert(toy, picture, fnb.Recipe(prompt="a fox", sampler=sampler))


def round_trip(flux, latents: torch.Tensor, prompt: str, steps: int) -> float:
    """The error of a picture's latents after the way up to noise and down again."""
    noise = fnb.invert(flux, latents, prompt, steps=steps).final
    back = fnb.run(flux, prompt, noise=noise, steps=steps)
    return rms(back.steps[-1].latents("x_next"), latents)


def test_the_error_of_the_round_trip_is_of_first_order_where_the_velocity_is_smooth(toy, picture):
    latents = picture.steps[-1].latents("x_next")
    errors = [round_trip(toy, latents, "a fox", steps) for steps in (8, 16, 32)]
    assert [coarse / fine for coarse, fine in itertools.pairwise(errors)] == pytest.approx([2, 2], abs=0.1)


@pytest.mark.slow
def test_the_error_of_the_round_trip_falls_with_the_number_of_steps_on_pocket():
    # pocket's trajectories are nearly straight. pocket-base takes very different noise to one picture, so that the
    # noise cannot be found again; its errors need not fall at these numbers of steps.
    flux = fnb.load("pocket")
    prompts = ("a castle on the beach at sunset", "a woman at the beach", "a robot in space")
    latents = {prompt: flux.encode_image(fnb.run(flux, prompt, seed=3).image) for prompt in prompts}
    errors = {n: [round_trip(flux, latents[prompt], prompt, n) for prompt in prompts] for n in (4, 28)}
    assert sum(errors[28]) < 0.6 * sum(errors[4])
