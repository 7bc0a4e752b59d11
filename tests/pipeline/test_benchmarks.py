"""The measurements that need a GPU are proved here at toy size: they run, and what must be equal is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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
