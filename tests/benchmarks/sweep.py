"""What a grid costs beside a loop of plain diffusers calls: `python tests/benchmarks/sweep.py`.

3 prompts x 4 seeds x steps {1, 2, 3, 4} on pocket, three ways that take turns within one process: 48 plain calls, a
sweep, and a sweep that walks 16 pictures side by side. The ratios are the figure; the seconds are of this machine. On
a machine that others use, wall time says how busy they are: then read the ratio of processor time, which knows
nothing of the second core, and start with OMP_WAIT_POLICY=passive, without which threads that wait burn what the
others need. Every picture of the exact sweep is compared with its plain call. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxPipeline

import fluxnb as fnb
from fluxnb.weights import POCKET

PROMPTS = ["a red fox in the snow", "a cat holding a sign that says hello", "two blue birds on a branch"]
SEEDS, STEPS = range(4), [1, 2, 3, 4]


class Counter:
    """How often modules were called since the last look."""

    def __init__(self, **modules: Any) -> None:
        self.counts = dict.fromkeys(modules, 0)
        for name, module in modules.items():
            module.register_forward_hook(lambda *_, name=name: self._count(name))

    def _count(self, name: str) -> None:
        self.counts[name] += 1

    def look(self) -> dict[str, int]:
        """The counts, which begin again at 0."""
        seen, self.counts = self.counts, dict.fromkeys(self.counts, 0)
        return seen


def timed(call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds on the wall, seconds of the processor, and what came of it."""
    wall, busy = time.perf_counter(), time.process_time()
    made = call()
    return time.perf_counter() - wall, time.process_time() - busy, made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    pipe = FluxPipeline.from_pretrained(POCKET / "base")
    pipe.set_progress_bar_config(disable=True)
    # Whatever pocket's own guidance is, here a step is one evaluation, in both.
    flux = fnb.load(pipe).with_profile(guidance_kind="none", guidance=None, max_sequence_length=48)
    _ = flux.preview
    counter = Counter(evaluations=pipe.transformer, encodes=pipe.text_encoder_2, decodes=pipe.vae.decoder)

    def plain() -> list[bytes]:
        return [
            pipe(
                prompt,
                height=128,
                width=128,
                num_inference_steps=steps,
                max_sequence_length=48,
                generator=torch.Generator().manual_seed(seed),
            )
            .images[0]
            .tobytes()
            for prompt in PROMPTS
            for seed in SEEDS
            for steps in STEPS
        ]

    def grid(batch: int) -> Callable[[], list[bytes]]:
        def call() -> list[bytes]:
            cells = fnb.sweep(flux, prompts=PROMPTS, seeds=SEEDS, steps=STEPS, height=128, width=128, batch=batch)
            return [cell.image.tobytes() for cell in cells]

        return call

    ways = {"plain": plain, "exact": grid(1), "batched": grid(given.batch)}
    seen, pictures = {}, {}
    for name, call in ways.items():
        pictures[name] = call()
        seen[name] = counter.look()
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, call in ways.items():
            wall, busy, made = timed(call)
            took[name].append((wall, busy))
            assert name == "batched" or made == pictures["plain"], f"{name}: other bytes than the plain calls"
    facts: dict[str, Any] = {"counted": seen}
    for name in ("exact", "batched"):
        for kind, place in (("wall", 0), ("processor", 1)):
            ratios = [a[place] / b[place] for a, b in zip(took[name], took["plain"], strict=True)]
            facts[f"{name}/plain, {kind}"] = round(statistics.median(ratios), 3)
            least = min(a[place] for a in took[name]) / min(b[place] for b in took["plain"])
            facts[f"{name}/plain, {kind}, least of each"] = round(least, 3)
    facts["seconds"] = {name: round(min(wall for wall, _ in each), 2) for name, each in took.items()}
    far = [
        max(abs(x - y) for x, y in zip(a, b, strict=True))
        for a, b in zip(pictures["plain"], pictures["batched"], strict=True)
    ]
    facts["identical to plain"] = {
        name: sum(a == b for a, b in zip(pictures[name], pictures["plain"], strict=True)) for name in ways
    }
    facts["largest difference of a batched byte"] = max(far)
    facts |= {"threads": torch.get_num_threads(), "rounds": given.rounds, "load": os.getloadavg()[0]}
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
