from __future__ import annotations

import os
import types

import pytest

from fluxnb.errors import InputError
from fluxnb.planning import hardware
from fluxnb.planning.hardware import (
    CARDS,
    GIB,
    MACHINES,
    _card_from_driver,
    available_cores,
    available_ram,
    describe_hardware,
    detect,
    gpu_of_process,
    total_ram,
)
from fluxnb.planning.processes import Processes, launched


@pytest.mark.parametrize("name", [*CARDS, *MACHINES, *hardware.APPLE, *hardware.ALIASES])
def test_every_known_name_describes_a_machine(name):
    machine = describe_hardware(name)
    assert machine.device in ("cuda", "mps") and 0 < machine.vram_gib < 200 and machine.tflops > 0
    assert machine.name == name


def test_a_t4_has_no_native_bfloat16():
    assert not describe_hardware("colab-t4").bf16 and describe_hardware("rtx-3060-12gb").bf16


@pytest.mark.parametrize("text", ["RTX 4090", "rtx_4090", " rtx-4090 "])
def test_spaces_underscores_and_case_in_a_name_do_not_matter(text):
    assert describe_hardware(text).capability == (8, 9)


def test_sizes_alone_describe_a_machine():
    machine = describe_hardware("12gb/32gb")
    assert machine.device == "cuda" and 10.5 < machine.vram_gib < 12 and machine.ram_gib == 32
    assert describe_hardware("8gb").ram_gib == hardware.DESKTOP[0]
    assert describe_hardware("cpu-64gb").device == "cpu" and 50 < describe_hardware("cpu-64gb").ram_gib < 64


def test_numbers_describe_a_machine():
    machine = describe_hardware({"vram_gib": 24, "ram_gib": 64.0, "capability": (7, 5)})
    assert (machine.ram_gib, machine.bf16, machine.capability) == (64.0, False, (7, 5))
    assert describe_hardware({"ram_gib": 16.0}).device == "cpu"
    assert describe_hardware(machine) is machine


