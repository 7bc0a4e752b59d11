"""Rows of `results/several_gpus.json`, which the benchmarks of several GPUs add with `--out`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# What identifies a row of each kind; a new measurement replaces the row with the same values.
KEYS = {"grid": ("card", "processes"), "picture": ("card", "gpus", "numbers")}


def add_row(file: Path, kind: str, facts: dict[str, Any]) -> None:
    """Add a measurement with versions and date to a file of results, or replace the one of the same set-up."""
    import diffusers
    import torch

    results = json.loads(file.read_text()) if file.is_file() else {kind: [] for kind in KEYS}
    versions = {each.__name__: each.__version__ for each in (torch, diffusers)}
    row = {**facts, "date": datetime.now(UTC).date().isoformat(), "versions": versions}
    same = [row[key] for key in KEYS[kind]]
    others = [each for each in results[kind] if [each[key] for key in KEYS[kind]] != same]
    results[kind] = sorted([*others, row], key=lambda each: [str(each[key]) for key in KEYS[kind]])
    file.write_text(json.dumps(results, indent=1) + "\n")
