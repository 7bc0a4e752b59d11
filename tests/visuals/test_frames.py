"""Frames: the one source of pictures for strips, widgets, pages and animations."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image

from fluxnb.errors import InputError
from fluxnb.records import Film
from fluxnb.records.geometry import Geometry
from fluxnb.visuals import frames as frames_module
from fluxnb.visuals.frames import _limits as limits
from fluxnb.visuals.frames import frame_sets, frames_of, payload, webp
from tests.scenes import PREVIEW, grid, trajectory


def test_a_trajectory_has_one_frame_for_each_step_and_quantity():
    frame_set = frames_of(trajectory(steps=3))
    assert {show: len(frames) for show, frames in frame_set.frames.items()} == {"clean": 3, "x": 3, "v": 3, "noise": 3}
    assert frame_set.sigmas == trajectory(steps=3).sigmas[:-1]
    assert frame_set.final is not None and frame_set.by == "the linear preview (rms 0.05 from the VAE)"


def test_without_decode_the_frames_are_the_linear_preview_of_the_trajectory():
    record = trajectory(steps=2)
    expected = PREVIEW(record.steps[1].latents("clean")).numpy()
    np.testing.assert_array_equal(np.asarray(frames_of(record).frames["clean"][1]), expected)


def test_decode_gets_the_spatial_latents_of_all_steps_at_once():
    shapes = []

    def decode(latents: torch.Tensor) -> list[Image.Image]:
        shapes.append(tuple(latents.shape))
        return [Image.new("RGB", (8, 8), (index, 0, 0)) for index in range(len(latents))]

    frame_set = frames_of(trajectory(steps=4), shows=["x", "clean"], decode=decode)
    assert shapes == [(4, 16, 16, 16)] * 2
    assert [frame.getpixel((0, 0)) for frame in frame_set.frames["x"]] == [(i, 0, 0) for i in range(4)]


def test_without_a_preview_the_principal_components_are_displayed_and_named():
    frame_set = frames_of(trajectory(preview=False))
    assert "principal" in frame_set.by
    assert np.asarray(frame_set.frames["clean"][-1]).std() > 5


def test_the_frames_of_a_film_are_used_unchanged():
    frames = tuple(Image.new("RGB", (8, 8), (index, 0, 0)) for index in range(2))
    film = Film(frames=frames, what="x", by="vae", sigmas=(1.0, 0.5), steps=(0, 1), caption="c")
    frame_set = frames_of(film)
    assert frame_set.frames == {"x": frames} and frame_set.by == "the VAE"


@pytest.mark.parametrize("sigma, expected", [(1.0, 0), (0.8, 0), (0.75, 1), (0.5, 2), (0.26, 2), (0.25, 3), (0.01, 3)])
def test_the_frame_at_a_sigma_is_that_of_the_last_step_at_this_level_or_above(sigma, expected):
    frame_set = frames_of(trajectory(steps=4))
    assert frame_set.at("clean", sigma) is frame_set.frames["clean"][expected]


def test_at_sigma_zero_x_and_clean_are_the_picture_and_the_velocity_is_its_last_frame():
    frame_set = frames_of(trajectory(steps=4))
    assert frame_set.at("x", 0.0) is frame_set.final
    assert frame_set.at("v", 0.0) is frame_set.frames["v"][-1]


def test_labels_contain_only_what_differs():
    assert [frame_set.label for frame_set in frame_sets([trajectory(steps=1), trajectory(steps=4)])] == [
        "1 step",
        "4 steps",
    ]
    assert [frame_set.label for frame_set in frame_sets([trajectory(seed=1), trajectory(seed=2)])] == [
        "seed 1",
        "seed 2",
    ]
    both = frame_sets([trajectory(model="base", steps=28), trajectory(model="pocket", steps=4)])
    assert [frame_set.label for frame_set in both] == ["base, 28 steps", "pocket, 4 steps"]
    assert [frame_set.label for frame_set in frame_sets(grid(seeds=[7], steps=[1, 2]))] == ["1 step", "2 steps"]


def test_payload_contains_equal_pictures_once_and_refers_to_every_frame():
    record = trajectory(steps=2)
    data, frames = payload([record, record], frame_sets([record, record]))
    assert len(frames) == 8  # 2 steps x 4 shows + the picture, less one: at sigma 1 the noise estimate is x
    numbers = {n for w in data["trajectories"] for show in w["frames"].values() for n in show} | {
        data["trajectories"][0]["final"]
    }
    assert numbers == set(range(8))
    assert all(Image.open(io.BytesIO(frame)).format == "WEBP" for frame in frames)


def test_a_small_frame_is_encoded_without_loss():
    frame = frames_of(trajectory()).frames["x"][0]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(webp(frame)))), np.asarray(frame))


@pytest.mark.parametrize("bad", [[], 3, "fox", [1, 2]])
def test_a_record_of_another_type_raises_an_error(bad):
    with pytest.raises(InputError):
        frame_sets(bad)


def test_an_unknown_quantity_raises_an_error_with_the_known_ones():
    with pytest.raises(InputError, match="noise"):
        frames_of(trajectory(), shows=["nose"])


def test_a_wrong_number_of_labels_raises_an_error():
    with pytest.raises(InputError, match="1 labels for 2 trajectories"):
        frame_sets([trajectory(), trajectory()], labels=["one"])


@pytest.mark.moderate
def test_a_picture_of_8192_pixels_is_reduced_in_a_payload_and_a_small_one_is_not():
    small, large = (dataclasses.replace(trajectory(steps=1), image=Image.new("RGB", (n, n))) for n in (1024, 8192))
    for record, expected in ((small, 1024), (large, 4096)):
        data, frames = payload(record, frame_sets(record))
        assert Image.open(io.BytesIO(frames[data["trajectories"][0]["final"]])).size == (expected, expected)


@pytest.mark.moderate
def test_many_pictures_are_reduced_to_forty_million_pixels():
    frames = tuple(Image.new("RGB", (512, 256), (index, 0, 0)) for index in range(200))
    film = Film(frames=frames, what="clean", by="vae", sigmas=(0.5,) * 200, steps=tuple(range(200)), caption="c")
    longest, effort = limits(frame_sets(film))
    assert longest == 4096 and effort == 1
    large = tuple(Image.new("RGB", (2048, 1024), (index, 0, 0)) for index in range(40))
    film = dataclasses.replace(film, frames=large, sigmas=(0.5,) * 40, steps=tuple(range(40)))
    longest, effort = limits(frame_sets(film))
    assert 1000 < longest < 1500 and 40 * longest * longest / 2 <= 40e6 and effort == 1


@pytest.mark.parametrize("channels", [1, 2])
def test_latents_of_few_channels_have_principal_components(channels):
    geometry = Geometry(channels=channels, layout="spatial")
    tensors = {name: torch.randn(channels, 8, 8) for name in ("x", "v", "x_next")}
    record = trajectory(steps=1, size=64, preview=False)
    step = dataclasses.replace(record[0], tensors=tensors, geometry=geometry)
    (frame,) = frames_of(dataclasses.replace(record, steps=(step,), geometry=geometry)).frames["clean"]
    assert frame.size == (8, 8) and np.asarray(frame)[..., 0].std() > 5


def test_a_trajectory_without_tensors_and_preview_has_its_picture():
    record = trajectory(steps=2, preview=False, keep=False)
    frame_set = frames_of(record)
    assert frame_set.final is record.image and frame_set.frames["clean"] == ()


@pytest.mark.moderate
def test_the_principal_components_of_large_latents_are_those_of_a_part_of_their_cells():
    record = trajectory(steps=1, size=1024, preview=False)
    (frame,) = frames_of(record, shows=["clean"]).frames["clean"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames_module, "MOST_CELLS", 4096)
        (of_a_part,) = frames_of(record, shows=["clean"]).frames["clean"]
    assert abs(np.asarray(frame, int) - np.asarray(of_a_part, int)).mean() < 3


def test_a_trajectory_of_a_single_cell_has_principal_components():
    record = trajectory(steps=2, size=16, preview=False)
    assert frames_of(record).frames["clean"][0].mode == "RGB"
