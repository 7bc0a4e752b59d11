"""Code blocks of pages in Markdown, and how they are run."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^(`{3,})(.*?)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and code of each block that runs."""
    fences = [(info.strip(), code) for _, info, code in FENCE.findall(page.read_text(encoding="utf-8"))]
    return [(info, code) for info, code in fences if info in ("python", "bash")]


def hidden_expressions(code: str) -> list[str]:
    """Expressions of a block whose value is displayed nowhere, since only that of the last line is.

    Calls of methods and of a pipeline have an effect of their own; the functions of the package return values.
    """
    nodes = [node.value for node in ast.parse(code).body[:-1] if isinstance(node, ast.Expr)]
    called = [ast.unparse(node.func) if isinstance(node, ast.Call) else "" for node in nodes]
    shown = {f"fnb.{name}" for name in ("compare", "contact_sheet", "explore", "filmstrip", "lab", "run", "scrub")}
    return [ast.unparse(node) for node, name in zip(nodes, called, strict=True) if not name or name in shown]


def run_python(code: str, names: dict[str, object], file: Path) -> None:
    """Run a block with the names of the blocks before it."""
    exec(compile(code, str(file), "exec"), names)


def run_bash(
    code: str, environment: Mapping[str, str] | None = None, folder: Path | None = None, *, seconds: int = 300
) -> str:
    """Run a block, with the commands of this environment in front of the others; returns what it prints."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    added = environment or {"PATH": path, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **added},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    assert run.returncode == 0, f"{code}\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    return run.stdout
