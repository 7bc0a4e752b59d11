"""The README: its blocks run in order as they are written, its links lead somewhere, its lists are current."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from PIL import Image

import fluxnb
from tests.docs.blocks import FENCE, ROOT, blocks, run_bash, run_python
from tests.docs.scripts import script

README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BIN = Path(sys.executable).parent
LARGEST_ANIMATIONS = 2_000_000  # bytes of both


# -------------------------------------------------------------------------------------------------------------- blocks
def test_every_block_is_python_or_bash_and_parses():
    kinds = [info.strip() for _, info, _ in FENCE.findall(TEXT)]
    assert set(kinds) == {"python", "bash"} and len(kinds) > 8
    for language, code in blocks(README):
        if language == "python":
            ast.parse(code)
        else:
            subprocess.run(["bash", "-n", "-c", code], check=True)


@pytest.mark.moderate
def test_the_python_blocks_run_in_order_from_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "readme"}
    for language, code in blocks(README):
        if language == "python":
            run_python(code, names, README)
    assert {path.name for path in tmp_path.iterdir()} == {"fox.png", "fox.html", "fox-steps.png", "grid.html"}
    assert len(names["grid"]) == 16 and names["grid"].evaluations == 28  # type: ignore[arg-type, attr-defined]
    recorded = names["recorder"].trajectories[0]  # type: ignore[attr-defined]
    assert recorded.finished and recorded.image.size == (192, 192)


@pytest.fixture
def here():
    """Variables with which git takes the repository's address for this checkout, and no program of this environment."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    return {
        "PATH": os.pathsep.join(path for path in os.environ["PATH"].split(os.pathsep) if path != str(BIN)),
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": f"url.{ROOT}.insteadOf",
        "GIT_CONFIG_VALUE_0": PROJECT["urls"]["Repository"],
        "GIT_CONFIG_KEY_1": "safe.directory",
        "GIT_CONFIG_VALUE_1": "*",
    }


@pytest.fixture
def prepared(tmp_path, here):
    """An empty folder, an environment that is up to date, and variables for which `pip` needs no download.

    Three things are replaced: the address of the repository by this checkout; the environment that `make` would create
    by one that runs the programs of this environment, with a JupyterLab that lists what it would open; and what
    `pip install` downloads, since it builds and installs the package alone.
    """
    (folder := tmp_path / "home").mkdir()
    (commands := tmp_path / "commands").mkdir()
    (environment := tmp_path / "environment" / "bin").mkdir(parents=True)
    alone = f"--quiet --no-deps --no-build-isolation --target {tmp_path / 'installed'}"
    programs = {
        environment / "python": f'exec {sys.executable} "$@"',
        environment
        / "jupyter": f'[ "$1 $2" = "lab notebooks" ] && ls notebooks && {sys.executable} -m jupyterlab --version',
        commands / "pip": f'exec {sys.executable} -m pip "$@" {alone}',
    }
    for path, body in programs.items():
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    return folder, environment.parent, {**here, "PATH": f"{commands}{os.pathsep}{here['PATH']}"}


@pytest.mark.slow
def test_the_shell_blocks_run_in_order_from_an_empty_folder(prepared):
    folder, environment, variables = prepared
    clone, outputs = folder / "fluxnb", []
    for language, code in blocks(README):
        if language != "bash" or code == "make demo CPU=1\n":  # make demo again, in an environment that exists
            continue
        outputs.append(run_bash(code, variables, clone if clone.is_dir() else folder))
        if not (clone / ".venv").exists():
            (clone / ".venv").symlink_to(environment)
            (environment / ".made-for-fluxnb").touch()
    made = {path.name for path in (clone / "demo").iterdir()}
    assert made == {"filmstrip.png", "grid.png", "trajectory.html"}
    assert any("lean-fp8" in output for output in outputs)  # of the plan
    assert (environment.parent / "installed" / "fluxnb" / "pocket" / "base" / "model_index.json").is_file()


