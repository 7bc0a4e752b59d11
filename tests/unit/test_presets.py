from __future__ import annotations

import pytest

import fluxnb as fnb
from fluxnb.errors import InputError, RunError
from fluxnb.hardware import Hardware, detect
from fluxnb.presets import PRESETS, plan


def machine(device="cuda", vram=0.0, ram=64.0):
    return Hardware(device=device, name="test", vram_gib=vram, ram_gib=ram, cores=2, bf16=True)


@pytest.mark.parametrize(
    ("vram", "ram", "preset"),
    [(80, 64, "resident"), (24, 64, "model-offload"), (12, 64, "group-offload"), (2, 128, "cpu")],
)
def test_schnell_gets_the_fastest_preset_that_fits(vram, ram, preset):
    chosen = plan("schnell", machine(vram=vram, ram=ram))
    assert isinstance(chosen, fnb.Plan) and chosen.preset == preset and chosen.exact
    assert chosen.vram_gib <= vram and chosen.ram_gib <= ram
    assert len(chosen.refused) == PRESETS.index(preset)


def test_pocket_runs_on_a_cpu_whatever_the_memory():
    assert plan("pocket", machine("cpu", ram=1)).preset == "cpu"


def test_a_machine_too_small_is_told_before_anything_is_downloaded():
    with pytest.raises(RunError, match="no preset fits") as caught:
        plan("schnell", machine("cpu", ram=12))
    assert "pocket" in caught.value.remedy and "needs 66 GiB of RAM" in str(caught.value)


def test_a_preset_asked_for_is_taken_or_refused_with_its_reason():
    assert plan("schnell", machine(vram=80), preset="model-offload").preset == "model-offload"
    with pytest.raises(RunError, match=r"needs 34 GiB on the GPU, 24\.0 are free"):
        plan("schnell", machine(vram=24), preset="resident")


def test_an_unknown_preset_is_told():
    with pytest.raises(InputError, match="Try preset='resident'"):
        plan("schnell", machine(), preset="residant")


def test_this_machine_can_be_described():
    here = detect()
    assert here.device in ("cuda", "mps", "cpu") and here.cores >= 1 and here.ram_gib > 0
