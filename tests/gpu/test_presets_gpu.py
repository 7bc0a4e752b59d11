"""Each way of holding a model on a real CUDA device, with the toy: bytes, and what stays on the device.

`python -m pytest tests/gpu -m gpu`. Full-size numbers are tests/benchmarks/fullsize.py.
"""

from __future__ import annotations

import pytest
import torch

import fluxnb as fnb
from fluxnb.checkpoints.sources import POCKET
from fluxnb.planning.presets import PRESETS
from fluxnb.runtime.assembly import assemble
from fluxnb.runtime.cuda_graphs import GraphReplay

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
EXACT = ("resident", "lean", "stream", "stream-mapped")
QUESTION = {"seed": 3, "steps": 4, "height": 128, "width": 128}


def built(preset, dtype=torch.bfloat16, **options):
    pipe = assemble(POCKET / "base", PRESETS[preset], device=torch.device("cuda"), dtype=dtype, **options)
    pipe.set_progress_bar_config(disable=True)
    return fnb.load(pipe)


@pytest.fixture(scope="module")
def plain():
    """The pipeline as diffusers loads it."""
    from diffusers import FluxPipeline

    from fluxnb.pipeline.compat import dtype_keyword

    pipe = FluxPipeline.from_pretrained(POCKET / "base", **{dtype_keyword(): torch.bfloat16}).to("cuda")
    pipe.set_progress_bar_config(disable=True)
    return fnb.load(pipe)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("preset", EXACT)
def test_an_exact_preset_gives_the_bytes_of_plain_diffusers(plain, preset, keep):
    flux = built(preset, keep=keep)
    for prompt in ("a fox", "a cat holding a sign"):
        mine, theirs = (fnb.run(each, prompt, **QUESTION).image.tobytes() for each in (flux, plain))
        assert mine == theirs


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_tables_hold_for_any_step_count(plain, steps):
    question = {**QUESTION, "steps": steps}
    mine, theirs = (fnb.run(each, "a fox", **question).image.tobytes() for each in (built("lean"), plain))
    assert mine == theirs


def test_a_sweep_under_lean_gives_the_bytes_of_plain_diffusers(plain):
    asked = {"prompts": ["a fox", "a cat"], "seeds": [0, 1], "steps": [1, 2, 3, 4]}
    grids = [fnb.sweep(each, **asked) for each in (built("lean"), plain)]
    assert [cell.image.tobytes() for cell in grids[0]] == [cell.image.tobytes() for cell in grids[1]]


@pytest.mark.parametrize("preset", ["lean", "lean-fp8", "lean-nf4"])
def test_parking_changes_no_bytes_and_frees_memory(preset, monkeypatch):
    if PRESETS[preset].library:
        pytest.importorskip(PRESETS[preset].library)
    still, moved = built(preset), built(preset, offload_blocks=True)
    held = []
    decoder = moved.pipe.vae.decoder
    decoder.register_forward_pre_hook(lambda *_: held.append(torch.cuda.memory_allocated()))
    mine, theirs = (fnb.run(each, "a fox", **QUESTION).image.tobytes() for each in (moved, still))
    assert mine == theirs
    assert held[0] < torch.cuda.memory_allocated()


@pytest.mark.parametrize("preset", ["lean-fp8", "lean-nf4"])
def test_a_lossy_preset_is_close(plain, preset):
    if PRESETS[preset].library:
        pytest.importorskip(PRESETS[preset].library)
    mine, theirs = (fnb.run(each, "a fox", **QUESTION).steps[0].v.float() for each in (built(preset), plain))
    assert 1e-4 < (mine - theirs).norm() / theirs.norm() < 0.2


def test_streaming_leaves_the_transformer_in_main_memory():
    flux = built("stream")
    fnb.run(flux, "a fox", **QUESTION)
    assert all(
        weight.device.type == "cpu"
        for block in flux.pipe.transformer.transformer_blocks
        for weight in block.parameters()
    )


def test_the_public_door_takes_what_the_plan_says():
    flux = fnb.load("pocket-base")
    assert flux.plan.device == "cuda" and flux.plan.preset == "resident"
    assert flux.plan.vram_gib < flux.plan.machine.vram_gib


def test_running_out_of_memory_is_our_error_and_the_next_call_works():
    flux = built("resident")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)
    try:
        with pytest.raises(fnb.RunError, match="ran out of GPU memory"):
            fnb.run(flux, "a fox", seed=0, steps=1, height=1024, width=1024)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert fnb.run(flux, "a fox", **QUESTION).finished


def test_fast_is_close_and_says_what_it_gave(plain):
    flux = fnb.load("pocket-base", dtype="bfloat16", fast=True).with_defaults(guidance_kind="none", guidance=None)
    mine, theirs = (fnb.run(each, "a fox", **QUESTION) for each in (flux, plain))
    assert (mine.steps[0].v.float() - theirs.steps[0].v.float()).abs().max() < 0.1
    assert any("attention" in speedup.name for speedup in flux.plan.fast.speedups) and not mine.exact


def test_replayed_evaluations_give_the_bytes_of_those_started_one_by_one():
    replayed, still = built("lean"), built("lean")
    replay = GraphReplay(replayed.pipe.transformer)
    for steps in (4, 3):
        question = {**QUESTION, "steps": steps}
        mine, theirs = (fnb.run(each, "a fox", **question).image.tobytes() for each in (replayed, still))
        assert mine == theirs
    assert all(recording is not None for recording in replay._recordings.values())
