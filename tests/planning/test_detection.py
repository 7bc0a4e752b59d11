from __future__ import annotations

import os
import types

import pytest

from fluxnb.planning.detection import _card_called, available_ram, cores, detect
from fluxnb.planning.hardware import CARDS

GIB = 2**30


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
def test_a_driver_s_name_finds_its_card(driver, card):
    assert _card_called(driver) is (CARDS[card] if card else None)


def cgroup(tmp_path, files):
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_a_container_s_limit_counts_less_what_is_used_without_the_disk_s_cache(tmp_path):
    place = cgroup(
        tmp_path,
        {
            "memory.max": str(3 * GIB),
            "memory.current": str(2 * GIB),
            "memory.stat": f"anon 5\ninactive_file {GIB}\nfile 7\n",
        },
    )
    assert available_ram(place) == pytest.approx(2.0)


def test_the_older_kind_of_limit_counts_too(tmp_path):
    place = cgroup(
        tmp_path,
        {
            "memory/memory.limit_in_bytes": str(GIB),
            "memory/memory.usage_in_bytes": str(GIB // 2),
            "memory/memory.stat": "cache 1\ntotal_inactive_file 0\n",
        },
    )
    assert available_ram(place) == pytest.approx(0.5)


def test_a_limit_that_is_used_up_leaves_nothing(tmp_path):
    files = {"memory.max": str(GIB), "memory.current": str(2 * GIB), "memory.stat": ""}
    assert available_ram(cgroup(tmp_path, files)) == 0.0


@pytest.mark.parametrize(
    ("line", "group", "names"),
    [
        ("0::/user.slice/job", "user.slice", ("memory.max", "memory.current")),
        ("4:memory,x:/slurm/job", "memory/slurm", ("memory.limit_in_bytes", "memory.usage_in_bytes")),
    ],
)
def test_a_limit_on_a_group_around_this_process_counts(tmp_path, line, group, names):
    files = {f"{group}/{name}": str(n) for name, n in zip(names, (GIB, GIB // 4), strict=True)}
    own = tmp_path / "own"
    own.write_text(f"1:cpu:/\n{line}\nnonsense\n")
    place = cgroup(tmp_path, files | {f"{group}/memory.stat": ""})
    assert available_ram(place, own) == pytest.approx(0.75)


def test_a_group_s_place_cannot_lead_out_of_the_groups(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/../elsewhere\n")
    files = {"memory.max": "1", "memory.current": "0", "memory.stat": ""}
    cgroup(tmp_path, {f"elsewhere/{name}": text for name, text in files.items()})
    assert available_ram(tmp_path / "groups", own) > 0.1


def test_no_limit_is_no_limit(tmp_path):
    free = available_ram(tmp_path)
    files = {"memory.max": "max\n", "memory.current": "5", "memory.stat": ""}
    assert available_ram(cgroup(tmp_path, files)) == pytest.approx(free, rel=0.2)


def test_a_card_is_read_from_the_driver(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (12 * GIB, 15 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: GIB)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 1.0, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: types.SimpleNamespace(multi_processor_count=40))
    # What torch says of bfloat16 is not asked: on a T4 it says yes.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: pytest.fail("asked"))
    here = detect()
    assert (here.device, here.bf16, here.capability, here.tflops) == ("cuda", False, (7, 5), CARDS["t4"].tflops)
    assert here.vram_gib == pytest.approx(13.0)  # what is free, and what is ours and empty


def test_a_cap_on_the_process_is_a_smaller_card(monkeypatch):
    import torch

    test_a_card_is_read_from_the_driver(monkeypatch)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: 0.4, raising=False)
    assert detect().vram_gib == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("quota", "counted"), [("50000 100000\n", 1), ("150000 100000\n", 2), ("900000000 100000\n", 6)]
)
def test_a_containers_share_of_the_cores_is_kept_to(tmp_path, monkeypatch, quota, counted):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert cores(tmp_path / "cpu.max") == counted


@pytest.mark.parametrize("quota", ["max 100000\n", "", "1 0\n", "much"])
def test_what_is_no_quota_is_no_limit(tmp_path, monkeypatch, quota):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert cores(tmp_path / "cpu.max") == cores(tmp_path / "none") == 6
