"""The measurements that need a GPU are proved here at toy size: they run, and what must be equal is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def truths(found):
    """Every yes or no in a nested answer."""
    if isinstance(found, dict):
        return [truth for value in found.values() for truth in truths(value)]
    return [found] if isinstance(found, bool) else []


@pytest.mark.slow
def test_the_measurement_of_recording_runs_at_toy_size_and_finds_the_same_bytes_everywhere(tmp_path):
    out = tmp_path / "found.json"
    command = [sys.executable, "tests/benchmarks/recording.py", "--tiny", "--seconds", "600", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert "failed" not in out.read_text()
    assert len(truths(found)) >= 11 and all(truths(found))
    assert found["resident"]["recording on/off, median of pairs"] > 0


def test_a_device_that_waits_is_told_from_one_that_works():
    from tests.benchmarks.kernels import account

    beside = [(0.0, 4.0, "gemm"), (1.0, 2.0, "triton_a"), (5.0, 6.0, "memcpy"), (6.5, 7.0, "gemm")]
    found = account(beside, dearest=1)
    assert (found["from first to last"], found["idle"]) == (7.0, 1.5)
    assert (found["matmul"], found["fused"], found["copies"]) == (4.5, 1.0, 1.0)
    assert found["2 x gemm"] == 4.5 and found["longest waits"][0] == (1.0, "gemm", "memcpy")


def test_no_kernels_are_no_time():
    from tests.benchmarks.kernels import account

    assert account([], dearest=3) == {"longest waits": []}
