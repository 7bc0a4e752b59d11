"""Each preset on a CUDA device, with pocket: bytes, and what is on the device.

`python -m pytest tests/gpu -m gpu -o addopts=`. Full-size measurements are in tests/benchmarks/fullsize.py.
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
REQUEST = {"seed": 3, "steps": 4, "height": 128, "width": 128}


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


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("preset", EXACT)
def test_an_exact_preset_gives_the_bytes_of_plain_diffusers(plain, preset, cache):
    flux = built(preset, cache_weights=cache)
    for prompt in ("a fox", "a cat holding a sign"):
        own, expected = (fnb.run(each, prompt, **REQUEST).image.tobytes() for each in (flux, plain))
        assert own == expected


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_the_adaln_cache_is_exact_for_any_number_of_steps(plain, steps):
    request = {**REQUEST, "steps": steps}
    own, expected = (fnb.run(each, "a fox", **request).image.tobytes() for each in (built("lean"), plain))
    assert own == expected


def test_a_sweep_under_lean_gives_the_bytes_of_plain_diffusers(plain):
    cells = {"prompts": ["a fox", "a cat"], "seeds": [0, 1], "steps": [1, 2, 3, 4]}
    grids = [fnb.sweep(each, **cells) for each in (built("lean"), plain)]
    assert [cell.image.tobytes() for cell in grids[0]] == [cell.image.tobytes() for cell in grids[1]]


@pytest.mark.parametrize("preset", ["lean", "lean-fp8", "lean-nf4"])
def test_offloading_blocks_while_decoding_changes_no_bytes_and_frees_memory(preset, monkeypatch):
    if PRESETS[preset].library:
        pytest.importorskip(PRESETS[preset].library)
    resident, moved = built(preset), built(preset, offload_blocks=True)
    held = []
    decoder = moved.pipe.vae.decoder
    decoder.register_forward_pre_hook(lambda *_: held.append(torch.cuda.memory_allocated()))
    own, expected = (fnb.run(each, "a fox", **REQUEST).image.tobytes() for each in (moved, resident))
    assert own == expected
    assert held[0] < torch.cuda.memory_allocated()


@pytest.mark.parametrize("preset", ["lean-fp8", "lean-nf4"])
def test_a_lossy_preset_is_close(plain, preset):
    if PRESETS[preset].library:
        pytest.importorskip(PRESETS[preset].library)
    own, expected = (fnb.run(each, "a fox", **REQUEST).steps[0].v.float() for each in (built(preset), plain))
    assert 1e-4 < (own - expected).norm() / expected.norm() < 0.2


def test_streaming_leaves_the_transformer_in_main_memory():
    flux = built("stream")
    fnb.run(flux, "a fox", **REQUEST)
    assert all(
        weight.device.type == "cpu"
        for block in flux.pipe.transformer.transformer_blocks
        for weight in block.parameters()
    )


def test_load_has_the_preset_of_its_plan():
    flux = fnb.load("pocket-base")
    assert flux.plan.device == "cuda" and flux.plan.preset == "resident"
    assert flux.plan.vram_gib < flux.plan.machine.vram_gib


def test_too_little_memory_is_a_run_error_and_the_next_call_works():
    flux = built("resident")
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**20) / total)
    try:
        with pytest.raises(fnb.RunError, match="ran out of GPU memory"):
            fnb.run(flux, "a fox", seed=0, steps=1, height=1024, width=1024)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert fnb.run(flux, "a fox", **REQUEST).finished


def test_fast_is_close_and_its_plan_lists_what_it_gained(plain):
    flux = fnb.load("pocket-base", dtype="bfloat16", fast=True).with_defaults(guidance_kind="none", guidance=None)
    own, expected = (fnb.run(each, "a fox", **REQUEST) for each in (flux, plain))
    assert (own.steps[0].v.float() - expected.steps[0].v.float()).abs().max() < 0.1
    assert any("attention" in speedup.name for speedup in flux.plan.fast.speedups) and not own.exact


def test_replayed_evaluations_give_the_bytes_of_plain_ones():
    replayed, evaluated = built("lean"), built("lean")
    replay = GraphReplay(replayed.pipe.transformer)
    for steps in (4, 3):
        request = {**REQUEST, "steps": steps}
        own, expected = (fnb.run(each, "a fox", **request).image.tobytes() for each in (replayed, evaluated))
        assert own == expected
    assert len(replay._graphs) == 1 and all(graph is not None for graph in replay._graphs.values())
