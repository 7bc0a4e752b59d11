"""Every view of a trajectory whose tensors are not finite is a picture or an error in three parts."""

from __future__ import annotations

import dataclasses
import math
import warnings

import numpy as np
import pytest
import torch

import fluxnb as fnb
from fluxnb.errors import FluxnbError
from fluxnb.html import page
from fluxnb.visuals import animation
from fluxnb.visuals.frames import frames_of
from tests import scenes

BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "largest": torch.finfo(torch.float32).max}
TENSORS = ("x", "v", "x_next", "attention")


def damaged(value, name, *, preview, everywhere=False):
    """A trajectory of three steps with a bad number in one tensor of each step but the first, or in all of it."""
    trajectory = scenes.trajectory(steps=3, preview=preview, attention=True, size=64)
    steps = list(trajectory.steps)
    for index in (1, 2):
        tensor = steps[index].tensors[name].clone()
        (tensor if everywhere else tensor[3]).fill_(value)
        norms = {**steps[index].norms, **({name: float(tensor.norm())} if name in ("x", "v") else {})}
        steps[index] = dataclasses.replace(steps[index], tensors={**steps[index].tensors, name: tensor}, norms=norms)
    return dataclasses.replace(trajectory, steps=tuple(steps))


def sweep_of(trajectory):
    return dataclasses.replace(
        scenes.grid(seeds=[0], steps=[1], size=64),
        cells=tuple(
            dataclasses.replace(cell, trajectory=trajectory) for cell in scenes.grid(seeds=[0], steps=[1], size=64)
        ),
    )


VIEWS = {
    "fnb.filmstrip": lambda t, path: fnb.filmstrip(t, what=("clean", "x", "v", "noise"))._repr_png_(),
    "fnb.compare": lambda t, path: fnb.compare([t, t])._repr_png_(),
    "fnb.contact_sheet": lambda t, path: fnb.contact_sheet(sweep_of(t))._repr_png_(),
    "fnb.film": lambda t, path: fnb.film(t),
    "fnb.scrub": lambda t, path: fnb.scrub(t),
    "fnb.explore": lambda t, path: fnb.explore(sweep_of(t)),
    "plots.attention": lambda t, path: fnb.plots.attention(t)._repr_png_(),
    "plots.latent_channels": lambda t, path: fnb.plots.latent_channels(t)._repr_png_(),
    "plots.lock_in": lambda t, path: fnb.plots.lock_in(t)._repr_png_(),
    "plots.path": lambda t, path: fnb.plots.path(t)._repr_png_(),
    "plots.sigma_curve": lambda t, path: fnb.plots.sigma_curve(t)._repr_png_(),
    "plots.velocity": lambda t, path: fnb.plots.velocity(t)._repr_png_(),
    "trajectory": lambda t, path: t._repr_png_(),
    "trajectory.to_html": lambda t, path: t.to_html(path / "page.html"),
    "sweep.to_html": lambda t, path: sweep_of(t).to_html(path / "page.html"),
    "list.to_html": lambda t, path: page.write([t, t], path / "page.html"),
    "trajectory.save": lambda t, path: fnb.open_trajectory(fnb.save(t, path / "t.safetensors")),
    "animation": lambda t, path: animation.write(t, path / "t.gif"),
}


def check(view, trajectory, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the oldest libraries, within themselves
        try:
            VIEWS[view](trajectory, folder)
        except FluxnbError as problem:
            assert problem.given and problem.possible and problem.remedy


@pytest.mark.long
@pytest.mark.parametrize("everywhere", [False, True], ids=["one token", "everywhere"])
@pytest.mark.parametrize("preview", [True, False], ids=["preview", "no preview"])
@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_numbers_that_are_not_finite_is_a_picture_or_an_error(view, name, preview, everywhere, tmp_path):
    for value in BAD.values():
        check(view, damaged(value, name, preview=preview, everywhere=everywhere), tmp_path)


@pytest.mark.moderate
@pytest.mark.parametrize("view", ["fnb.scrub", "plots.path", "plots.latent_channels", "trajectory.to_html"])
@pytest.mark.parametrize("value", BAD)
def test_a_view_without_preview_takes_numbers_that_are_not_finite(view, value, tmp_path):
    check(view, damaged(BAD[value], "x", preview=False), tmp_path)
    check(view, damaged(BAD[value], "x", preview=False, everywhere=True), tmp_path)


@pytest.mark.moderate
@pytest.mark.parametrize("value", BAD)
def test_attention_that_is_not_finite_is_displayed(value, tmp_path):
    check("plots.attention", damaged(BAD[value], "attention", preview=True), tmp_path)


def test_tokens_that_are_not_finite_are_black_and_the_others_unchanged():
    for preview in (True, False):
        expected = np.asarray(frames_of(damaged(0.0, "v", preview=preview)).frames["clean"][2])
        shown = np.asarray(frames_of(damaged(math.nan, "v", preview=preview)).frames["clean"][2])
        assert (shown[0:2, 6:8] == 0).all(), "token 3 is in columns 6 and 7 of the first two rows of cells"
        if preview:
            assert np.array_equal(shown[2:], expected[2:])
