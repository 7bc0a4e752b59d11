"""Main memory while a model of full width is loaded stays below the size of one component.

The device is PyTorch's "meta", which stores no tensor, so that only memory of the loading itself is counted. The files
are sparse: they have the right size and take no disk space.
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
started = time.perf_counter()
pipe = assemble(Path(sys.argv[1]), PRESETS[sys.argv[2]], device=torch.device("meta"), dtype=torch.bfloat16)
done.set()
print(json.dumps({"before": seen[0], "peak": max(seen), "seconds": time.perf_counter() - started}))
"""


def probed(folder: Path, preset: str, limit: str = "") -> dict[str, float]:
    """Memory and seconds of assembling the folder, inside a memory group if one is given."""
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
    from tests.benchmarks.random_checkpoint import write_checkpoint

    folder = tmp_path_factory.mktemp("wide") / "model"
    write_checkpoint(folder, sparse=True, depth=(2, 4, 4), threads=1)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux does")
@pytest.mark.parametrize("preset", ["lean", "resident"])
def test_loading_holds_a_few_tensors_and_never_a_component(wide, preset):
    files = sum(path.stat().st_size for path in (wide / "transformer").glob("*.safetensors"))
    assert files > 1.7e9
    measured = probed(wide, preset)
    assert measured["peak"] - measured["before"] < 0.2 * GIB < files


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts memory as Linux does")
def test_loading_works_under_a_memory_limit_below_the_largest_component(wide):
    place = Path("/sys/fs/cgroup/memory") / f"fluxnb-{os.getpid()}"
    try:
        place.mkdir()
        (place / "memory.limit_in_bytes").write_text(str(int(0.9 * GIB)))
    except OSError:
        pytest.skip("not allowed to create a memory group")
    try:
        measured = probed(wide, "lean", limit=str(place))
        assert measured["peak"] < 0.9 * GIB
    finally:
        place.rmdir()
