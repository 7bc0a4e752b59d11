"""Every view of a trajectory that lacks something, or has an unusual geometry, is a picture or an error in three parts.

Trajectory files can hold all of these.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fluxnb.records.geometry import Geometry
from tests import scenes
from tests.visuals.test_not_finite import VIEWS, check


def without(trajectory, *names, steps=(0, 1, 2)):
    """The trajectory without these tensors of these steps."""
    reduced = [
        dataclasses.replace(step, tensors={name: value for name, value in step.tensors.items() if name not in names})
        if step.index in steps
        else step
        for step in trajectory.steps
    ]
    return dataclasses.replace(trajectory, steps=tuple(reduced))


def arranged(trajectory, **geometry):
    """The trajectory with tensors of another geometry."""
    changed = Geometry(**geometry)
    shape = changed.shape(trajectory.height, trajectory.width)
    tensors = {name: torch.randn(shape, generator=torch.Generator().manual_seed(0)) for name in ("x", "v", "x_next")}
    steps = [dataclasses.replace(step, geometry=changed, tensors=tensors) for step in trajectory.steps]
    return dataclasses.replace(trajectory, steps=tuple(steps), geometry=changed, preview=None)


ALL = ("x", "v", "x_next", "attention")
LACKS = {
    "nothing": lambda t: t,
    "tensors": lambda t: without(t, *ALL),
    "picture": lambda t: dataclasses.replace(t, image=None),
    "tensors and picture": lambda t: dataclasses.replace(without(t, *ALL), image=None),
    "steps": lambda t: dataclasses.replace(t, steps=(), sigmas=()),
    "steps and picture": lambda t: dataclasses.replace(t, steps=(), sigmas=(), image=None),
    "recipe": lambda t: dataclasses.replace(t, recipe=None),
    "words": lambda t: dataclasses.replace(t, words=()),
    **{name: lambda t, name=name: without(t, name) for name in ALL},
    "x, v and x_next": lambda t: without(t, *ALL[:3]),
    "tensors of the first and the last step": lambda t: without(t, *ALL, steps=(0, 2)),
}
GEOMETRIES = {
    "one channel": {"channels": 1, "layout": "spatial"},
    "two channels": {"channels": 2, "layout": "spatial"},
    "most channels": {"channels": 128, "layout": "spatial"},
    "one number in a token": {"channels": 1, "patch": 1},
    "a single token": {"channels": 4, "cell": 16, "patch": 4},
    "pixels": {"channels": 3, "cell": 1, "patch": 1},
}


@pytest.mark.long
@pytest.mark.parametrize("preview", [True, False], ids=["preview", "no preview"])
@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_an_incomplete_trajectory_is_a_picture_or_an_error(view, lack, preview, tmp_path):
    check(view, LACKS[lack](scenes.trajectory(steps=3, size=64, preview=preview, attention=True)), tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_an_unusual_geometry_is_a_picture_or_an_error(view, geometry, tmp_path):
    check(view, arranged(scenes.trajectory(steps=2, size=64), **GEOMETRIES[geometry]), tmp_path)
