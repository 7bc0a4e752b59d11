from __future__ import annotations

import pytest

from fluxnb.errors import InputError
from fluxnb.planning import hardware
from fluxnb.planning.hardware import CARDS, MACHINES, described


@pytest.mark.parametrize("name", [*CARDS, *MACHINES, *hardware.APPLE, *hardware.ALIASES])
def test_every_known_name_describes_a_machine(name):
    machine = described(name)
    assert machine.device in ("cuda", "mps") and 0 < machine.vram_gib < 200 and machine.tflops > 0
    assert machine.name == name


def test_a_t4_has_no_bfloat16_whatever_it_says():
    assert not described("colab-t4").bf16 and described("rtx-3060-12gb").bf16


@pytest.mark.parametrize("text", ["RTX 4090", "rtx_4090", " rtx-4090 "])
def test_a_card_may_be_written_as_people_write_it(text):
    assert described(text).capability == (8, 9)


def test_sizes_alone_describe_a_machine():
    machine = described("12gb/32gb")
    assert machine.device == "cuda" and 10.5 < machine.vram_gib < 12 and machine.ram_gib == 32
    assert described("8gb").ram_gib == hardware.DESKTOP[0]
    assert described("cpu-64gb").device == "cpu" and 50 < described("cpu-64gb").ram_gib < 64


def test_numbers_describe_a_machine():
    machine = described({"vram_gib": 24, "ram_gib": 64.0, "capability": (7, 5)})
    assert (machine.ram_gib, machine.bf16, machine.capability) == (64.0, False, (7, 5))
    assert described({"ram_gib": 16.0}).device == "cpu"
    assert described(machine) is machine


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("rtx-4091", "rtx-4090"),
        ("", "known are"),
        ({"vram": 12}, "vram_gib"),
        ({"vram_gib": -1}, "a size in GiB"),
        ({"vram_gib": "12"}, "a size in GiB"),
        ({"vram_gib": float("nan")}, "a size in GiB"),
        ({"vram_gib": True}, "a size in GiB"),
        ({"vram_gib": 12, "device": "tpu"}, "cuda"),
    ],
)
def test_what_describes_nothing_is_told(given, says):
    with pytest.raises(InputError, match=says):
        described(given)
