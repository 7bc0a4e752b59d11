"""Recording any other pipeline: it is recorded right, or one sentence says why not, and the call is never affected."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch

import fluxnb as fnb
from fluxnb.families.reading import TrigFlow, geometry_of_call, levels_of
from tests.families import table
from tests.families.others import OTHERS, sana_sprint, sd3

ROWS = {line.split(" | ")[0].removeprefix("| "): line for line in table.DOCUMENT.read_text().splitlines()}


def available(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    classes = {**{n: each[0] for n, each in OTHERS.items()}, **{n: e[0] for n, e in table.FAMILIES.items()}}
    if name in classes and not hasattr(diffusers, classes[name]):
        pytest.skip(f"this version of diffusers has no {classes[name]}")


@pytest.mark.slow
@pytest.mark.parametrize("name", table.NAMES)
def test_a_pipeline_is_recorded_as_the_table_says_and_every_view_renders(name, tmp_path):
    available(name)
    pipe, arguments = table.made(name)
    plain = [table.called(pipe, arguments, seed) for seed in (3, 4)]
    pictures, trajectories, reasons = table.recorded(pipe, arguments)
    assert all(np.array_equal(a, b) for a, b in zip(plain, pictures, strict=True)), "the call is affected"
    assert table.markdown(table.row_of(name, pipe, trajectories, reasons)) == ROWS[name]
    assert len(reasons) == (0 if trajectories else 2), "one warning a call that is not recorded"
    assert len(trajectories) in (0, 2)
    for trajectory in trajectories:
        assert trajectory.finished and len(trajectory) == len(trajectory.sigmas) - 1
        assert (trajectory.height, trajectory.width) == (64, 96)
        for step in trajectory:
            mixed = (1 - step.sigma) * step.clean + step.sigma * step.noise
            torch.testing.assert_close(mixed, step.x.float(), atol=1e-5, rtol=1e-5)
            cell = trajectory.geometry.cell
            assert step.latents("clean").shape == (trajectory.geometry.channels, 64 // cell, 96 // cell)
    if trajectories:
        check_views(trajectories, tmp_path)


def check_views(trajectories, folder):
    """Every view of a record renders, and its file opens with the same geometry."""
    first = trajectories[0]
    for figure in (fnb.filmstrip(first), fnb.compare(trajectories)):
        figure.savefig(io.BytesIO(), format="png", dpi=20)
    assert first.to_html(folder / "a.html").exists() and fnb.scrub(first) is not None
    opened = fnb.open_trajectory(fnb.save(first, folder / "a.safetensors"))
    assert opened.geometry == first.geometry and opened.predicts == first.predicts


def test_the_table_lists_at_least_twelve_further_pipelines():
    assert len({kind for kind, _, _ in OTHERS.values()}) >= 12 and set(table.NAMES) <= set(ROWS)


# --------------------------------------------------------------------------------------------- schedulers and x
def test_a_trigflow_step_is_the_step_of_a_rectified_flow_with_the_same_ends():
    clean, noise, d = torch.randn(2, 3), torch.randn(2, 3), 0.5
    flow = TrigFlow((1.2, 0.4, 0.0), d)
    for position, t in enumerate(torch.tensor(flow.angles[:-1])):
        sample = d * (t.cos() * clean + t.sin() * noise)
        output = d * (t.cos() * noise - t.sin() * clean)
        x, v, sigma = flow.x(sample, position), flow.v(sample, output, position), flow.levels[position]
        torch.testing.assert_close(v, noise - clean)
        torch.testing.assert_close(x - sigma * v, clean)
        torch.testing.assert_close(x + (1 - sigma) * v, noise)


@pytest.mark.slow
def test_the_last_clean_estimate_of_sana_sprint_is_what_its_decoder_gets():
    pipe, given = sana_sprint(), []
    decode = pipe.vae.decode
    pipe.vae.decode = lambda z, **more: given.append(z) or decode(z, **more)
    with fnb.recording(pipe) as recorder:
        pipe(**table.SIZE | OTHERS["Sana-Sprint"][2]() | {"generator": torch.Generator().manual_seed(1)})
    (trajectory,) = recorder.trajectories
    expected = given[0][0] * pipe.vae.config.scaling_factor
    torch.testing.assert_close(trajectory[-1].latents("clean"), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(trajectory.final, trajectory[-1].clean, atol=1e-5, rtol=1e-5)


def test_levels_above_one_are_no_flow():
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(3)
    with pytest.raises(Exception, match="does not follow a rectified flow"):
        levels_of(scheduler)


class Unknown:
    """A pipeline that nothing is known about."""

    vae_scale_factor = 8


@pytest.mark.parametrize(
    ("shape", "reason"),
    [((16, 2, 8, 8), "2 frames"), ((24, 64), "order of the numbers"), ((24, 63), "order"), ((64,), "neither tokens")],
)
def test_an_x_that_no_view_can_show_is_refused_in_one_sentence(shape, reason):
    with pytest.raises(Exception, match=reason) as caught:
        geometry_of_call(Unknown(), shape, 64, 96)
    assert not re.search(r"[.!?]\s", str(caught.value))


def test_the_size_of_latents_in_space_is_read_from_them():
    assert geometry_of_call(Unknown(), (16, 8, 12), 0, 0).width == 96
    assert geometry_of_call(Unknown(), (16, 4, 6), 64, 96).geometry.cell == 16


@pytest.mark.slow
def test_a_failure_of_the_recorder_is_one_warning_and_the_call_goes_on(monkeypatch):
    from fluxnb.sampling import call_trace

    def broken(*_: object) -> None:
        raise AttributeError("no such thing")

    pipe, arguments = sd3(), table.SIZE | OTHERS["SD 3, SD 3.5"][2]() | {"output_type": "np"}
    expected = table.called(pipe, arguments)
    for name in ("levels_of", "geometry_of_call", "norms_of", "trajectories_of", "trigflow_of"):
        with monkeypatch.context() as patch:
            patch.setattr(call_trace, name, broken)
            with pytest.warns(fnb.RecordingWarning) as caught, fnb.recording(pipe) as recorder:
                assert np.array_equal(table.called(pipe, arguments), expected)
            assert len(caught) == 1 and recorder.trajectories == ()
