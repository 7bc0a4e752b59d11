"""The architecture: one direction of imports, no cycles, few modules at the root, no assert on user input."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "fluxnb").rglob("*.py"))


def short(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_import_contracts_hold():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    run = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-1000:]


def test_importing_fluxnb_imports_no_heavy_library():
    heavy = ["torch", "diffusers", "transformers", "matplotlib", "ipywidgets", "numpy"]
    code = f"import sys, fluxnb; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.moderate
@pytest.mark.parametrize("module", ["fluxnb.visuals.frames", "fluxnb.plots", "fluxnb.widgets", "fluxnb.html.page"])
def test_displaying_a_record_imports_no_diffusers(module):
    code = f"import sys, {module}; print([n for n in ('diffusers', 'transformers', 'accelerate') if n in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=short)
def test_a_module_begins_with_a_docstring(path):
    text = path.read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text))


def test_a_module_has_at_most_600_lines():
    lines = {short(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert {path: count for path, count in lines.items() if count > 600} == {}


@pytest.mark.moderate
@pytest.mark.parametrize("path", MODULES, ids=short)
def test_no_assert_and_no_bare_except(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        assert not isinstance(node, ast.Assert), f"line {node.lineno}: python -O removes asserts; raise InputError"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except"


@pytest.mark.moderate
def test_the_library_prints_nothing():
    calls = []
    for path in MODULES:
        if path.name == "__main__.py" or "train" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                calls.append(f"{short(path)}:{node.lineno}")
    assert not calls


def test_no_module_is_named_for_no_subject():
    assert not [short(path) for path in MODULES if path.stem in ("utils", "util", "helpers", "common", "misc", "core")]


# --------------------------------------------------------------------------------------------------------- import graph
ROOT_MODULES = 12


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: Path) -> set[str]:
    """Dotted names in all import statements of a file; `from a import b` is a.b.

    Imports inside functions count. Those below `if TYPE_CHECKING:` do not: they never run.
    """
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for child in ast.walk(statement)
    }
    for node in set(ast.walk(tree)) - typing_only:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name_of(path).split(".")
            if path.name != "__init__.py":
                package = package[:-1]
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def import_graph() -> dict[str, set[str]]:
    """Modules to the modules of this package that they import, at module level or inside functions.

    Importing a module also runs the `__init__` of its parent packages, so it counts as importing them if they import
    modules of this package themselves. The root is left out of that rule, since it is the parent of every module; a
    test of its own asserts that no module imports it by name.
    """
    paths = {name_of(path): path for path in MODULES}
    direct: dict[str, set[str]] = {}
    for name, path in paths.items():
        found = set()
        for imported in imported_names(path):
            while imported and imported not in paths:
                imported = imported.rpartition(".")[0]
            if imported:
                found.add(imported)
        direct[name] = found
    graph = {}
    for name, found in direct.items():
        parents = {module.rsplit(".", depth)[0] for module in found for depth in range(1, module.count("."))}
        graph[name] = (found | {parent for parent in parents if direct[parent]}) - {name}
    return graph


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components = []

    def visit(name: str) -> None:
        order[name] = lowest[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], order[other])
        if lowest[name] == order[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                components.append(sorted(component))

    for name in graph:
        if name not in order:
            visit(name)
    return components


def test_a_cycle_through_a_package_is_found():
    graph = {"a": {"a.x"}, "a.x": {"b"}, "b": {"a"}, "c": {"a"}}
    assert cycles(graph) == [["a", "a.x", "b"]]


@pytest.mark.moderate
def test_the_import_graph_has_no_cycle():
    graph = import_graph()
    assert len(graph) > 100 and sum(map(len, graph.values())) > 300
    assert cycles(graph) == []


@pytest.mark.moderate
def test_no_module_imports_the_package_root():
    graph = import_graph()
    # __main__ is a user of the package: it runs what a user would type.
    assert [name for name, found in graph.items() if "fluxnb" in found] in ([], ["fluxnb.__main__"])


def test_there_are_few_modules_at_the_root():
    assert len([path for path in MODULES if path.parent == ROOT / "fluxnb"]) <= ROOT_MODULES


@pytest.mark.moderate
def test_no_module_of_the_package_is_imported_by_a_string():
    calls = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
                calls += [f"{short(path)}:{node.lineno}" for argument in node.args if "fluxnb" in ast.unparse(argument)]
    assert not calls
