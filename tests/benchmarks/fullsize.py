"""FLUX.1-schnell's full size under a cap of GPU memory, beside the recipes people copy: memory, seconds, bytes.

    python -m tests.benchmarks.fullsize --out results                             # on a GPU, the first nine cases
    python -m tests.benchmarks.fullsize --cases lean-24 nf4-8 --seconds 300
    python -m tests.benchmarks.fullsize --tiny                                    # the same ways with pocket, any CPU

Each case is a process of its own and prints one line of JSON when it ends; all of them go to `fullsize.json`. A cap
is `torch.cuda.set_per_process_memory_fraction`, which makes a large card refuse what a small one could not give. Times
are medians, the device awaited before and after; peaks are what PyTorch's allocator counted from a prompt to its
picture, loading counted apart.
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

from tests.benchmarks.bench import Bench
from tests.benchmarks.cases import CASES, IN_MEMORY, MEASURES
from tests.benchmarks.claims import ratios


def main() -> None:
    """Run the cases and write what they gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "flux-made-up", help="where the made-up model lies"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/fullsize")))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES)[:9])
    parser.add_argument("--seconds", type=float, default=560, help="start no case after this")
    parser.add_argument("--tiny", action="store_true", help="pocket and no caps: proves the ways, measures nothing")
    parser.add_argument("--expandable", action="store_true", help="PyTorch's expandable segments")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        cap, says = CASES[asked.case]
        bench = Bench(asked.case, says, cap, asked.folder, asked.tiny)
        try:
            MEASURES[asked.case](bench)
        except Exception as problem:
            bench.facts["failed"] = f"{type(problem).__name__}: {str(problem)[:400]}"
            raise
        finally:
            print("FACTS" + json.dumps(bench.facts), flush=True)
        return
    drive(asked)


def drive(asked: argparse.Namespace) -> None:
    """Make the model, run each case in its process, keep the results as they come."""
    import torch

    begun = time.perf_counter()
    make_files(asked)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / ("fullsize-tiny.json" if asked.tiny else "fullsize.json")
    cases: dict[str, dict[str, Any]] = json.loads(file.read_text())["cases"] if file.is_file() else {}
    for name in asked.cases:
        if time.perf_counter() - begun > asked.seconds:
            print(f"{name}: no time left", flush=True)
            continue
        cases[name] = run(name, asked)
        write(file, cases, asked.tiny)
    print()
    for says, value, promised, holds in ratios(cases):
        print(f"{'ok  ' if holds else 'MISS'} {says}: {value:.3f} ({promised})")
    print(f"{time.perf_counter() - begun:.0f} s in all; {file}", flush=True)


def make_files(asked: argparse.Namespace) -> None:
    """What the cases load: the made-up model, or a copy of pocket, and a GGUF file beside it for the case of one."""
    import torch
    from diffusers import FluxTransformer2DModel

    from fluxnb.checkpoints.sources import POCKET
    from fluxnb.runtime.streaming import build_without_memory
    from tests.benchmarks.madeup import make
    from tests.benchmarks.madeup_gguf import make_gguf

    if asked.tiny:
        asked.folder = asked.folder.with_name(f"{asked.folder.name}-tiny")
        shutil.copytree(POCKET / "base", asked.folder, dirs_exist_ok=True)
    elif set(asked.cases) - set(IN_MEMORY):
        print(f"made-up model: {make(asked.folder):.0f} s", flush=True)
    if "gguf-16" in asked.cases:
        config = FluxTransformer2DModel.load_config(asked.folder, subfolder="transformer")
        hollow = build_without_memory(lambda: FluxTransformer2DModel.from_config(config), torch.bfloat16)
        print(f"made-up GGUF: {make_gguf(asked.folder / 'made-up-Q8_0.gguf', hollow):.0f} s", flush=True)


def run(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One case in a process of its own, so that nothing of another lies in its memory."""
    command = [sys.executable, "-m", "tests.benchmarks.fullsize", "--case", name, "--folder", str(asked.folder)]
    environment = {**os.environ, "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    if asked.expandable:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    begun = time.perf_counter()
    done = subprocess.run(
        command + (["--tiny"] if asked.tiny else []), stdout=subprocess.PIPE, text=True, env=environment, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("FACTS")), "")
    facts = json.loads(line.removeprefix("FACTS")) if line else {"case": name, "failed": "the process died"}
    facts["case seconds"] = time.perf_counter() - begun
    shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()}
    print(json.dumps({key: value for key, value in shown.items() if key != "timeline"}), flush=True)
    return facts


def write(file: Path, cases: dict[str, Any], tiny: bool) -> None:
    """The results with card, versions and date."""
    import accelerate
    import diffusers
    import torch
    import transformers

    head = {
        "what": "pocket: proves the ways, measures nothing" if tiny else "FLUX.1-schnell's shapes, random weights",
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {each.__name__: each.__version__ for each in (torch, diffusers, transformers, accelerate)},
        "pixels": 128 if tiny else 1024, "steps": 4, "tokens": 48 if tiny else 256,
    }  # fmt: skip
    rows = [
        {"says": says, "value": value, "promised": promised, "holds": holds}
        for says, value, promised, holds in ratios(cases)
    ]
    file.write_text(json.dumps({**head, "ratios": rows, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