@pytest.mark.long
def test_the_first_commands_work_without_an_environment(tmp_path, here):
    """Nothing is replaced but the address: the environment is created, and JupyterLab serves its notebooks."""
    first, _, lab, cpu, *_ = (code for language, code in blocks(README) if language == "bash")
    run_bash(first, here, tmp_path)
    clone = tmp_path / "fluxnb"
    run_bash(cpu, here, clone, seconds=1500)
    assert (clone / "demo" / "trajectory.html").stat().st_size > 10_000
    server = subprocess.Popen(
        ["bash", "-c", lab], cwd=clone, env={**os.environ, **here, "BROWSER": "true"}, text=True,
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert any("is running at" in line for line in server.stderr or ())
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_cpu_1_installs_torch_from_the_index_of_cpu_wheels_and_nothing_else(tmp_path):
    commands = subprocess.run(
        ["make", "-n", "demo", "CPU=1", f"VENV={tmp_path / 'none'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    installing = [line for line in commands if "pip install" in line]
    assert ["whl/cpu" in line for line in installing] == [True, False]
    assert (
        installing[0].endswith(" torch")
        and "--no-deps" in installing[0]
        and "--constraint constraints.txt" in installing[0]
    )


def test_the_install_line_is_complete_and_names_an_extra_that_exists():
    (line,) = re.findall(r"^pip install .*$", TEXT, re.MULTILINE)
    name, extra, address = re.fullmatch(r'pip install "(\w+)\[(\w+)\] @ git\+(\S+)"', line).groups()  # type: ignore[union-attr]
    assert name == PROJECT["name"] and extra in PROJECT["optional-dependencies"]
    assert address == PROJECT["urls"]["Repository"]


# --------------------------------------------------------------------------------------------------------------- links
def test_every_relative_link_and_picture_exists():
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", TEXT) if not link.startswith("http")]
    assert len(links) > 20
    assert [link for link in links if link and not (ROOT / unquote(link)).exists()] == []


def test_every_file_that_is_named_exists():
    named = re.findall(r"`((?:tests|fluxnb|docs|comfyui|notebooks)/[\w./-]*)`", TEXT)
    assert named and [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("name", ["scrubber", "explorer"])
def test_an_animation_has_frames_that_differ(name):
    with Image.open(ROOT / "docs" / f"{name}.gif") as animation:
        assert animation.n_frames > 15 and animation.width <= 800
        seen = set()
        for number in range(animation.n_frames):
            animation.seek(number)
            seen.add(animation.convert("RGB").tobytes())
    assert len(seen) > 12


def test_the_animations_are_small():
    assert sum((ROOT / "docs" / f"{name}.gif").stat().st_size for name in ("scrubber", "explorer")) < LARGEST_ANIMATIONS


# --------------------------------------------------------------------------------------------------------------- lists
@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md", "docs/models.md"])
def test_the_tables_of_a_page_are_those_of_the_results_and_notebooks(page):
    tables = script("tables")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.TABLE.search(text)
    assert tables.update(text, tables.written()) == text, "python docs/tables.py writes the current tables"


def test_every_notebook_is_listed_with_its_title_a_sentence_and_a_link_to_colab():
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ").strip()
        (row,) = [line for line in TEXT.splitlines() if f"(notebooks/{path.name})" in line and line.startswith("|")]
        linked, sentence, link, *_ = (cell.strip() for cell in row.strip("|").split(" | "))
        assert linked == f"[{title}](notebooks/{path.name})" and len(sentence) > 5
        assert link == f"[Colab]({script('address').colab(path.name)})"


def test_the_address_of_the_repository_is_the_same_everywhere():
    address = script("address")
    for path in address.places():
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"github\.com/([\w.-]+/fluxnb)\b", text) + re.findall(
            r"/github/([\w.-]+/[\w.-]+)/blob", text
        )
        assert set(found) <= {address.slug()}, path


def test_the_address_is_changed_everywhere_at_once(tmp_path, monkeypatch, capsys):
    address = script("address")
    for name in ("pyproject.toml", "README.md", "CITATION.cff"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    monkeypatch.setattr(address, "ROOT", tmp_path)
    monkeypatch.setattr(address, "PROJECT", tmp_path / "pyproject.toml")
    assert address.main(["https://github.com/someone/else.git"]) == 0 and "3 files" in capsys.readouterr().out
    assert address.slug() == "someone/else"
    assert "fluxnb/fluxnb" not in (tmp_path / "README.md").read_text()
    assert address.main(["no address"]) == 2


def test_the_citation_has_the_version_the_license_and_the_address():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(citation)
    assert (citation["version"], citation["license"]) == (fluxnb.__version__, PROJECT["license"])
    assert citation["repository-code"] == PROJECT["urls"]["Repository"]


def test_the_badges_state_what_the_project_file_has():
    assert f"license-{PROJECT['license'].replace('-', '--')}-" in TEXT
    assert f"python-{PROJECT['requires-python'].removeprefix('>=')}%2B-" in TEXT


def test_the_readme_has_every_part():
    headings = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    assert (
        headings
        == textwrap.dedent("""\
        Start
        Three lines
        Notebooks
        Large models
        Beside other programs
        Troubleshooting
        Read on
        License""").splitlines()
    )
    for term in ("sigma", "velocity", "clean estimate", "NFE", "teacher", "student"):
        assert re.search(rf"^\| {term} \| [A-Z].*\. \|$", TEXT, re.MULTILINE)
    assert TEXT.index("git clone") < TEXT.index("make demo") < TEXT.index("make lab") < TEXT.index('pip install "')
