"""Time of a sweep relative to a loop of plain diffusers calls: `python tests/benchmarks/sweep.py`.

3 prompts x 4 seeds x steps {1, 2, 3, 4} on pocket, in three variants that alternate within one process: 48 plain calls,
a sweep, and a sweep in batches of 16 pictures. The ratios are the result; the seconds depend on the machine. On a
shared machine, wall time also depends on other processes. Each measurement therefore includes the processor load of
other processes, and the ratio of the least disturbed calls is reported separately. If "others" is not near 0 even
there, use the ratio of processor time, which ignores parallelism. Each picture of the exact sweep is compared with its
plain call. Prints one JSON object. `--tiny` has four small pictures, to test the script.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psutil
import torch
from diffusers import FluxPipeline

import fluxnb as fnb
from fluxnb.checkpoints.sources import POCKET

PROMPTS = ["a red fox in the snow", "a cat holding a sign that says hello", "two blue birds on a branch"]
GRID: dict[str, Any] = {"prompts": PROMPTS, "seeds": range(4), "steps": [1, 2, 3, 4]}
TINY: dict[str, Any] = {"prompts": PROMPTS[:1], "seeds": range(2), "steps": [1, 2]}


class Counter:
    """Counts calls of modules."""

    def __init__(self, **modules: Any) -> None:
        self.counts = dict.fromkeys(modules, 0)
        for name, module in modules.items():
            module.register_forward_hook(lambda *_, name=name: self._count(name))

    def _count(self, name: str) -> None:
        self.counts[name] += 1

    def reset(self) -> dict[str, int]:
        """Return the counts and set them to 0."""
        counts, self.counts = self.counts, dict.fromkeys(self.counts, 0)
        return counts


class Timing(NamedTuple):
    """Wall time, processor time, and the mean number of processors used by other processes."""

    wall: float
    processor: float
    others: float


def timed(call: Callable[[], Any]) -> tuple[Timing, Any]:
    """Time a call; returns the timing and the result."""
    began, own, total = time.perf_counter(), time.process_time(), busy_seconds()
    result = call()
    wall, own = time.perf_counter() - began, time.process_time() - own
    return Timing(wall, own, max(0.0, busy_seconds() - total - own) / wall), result


def busy_seconds() -> float:
    """Busy seconds of all processors since boot."""
    spent = psutil.cpu_times()
    return sum(spent) - spent.idle - getattr(spent, "iowait", 0.0) - getattr(spent, "guest", 0.0)


def rounded(value: Any) -> Any:
    """Round all floats to three decimals."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    axes, size = (TINY, 64) if options.tiny else (GRID, 128)
    torch.set_num_threads(options.threads)
    pipe = FluxPipeline.from_pretrained(POCKET / "base")
    pipe.set_progress_bar_config(disable=True)
    # Without guidance, so that a step is one evaluation in all variants.
    flux = fnb.load(pipe).with_defaults(guidance_kind="none", guidance=None, max_sequence_length=48)
    _ = flux.preview
    counter = Counter(evaluations=pipe.transformer, encodes=pipe.text_encoder_2, decodes=pipe.vae.decoder)

    def plain() -> list[bytes]:
        return [
            pipe(
                prompt,
                height=size,
                width=size,
                num_inference_steps=steps,
                max_sequence_length=48,
                generator=torch.Generator().manual_seed(seed),
            )
            .images[0]
            .tobytes()
            for prompt, seed, steps in itertools.product(*axes.values())
        ]

    def grid(batch: int) -> Callable[[], list[bytes]]:
        def call() -> list[bytes]:
            cells = fnb.sweep(flux, **axes, height=size, width=size, batch=batch)
            return [cell.image.tobytes() for cell in cells]

        return call

    variants = {"plain": plain, "exact": grid(1), "batched": grid(options.batch)}
    counts, pictures = {}, {}
    for name, call in variants.items():
        pictures[name] = call()
        counts[name] = counter.reset()
    timings: dict[str, list[Timing]] = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, call in variants.items():
            timing, result = timed(call)
            timings[name].append(timing)
            assert name == "batched" or result == pictures["plain"], f"{name}: bytes differ from the plain calls"
    facts: dict[str, Any] = {"calls": counts}
    quiet = {
        name: sorted(each, key=lambda one: one.others)[: max(1, options.rounds // 3)] for name, each in timings.items()
    }
    for name in ("exact", "batched"):
        for kind in ("wall", "processor"):
            pairs = zip(timings[name], timings["plain"], strict=True)
            facts[f"{name}/plain, {kind}"] = statistics.median(getattr(a, kind) / getattr(b, kind) for a, b in pairs)
            medians = {
                variant: statistics.median(getattr(one, kind) for one in quiet[variant]) for variant in (name, "plain")
            }
            facts[f"{name}/plain, {kind}, quietest"] = medians[name] / medians["plain"]
    facts["others in the quietest"] = {
        name: statistics.median(one.others for one in each) for name, each in quiet.items()
    }
    facts["seconds of the quietest"] = {
        name: statistics.median(one.wall for one in each) for name, each in quiet.items()
    }
    far = [
        max(abs(x - y) for x, y in zip(a, b, strict=True))
        for a, b in zip(pictures["plain"], pictures["batched"], strict=True)
    ]
    facts["identical to plain"] = {
        name: sum(a == b for a, b in zip(pictures[name], pictures["plain"], strict=True)) for name in variants
    }
    facts["largest difference of a batched byte"] = max(far)
    facts |= {"threads": torch.get_num_threads(), "rounds": options.rounds, "load": os.getloadavg()[0]}
    print(json.dumps(rounded(facts), indent=1))


if __name__ == "__main__":
    main()
