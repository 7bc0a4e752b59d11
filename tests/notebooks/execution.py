"""The code of notebooks, run in this process, and the evaluations that it makes."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
NOTEBOOK = NOTEBOOKS / "17_does_it_hold_on_schnell.ipynb"
ANNOUNCED = re.compile(r"FLUX\.1-schnell instead of pocket \| ([\d,]+) \|")


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def announced_for_schnell() -> dict[str, int]:
    """The notebooks that offer schnell instead of pocket, with the evaluations that they announce for it."""
    found = {path.stem: ANNOUNCED.search("".join(cells_of(path)[0]["source"])) for path in NOTEBOOKS.glob("*.ipynb")}
    return {name: int(match[1].replace(",", "")) for name, match in sorted(found.items()) if match}


def executed(notebook: Path, *, until: str | None = None) -> tuple[dict[str, Any], list[Any]]:
    """The names that the code of a notebook defines, and the values that its cells display; all cells by default."""
    names: dict[str, Any] = {}
    displayed = []
    for cell in (cell for cell in cells_of(notebook) if cell["cell_type"] == "code"):
        source = re.sub(r"^( *)%.*$", r"\1raise", "".join(cell["source"]), flags=re.M)  # commands of IPython
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, cell["id"], "exec"), names)
        if last is not None:
            displayed.append(eval(compile(ast.Expression(last.value), cell["id"], "eval"), names))
        if cell["id"] == until:
            break
    return names, displayed


def count_evaluations(monkeypatch: pytest.MonkeyPatch, *, double_blocks: int) -> list[int]:
    """A list with the number of evaluations of the transformers with that many double blocks, which grows."""
    from diffusers import FluxTransformer2DModel

    count = [0]
    forward = FluxTransformer2DModel.forward

    def counting(self: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        count[0] += len(hidden_states) * (self.config.num_layers == double_blocks)
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(FluxTransformer2DModel, "forward", counting)
    return count
