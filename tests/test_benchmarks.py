"""The benchmarks at toy size on a CPU, and the summary of kernels."""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.benchmarks.kernels import summarize
from tests.docs.scripts import script
from tests.ports import free_port

ROOT = Path(__file__).parents[1]
# Both processes of a benchmark, which share the imports, since these take longer than the benchmark.
TWO_PROCESSES = """
import os, runpy
import fluxnb.pipeline.flux
from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
other = os.fork()
os.environ |= {"RANK": str(int(not other)), "LOCAL_RANK": str(int(not other)), "WORLD_SIZE": "2"}
runpy.run_module("tests.benchmarks.parallel", run_name="__main__", alter_sys=True)
assert not other or os.waitpid(other, 0)[1] == 0
"""


@pytest.fixture
def execute(monkeypatch):
    """A function that runs a benchmark as `python -m` does, but in this process, and returns what it prints.

    An error or an exit status other than 0 is raised.
    """
    threads = torch.get_num_threads()

    def executed(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        return printed.getvalue()

    yield executed
    torch.set_num_threads(threads)


def flags(result):
    """All booleans in a nested result."""
    if isinstance(result, dict):
        return [flag for value in result.values() for flag in flags(value)]
    return [result] if isinstance(result, bool) else []


@pytest.mark.slow
def test_the_recording_benchmark_finds_the_same_bytes_in_all_cases(execute, tmp_path):
    out = tmp_path / "result.json"
    execute("tests.benchmarks.recording", "--tiny", "--seconds", "600", "--out", str(out))
    result = json.loads(out.read_text())
    assert "failed" not in out.read_text()
    assert len(flags(result)) >= 11 and all(flags(result))
    assert result["resident"]["recording on/off, median of pairs"] > 0


@pytest.mark.slow
def test_the_benchmark_of_full_size_measures_its_cases_at_toy_size(execute, monkeypatch, tmp_path):
    cases = ["resident", "lean-24", "fast"]
    monkeypatch.chdir(ROOT)  # of the processes of the cases
    places = ["--out", str(tmp_path), "--folder", str(tmp_path / "model")]
    execute("tests.benchmarks.fullsize", "--tiny", *places, "--cases", *cases)
    results = json.loads((tmp_path / "fullsize-tiny.json").read_text())
    measured, tables = results["cases"], script("tables")
    assert set(measured) == set(cases)
    assert [facts.get("failed") for facts in measured.values()] == [None] * 3
    assert measured["fast"]["times plain diffusers"] > 0
    assert all(tables.gpu.ROWS[name] in tables.gpu.table(results) for name in cases)
    assert "| lean: bytes of plain bf16 | equal | 1 | yes |" in tables.comparisons(results)


@pytest.mark.slow
def test_the_benchmark_of_other_families_measures_the_rows_of_its_table(execute, monkeypatch, tmp_path):
    def in_this_process(command, **_):
        return SimpleNamespace(stdout=execute(*command[2:]), stderr="")

    monkeypatch.setattr(subprocess, "run", in_this_process)
    places = ["--out", str(tmp_path), "--folder", str(tmp_path / "models")]
    execute("tests.benchmarks.families", "--tiny", *places, "--cases", "run", "plan-15", "pair-24")
    results = json.loads((tmp_path / "families.json").read_text())
    run, plan, pair = results["cases"]
    assert run["ratio"] > 0 and run["same bytes"] and pair["same bytes"]
    assert {"predicted", "measured", "seconds"} <= plan.keys() & pair.keys()
    assert script("tables").families(results).count("| CPU |") == 3


@pytest.mark.slow
def test_the_benchmark_of_a_grid_by_several_processes_measures_the_row_of_its_table(execute, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)  # of the processes
    rows = tmp_path / "rows.json"
    sizes = ["--processes", "2", "--repeats", "1"]
    (printed,) = execute("tests.benchmarks.processes", "--tiny", *sizes, "--out", str(rows)).splitlines()
    results = json.loads(rows.read_text())
    (row,) = results["grid"]
    assert row.items() >= json.loads(printed).items()
    assert row["same bytes"] and row["evaluations of one"] == [4]
    assert "a grid of 64 pictures, 2 GPUs" in script("tables").several_gpus(results)


@pytest.mark.slow
def test_the_benchmark_of_a_picture_over_several_gpus_measures_the_row_of_its_table(tmp_path):
    rows = tmp_path / "rows.json"
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-c", TWO_PROCESSES, "--tiny", "--out", str(rows)]
    environment = {**os.environ, **address, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    results = json.loads(rows.read_text())
    (row,) = results["picture"]
    assert row.items() >= json.loads(done.stdout).items()
    assert row["same in all"] and row["difference"] < 1e-5
    assert "one picture, float32, 2 GPUs" in script("tables").several_gpus(results)


@pytest.mark.slow
def test_the_benchmark_of_a_sweep_measures_all_variants(execute):
    found = json.loads(execute("tests.benchmarks.sweep", "--tiny", "--rounds", "1", "--threads", "1"))
    evaluations = {name: counts["evaluations"] for name, counts in found["calls"].items()}
    assert evaluations == {"plain": 6, "exact": 4, "batched": 2}
    assert found["identical to plain"]["exact"] == 4
    ratios = [found[f"{name}/plain, {kind}"] for name in ("exact", "batched") for kind in ("wall", "processor")]
    assert min(ratios) > 0


@pytest.mark.slow
def test_the_benchmark_of_a_picture_of_pocket_measures_all_calls(execute):
    found = json.loads(execute("tests.benchmarks.runtime", "--tiny"))
    fields = ["recorded/plain", "run, new prompt/plain", "run/plain", "plain seconds", "import seconds"]
    assert all(found[field] > 0 for field in fields)


def test_every_benchmark_is_run_by_a_test():
    files = [path for path in (ROOT / "tests").rglob("test_*.py") if "benchmark" in path.stem]
    tests = "".join(path.read_text(encoding="utf-8") for path in files)
    scripts = (ROOT / "tests" / "benchmarks").glob("*.py")
    names = [path.stem for path in scripts if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")]
    assert len(names) > 7
    assert [name for name in names if f"tests.benchmarks.{name}" not in tests and f"{name}.main" not in tests] == []


def test_kernels_are_summarized_by_kind_with_idle_time():
    events = [(0.0, 4.0, "gemm"), (1.0, 2.0, "triton_a"), (5.0, 6.0, "memcpy"), (6.5, 7.0, "gemm")]
    summary = summarize(events, slowest=1)
    assert (summary["from first to last"], summary["idle"]) == (7.0, 1.5)
    assert (summary["matmul"], summary["fused"], summary["copies"]) == (4.5, 1.0, 1.0)
    assert summary["2 x gemm"] == 4.5 and summary["longest waits"][0] == (1.0, "gemm", "memcpy")


def test_the_summary_of_no_kernels_is_empty():
    assert summarize([], slowest=3) == {"longest waits": []}
