"""GPU time of a call by kind of kernel, and the time that the GPU is idle."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

KINDS = {
    "attention": ("flash", "fmha", "sdpa"),
    "matmul": ("gemm", "nvjet", "cutlass", "_mm"),
    "convolution": ("conv", "fprop", "implicit"),
    "copies": ("memcpy", "memset"),
    "fused": ("triton",),
}


def profile(call: Callable[[], Any], slowest: int = 12) -> dict[str, Any]:
    """Time of a call on the GPU in ms: by kind of kernel, of the slowest kernels by name, and idle.

    "idle" is the time between the first and the last kernel in which no kernel runs: the GPU waits for the host. The
    longest waits are listed with the kernels before and after them.
    """
    if not torch.cuda.is_available():
        return {}
    profiler = torch.profiler
    with torch.no_grad():
        call()  # warm-up, to the clock rate and the temperature of repeated calls
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as recorded:
            call()
            torch.cuda.synchronize()
    events = [
        (event.time_range.start / 1e3, event.time_range.end / 1e3, event.name)
        for event in recorded.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]
    return summarize(events, slowest)


def summarize(events: list[tuple[float, float, str]], slowest: int) -> dict[str, Any]:
    """Summarize kernels, given as (start, end, name) in ms; kernels of two streams may overlap."""
    by_kind: dict[str, float] = {}
    by_name: dict[str, list[float]] = {}
    waits: list[tuple[float, str, str]] = []
    free, last = math.inf, ""
    for start, end, name in sorted(events):
        kind = next((kind for kind, words in KINDS.items() if any(word in name.lower() for word in words)), "other")
        by_kind[kind] = by_kind.get(kind, 0.0) + end - start
        by_name.setdefault(name, []).append(end - start)
        if start > free:
            waits.append((round(start - free, 2), last[:40], name[:40]))
        if end > free or not last:
            free, last = end, name
    total = free - min((start for start, _, _ in events), default=free)
    names = sorted(by_name, key=lambda kernel: -sum(by_name[kernel]))[:slowest]
    by_kernel = {f"{len(by_name[name])} x {name[:60]}": sum(by_name[name]) for name in names}
    times = {"from first to last": total, "idle": sum(wait for wait, _, _ in waits), **by_kind, **by_kernel}
    longest = sorted(waits, reverse=True)[:8]
    return {**{name: round(ms, 2) for name, ms in times.items() if ms > 0}, "longest waits": longest}
