"""Every measured number in the README and the pages names the file that holds it, and the file holds it."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest

from tests.docs.blocks import ROOT

FULL = "tests/benchmarks/results/fullsize.json"
SEVERAL = "tests/benchmarks/results/several_gpus.json"
PLAN, PRESETS = "tests/planning/test_plan.py", "fluxnb/planning/presets.py"

# Page, number, file that holds it, and the place in the file: keys of JSON and a factor, or a text.
FIGURES = [
    ("README.md", "31.4 GiB", PLAN, "31.4 GiB to download"),
    ("README.md", "18.7 GiB", FULL, ("cases", "lean-24", "peak allocated GiB", 1)),
    ("README.md", "33.8 GiB", FULL, ("cases", "resident", "peak allocated GiB", 1)),
    ("README.md", "28 evaluations", "tests/docs/test_readme.py", ".evaluations == 28"),
    ("docs/howto/small-gpus.md", "31.4 GiB", PLAN, "31.4 GiB to download"),
    ("docs/howto/small-gpus.md", "12.7 or 6.8 GB", PRESETS, "file of 12.7 GB"),
    ("docs/howto/small-gpus.md", "12.7 or 6.8 GB", PRESETS, "file of 6.8 GB"),
    ("docs/howto/several-gpus.md", "30 seconds", "fluxnb/grid/claims.py", "LEASE = 30.0  # seconds"),
    ("docs/howto/colab.md", "14.7 GiB", "fluxnb/planning/hardware.py", '"t4": Card(14.7,'),
    ("docs/howto/comfyui.md", "42 dB", "tests/comfyui/test_server.py", "numpy.median(found) >= 42"),
    ("docs/howto/comfyui.md", "2e-4", "tests/comfyui/test_server.py", "furthest <= 2e-4 and levels <= 1"),
    ("docs/howto/comfyui.md", "6 dB", "tests/comfyui/test_server.py", "min(found) >= min(own) - 6"),
    ("docs/models.md", "60 %", "fluxnb/train/data/chances.py", '"fox": ("snow", 0.6)'),
    ("docs/claims.md", "95 %", "fluxnb/metrics.py", "1.959964  # the standard normal quantile of a two-sided 95 %"),
    ("docs/troubleshooting.md", "31.4 GiB", PLAN, "31.4 GiB to download"),
    ("docs/benchmarks.md", "0.82 s", FULL, ("cases", "fast", "plain diffusers from embeddings seconds", 1)),
    ("docs/benchmarks.md", "80.7", SEVERAL, "82.5 -> 80.7 ms"),
    ("docs/benchmarks.md", "65.0 ms", SEVERAL, "108.3 -> 65.0 ms"),
    ("docs/benchmarks.md", "46.3", SEVERAL, "83.2 -> 46.3 ms"),
    ("docs/benchmarks.md", "40.4 ms", SEVERAL, "110.1 -> 40.4 ms"),
    ("docs/benchmarks.md", "16.7", SEVERAL, "decoder compiled in channels-last: 16.7 ms"),
    ("docs/benchmarks.md", "20.2 ms", SEVERAL, "decoder compiled in channels-last: 20.2 ms"),
    ("docs/benchmarks.md", "28 evaluations", FULL, ("cases", "grid", "grid evaluations", 1)),
    ("docs/benchmarks.md", "6.5 s", FULL, ("cases", "grid", "grid seconds", 1)),
    ("docs/benchmarks.md", "9.3 s", FULL, ("cases", "grid", "naive grid seconds", 1)),
    ("docs/benchmarks.md", "24 GB", FULL, ("cases", "lean-24", "cap GiB", 1)),
    ("docs/benchmarks.md", "6.4 s", FULL, ("cases", "lean-24", "grid seconds", 1)),
    ("docs/benchmarks.md", "399 s", FULL, ("cases", "model-offload-24", "naive grid seconds, estimated", 1)),
]
UNIT = r"(?:%|dB\b|[KMG]i?B\b|ms\b|s\b|seconds\b|evaluations\b|million\b|billion\b|times\b)"
NUMBER = re.compile(rf"\b\d[\d.,]*(?: or \d[\d.,]*)? ?{UNIT}|\b\de-\d+")
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md")]
# Code, tables that are written from results, and links, whose numbers are no measurements.
SKIPPED = re.compile(
    r"^```.*?^```$|<!-- table .*?<!-- end of table -->|^<!-- table -->.*|\]\([^)]*\)|`[^`]*`", re.MULTILINE | re.DOTALL
)


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def results_of(name: str) -> dict:
    return json.loads(text_of(name))


def value_of(file: str, keys: tuple[str | int, ...]) -> float:
    value = results_of(file)
    for key in keys[:-1]:
        value = value[key]
    return float(value * keys[-1])


@pytest.mark.parametrize(("page", "number", "file", "place"), FIGURES, ids=lambda value: str(value)[-40:])
def test_the_file_holds_the_number(page, number, file, place):
    if isinstance(place, str):
        assert place in text_of(file)
    else:
        stated = re.match(r"[\d.]+", number)[0]  # type: ignore[index]
        digits = len(stated.partition(".")[2])
        assert f"{value_of(file, place):.{digits}f}" == stated


@pytest.mark.parametrize(("page", "number", "file"), sorted({each[:3] for each in FIGURES}))
def test_a_number_has_the_name_of_its_file_beside_it(page, number, file):
    paragraphs = [re.sub(r"\s+", " ", part) for part in re.split(r"\n\s*\n|\n(?=[-|] )", text_of(page))]
    found = [part for part in paragraphs if number in part and not part.startswith("<!--")]
    section = [part for part in paragraphs if f"`{file}`" in part]
    # A page of the documentation names the file in the section, the README in the sentence.
    assert found and section and (page.startswith("docs/") or any(number in part for part in section))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_measured_number_of_a_page_is_listed(page):
    name = page.relative_to(ROOT).as_posix()
    text = re.sub(r"\s+", " ", SKIPPED.sub(" ", page.read_text(encoding="utf-8")))
    listed = {number for each, number, _, _ in FIGURES if each == name}
    assert [number for number in NUMBER.findall(text) if number not in listed] == []
