"""Time of a pocket picture relative to the plain diffusers call: `python tests/benchmarks/runtime.py`.

The calls alternate within one process, so that other load on the machine affects all of them equally. The ratios are
the result; the seconds depend on the machine. Prints one JSON object. `--tiny` has one round of
smaller pictures, to test the script.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from diffusers import FluxPipeline

import fluxnb as fnb
from fluxnb.checkpoints.sources import POCKET
from fluxnb.pipeline.state import state_of

PROMPT, ROUNDS, IMPORTS = "a cat holding a sign that says hello world", 12, 5


def seconds(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def import_seconds(rounds: int) -> float:
    """Seconds of `import fluxnb` in a new interpreter, without its start-up; median of the rounds."""
    code = "import time; t = time.perf_counter(); import fluxnb; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", code]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(rounds)]
    return statistics.median(float(run.stdout) for run in runs)


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    rounds, imports, size = (1, 1, 64) if options.tiny else (ROUNDS, IMPORTS, 128)
    torch.set_num_threads(1 if options.tiny else 2)
    pipe = FluxPipeline.from_pretrained(POCKET / "base")
    pipe.set_progress_bar_config(disable=True)
    flux = fnb.load("pocket-base")

    def plain() -> None:
        pipe(
            PROMPT,
            negative_prompt="",
            true_cfg_scale=1.5,
            height=size,
            width=size,
            num_inference_steps=4,
            max_sequence_length=48,
            generator=torch.Generator().manual_seed(0),
        )

    def recorded() -> None:
        with fnb.recording(pipe):
            plain()

    def run() -> None:
        fnb.run(flux, PROMPT, seed=0, steps=4, height=size, width=size)

    def run_new() -> None:
        state_of(flux.pipe).encodings.clear()
        run()

    # The plain call encodes its prompt every time; a run does so for a new prompt.
    calls = {"plain": plain, "recorded": recorded, "run, new prompt": run_new, "run": run}
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call))
    ratio = {
        f"{name}/plain": statistics.median(a / b for a, b in zip(times[name], times["plain"], strict=True))
        for name in calls
        if name != "plain"
    }
    medians = {f"{name} seconds": statistics.median(values) for name, values in times.items()}
    facts = {**ratio, **medians, "import seconds": import_seconds(imports), "threads": torch.get_num_threads()}
    print(json.dumps({name: round(value, 4) for name, value in facts.items()}, indent=1))


if __name__ == "__main__":
    main()
