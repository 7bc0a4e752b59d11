from __future__ import annotations

import dataclasses

import pytest
import torch

from fluxnb.errors import InputError
from fluxnb.records import Geometry, Keep
from fluxnb.records.geometry import FLUX1
from tests.trajectories import noise, sample_trajectory

KLEIN = Geometry(channels=32)
Z_IMAGE = Geometry(layout="spatial")
IDEOGRAM = Geometry(channels=32, order="ph pw c")


@pytest.mark.parametrize("geometry", [FLUX1, KLEIN, Z_IMAGE, IDEOGRAM], ids=["flux1", "klein", "z_image", "ideogram"])
def test_arrange_is_the_inverse_of_latents(geometry):
    latents = torch.randn(2, geometry.channels, 8, 12)
    x = geometry.arrange(latents)
    assert tuple(x.shape[1:]) == geometry.shape(64, 96) and x[0].numel() == geometry.numbers(64, 96)
    assert torch.equal(geometry.latents(x, 64, 96), latents)


def test_the_features_of_a_token_are_in_the_order_of_the_geometry():
    latents = torch.arange(8.0).reshape(2, 2, 2)  # two channels of 2 x 2 cells: one token
    channels_first = Geometry(channels=2).arrange(latents)
    channels_last = Geometry(channels=2, order="ph pw c").arrange(latents)
    assert channels_first.flatten().tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert channels_last.flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("geometry", [FLUX1, Z_IMAGE])
def test_x_of_another_size_is_an_input_error(geometry):
    with pytest.raises(InputError, match="for 32 x 32 pixels"):
        geometry.latents(geometry.arrange(torch.zeros(16, 8, 8)), 32, 32)


def test_tokens_of_another_family_are_an_input_error_with_both_shapes():
    with pytest.raises(InputError, match=r"x of \(4, 128\) for 32 x 32 pixels: .*x of \(4, 64\)"):
        FLUX1.latents(torch.zeros(4, 128), 32, 32)


@pytest.mark.parametrize(
    "wrong", [{"channels": 0}, {"cell": 8.0}, {"patch": True}, {"layout": "rows"}, {"order": "pw ph c"}, {"cell": 96}]
)
def test_an_impossible_geometry_is_an_input_error(wrong):
    with pytest.raises(InputError):
        Geometry(**wrong)


def test_a_geometry_comes_back_from_json():
    assert Geometry.from_json(IDEOGRAM.to_json()) == IDEOGRAM


def test_a_step_in_space_has_the_latents_of_its_geometry():
    made = sample_trajectory(lambda x, s: x.sin(), noise(), (1.0, 0.5, 0.0))
    step = dataclasses.replace(
        made[0], geometry=Z_IMAGE, tensors={k: FLUX1.latents(v, 32, 32) for k, v in made[0].tensors.items()}
    )
    assert torch.equal(step.latents("clean"), made[0].latents("clean"))


def test_the_memory_predicted_by_keep_follows_the_geometry():
    assert Keep().nbytes(64, 64, 4, geometry=KLEIN) == 2 * Keep().nbytes(64, 64, 4)
