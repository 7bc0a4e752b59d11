from __future__ import annotations

import pytest

from fluxnb.planning.hardware import described
from fluxnb.planning.model_size import counted
from fluxnb.planning.presets import PRESETS, needs, transformer_bytes

GIB = 2**30
H200 = described("h200")
FLUX = counted()


def peak(name, **options):
    return needs(PRESETS[name], FLUX, H200, **options).vram_gib


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


def test_seconds_are_those_measured_on_the_card_they_were_calibrated_on():
    assert needs(PRESETS["resident"], FLUX, H200).seconds == pytest.approx(0.752, rel=0.02)
    assert 14.67 < needs(PRESETS["model-offload"], FLUX, H200).seconds < 27.29  # two hosts, one kind of card
    mapped = needs(PRESETS["stream-mapped"], FLUX, H200).seconds
    assert mapped == pytest.approx(2.81, rel=0.15)


def test_larger_pictures_need_more_and_smaller_ones_less():
    assert peak("lean", size=512) < peak("lean") < peak("lean", size=2048)


def test_parking_makes_the_peak_smaller_and_main_memory_larger():
    with_, without = (needs(PRESETS["lean-nf4"], FLUX, H200, park=park) for park in (True, False))
    assert with_.vram_gib < without.vram_gib - 0.8 and with_.ram_gib > without.ram_gib + 1


def test_what_is_exact_is_what_stores_weights_as_they_are():
    assert {name for name, preset in PRESETS.items() if preset.exact} == {
        "resident", "lean", "stream", "stream-mapped", "model-offload", "sequential-offload", "cpu",
    }  # fmt: skip
