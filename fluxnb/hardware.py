"""What this machine is: the device a run would use, and how much memory there is."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from fluxnb.errors import checks_itself

__all__ = ["Hardware", "detect"]

GIB = 2**30


@checks_itself
@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One machine, as far as a plan needs to know it.

    Arguments:
        device: "cuda", "mps" or "cpu".
        name: of the accelerator, or "CPU".
        vram_gib: memory of the accelerator that is free now; 0 on a CPU.
        ram_gib: main memory that is available now.
        cores: CPU cores this process may use.
        bf16: whether bfloat16 is native; a T4 has none.
    """

    device: str
    name: str
    vram_gib: float
    ram_gib: float
    cores: int
    bf16: bool


def detect() -> Hardware:
    """The machine this runs on. Nothing is cached: free memory changes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ram = _available_ram()
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        # is_bf16_supported() alone counts emulation, which is slow enough to be no support.
        native = torch.cuda.get_device_capability() >= (8, 0)
        name = torch.cuda.get_device_name()
        return Hardware(device="cuda", name=name, vram_gib=free / GIB, ram_gib=ram, cores=cores, bf16=native)
    if torch.backends.mps.is_available():  # one memory for both
        return Hardware(device="mps", name="Apple GPU", vram_gib=ram, ram_gib=ram, cores=cores, bf16=True)
    return Hardware(device="cpu", name="CPU", vram_gib=0.0, ram_gib=ram, cores=cores, bf16=True)


def _available_ram() -> float:
    import psutil

    return float(psutil.virtual_memory().available) / GIB