@pytest.mark.parametrize(
    ("given", "message"),
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
def test_an_unknown_description_is_an_error(given, message):
    with pytest.raises(InputError, match=message):
        describe_hardware(given)


@pytest.mark.parametrize(
    ("driver", "card"),
    [
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 4060 Ti", "rtx-4060-ti-16gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx-pro-6000"),
        ("NVIDIA GeForce GTX 1650", None),
    ],
)
def test_a_card_is_found_by_its_driver_name(driver, card):
    assert _card_from_driver(driver) is (CARDS[card] if card else None)


def cgroup(tmp_path, files):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_available_ram_is_the_limit_of_a_container_minus_its_use_without_the_page_cache(tmp_path):
    place = cgroup(
        tmp_path,
        {
            "memory.max": str(3 * GIB),
            "memory.current": str(2 * GIB),
            "memory.stat": f"anon 5\ninactive_file {GIB}\nfile 7\n",
        },
    )
    assert available_ram(place) == pytest.approx(2.0)


def test_a_limit_of_cgroup_v1_applies(tmp_path):
    place = cgroup(
        tmp_path,
        {
            "memory/memory.limit_in_bytes": str(GIB),
            "memory/memory.usage_in_bytes": str(GIB // 2),
            "memory/memory.stat": "cache 1\ntotal_inactive_file 0\n",
        },
    )
    assert available_ram(place) == pytest.approx(0.5)


def test_a_limit_that_is_exceeded_leaves_nothing(tmp_path):
    files = {"memory.max": str(GIB), "memory.current": str(2 * GIB), "memory.stat": ""}
    assert available_ram(cgroup(tmp_path, files)) == 0.0


@pytest.mark.parametrize(
    ("line", "group", "names"),
    [
        ("0::/user.slice/job", "user.slice", ("memory.max", "memory.current")),
        ("4:memory,x:/slurm/job", "memory/slurm", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
)
def test_a_limit_on_a_parent_group_applies(tmp_path, line, group, names):
    files = {f"{group}/{name}": str(n) for name, n in zip(names, (GIB, GIB // 4), strict=True)}
    own = tmp_path / "own"
    own.write_text(f"1:cpu:/\n{line}\nnonsense\n")
    place = cgroup(tmp_path, files | {f"{group}/memory.stat": ""})
    assert available_ram(place, own) == pytest.approx(0.75)


def test_a_group_path_with_dots_is_ignored(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/../elsewhere\n")
    files = {"memory.max": "1", "memory.current": "0", "memory.stat": ""}
    cgroup(tmp_path, {f"elsewhere/{name}": text for name, text in files.items()})
    assert available_ram(tmp_path / "groups", own) > 0.1


def test_max_is_no_limit(tmp_path):
    free = available_ram(tmp_path)
    files = {"memory.max": "max\n", "memory.current": "5", "memory.stat": ""}
    assert available_ram(cgroup(tmp_path, files)) == pytest.approx(free, rel=0.2)


@pytest.fixture
def gpus(monkeypatch):
    """A function that lets this process see GPUs with the given GiB of free memory, of 15 GiB each."""
    import torch

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)

    def index(device=None):
        return torch.cuda.current_device() if device is None else torch.device(device).index

    def see(*free):
        for name, function in {
            "is_available": lambda: True,
            "device_count": lambda: len(free),
            "current_device": lambda: 0,
            "mem_get_info": lambda device=None: (free[index(device)] * GIB, 15 * GIB),
            "memory_reserved": lambda device=None: 2 * GIB,
            "memory_allocated": lambda device=None: GIB,
            "get_per_process_memory_fraction": lambda device=None: 1.0,
            "get_device_capability": lambda *_: (7, 5),
            "get_device_name": lambda *_: "Tesla T4",
            "get_device_properties": lambda *_: types.SimpleNamespace(multi_processor_count=40),
            # It returns True on a T4, so it must not be called.
            "is_bf16_supported": lambda *_: pytest.fail("called"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, function, raising=False)

    return see


def test_the_card_is_detected_from_the_driver(gpus):
    gpus(12)
    here = detect()
    assert (here.device, here.bf16, here.capability, here.tflops) == ("cuda", False, (7, 5), CARDS["t4"].tflops)
    assert here.vram_gib == pytest.approx(13.0)  # free memory, and cached memory of this process


def test_a_memory_fraction_of_the_process_limits_free_memory(gpus, monkeypatch):
    import torch

    gpus(12)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device=None: 0.4, raising=False)
    assert detect().vram_gib == pytest.approx(5.0)


# ------------------------------------------------------------------------------------------------- several processes
def place(monkeypatch, rank, count):
    for name, value in Processes(rank=rank, count=count, local_rank=rank, local_count=count).environment.items():
        monkeypatch.setenv(name, value)


def test_each_launched_process_detects_the_gpu_of_its_local_rank(gpus, monkeypatch):
    gpus(12, 6)
    assert detect().vram_gib == pytest.approx(13.0) and detect().gpus == 2
    place(monkeypatch, 1, 2)
    assert detect().vram_gib == pytest.approx(7.0) and str(gpu_of_process()) == "cuda:1"
    place(monkeypatch, 2, 4)
    assert detect().vram_gib == pytest.approx(7.5) and str(gpu_of_process()) == "cuda:0"  # half of a card of 15 GiB


def test_a_gpu_that_was_made_the_current_one_is_taken(gpus, monkeypatch):
    import torch

    gpus(12, 6, 3)
    place(monkeypatch, 1, 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    assert str(gpu_of_process()) == "cuda:2" and detect().vram_gib == pytest.approx(4.0)


def test_launched_processes_share_main_memory_and_cores(monkeypatch):
    monkeypatch.setattr(hardware, "available_cores", lambda: 8)
    monkeypatch.setattr(hardware, "available_ram", lambda: 50.0)
    monkeypatch.setattr(hardware, "total_ram", lambda: 64.0)
    place(monkeypatch, 0, 4)
    assert (detect().ram_gib, detect().cores) == (16.0, 2)
    monkeypatch.setattr(hardware, "available_ram", lambda: 10.0)
    assert detect().ram_gib == 10.0


@pytest.mark.parametrize("variables", [{}, {"LOCAL_RANK": "x"}, {"LOCAL_RANK": "2", "WORLD_SIZE": "2"}])
def test_a_process_without_a_meaningful_rank_is_alone(variables):
    assert launched(variables) == Processes()


def test_a_process_of_the_notebook_launcher_has_a_place():
    variables = {"LOCAL_RANK": "1", "RANK": "3", "WORLD_SIZE": "4", "NPROC": "2"}
    assert launched(variables) == Processes(rank=3, count=4, local_rank=1, local_count=2)


def test_a_place_is_read_from_the_environment_that_it_writes():
    place = Processes(rank=5, count=8, local_rank=1, local_count=4)
    assert launched(place.environment) == place


def test_total_memory_is_limited_by_the_group_of_a_container(tmp_path):
    (tmp_path / "memory.max").write_text(str(3 * GIB))
    assert total_ram(tmp_path, tmp_path / "none") == 3.0
    (tmp_path / "memory.max").write_text("max")
    assert total_ram(tmp_path, tmp_path / "none") > 0


@pytest.mark.parametrize(
    ("quota", "counted"), [("50000 100000\n", 1), ("150000 100000\n", 2), ("900000000 100000\n", 6)]
)
def test_cores_are_limited_by_the_quota_of_a_container(tmp_path, monkeypatch, quota, counted):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert available_cores(tmp_path / "cpu.max") == counted


@pytest.mark.parametrize("quota", ["max 100000\n", "", "1 0\n", "much"])
def test_an_unreadable_quota_is_no_limit(tmp_path, monkeypatch, quota):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert available_cores(tmp_path / "cpu.max") == available_cores(tmp_path / "none") == 6
