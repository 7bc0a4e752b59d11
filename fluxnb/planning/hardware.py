"""What a machine is, its accelerator, memory, disk and how fast they are: described by a name or by numbers."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxnb.errors import InputError, shorten, unknown_choice, validates_own_input

__all__ = ["CARDS", "MACHINES", "Hardware", "described"]

GIB = 2**30
CORE = 0.05  # TFLOP/s that one CPU core reaches in bfloat16


@validates_own_input
@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One machine, as far as a plan needs to know it.

    Arguments:
        device: "cuda", "mps" or "cpu".
        name: of the accelerator, or "CPU".
        vram_gib: memory of the accelerator that is free; 0 on a CPU.
        ram_gib: main memory that is available, also under the limit of a container.
        cores: CPU cores this process may use.
        bf16: whether bfloat16 is native; a T4 has none, whatever `torch.cuda.is_bf16_supported()` says.
        disk_gib: room where downloads go.
        capability: of a CUDA card, (8, 9) for instance.
        tflops: what plain PyTorch reaches on FLUX in 16 bits, TFLOP/s; about half of a data sheet's number.
        bandwidth: of the accelerator's memory, GB/s.
        pcie: between main memory and the accelerator, GB/s.
        disk: read from the disk that downloads are on, GB/s.
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

    @property
    def without_accelerator(self) -> Hardware:
        """The same machine with its accelerator left alone."""
        if self.device == "cpu":
            return self
        return dataclasses.replace(
            self, device="cpu", vram_gib=0.0, bf16=True, capability=(0, 0), tflops=CORE * self.cores, bandwidth=40.0
        )

    @property
    def float8(self) -> bool:
        """Whether matrix units compute in 8-bit floating point."""
        return self.capability >= (8, 9)


@validates_own_input
@dataclass(frozen=True)
class Card:
    """A kind of accelerator: total GiB, capability, TFLOP/s reached by plain PyTorch, memory GB/s, PCIe GB/s reached.

    TFLOP/s: of an evaluation of FLUX at 1024 px, measured here for H100 and H200 (`tests/benchmarks/results`) and
    published for others from T4 to B200; else the data sheet's dense 16-bit rate with 32-bit sums times 0.7 (GeForce)
    or 0.4 (the rest).
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

# Machines people have by name. A desktop is given 32 GiB of RAM, of which its owner uses some.
MACHINES: dict[str, tuple[str, float, float, int, float]] = {
    # name: card, RAM available in GiB, room on the disk in GiB, cores, GB/s read from the disk
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
DESKTOP = (26.0, 200.0, 8)


def described(text: str | Mapping[str, Any] | Hardware) -> Hardware:
    """A machine from its name, from "12gb" or "12gb/32gb" (GPU and main memory), or from a mapping of numbers.

    Raises:
        InputError: nothing that is known; says what is.

    Example:
        >>> described("rtx-3060-12gb").capability, described("colab-t4").bf16
        ((8, 6), False)
    """
    if isinstance(text, Hardware):
        return text
    if isinstance(text, Mapping):
        return _from_numbers(text)
    name = str(text).strip().lower().replace(" ", "-").replace("_", "-")
    if name in MACHINES:
        card, ram, room, cores, disk = MACHINES[name]
        return dataclasses.replace(_with_card(card, name, ram, room, cores), disk=disk)
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
            disk_gib=200.0, tflops=0.4,
        )  # fmt: skip
    if numbers := re.fullmatch(r"(\d+(?:\.\d+)?)gb(?:/(\d+(?:\.\d+)?)gb)?", name):
        given = {"vram_gib": float(numbers[1])}
        return _from_numbers(given | ({"ram_gib": float(numbers[2])} if numbers[2] else {}))
    raise unknown_choice("hardware", text, ("12gb", "12gb/32gb", "cpu-32gb", *MACHINES, *APPLE, *CARDS))


def usable(total: float) -> float:
    """Of a card's memory in GiB, what a model can have: a screen, the CUDA context and the allocator need the rest."""
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
    # macOS lets the GPU have about three quarters.
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
    # A card that nobody named is taken for a middling one of its time.
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
