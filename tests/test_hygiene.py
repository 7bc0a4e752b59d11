"""What is committed reads the same on every machine: notebooks executed, no path of one computer, no secret."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fluxnb.lessons.claims import read_claims

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST_NOTEBOOK = 2_000_000  # bytes; more makes a review, a clone and a page slow
LARGEST_FILE = 45 * 10**6
ALONE = re.compile(r"(?<![\w.:/~-])/(?:home|root|Users|work|mnt|farm|tmp)/[\w.]")
SECRET = re.compile(r"\bhf_[A-Za-z0-9]{20,}|\bghp_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16}")


def committed() -> list[Path]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def texts() -> list[tuple[str, str]]:
    found = []
    for path in committed():
        if path != Path(__file__) and path.stat().st_size < 3_000_000:
            data = path.read_bytes()
            if b"\0" not in data:
                found.append((path.relative_to(ROOT).as_posix(), data.decode("utf-8", "replace")))
    return found


@pytest.mark.moderate
def test_no_path_of_one_computer_is_committed():
    hits = [f"{name}: {match.group(0)}" for name, text in texts() for match in ALONE.finditer(text)]
    assert not hits


@pytest.mark.moderate
def test_no_secret_is_committed():
    assert not [name for name, text in texts() if SECRET.search(text)]


def test_no_huge_or_built_file_is_committed():
    files = committed()
    assert not [path.name for path in files if path.stat().st_size > LARGEST_FILE]
    assert not [path.name for path in files if path.suffix in (".pyc", ".pt", ".ckpt", ".bin", ".pkl", ".whl")]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    """One committed notebook, read as the file that it is."""

    def test_it_was_run_from_top_to_bottom(self, path):
        # nbval compares nothing in a cell without a count, so a stripped notebook would pass unread.
        code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
        assert any(cell["outputs"] for cell in code)

    def test_no_cell_ended_in_an_error_unless_it_says_so(self, path):
        for cell in json.loads(path.read_text())["cells"]:
            failed = any(output["output_type"] == "error" for output in cell.get("outputs", ()))
            assert not failed or "raises-exception" in cell["metadata"].get("tags", ())

    def test_it_starts_with_a_title_and_shows_a_picture(self, path):
        cells = json.loads(path.read_text())["cells"]
        assert cells[0]["cell_type"] == "markdown" and "".join(cells[0]["source"]).startswith("# ")
        shown = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
        assert any({"image/png", "text/html", "image/webp"} & set(data) for data in shown)

    def test_it_uses_the_plain_kernel_and_keeps_no_widget_state(self, path):
        metadata = json.loads(path.read_text())["metadata"]
        assert metadata["kernelspec"]["name"] == "python3"
        assert "widgets" not in metadata, "GitHub refuses notebooks with bare widget metadata"

    def test_every_figure_has_an_alternative_text(self, path):
        # The picture of a widget is described by the widget; a picture alone (PIL) has the prompt beside it.
        missing = [
            (index, output["data"]["text/plain"])
            for index, cell in enumerate(json.loads(path.read_text())["cells"])
            for output in cell.get("outputs", ())
            if "image/png" in output.get("data", {})
            and not output.get("metadata", {}).get("image/png", {}).get("alt")
            and not {"text/html", "image/jpeg"} & set(output["data"])
        ]
        assert missing == []

    def test_it_opens_in_colab_and_installs_the_package_there(self, path):
        text = ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]
        assert f"/blob/main/notebooks/{path.name})" in text[0]
        code = next(each for each in text if "import fluxnb as fnb" in each)
        assert '%pip install -q "fluxnb @ git+https://' in code

    def test_a_hidden_answer_is_hidden_on_the_site_in_jupyterlab_and_in_colab(self, path):
        for cell in json.loads(path.read_text())["cells"]:
            data = cell["metadata"]
            marks = ("hide-output" in data.get("tags", ()), data.get("jupyter", {}).get("outputs_hidden", False),
                     data.get("collapsed", False))  # fmt: skip
            assert len(set(marks)) == 1

    def test_no_claim_fails(self, path):
        table = read_claims(path)
        assert table is not None and table["claims"]
        assert [row for row in table["claims"] if row["status"] == "fail"] == []

    def test_it_is_small_enough_to_read_on_a_page(self, path):
        assert path.stat().st_size <= LARGEST_NOTEBOOK
