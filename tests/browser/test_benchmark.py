"""The benchmark of a sweep's page at toy size."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.benchmarks import page


@pytest.mark.usefixtures("chromium")  # for a machine without a browser
def test_the_benchmark_of_the_page_moves_the_slider_over_all_cells(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["page", "--tiny"])
    # Playwright starts once per thread, and the fixture started it in this one.
    with contextlib.redirect_stdout(io.StringIO()) as printed, ThreadPoolExecutor(1) as thread:
        thread.submit(page.main).result()
    found = json.loads(printed.getvalue())
    for measured in (found["linear preview"], found["decoded"]):
        assert measured["visible_cells"] == found["cells"] == 4
        assert min(measured["megabytes"], measured["per_second"], measured["median_work_ms"]) > 0
        assert measured["processor_ms"] > 0
