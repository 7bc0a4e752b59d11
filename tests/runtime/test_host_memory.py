"""Main memory while a model of full width goes to a device: never a component, let alone a model.

The device here is PyTorch's "meta", which takes every tensor and keeps none, so that what is counted is what loading
itself holds on to. The files are holes: the right size, and nothing on the disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GIB = 2**30
PROBE = """
import json, sys, threading, time
from pathlib import Path
import torch
from diffusers import FluxPipeline
from transformers import T5EncoderModel, CLIPTextModel
from fluxnb.runtime.assembly import assemble
from fluxnb.planning.presets import PRESETS

def own():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024

seen, done = [own()], threading.Event()
def watch():
    while not done.wait(0.005):
        seen.append(own())
threading.Thread(target=watch, daemon=True).start()
begun = time.perf_counter()
pipe = assemble(Path(sys.argv[1]), PRESETS[sys.argv[2]], device=torch.device("meta"), dtype=torch.bfloat16)
done.set()
print(json.dumps({"before": seen[0], "peak": max(seen), "seconds": time.perf_counter() - begun}))
"""


def probed(folder: Path, preset: str, limit: str = "") -> dict[str, float]:
    """What assembling the folder took; inside the memory group of this name, where there is one."""
    environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROBE, str(folder), preset]
    if limit:
        command = ["sh", "-c", f'echo $$ > {limit}/cgroup.procs && exec "$@"', "sh", *command]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-1500:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Two double, four single and four T5 blocks of FLUX.1's width: 3.6 GB, its largest component 1.9 GB."""
    from tests.benchmarks.madeup import make

    folder = tmp_path_factory.mktemp("wide") / "model"
    make(folder, hollow=True, depth=(2, 4, 4), threads=1)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux does")
@pytest.mark.parametrize("preset", ["lean", "resident"])
def test_loading_holds_a_few_tensors_and_never_a_component(wide, preset):
    files = sum(path.stat().st_size for path in (wide / "transformer").glob("*.safetensors"))
    assert files > 1.7e9
    told = probed(wide, preset)
    assert told["peak"] - told["before"] < 0.2 * GIB < files


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux does")
def test_a_memory_limit_below_the_largest_component_is_no_obstacle(wide):
    place = Path("/sys/fs/cgroup/memory") / f"fluxnb-{os.getpid()}"
    try:
        place.mkdir()
        (place / "memory.limit_in_bytes").write_text(str(int(0.9 * GIB)))
    except OSError:
        pytest.skip("no right to make a memory group here")
    try:
        told = probed(wide, "lean", limit=str(place))
        assert told["peak"] < 0.9 * GIB
    finally:
        place.rmdir()
