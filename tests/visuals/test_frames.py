"""Frames: the one source of pictures for strips, scrubbers, pages and GIFs."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fluxnb.errors import InputError
from fluxnb.records import Film
from fluxnb.visuals.frames import frame_sets, frames_of, payload, webp
from tests.scenes import PREVIEW, grid, trajectory


def test_a_walk_becomes_one_frame_per_step_and_show():
    roll = frames_of(trajectory(steps=3))
    assert {show: len(frames) for show, frames in roll.frames.items()} == {"clean": 3, "x": 3, "v": 3, "noise": 3}
    assert roll.sigmas == trajectory(steps=3).sigmas[:-1]
    assert roll.final is not None and roll.by == "the linear preview (rms 0.05 from the VAE)"


def test_the_frames_are_the_walks_own_linear_preview():
    made = trajectory(steps=2)
    expected = PREVIEW(made.steps[1].latents("clean")).numpy()
    np.testing.assert_array_equal(np.asarray(frames_of(made).frames["clean"][1]), expected)


def test_a_decoder_that_is_handed_in_gets_spatial_latents_of_all_steps_at_once():
    seen = []

    def decode(latents: torch.Tensor) -> list[Image.Image]:
        seen.append(tuple(latents.shape))
        return [Image.new("RGB", (8, 8), (index, 0, 0)) for index in range(len(latents))]

    roll = frames_of(trajectory(steps=4), shows=["x", "clean"], decode=decode)
    assert seen == [(4, 16, 16, 16)] * 2
    assert [frame.getpixel((0, 0)) for frame in roll.frames["x"]] == [(i, 0, 0) for i in range(4)]


def test_without_a_preview_a_walk_shows_its_principal_directions_and_says_so():
    roll = frames_of(trajectory(preview=False))
    assert "principal" in roll.by
    assert np.asarray(roll.frames["clean"][-1]).std() > 5


def test_a_film_is_taken_as_it_is():
    frames = tuple(Image.new("RGB", (8, 8), (index, 0, 0)) for index in range(2))
    film = Film(frames=frames, what="x", by="vae", sigmas=(1.0, 0.5), steps=(0, 1), caption="c")
    roll = frames_of(film)
    assert roll.frames == {"x": frames} and roll.by == "the VAE"


@pytest.mark.parametrize("sigma, expected", [(1.0, 0), (0.8, 0), (0.75, 1), (0.5, 2), (0.26, 2), (0.25, 3), (0.01, 3)])
def test_at_a_sigma_the_frame_of_the_last_step_begun_is_in_view(sigma, expected):
    roll = frames_of(trajectory(steps=4))
    assert roll.at("clean", sigma) is roll.frames["clean"][expected]


def test_at_zero_x_and_the_clean_estimate_are_the_picture_and_the_velocity_its_last_value():
    roll = frames_of(trajectory(steps=4))
    assert roll.at("x", 0.0) is roll.final
    assert roll.at("v", 0.0) is roll.frames["v"][-1]


def test_labels_name_only_what_differs():
    assert [roll.label for roll in frame_sets([trajectory(steps=1), trajectory(steps=4)])] == ["1 step", "4 steps"]
    assert [roll.label for roll in frame_sets([trajectory(seed=1), trajectory(seed=2)])] == ["seed 1", "seed 2"]
    both = frame_sets([trajectory(model="base", steps=28), trajectory(model="pocket", steps=4)])
    assert [roll.label for roll in both] == ["base, 28 steps", "pocket, 4 steps"]
    assert [roll.label for roll in frame_sets(grid(seeds=[7], steps=[1, 2]))] == ["1 step", "2 steps"]


def test_payload_sends_equal_pictures_once_and_numbers_every_frame():
    made = trajectory(steps=2)
    data, frames = payload([made, made], frame_sets([made, made]))
    assert len(frames) == 8  # 2 steps x 4 shows + the picture, less one: at sigma 1 the noise estimate is x
    numbers = {n for w in data["trajectories"] for show in w["frames"].values() for n in show} | {
        data["trajectories"][0]["final"]
    }
    assert numbers == set(range(8))
    assert all(Image.open(io.BytesIO(frame)).format == "WEBP" for frame in frames)


def test_a_small_frame_survives_webp_without_loss():
    frame = frames_of(trajectory()).frames["x"][0]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(webp(frame)))), np.asarray(frame))


@pytest.mark.parametrize("bad", [[], 3, "walk", [1, 2]])
def test_what_cannot_be_shown_is_an_error_that_says_what_can(bad):
    with pytest.raises(InputError):
        frame_sets(bad)


def test_an_unknown_show_names_the_known_ones():
    with pytest.raises(InputError, match="noise"):
        frames_of(trajectory(), shows=["nose"])


def test_labels_must_be_one_per_walk():
    with pytest.raises(InputError, match="1 labels for 2 walks"):
        frame_sets([trajectory(), trajectory()], labels=["one"])
