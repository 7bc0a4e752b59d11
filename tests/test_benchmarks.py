"""The GPU benchmarks at toy size on a CPU, and the summary of kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.kernels import summarize

ROOT = Path(__file__).parents[1]


def flags(result):
    """All booleans in a nested result."""
    if isinstance(result, dict):
        return [flag for value in result.values() for flag in flags(value)]
    return [result] if isinstance(result, bool) else []


@pytest.mark.slow
def test_the_recording_benchmark_finds_the_same_bytes_in_all_cases(tmp_path):
    out = tmp_path / "result.json"
    command = [sys.executable, "tests/benchmarks/recording.py", "--tiny", "--seconds", "600", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    result = json.loads(out.read_text())
    assert "failed" not in out.read_text()
    assert len(flags(result)) >= 11 and all(flags(result))
    assert result["resident"]["recording on/off, median of pairs"] > 0


@pytest.mark.slow
def test_the_benchmark_of_full_size_measures_its_cases_at_toy_size(tmp_path):
    cases = ["resident", "lean-24", "fast"]
    command = [sys.executable, "-m", "tests.benchmarks.fullsize", "--tiny", "--out", str(tmp_path), "--cases", *cases]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    measured = json.loads((tmp_path / "fullsize-tiny.json").read_text())["cases"]
    assert set(measured) == set(cases)
    assert [facts.get("failed") for facts in measured.values()] == [None] * 3
    assert measured["fast"]["times plain diffusers"] > 0


def test_kernels_are_summarized_by_kind_with_idle_time():
    events = [(0.0, 4.0, "gemm"), (1.0, 2.0, "triton_a"), (5.0, 6.0, "memcpy"), (6.5, 7.0, "gemm")]
    summary = summarize(events, slowest=1)
    assert (summary["from first to last"], summary["idle"]) == (7.0, 1.5)
    assert (summary["matmul"], summary["fused"], summary["copies"]) == (4.5, 1.0, 1.0)
    assert summary["2 x gemm"] == 4.5 and summary["longest waits"][0] == (1.0, "gemm", "memcpy")


def test_the_summary_of_no_kernels_is_empty():
    assert summarize([], slowest=3) == {"longest waits": []}
