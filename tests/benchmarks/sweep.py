"""What a grid costs beside a loop of plain diffusers calls: `python tests/benchmarks/sweep.py`.

3 prompts x 4 seeds x steps {1, 2, 3, 4} on pocket, three ways that take turns within one process: 48 plain calls, a
sweep, and a sweep that walks 16 pictures side by side. The ratios are the figure; the seconds are of this machine. On
a machine that others use, wall time says how busy they are. So each call also says how much of the processors others
had meanwhile, and the ratio of the quietest calls stands beside that of all; where "others" is not near 0 even there,
the ratio of processor time is what is left, which knows nothing of the second core. Every picture of the exact sweep is
compared with its plain call. Prints one JSON object.
"""

from __future__ import annotations

import argparse
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


class Took(NamedTuple):
    """Seconds on the wall, seconds of the processor, and how many processors others had meanwhile."""

    wall: float
    processor: float
    others: float


def timed(call: Callable[[], Any]) -> tuple[Took, Any]:
    """How long a call took, and what came of it."""
    began, own, all_of_them = time.perf_counter(), time.process_time(), busy()
    made = call()
    wall, own = time.perf_counter() - began, time.process_time() - own
    return Took(wall, own, max(0.0, busy() - all_of_them - own) / wall), made


def busy() -> float:
    """Seconds that all processors together have worked since the machine began, for itself or for its host's others."""
    spent = psutil.cpu_times()
    return sum(spent) - spent.idle - getattr(spent, "iowait", 0.0) - getattr(spent, "guest", 0.0)


def rounded(value: Any) -> Any:
    """Three digits after the point, wherever there are more."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    return round(value, 3) if isinstance(value, float) else value


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
    flux = fnb.load(pipe).with_defaults(guidance_kind="none", guidance=None, max_sequence_length=48)
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
    took: dict[str, list[Took]] = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, call in ways.items():
            spent, made = timed(call)
            took[name].append(spent)
            assert name == "batched" or made == pictures["plain"], f"{name}: other bytes than the plain calls"
    facts: dict[str, Any] = {"counted": seen}
    quiet = {name: sorted(each, key=lambda one: one.others)[: max(1, given.rounds // 3)] for name, each in took.items()}
    for name in ("exact", "batched"):
        for kind in ("wall", "processor"):
            pairs = zip(took[name], took["plain"], strict=True)
            facts[f"{name}/plain, {kind}"] = statistics.median(getattr(a, kind) / getattr(b, kind) for a, b in pairs)
            middle = {way: statistics.median(getattr(one, kind) for one in quiet[way]) for way in (name, "plain")}
            facts[f"{name}/plain, {kind}, quietest"] = middle[name] / middle["plain"]
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
        name: sum(a == b for a, b in zip(pictures[name], pictures["plain"], strict=True)) for name in ways
    }
    facts["largest difference of a batched byte"] = max(far)
    facts |= {"threads": torch.get_num_threads(), "rounds": given.rounds, "load": os.getloadavg()[0]}
    print(json.dumps(rounded(facts), indent=1))


if __name__ == "__main__":
    main()
