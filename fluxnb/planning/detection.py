"""What this machine is: its card as the driver tells it, and the memory and disk that are free for this process."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from fluxnb.planning.hardware import CARDS, CORE, GIB, Card, Hardware

__all__ = ["available_ram", "cores", "detect", "room_for_downloads"]

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # where a container says how much of the machine is its own


def detect() -> Hardware:
    """The machine this runs on. Nothing is cached: free memory changes."""
    import torch

    ram, disk = available_ram(), room_for_downloads()
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        allocated = torch.cuda.memory_allocated()
        free += torch.cuda.memory_reserved() - allocated  # ours, and empty
        if hasattr(torch.cuda, "get_per_process_memory_fraction"):
            free = min(free, int(torch.cuda.get_per_process_memory_fraction() * total) - allocated)
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        card = _card_called(name)
        units = torch.cuda.get_device_properties(0).multi_processor_count
        return Hardware(
            device="cuda",
            name=name,
            vram_gib=free / GIB,
            ram_gib=ram,
            cores=cores(),
            # is_bf16_supported() alone counts emulation, which is slow enough to be no support.
            bf16=capability >= (8, 0),
            disk_gib=disk,
            capability=capability,
            tflops=card.tflops if card else _guessed(capability, units),
            bandwidth=card.bandwidth if card else 400.0,
            pcie=card.pcie if card else 10.0,
        )
    if torch.backends.mps.is_available():  # one memory for both
        return Hardware(
            device="mps", name="Apple GPU", vram_gib=ram, ram_gib=ram, cores=cores(), disk_gib=disk, tflops=5.0,
            bandwidth=150.0,
        )  # fmt: skip
    return Hardware(
        device="cpu", name="CPU", vram_gib=0.0, ram_gib=ram, cores=cores(), disk_gib=disk, tflops=CORE * cores()
    )


def cores(quota: Path = QUOTA) -> int:
    """How many CPU cores this process may use: fewer than the machine has, where it is bound to some or in a container.

    A quota of a core and a half counts as two.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        microseconds, period = quota.read_text().split()
        return max(1, min(allowed, -(-int(microseconds) // int(period))))  # "max" is no number, and no limit
    except (OSError, ValueError, ZeroDivisionError):
        return max(1, allowed)


def _card_called(name: str) -> Card | None:
    """The card that a driver calls so: "NVIDIA GeForce RTX 4090" is "rtx-4090"."""
    words = re.sub(r"nvidia|geforce|tesla|-sxm\d?|-pcie", " ", name.lower())
    flat = re.sub(r"[\s-]+", "-", words).strip("-")
    if flat in CARDS:
        return CARDS[flat]
    # "rtx-4060-ti" is short for a key; "rtx-pro-6000-blackwell" is longer than one.
    fits = [key for key in CARDS if key.startswith(f"{flat}-")] or [key for key in CARDS if flat.startswith(f"{key}-")]
    return CARDS[max(fits, key=len)] if fits else None


def _guessed(capability: tuple[int, int], units: int) -> float:
    """TFLOP/s from the number of multiprocessors, for a card that is not in the table."""
    per_unit = {7: 0.5, 8: 0.65, 9: 3.0, 10: 4.3, 12: 0.86}.get(capability[0], 0.2)
    return units * (1.39 if capability == (8, 0) else 0.9 if capability == (8, 9) else per_unit)


def room_for_downloads() -> float:
    """GiB free where the hub's cache is, or would be."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free / GIB


def available_ram(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """GiB of main memory that this process may still take: the machine's, or what a container or a job leaves of it.

    Arguments:
        cgroups: where Linux shows its memory groups.
        own: says which of them this process is in; the limit of any group above it holds too.
    """
    import psutil

    free = float(psutil.virtual_memory().available)
    for group in _groups(cgroups, own):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                ceiling = int((group / limit).read_text())  # "max" is no number, and no limit
                cached = re.search(
                    r"^(?:total_)?inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE
                )
                taken = int((group / used).read_text()) - (int(cached[1]) if cached else 0)
            except (OSError, ValueError):
                continue
            free = min(free, max(0, ceiling - taken))
    return free / GIB


def _groups(cgroups: Path, own: Path) -> list[Path]:
    """The memory groups that this process is in, of either version of Linux's, the outermost first."""
    roots, groups = {"": cgroups, "memory": cgroups / "memory"}, [cgroups, cgroups / "memory"]
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return groups
    for line in lines:
        _, controllers, place = line.split(":", 2) if line.count(":") >= 2 else ("", "none", "")
        for name in controllers.split(","):
            parts = Path(place.lstrip("/")).parts if name in roots else ()
            groups += [roots[name].joinpath(*parts[: i + 1]) for i in range(len(parts)) if ".." not in parts]
    return groups
