"""The code of the documentation's pages runs, in order, as it is written, from an empty folder."""

from __future__ import annotations

import re

import pytest

from tests.docs.blocks import FENCE, ROOT, blocks, hidden_expressions, run_bash, run_python
from tests.remote.conftest import double  # noqa: F401
from tests.test_words import PATTERN, parts

DOCS = ROOT / "docs"
PAGES = sorted([DOCS / "index.md", *(DOCS / "howto").glob("*.md")])
WRITTEN = re.compile(r"<!-- table .*?<!-- end of table -->", re.DOTALL)  # from notebooks and cards
NOT_RUN = ("Needs a GPU", "In a Colab cell", "In a shell")
NOT_CODE = ("{toctree}", "{raw} html", "{include}")
MARKS = {"several-gpus": pytest.mark.long}  # it starts two processes that import torch


@pytest.mark.slow  # some blocks start processes
@pytest.mark.parametrize("page", [pytest.param(page, marks=MARKS.get(page.stem, ()), id=page.stem) for page in PAGES])
def test_the_blocks_of_a_page_run_in_order_from_an_empty_folder(page, tmp_path, monkeypatch, request):
    if page.stem == "lora":
        pytest.importorskip("peft")
    if page.stem == "endpoints":  # its requests go to the local double of the providers
        request.getfixturevalue("double")
    monkeypatch.chdir(tmp_path)
    found = blocks(page)
    assert found
    names: dict[str, object] = {"__name__": "page"}
    for language, code in found:
        run_python(code, names, page) if language == "python" else run_bash(code)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_a_block_that_does_not_run_has_a_caption_that_gives_the_reason(page):
    if {"_build", "_generated"} & set(page.parts):
        return
    for _, info, code in FENCE.findall(page.read_text(encoding="utf-8")):
        kind = info.strip()
        if kind.startswith("{code-block}"):
            assert any(code.startswith(f":caption: {reason}\n") for reason in NOT_RUN), code
        else:
            runs = kind in ("python", "bash") and page in PAGES
            assert runs or kind.startswith(NOT_CODE), (kind, code)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.stem)
def test_what_a_block_displays_is_its_last_line(page):
    hidden = [line for language, code in blocks(page) if language == "python" for line in hidden_expressions(code)]
    assert hidden == []


def test_an_expression_before_the_last_line_is_found():
    assert hidden_expressions("grid\nfnb.scrub(a)\ngrid.to_html('a')\nfnb.scrub(b)") == ["grid", "fnb.scrub(a)"]


def test_the_install_lines_for_colab_name_no_extra():
    # The extra "small" replaces the torchao of Colab, "lab" its Jupyter.
    files = [ROOT / "README.md", *DOCS.rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files if "_build" not in path.parts)
    installed = re.findall(r"%pip install -q \W*(fluxnb\S*|[\w-]+)", text)
    assert set(installed) <= {"fluxnb", "bitsandbytes", "gguf"} and "fluxnb" in installed


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.stem)
def test_a_page_has_no_old_word_of_the_project(page):
    if {"_build", "_generated"} & set(page.parts):
        return
    text = WRITTEN.sub("", FENCE.sub("", page.read_text(encoding="utf-8")))
    found = [(line, word) for line in text.splitlines() for word in parts(line) if PATTERN.fullmatch(word)]
    assert found == []
