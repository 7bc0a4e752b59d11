"""The public names: they exist, document themselves, fit in `help`, and there is one version."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROMISED = """
load run recording sweep stream plan Recipe Axes Keep Step Trajectory Film Cell Sweep
save open_trajectory open_recipe
filmstrip compare contact_sheet
scrub explore lab Scrubber FluxnbError
invert check exercises Claims judge canvas
""".split()
PLOTS = """
attention chart compare contact_sheet describe filmstrip latent_channels lock_in memory path pictures sigma_curve
velocity
""".split()
MODULES = "flow io metrics plots widgets".split()
HELP_LINES = 300


def stub_names(package: str) -> list[str]:
    """The names that the stub of a package exports, in its order."""
    stub = ROOT.joinpath(*package.split("."), "__init__.pyi")
    nodes = ast.parse(stub.read_text(encoding="utf-8")).body
    return [alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]


PUBLIC = stub_names("fluxnb")


@pytest.fixture(scope="module")
def fnb():
    return importlib.import_module("fluxnb")


@pytest.mark.parametrize("name", PROMISED)
def test_a_promised_name_exists_and_has_a_docstring(fnb, name):
    assert name in PUBLIC
    text = inspect.getdoc(getattr(fnb, name)) or ""
    first = text.split("\n\n")[0].split("\n")[0]
    assert len(first) > 15, f"fnb.{name} has no docstring"


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_function_exists_and_has_a_docstring(fnb, name):
    assert name in fnb.plots.__all__ and len(inspect.getdoc(getattr(fnb.plots, name)) or "") > 100


def test_every_public_name_resolves(fnb):
    missing = object()
    found = {name: getattr(fnb, name, missing) for name in PUBLIC}
    assert not [name for name, value in found.items() if value is missing]
    none = [name for name, value in found.items() if value is None]
    assert none in ([], ["last"]), "`last` is None until a run has been interrupted"


@pytest.mark.parametrize("package", ["fluxnb", "fluxnb.plots", "fluxnb.widgets"])
def test_dir_lists_the_names_of_the_stub(package):
    assert set(stub_names(package)) <= set(dir(importlib.import_module(package)))


@pytest.mark.parametrize("package", ["fluxnb", "fluxnb.plots", "fluxnb.widgets"])
def test_a_lazily_imported_name_does_not_name_a_module_of_the_package(package):
    # Importing a submodule sets it as an attribute of its package, in place of the function of the same name.
    modules = {path.stem for path in ROOT.joinpath(*package.split(".")).iterdir()}
    assert modules & set(stub_names(package)) == (set(MODULES) if package == "fluxnb" else set())


def test_the_top_level_has_three_plot_functions(fnb):
    assert set(PLOTS) & set(PUBLIC) == {"compare", "contact_sheet", "filmstrip"}
    assert not any(hasattr(fnb, name) for name in set(PLOTS) - set(PUBLIC))


def test_the_public_modules_are_the_documented_ones(fnb):
    assert [name for name in PUBLIC if inspect.ismodule(getattr(fnb, name))] == MODULES


@pytest.mark.parametrize("package", ["fluxnb", "fluxnb.plots", "fluxnb.widgets"])
def test_the_docstring_lists_every_public_name_once(package):
    text = importlib.import_module(package).__doc__ or ""
    listed = [name for line in text.splitlines() if (entry := re.match(r" {0,4}([A-Za-z][\w, ]*?)  +\S", line))
              for name in entry[1].split(", ")]  # fmt: skip
    assert sorted(listed) == sorted(stub_names(package))


@pytest.mark.moderate
def test_help_of_the_package_fits_in_300_lines():
    run = subprocess.run(
        [sys.executable, "-c", "import fluxnb; help(fluxnb)"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert len(run.stdout.splitlines()) <= HELP_LINES
    assert all(re.search(rf"\b{name}\b", run.stdout) for name in PUBLIC)


@pytest.mark.parametrize("name", ["load", "run", "sweep", "plan", "scrub", "filmstrip", "contact_sheet", "compare"])
def test_the_main_functions_are_fully_annotated(fnb, name):
    signature = inspect.signature(getattr(fnb, name))
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


def test_there_is_one_version(fnb):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert fnb.__version__ == project["version"]
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_public_name_is_in_the_readme_a_notebook_or_a_test():
    places = [ROOT / "README.md", *(ROOT / "notebooks").glob("*.ipynb"), *(ROOT / "tests").rglob("*.py")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in places if path.name != Path(__file__).name)
    assert [name for name in PUBLIC if name not in text] == []


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_name_of_the_package_that_a_notebook_uses_exists(path):
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    text = "\n".join("".join(cell["source"]) for cell in cells)
    lines = [line for line in text.splitlines() if not line.lstrip().startswith(("%", "!"))]
    nodes = list(ast.walk(ast.parse("\n".join(lines))))
    modules = {"fnb": importlib.import_module("fluxnb")}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fluxnb":
            for alias in node.names:
                value = imported(node.module, alias.name)
                if inspect.ismodule(value):
                    modules[alias.asname or alias.name] = value
    chains = [chain for node in nodes if isinstance(node, ast.Attribute) and (chain := dotted(node))]
    for name, *attributes in chains:
        value = modules.get(name)
        for attribute in attributes:
            if not inspect.ismodule(value):
                break
            value = getattr(value, attribute)


def imported(module: str, name: str) -> object:
    """The object that `from module import name` binds."""
    package = importlib.import_module(module)
    return getattr(package, name) if hasattr(package, name) else importlib.import_module(f"{module}.{name}")


def dotted(node: ast.expr) -> list[str]:
    """["fnb", "plots", "path"] for `fnb.plots.path`; empty for anything but names and attributes."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute) and (start := dotted(node.value)):
        return [*start, node.attr]
    return []
