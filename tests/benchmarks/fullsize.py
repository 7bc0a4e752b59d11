"""Memory, time and bytes of FLUX.1-schnell's full size with limited GPU memory, compared with diffusers' recipes.

    python -m tests.benchmarks.fullsize --out results                             # on a GPU, the first nine cases
    python -m tests.benchmarks.fullsize --cases lean-24 nf4-8 --seconds 300
    python -m tests.benchmarks.fullsize --tiny                                    # the same cases with pocket, on a CPU

Each case runs in its own process and prints one line of JSON at its end; all results are written to `fullsize.json`.
The limit is set by `torch.cuda.set_per_process_memory_fraction`, so that a large GPU fails where a small one would.
Times are medians of synchronized calls. Peaks are those of PyTorch's allocator from a prompt to its picture; the peak
of loading is separate.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.case import Bench
from tests.benchmarks.cases import CASES, IN_MEMORY, MEASURES
from tests.benchmarks.comparisons import compare


def main() -> None:
    """Run the cases and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "flux-random", help="folder of the random model"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/fullsize")))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES)[:9])
    parser.add_argument("--seconds", type=float, default=560, help="start no case after this time")
    parser.add_argument("--tiny", action="store_true", help="pocket without limits, to test the script")
    parser.add_argument("--expandable", action="store_true", help="use PyTorch's expandable segments")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        cap, description = CASES[options.case]
        bench = Bench(options.case, description, cap, options.folder, options.tiny)
        try:
            MEASURES[options.case](bench)
        except Exception as problem:
            bench.facts["failed"] = f"{type(problem).__name__}: {str(problem)[:400]}"
            raise
        finally:
            print("FACTS" + json.dumps(bench.facts), flush=True)
        return
    run_cases(options)


def run_cases(options: argparse.Namespace) -> None:
    """Create the model, run each case in its own process, and write the results after each."""
    import torch

    began = time.perf_counter()
    make_files(options)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / ("fullsize-tiny.json" if options.tiny else "fullsize.json")
    cases: dict[str, dict[str, Any]] = json.loads(file.read_text())["cases"] if file.is_file() else {}
    for name in options.cases:
        if time.perf_counter() - began > options.seconds:
            print(f"{name}: no time left", flush=True)
            continue
        cases[name] = run_case(name, options)
        write(file, cases, options.tiny)
    print()
    for title, value, expected, holds in compare(cases):
        print(f"{'ok  ' if holds else 'MISS'} {title}: {value:.3f} ({expected})")
    print(f"{time.perf_counter() - began:.0f} s in total; {file}", flush=True)


def make_files(options: argparse.Namespace) -> None:
    """Create the files that the cases load: the random model or a copy of pocket, and a GGUF file if needed."""
    import torch
    from diffusers import FluxTransformer2DModel

    from fluxnb.checkpoints.sources import POCKET
    from fluxnb.runtime.streaming import build_without_memory
    from tests.benchmarks.random_checkpoint import write_checkpoint
    from tests.benchmarks.random_gguf import write_gguf

    if options.tiny:
        options.folder = options.folder.with_name(f"{options.folder.name}-tiny")
        shutil.copytree(POCKET / "base", options.folder, dirs_exist_ok=True)
    elif set(options.cases) - set(IN_MEMORY):
        print(f"random model: {write_checkpoint(options.folder):.0f} s", flush=True)
    if "gguf-16" in options.cases:
        config = FluxTransformer2DModel.load_config(options.folder, subfolder="transformer")
        empty = build_without_memory(lambda: FluxTransformer2DModel.from_config(config), torch.bfloat16)
        print(f"random GGUF: {write_gguf(options.folder / 'random-Q8_0.gguf', empty):.0f} s", flush=True)


def run_case(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one case in its own process, so that its memory is not affected by other cases."""
    command = [sys.executable, "-m", "tests.benchmarks.fullsize", "--case", name, "--folder", str(options.folder)]
    environment = {**os.environ, "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    if options.expandable:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    began = time.perf_counter()
    done = subprocess.run(
        command + (["--tiny"] if options.tiny else []), stdout=subprocess.PIPE, text=True, env=environment, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("FACTS")), "")
    facts = json.loads(line.removeprefix("FACTS")) if line else {"case": name, "failed": "the process died"}
    facts["case seconds"] = time.perf_counter() - began
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()}
    print(json.dumps({key: value for key, value in rounded.items() if key != "timeline"}), flush=True)
    return facts


def write(file: Path, cases: dict[str, Any], tiny: bool) -> None:
    """Write the results with GPU, versions and date."""
    import accelerate
    import diffusers
    import torch
    import transformers

    head = {
        "what": "pocket, to test the script" if tiny else "FLUX.1-schnell's shapes, random weights",
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {each.__name__: each.__version__ for each in (torch, diffusers, transformers, accelerate)},
        "pixels": 128 if tiny else 1024, "steps": 4, "tokens": 48 if tiny else 256,
    }  # fmt: skip
    rows = [
        {"title": title, "value": value, "expected": expected, "holds": holds}
        for title, value, expected, holds in compare(cases)
    ]
    file.write_text(json.dumps({**head, "comparisons": rows, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
