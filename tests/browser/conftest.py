"""Fixtures for a real Chromium and a real JupyterLab with a live kernel on the loopback interface.

Without a browser these tests are skipped; in CI, which installs one, its absence is a failure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
AXE = ROOT / "front-end" / "node_modules" / "axe-core" / "axe.min.js"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("browser")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    found = os.environ.get("FLUXNB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        reason = "no Chromium: install it (on Debian: apt-get install chromium) or set FLUXNB_CHROMIUM to its path"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe() -> str:
    """The program of axe-core, which finds violations of accessibility rules."""
    if not AXE.exists():
        reason = f"axe-core is missing: make front-end installs it ({AXE})"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return AXE.read_text(encoding="utf-8")


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A page that records its errors and its requests to other machines."""
    context = chromium.new_context(viewport={"width": 1180, "height": 900})
    page = context.new_page()
    page.errors, page.outside = [], []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("request", lambda request: page.outside.append(request.url) if not _local(request.url) else None)
    yield page
    context.close()


def _local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:", "about:", "http://127.0.0.1", "ws://127.0.0.1"))


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A JupyterLab with its own configuration, independent of the user's settings."""
    home = tmp_path_factory.mktemp("lab")
    notebooks = home / "notebooks"
    notebooks.mkdir()
    names = ["HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"]
    names += ["JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), **{name: str(home / name.lower()) for name in names}}
    settings = home / "jupyterlab_settings_dir" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text('{"fetchNews": "false", "checkForUpdates": false}')
    token, port, log = "for-this-test-only", free_port(), home / "server.log"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}", "--allow-root",
               "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
               f"--ServerApp.root_dir={notebooks}", "--LabApp.expose_app_in_browser=True",
               "--JupyterNotebookApp.expose_app_in_browser=True"]  # fmt: skip
    with log.open("w") as sink:
        server = subprocess.Popen(command, env=env, stdout=sink, stderr=subprocess.STDOUT)
    base = f"http://127.0.0.1:{port}"
    try:
        _wait(f"{base}/api/status?token={token}", server, log)
        yield SimpleNamespace(base=base, token=token, notebooks=notebooks)
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture
def run_notebook(lab: SimpleNamespace, page: Any) -> Iterator[Any]:
    """Open a notebook of these cells in JupyterLab or Notebook 7 and run all of them on a live kernel."""

    def run(*cells: str, name: str = "scrub.ipynb", front: str = "lab/tree") -> Any:
        empty = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
        content = {
            "cells": [{**empty, "id": f"c{number}", "source": text} for number, text in enumerate(cells)],
            "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        (lab.notebooks / name).write_text(json.dumps(content))
        page.goto(f"{lab.base}/{front}/{name}?token={lab.token}&reset")
        page.wait_for_function("window.jupyterapp?.shell.currentWidget?.sessionContext", timeout=60_000)
        # JupyterLab reports "idle" before its kernel is connected, and silently drops a run requested then.
        page.evaluate(
            """async () => {
              const w = window.jupyterapp.shell.currentWidget;
              await w.revealed; await w.sessionContext.ready; await w.sessionContext.session.kernel.info;
            }"""
        )
        assert page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        return page

    yield run
    _end_kernels(lab)


def _end_kernels(lab: SimpleNamespace) -> None:
    """Shut down all kernels: each one with a loaded model holds half a gigabyte."""
    address = f"{lab.base}/api/sessions"
    token = {"Authorization": f"token {lab.token}"}
    with urllib.request.urlopen(urllib.request.Request(address, headers=token), timeout=20) as answer:
        sessions = json.load(answer)
    for each in sessions:
        shutdown = urllib.request.Request(f"{address}/{each['id']}", headers=token, method="DELETE")
        urllib.request.urlopen(shutdown, timeout=20).close()
