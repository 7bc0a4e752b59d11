"""The measurements that a notebook prints are those of the recorded benchmark."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_of_fit_your_gpu_is_the_recorded_one():
    cells = json.loads((ROOT / "notebooks" / "04_fit_it_on_your_gpu.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ["".join(cell["source"]) for cell in cells if "".join(cell["source"]).startswith("rows = {")]
    rows = ast.literal_eval(re.match(r"rows = (\{.*?\})", source, re.S)[1])
    recorded = json.loads((ROOT / "tests" / "benchmarks" / "results" / "fullsize.json").read_text())["cases"]
    assert rows == {
        name: (
            round(max(recorded[name]["peak allocated GiB"], recorded[name].get("loading peak GiB") or 0), 1),
            round(recorded[name]["predicted GiB"], 1),
            round(recorded[name]["picture seconds"], 2),
        )
        for name in rows
    }
    assert len(rows) >= 5
