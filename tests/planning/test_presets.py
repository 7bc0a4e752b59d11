from __future__ import annotations

import pytest

from fluxnb.planning.hardware import describe_hardware
from fluxnb.planning.model_size import flux1_size
from fluxnb.planning.presets import PRESETS
from fluxnb.planning.requirements import Workload, requirements, transformer_bytes

GIB = 2**30
H200 = describe_hardware("h200")
FLUX = flux1_size()


def peak(name, **options):
    return requirements(PRESETS[name], FLUX, H200, Workload(**options)).vram_gib


@pytest.mark.parametrize(
    ("preset", "gib"),
    # Weights of the transformer on an H200 (torch.cuda.memory_allocated).
    [("resident", 22.18), ("lean", 16.14), ("lean-fp8", 8.09), ("lean-nf4", 4.24)],
)
def test_predicted_weights_are_those_measured(preset, gib):
    assert transformer_bytes(PRESETS[preset], FLUX, 2) / GIB == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize(
    ("preset", "gib"),
    [
        ("resident", 36.3e9 / GIB),
        ("model-offload", 24.1e9 / GIB),
        ("lean", 18.68),
        ("lean-fp8", 10.68),
        ("stream", 2.62),
        ("stream-mapped", 2.62),
    ],
)
def test_predicted_peaks_are_those_measured(preset, gib):
    assert peak(preset) == pytest.approx(gib, rel=0.02)


def test_seconds_are_those_measured_on_the_card_of_the_calibration():
    assert requirements(PRESETS["resident"], FLUX, H200).seconds == pytest.approx(0.752, rel=0.02)
    assert 14.67 < requirements(PRESETS["model-offload"], FLUX, H200).seconds < 27.29  # two hosts, one kind of card
    mapped = requirements(PRESETS["stream-mapped"], FLUX, H200).seconds
    assert mapped == pytest.approx(2.81, rel=0.15)


def test_larger_pictures_require_more_memory():
    assert peak("lean", size=512) < peak("lean") < peak("lean", size=2048)


def test_offloading_blocks_lowers_the_peak_and_takes_main_memory():
    with_, without = (requirements(PRESETS["lean-nf4"], FLUX, H200, offload_blocks=each) for each in (True, False))
    assert with_.vram_gib < without.vram_gib - 0.8 and with_.ram_gib > without.ram_gib + 1


def test_exact_presets_are_those_that_store_plain_weights():
    assert {name for name, preset in PRESETS.items() if preset.exact} == {
        "resident", "lean", "stream", "stream-mapped", "model-offload", "sequential-offload", "cpu",
    }  # fmt: skip
