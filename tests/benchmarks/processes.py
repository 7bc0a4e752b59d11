"""Time of a grid by several processes, each with its own GPU, relative to one process.

    python -m tests.benchmarks.processes --processes 2           # FLUX.1's sizes with random weights
    python -m tests.benchmarks.processes --processes 2 --tiny    # four pictures of pocket on a CPU, to test the script

The grid has 64 pictures: 2 prompts, 8 seeds and 1 to 4 steps, so 112 evaluations of the transformer. All processes load
the model once and sample a first picture. Then the grid is sampled into new stores, alternately by the first process
alone and by all of them. "speedup" is the ratio of the median times; a time lasts from the common start to the last
picture. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.rows import add_row

GRID: dict[str, Any] = {"prompts": ["a red fox in the snow", "a cat in a forest"], "seeds": list(range(8))}
GRID["steps"] = [1, 2, 3, 4]
TINY: dict[str, Any] = {"prompts": GRID["prompts"][:1], "seeds": [0, 1], "steps": [1, 2]}
REPEATS = 3


def worker(*, tiny: bool) -> None:
    """Sample the grid into each store that is named on standard input, and report each time as a line of JSON."""
    import fluxnb as fnb
    from tests.benchmarks.random_checkpoint import on_device

    if tiny:
        torch.set_num_threads(1)
        flux, size, axes = fnb.load("pocket"), 64, TINY
    else:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        flux, size, axes = fnb.load(on_device(device)).with_defaults(max_sequence_length=256), 1024, GRID
    sides = {"height": size, "width": size}
    evaluated = [0]
    flux.pipe.transformer.register_forward_hook(lambda *_: evaluated.__setitem__(0, evaluated[0] + 1))
    fnb.sweep(flux, **{**axes, "seeds": [99], "steps": [1]}, **sides, progress=False)
    print("ready", flush=True)
    for line in sys.stdin:
        evaluated[0] = 0
        grid = fnb.sweep(flux, **axes, **sides, store=line.strip(), progress=False)
        ended = time.time()
        digest = hashlib.sha256(b"".join(cell.image.tobytes() for cell in grid)).hexdigest()
        print(json.dumps({"ended": ended, "evaluations": evaluated[0], "digest": digest}), flush=True)


def start(rank: int, count: int, *, tiny: bool) -> subprocess.Popen[str]:
    """A worker process, described by the environment variables of `torchrun`."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
    command = [sys.executable, "-m", "tests.benchmarks.processes", "--worker", *["--tiny"] * tiny]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    return subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload,no-any-return]


def measure(workers: list[subprocess.Popen[str]], store: Path) -> dict[str, Any]:
    """Sample the grid once by these workers."""
    began = time.time()
    for each in workers:
        assert each.stdin is not None
        each.stdin.write(f"{store}\n")
    reports = [json.loads(each.stdout.readline()) for each in workers if each.stdout is not None]
    return {
        "seconds": max(report["ended"] for report in reports) - began,
        "evaluations": [report["evaluations"] for report in reports],
        "digests": {report["digest"] for report in reports},
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=REPEATS)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="file of results to which the row is added")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(tiny=options.tiny)
        return
    workers = [start(rank, options.processes, tiny=options.tiny) for rank in range(options.processes)]
    began = time.perf_counter()
    for each in workers:
        assert each.stdout is not None
        each.stdout.readline()
    loading = time.perf_counter() - began
    runs: dict[int, list[dict[str, Any]]] = {1: [], len(workers): []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(options.repeats):
            for count in runs:
                runs[count].append(measure(workers[:count], Path(folder) / f"{count}-{repeat}"))
    for each in workers:
        each.communicate()
    one, several = (statistics.median(run["seconds"] for run in runs[count]) for count in runs)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    facts = {
        "card": card,
        "processes": len(workers),
        "loading": loading,
        "seconds of one": one,
        "seconds": several,
        "speedup": one / several,
        "evaluations of one": [sum(run["evaluations"]) for run in runs[1]],
        "evaluations": [sum(run["evaluations"]) for run in runs[len(workers)]],
        "by process": [run["evaluations"] for run in runs[len(workers)]],
        "same bytes": len(set().union(*(run["digests"] for each in runs.values() for run in each))) == 1,
    }
    print(json.dumps(facts))
    if options.out is not None:
        add_row(options.out, "grid", facts)


if __name__ == "__main__":
    main()
