"""Fixtures for a real ComfyUI server on the loopback interface, and its window in Chromium.

The server is that of the folder in COMFYUI_HOME, run by the Python in COMFYUI_PYTHON, where fluxnb's dependencies are
installed as well. Without COMFYUI_HOME these tests are skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import FLAGS
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
MODEL_FILES = (
    "diffusion_models/flux1-schnell.safetensors",
    "diffusion_models/flux1-dev.safetensors",
    "text_encoders/clip_l.safetensors",
    "text_encoders/t5xxl_fp16.safetensors",
    "vae/ae.safetensors",
)


class Server:
    """A running ComfyUI.

    Arguments:
        url: of the server.
        folder: its models, nodes, inputs and outputs.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/{path}", timeout=30) as answer:
            return json.load(answer)

    def post(self, graph: dict[str, Any]) -> str:
        """Queue a graph; the id of the request."""
        body = json.dumps({"prompt": graph}).encode()
        request = urllib.request.Request(f"{self.url}/prompt", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["prompt_id"]

    def run(self, graph: dict[str, Any], seconds: float = 180) -> dict[str, Any]:
        """Run a graph; the outputs of its nodes."""
        name, end = self.post(graph), time.monotonic() + seconds
        while time.monotonic() < end:
            history = self.get(f"history/{name}").get(name)
            if history is not None:
                assert history["status"]["status_str"] == "success", history["status"]
                return history["outputs"]
            time.sleep(0.05)
        raise AssertionError(f"no answer after {seconds} s")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    home = os.environ.get("COMFYUI_HOME")
    if not home:
        pytest.skip("no ComfyUI: set COMFYUI_HOME to its folder and COMFYUI_PYTHON to its Python")
    with serving(home, tmp_path_factory.mktemp("comfyui")) as running:
        yield running


@contextlib.contextmanager
def serving(home: str, folder: Path) -> Iterator[Server]:
    """A running ComfyUI of the program in `home`, with its models, nodes, inputs and outputs in `folder`."""
    for name in MODEL_FILES:
        (folder / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "models" / name).touch()
    (folder / "custom_nodes").mkdir()
    shutil.copytree(ROOT / "comfyui", folder / "custom_nodes" / "fluxnb")
    port = free_port()
    options = ["--cpu", "--disable-auto-launch", "--listen", "127.0.0.1", "--port", str(port)]
    program = [os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py"]
    command = [*program, *options, "--base-directory", str(folder)]
    log = folder / "server.log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=home, env=environment, stdout=output, stderr=subprocess.STDOUT)
    running = Server(f"http://127.0.0.1:{port}", folder)
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                running.get("system_stats")
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-3000:]
                time.sleep(0.3)
        yield running
    finally:
        process.terminate()
        process.wait(20)


READY = "window.app?.graph && window.app.graphToPrompt && Object.keys(LiteGraph.registered_node_types).length > 100"
# Opens a file as a drop does, waits until its nodes are there, and returns what Run would post.
OPEN = """async ([name, base64, type, count]) => {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  app.graph.clear();
  await app.handleFile(new File([bytes], name, {type}));
  for (let i = 0; i < 100 && app.graph._nodes.length < count; i++) await new Promise((done) => setTimeout(done, 20));
  return JSON.stringify((await app.graphToPrompt()).output);
}"""


@pytest.fixture(scope="session")
def window(server: Server) -> Iterator[Any]:
    """The window of ComfyUI in Chromium."""
    found = os.environ.get("FLUXNB_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("no Chromium: install it (on Debian: apt-get install chromium) or set FLUXNB_CHROMIUM to its path")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=FLAGS)
        page = browser.new_page()
        page.goto(server.url)
        page.wait_for_function(READY, timeout=90_000)
        page.wait_for_timeout(3000)  # the window then restores its last graph
        yield page
        browser.close()
