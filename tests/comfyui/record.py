"""Record the picture of notebook 07 that a real ComfyUI draws: `python -m tests.comfyui.record`.

It needs COMFYUI_HOME and COMFYUI_PYTHON, see `conftest.py`. The picture becomes an attachment of the notebook; the text
beside it is changed by hand where the printed figures differ from it.
"""

from __future__ import annotations

import base64
import io
import json
import os
import tempfile
from pathlib import Path

import numpy
from PIL import Image

import fluxnb as fnb
from tests.comfyui.conftest import ROOT, serving

__all__ = ["ATTACHMENT", "NOTEBOOK", "differing", "pixels", "recorded", "sampled"]

NOTEBOOK = ROOT / "notebooks" / "07_one_question_three_machines.ipynb"
ATTACHMENT = "comfyui.png"


def sampled() -> fnb.Trajectory:
    """The run of the notebook's first section."""
    return fnb.run(fnb.load("pocket", dtype="float32"), "a fox in the snow", seed=3, steps=4)


def recorded() -> bytes:
    """The recorded PNG."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    (found,) = [cell["attachments"] for cell in cells if "attachments" in cell]
    return base64.b64decode(found[ATTACHMENT]["image/png"])


def differing(a: numpy.ndarray, b: numpy.ndarray) -> tuple[int, int]:
    """How many color values of two pictures differ, and by how many levels at most."""
    difference = abs(a.astype(int) - b.astype(int))
    return int((difference > 0).sum()), int(difference.max())


def pixels(data: bytes) -> numpy.ndarray:
    """The color values of a PNG."""
    with Image.open(io.BytesIO(data)) as picture:
        return numpy.asarray(picture.convert("RGB"))


def main() -> None:
    trajectory = sampled()
    with tempfile.TemporaryDirectory() as folder, serving(os.environ["COMFYUI_HOME"], Path(folder)) as server:
        image = server.run(fnb.comfy_workflow(trajectory.recipe))["9"]["images"][0]
        data = (server.folder / "output" / image["subfolder"] / image["filename"]).read_bytes()
        version = server.get("system_stats")["system"]
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    (cell,) = [cell for cell in notebook["cells"] if "attachments" in cell]
    cell["attachments"] = {ATTACHMENT: {"image/png": base64.b64encode(data).decode()}}
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    count, levels = differing(pixels(data), numpy.asarray(trajectory.image))
    print(f"ComfyUI {version['comfyui_version']}, PyTorch {version['pytorch_version']}:", end=" ")
    print(f"{count} of {pixels(data).size} color values differ, by {levels} level at most")


if __name__ == "__main__":
    main()
