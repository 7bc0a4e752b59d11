"""What the time of a call goes into on the device, and where the device waits for the host."""

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


def spent(call: Callable[[], Any], dearest: int = 12) -> dict[str, Any]:
    """What the time of a call goes into on the device, ms: by kind, the dearest kernels by name, and standing idle.

    "idle" is what lies between the first kernel and the last with none at work: the device waits for the host. The
    longest waits are told with the kernels before and after them.
    """
    if not torch.cuda.is_available():
        return {}
    profiler = torch.profiler
    with torch.no_grad():
        call()  # as warm, and as short of power, as the card is among calls of this kind
        with profiler.defaults(activities=[profiler.ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize()
    events = [
        (event.time_range.start / 1e3, event.time_range.end / 1e3, event.name)
        for event in seen.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]
    return account(events, dearest)


def account(events: list[tuple[float, float, str]], dearest: int) -> dict[str, Any]:
    """What kernels' (start, end, name) in ms add up to; two queues may be at work at once."""
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
    whole = free - min((start for start, _, _ in events), default=free)
    names = sorted(by_name, key=lambda kernel: -sum(by_name[kernel]))[:dearest]
    dear = {f"{len(by_name[name])} x {name[:60]}": sum(by_name[name]) for name in names}
    spent = {"from first to last": whole, "idle": sum(wait for wait, _, _ in waits), **by_kind, **dear}
    longest = sorted(waits, reverse=True)[:8]
    return {**{name: round(ms, 2) for name, ms in spent.items() if ms > 0}, "longest waits": longest}
