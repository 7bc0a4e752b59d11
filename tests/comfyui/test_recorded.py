"""The picture of ComfyUI that notebook 07 displays as recorded."""

from __future__ import annotations

import numpy
import pytest

import fluxnb as fnb
from tests.comfyui.record import differing, pixels, recorded, sampled

pytestmark = pytest.mark.moderate


@pytest.fixture(scope="module")
def trajectory():
    return sampled()


def test_the_recorded_picture_of_comfyui_has_the_recipe_of_the_run(trajectory):
    read = fnb.import_recipe(recorded())
    assert read.source == "comfyui" and read.differs == () and read.recipe == trajectory.recipe


def test_the_recorded_picture_of_comfyui_has_the_pixels_of_the_run_to_one_level(trajectory):
    count, levels = differing(pixels(recorded()), numpy.asarray(trajectory.image))
    assert levels <= 1 and count <= 50
