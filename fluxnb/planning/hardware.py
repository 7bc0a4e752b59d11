"""Hardware: accelerator, memory, disk and their speeds, of this machine or of one described by a name or numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten, unknown_choice
from fluxnb.planning.processes import launched

if TYPE_CHECKING:
    import torch

__all__ = [
    "CARDS",
    "GIB",
    "MACHINES",
    "Hardware",
    "available_cores",
    "available_ram",
    "describe_hardware",
    "detect",
    "free_disk",
    "gpu_of_process",
    "total_ram",
]

GIB = 2**30
CORE_TFLOPS = 0.05  # of one CPU core in bfloat16
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # the share of the cores that a container may use


@entry_point()
@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The properties of a machine that a plan depends on.

    Arguments:
        device: "cuda", "mps" or "cpu".
        name: of the accelerator, or "CPU".
        vram_gib: free memory of the accelerator; 0 on a CPU.
        ram_gib: available main memory, within the limit of a container.
        cores: CPU cores this process may use.
        bf16: whether bfloat16 is native. It is not on a T4, although `torch.cuda.is_bf16_supported()` returns True.
        disk_gib: free space on the disk of the hub's cache.
        capability: compute capability of a CUDA card, for example (8, 9).
        tflops: TFLOP/s that plain PyTorch reaches on FLUX in 16 bits; about half of the data sheet's number.
        bandwidth: GB/s of the accelerator's memory.
        pcie: GB/s between main memory and the accelerator.
        disk: GB/s read from the disk of the hub's cache.
        gpus: number of such accelerators; 0 on a CPU. A model uses one of them.
    """

    device: str
    name: str
    vram_gib: float
    ram_gib: float
    cores: int = 2
    bf16: bool = True
    disk_gib: float = math.inf
    capability: tuple[int, int] = (0, 0)
    tflops: float = 0.05
    bandwidth: float = 40.0
    pcie: float = 12.0
    disk: float = 1.5
    gpus: int = 1

    def share(self, processes: int) -> Hardware:
        """The part of the machine that each of several processes has, of which each takes one GPU.

        Example:
            >>> part = describe_hardware({"vram_gib": 80, "ram_gib": 400, "cores": 64, "gpus": 4}).share(4)
            >>> part.ram_gib, part.cores, part.vram_gib > 74
            (100.0, 16, True)
        """
        if processes == 1:
            return self
        on_each_gpu = math.ceil(processes / max(1, self.gpus))
        cores = max(1, self.cores // processes)
        return dataclasses.replace(
            self,
            vram_gib=self.vram_gib / on_each_gpu,
            ram_gib=self.ram_gib / processes,
            cores=cores,
            tflops=self.tflops / on_each_gpu if self.device != "cpu" else self.tflops * cores / self.cores,
        )

    @property
    def without_accelerator(self) -> Hardware:
        """The same machine without the use of its accelerator."""
        if self.device == "cpu":
            return self
        return dataclasses.replace(
            self,
            device="cpu",
            vram_gib=0.0,
            bf16=True,
            capability=(0, 0),
            tflops=CORE_TFLOPS * self.cores,
            bandwidth=40.0,
            gpus=0,
        )

    @property
    def float8(self) -> bool:
        """Whether the matrix units compute in 8-bit floating point."""
        return self.capability >= (8, 9)


@entry_point()
@dataclass(frozen=True)
class Card:
    """A CUDA card: total GiB, compute capability, TFLOP/s, memory GB/s and PCIe GB/s.

    TFLOP/s are those of an evaluation of FLUX at 1024 px in plain PyTorch: measured for H100 and H200
    (`tests/benchmarks/results`), published by others from T4 to B200, and otherwise the data sheet's dense 16-bit rate
    with 32-bit accumulation times 0.7 (GeForce) or 0.4 (others).
    """

    vram: float
    capability: tuple[int, int]
    tflops: float
    bandwidth: float
    pcie: float


CARDS: dict[str, Card] = {
    "t4": Card(14.7, (7, 5), 20, 320, 6),
    "v100-16gb": Card(15.8, (7, 0), 45, 900, 8),
    "p100": Card(15.9, (6, 0), 9, 730, 8),
    "l4": Card(22.2, (8, 9), 43, 300, 13),
    "a10g": Card(22.1, (8, 6), 40, 600, 13),
    "l40s": Card(44.5, (8, 9), 143, 864, 13),
    "a100-40gb": Card(39.5, (8, 0), 150, 1555, 16),
    "a100-80gb": Card(79.2, (8, 0), 150, 2039, 16),
    "h100": Card(79.2, (9, 0), 389, 3350, 45),
    "h200": Card(139.8, (9, 0), 421, 4800, 45),
    "b200": Card(178.0, (10, 0), 640, 8000, 35),
    "rtx-pro-6000": Card(95.0, (12, 0), 190, 1792, 30),
    "gtx-1080-ti": Card(11.0, (6, 1), 6, 484, 8),
    "rtx-2060": Card(6.0, (7, 5), 18, 336, 8),
    "rtx-2080-ti": Card(11.0, (7, 5), 38, 616, 8),
    "rtx-3060": Card(12.0, (8, 6), 18, 360, 13),
    "rtx-3070": Card(8.0, (8, 6), 28, 448, 13),
    "rtx-3080": Card(10.0, (8, 6), 41, 760, 13),
    "rtx-3090": Card(24.0, (8, 6), 50, 936, 13),
    "rtx-4060": Card(8.0, (8, 9), 21, 272, 7),
    "rtx-4060-ti-16gb": Card(16.0, (8, 9), 31, 288, 7),
    "rtx-4070": Card(12.0, (8, 9), 41, 504, 13),
    "rtx-4070-ti-super": Card(16.0, (8, 9), 62, 672, 13),
    "rtx-4080": Card(16.0, (8, 9), 68, 717, 13),
    "rtx-4090": Card(24.0, (8, 9), 115, 1008, 13),
    "rtx-5070": Card(12.0, (12, 0), 43, 672, 26),
    "rtx-5080": Card(16.0, (12, 0), 79, 960, 26),
    "rtx-5090": Card(32.0, (12, 0), 146, 1792, 26),
}
ALIASES = {"rtx-3060-12gb": "rtx-3060", "a100": "a100-40gb", "v100": "v100-16gb", "rtx-4060-ti": "rtx-4060-ti-16gb"}

# A desktop is assumed to have 32 GiB of RAM, part of which is in use.
MACHINES: dict[str, tuple[str, float, float, int, float]] = {
    # name: card, available RAM in GiB, free disk in GiB, cores, GB/s read from the disk
    "colab-t4": ("t4", 11.2, 70.0, 2, 0.3),
    "colab-l4": ("l4", 50.0, 180.0, 12, 0.5),
    "colab-a100": ("a100-40gb", 80.0, 180.0, 12, 0.5),
    "colab-g4": ("rtx-pro-6000", 170.0, 180.0, 48, 0.5),
    "kaggle-t4": ("t4", 28.0, 60.0, 4, 0.3),
    "kaggle-p100": ("p100", 28.0, 60.0, 4, 0.3),
}
APPLE: dict[str, tuple[float, float, float]] = {
    # name: unified memory in GiB, TFLOP/s in 16 bits, GB/s
    "mac-m1-16gb": (16.0, 2.0, 68.0),
    "mac-m2-pro-32gb": (32.0, 5.0, 200.0),
    "mac-m4-max-64gb": (64.0, 14.0, 546.0),
}
DESKTOP = (26.0, 200.0, 8)  # available RAM in GiB, free disk in GiB, cores


def describe_hardware(text: str | Mapping[str, Any] | Hardware) -> Hardware:
    """A machine from a name, from "12gb" or "12gb/32gb" (GPU and main memory), or from a mapping of numbers.

    Raises:
        InputError: unknown name or field; the message lists those that are known.

    Example:
        >>> describe_hardware("rtx-3060-12gb").capability, describe_hardware("colab-t4").bf16
        ((8, 6), False)
    """
    if isinstance(text, Hardware):
        return text
    if isinstance(text, Mapping):
        return _from_numbers(text)
    name = str(text).strip().lower().replace(" ", "-").replace("_", "-")
    if name in MACHINES:
        card, ram, free, cores, disk_speed = MACHINES[name]
        return dataclasses.replace(_with_card(card, name, ram, free, cores), disk=disk_speed)
    if name in APPLE:
        return _apple(name)
    known = ALIASES.get(name, name)
    if known in CARDS:
        server = CARDS[known].vram > 32 or not known.startswith(("rtx", "gtx"))
        ram, disk, cores = (120.0, 500.0, 16) if server else DESKTOP
        return _with_card(known, name, ram, disk, cores)
    if name.startswith("cpu"):
        sizes = re.findall(r"(\d+)gb", name)
        return Hardware(
            device="cpu", name=name, vram_gib=0.0, ram_gib=float(sizes[0]) * 0.85 if sizes else 13.6, cores=8,
            disk_gib=200.0, tflops=0.4, gpus=0,
        )  # fmt: skip
    if numbers := re.fullmatch(r"(\d+(?:\.\d+)?)gb(?:/(\d+(?:\.\d+)?)gb)?", name):
        given = {"vram_gib": float(numbers[1])}
        return _from_numbers(given | ({"ram_gib": float(numbers[2])} if numbers[2] else {}))
    raise unknown_choice("hardware", text, ("12gb", "12gb/32gb", "cpu-32gb", *MACHINES, *APPLE, *CARDS))


def usable(total: float) -> float:
    """GiB of a card's memory left to a model by the display, the CUDA context and the allocator."""
    return max(0.0, total * 0.94 - 0.3)


def _with_card(card: str, name: str, ram: float, disk: float, cores: int) -> Hardware:
    kind = CARDS[card]
    return Hardware(
        device="cuda",
        name=name,
        vram_gib=usable(kind.vram),
        ram_gib=ram,
        cores=cores,
        bf16=kind.capability >= (8, 0),
        disk_gib=disk,
        capability=kind.capability,
        tflops=kind.tflops,
        bandwidth=kind.bandwidth,
        pcie=kind.pcie,
    )


def _apple(name: str) -> Hardware:
    memory, tflops, bandwidth = APPLE[name]
    # macOS limits the GPU to about three quarters of the memory.
    return Hardware(
        device="mps",
        name=name,
        vram_gib=memory * 0.75,
        ram_gib=memory * 0.75,
        cores=8,
        disk_gib=200.0,
        tflops=tflops,
        bandwidth=bandwidth,
    )


def _from_numbers(given: Mapping[str, Any]) -> Hardware:
    fields = {field.name for field in dataclasses.fields(Hardware)}
    for name, value in given.items():
        if name not in fields:
            raise unknown_choice("hardware", name, sorted(fields))
        if name.endswith("_gib") and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise InputError(f"{name}={shorten(value)}", "a size in GiB is needed", f"try {name}=12")
    device = given.get("device", "cuda" if given.get("vram_gib") else "cpu")
    if device not in ("cuda", "mps", "cpu"):
        raise unknown_choice("device", device, ("cuda", "mps", "cpu"))
    total = float(given.get("vram_gib", 0.0))
    # An unnamed card is assumed to be of medium speed for its generation.
    base = Hardware(
        device=str(device),
        name=f"a card of {total:g} GiB" if device == "cuda" else "CPU" if device == "cpu" else "Apple GPU",
        vram_gib=usable(total) if device == "cuda" else total,
        ram_gib=DESKTOP[0],
        cores=DESKTOP[2],
        disk_gib=DESKTOP[1],
        capability=(8, 6) if device == "cuda" else (0, 0),
        tflops=40.0 if device == "cuda" else 5.0 if device == "mps" else 0.4,
        bandwidth=500.0 if device == "cuda" else 100.0,
    )
    rest: dict[str, Any] = {key: value for key, value in given.items() if key not in ("vram_gib", "device")}
    if "capability" in rest:
        rest["capability"] = tuple(rest["capability"])
        rest.setdefault("bf16", rest["capability"] >= (8, 0))
    return dataclasses.replace(base, **rest)


def detect() -> Hardware:
    """The machine this process runs on. Nothing is cached, since free memory changes."""
    import torch

    ram, disk = available_ram(), free_disk()
    cores, processes = available_cores(), launched().local_count
    if processes > 1:
        # The others may not have allocated their part yet, so that what is available is not for this process alone.
        ram, cores = min(ram, total_ram() / processes), max(1, cores // processes)
    if torch.cuda.is_available():
        gpu, gpus = gpu_of_process(), torch.cuda.device_count()
        free, total = torch.cuda.mem_get_info(gpu)
        allocated = torch.cuda.memory_allocated(gpu)
        free += torch.cuda.memory_reserved(gpu) - allocated  # cached by this process and unused
        if hasattr(torch.cuda, "get_per_process_memory_fraction"):
            free = min(free, int(torch.cuda.get_per_process_memory_fraction(gpu) * total) - allocated)
        free = min(free, total // math.ceil(processes / gpus))
        name, capability = torch.cuda.get_device_name(gpu), torch.cuda.get_device_capability(gpu)
        card = _card_from_driver(name)
        units = torch.cuda.get_device_properties(gpu).multi_processor_count
        return Hardware(
            device="cuda",
            name=name,
            vram_gib=free / GIB,
            ram_gib=ram,
            cores=cores,
            # is_bf16_supported() also counts emulation, which is too slow to use.
            bf16=capability >= (8, 0),
            disk_gib=disk,
            capability=capability,
            tflops=card.tflops if card else _estimate_tflops(capability, units),
            bandwidth=card.bandwidth if card else 400.0,
            pcie=card.pcie if card else 10.0,
            gpus=gpus,
        )
    if torch.backends.mps.is_available():  # shared memory
        return Hardware(
            device="mps",
            name="Apple GPU",
            vram_gib=ram,
            ram_gib=ram,
            cores=cores,
            disk_gib=disk,
            tflops=5.0,
            bandwidth=150.0,
        )
    return Hardware(
        device="cpu",
        name="CPU",
        vram_gib=0.0,
        ram_gib=ram,
        cores=cores,
        disk_gib=disk,
        tflops=CORE_TFLOPS * cores,
        gpus=0,
    )


def gpu_of_process() -> torch.device:
    """The CUDA device of this process.

    It is the current one where that has been set, as accelerate does when its state is created. A process that was
    launched beside others otherwise takes the one of its local rank.
    """
    import torch

    current, process = torch.cuda.current_device(), launched()
    if current == 0 and process.count > 1:
        current = process.local_rank % torch.cuda.device_count()
    return torch.device("cuda", current)


def available_cores(quota: Path = CPU_QUOTA) -> int:
    """The number of CPU cores this process may use, within its affinity and its container's quota, rounded up."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        microseconds, period = quota.read_text().split()
        return max(1, min(allowed, -(-int(microseconds) // int(period))))  # "max" raises ValueError: no limit
    except (OSError, ValueError, ZeroDivisionError):
        return max(1, allowed)


def _card_from_driver(name: str) -> Card | None:
    """The card of a driver's name: "NVIDIA GeForce RTX 4090" is "rtx-4090"."""
    words = re.sub(r"nvidia|geforce|tesla|-sxm\d?|-pcie", " ", name.lower())
    flat = re.sub(r"[\s-]+", "-", words).strip("-")
    if flat in CARDS:
        return CARDS[flat]
    # "rtx-4060-ti" is a prefix of a key; "rtx-pro-6000-blackwell" has a key as its prefix.
    fits = [key for key in CARDS if key.startswith(f"{flat}-")] or [key for key in CARDS if flat.startswith(f"{key}-")]
    return CARDS[max(fits, key=len)] if fits else None


def _estimate_tflops(capability: tuple[int, int], units: int) -> float:
    """TFLOP/s from the number of multiprocessors, for a card that is not in the table."""
    per_unit = {7: 0.5, 8: 0.65, 9: 3.0, 10: 4.3, 12: 0.86}.get(capability[0], 0.2)
    return units * (1.39 if capability == (8, 0) else 0.9 if capability == (8, 9) else per_unit)


def free_disk() -> float:
    """Free GiB on the disk of the hub's cache, which may not exist yet."""
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free / GIB


def available_ram(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """GiB of main memory this process can still allocate, within the limits of its container or job.

    Arguments:
        cgroups: the folder of Linux's control groups.
        own: the file that lists the groups of this process; limits of the groups above them apply too.
    """
    import psutil

    free = float(psutil.virtual_memory().available)
    for group, limit, used in _limits(cgroups, own):
        try:
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
            taken = int((group / used).read_text()) - (int(cached[1]) if cached else 0)
        except (OSError, ValueError):
            continue
        free = min(free, max(0, limit - taken))
    return free / GIB


def total_ram(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """GiB of main memory of the machine, or of the container or job that this process belongs to."""
    import psutil

    return min([psutil.virtual_memory().total, *(limit for _, limit, _ in _limits(cgroups, own))]) / GIB


def _limits(cgroups: Path, own: Path) -> Iterator[tuple[Path, int, str]]:
    """The limits that apply to this process: folder of the group, bytes, and the name of the file with the usage."""
    for group in _groups(cgroups, own):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            with contextlib.suppress(OSError, ValueError):  # "max" raises ValueError: no limit
                yield group, int((group / limit).read_text()), used


def _groups(cgroups: Path, own: Path) -> list[Path]:
    """Folders of the memory groups of this process, of cgroup v1 and v2, the outermost first."""
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
