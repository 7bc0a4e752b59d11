"""The table of GPU results, and the comparisons between cases."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from tests.benchmarks import table
from tests.benchmarks.case import thinned
from tests.benchmarks.comparisons import compare
from tests.benchmarks.rows import KEYS, add_row

RESULTS = {
    "card": "H200", "date": "2026-11-23", "versions": {"torch": "2.11.0"}, "what": "random weights", "pixels": 1024,
    "steps": 4, "tokens": 256,
    "cases": {
        "resident": {"picture seconds": 0.75, "peak allocated GiB": 33.8, "sha": "a"},
        "lean-24": {
            "picture seconds": 0.76, "peak allocated GiB": 18.6, "predicted GiB": 18.7, "cap GiB": 24, "sha": "a",
        },
        "nf4-8": {"failed": "RunError"},
    },
}  # fmt: skip


def test_the_table_has_a_line_for_each_measured_case():
    text = table.table(RESULTS)
    assert "| `lean`, exact | 24 GB | 18.6 GiB | 18.7 GiB | 0.76 |" in text
    assert "nf4" not in text and "H200" in text


def test_the_table_names_the_days_of_its_measurements():
    name = next(iter(RESULTS["cases"]))
    later = {**RESULTS, "cases": {**RESULTS["cases"], name: {**RESULTS["cases"][name], "date": "2026-11-27"}}}
    assert "\n2026-11-23, torch" in table.table(RESULTS) and "\n2026-11-23 to 2026-11-27, torch" in table.table(later)


def test_the_table_has_a_column_for_the_card():
    case = {"picture seconds": 0.5, "peak allocated GiB": 1.0, "card": "H100"}
    text = table.table({**RESULTS, "cases": {**RESULTS["cases"], "int8-16": case}})
    assert text.splitlines()[0].endswith("| card |")
    cards = [line.split(" | ")[-1].removesuffix(" |") for line in text.splitlines()[2:] if line.startswith("|")]
    assert cards == ["H200", "H200", "H100"]


def test_the_table_is_written_between_its_markers(tmp_path, monkeypatch):
    results, readme = tmp_path / "fullsize.json", tmp_path / "README.md"
    results.write_text(json.dumps(RESULTS))
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["table", "--results", str(results), "--write", str(readme)])
    for _ in range(2):
        table.main()
        text = readme.read_text()
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
        assert text.count("18.6 GiB") == 1
    readme.write_text("no markers")
    with pytest.raises(SystemExit, match="markers"):
        table.main()


def test_comparisons_of_measured_cases_state_whether_they_hold():
    rows = {title: (value, holds) for title, value, _, holds in compare(RESULTS["cases"])}
    assert rows["lean: further picture / resident"] == (pytest.approx(0.76 / 0.75), True)
    assert rows["lean: bytes of plain bf16"] == (1.0, True)
    assert rows["lean-24: predicted / measured peak"][1] is True
    assert not any("NF4" in title for title in rows)


def test_a_thinned_timeline_keeps_its_peak():
    long = [(i / 100, float(i == 777)) for i in range(1000)]
    short = thinned(long)
    assert len(short) <= 160 and max(level for _, level in short) == 1.0 and thinned([]) == []


def test_a_prediction_is_compared_with_the_peak_of_a_picture_and_of_compilation():
    rows = compare({"compiled": {"predicted GiB": 10.0, "peak allocated GiB": 9.0, "loading peak GiB": 10.1}})
    assert [(title.split(": ")[1], holds) for title, _, _, holds in rows] == [
        ("predicted / measured peak", False),
        ("predicted / highest peak, including compilation", True),
    ]


def test_a_lower_peak_of_loading_is_not_compared():
    rows = compare({"plain": {"predicted GiB": 9.1, "peak allocated GiB": 9.0, "loading peak GiB": 8.0}})
    assert [holds for *_, holds in rows] == [True]


@pytest.mark.parametrize("kind", KEYS)
def test_a_row_replaces_the_one_of_the_same_set_up(tmp_path, kind):
    first = dict.fromkeys(KEYS[kind], 2)
    for seconds, facts in ((1.0, first), (2.0, {**first, KEYS[kind][-1]: 4}), (3.0, first)):
        add_row(tmp_path / "rows.json", kind, {**facts, "seconds": seconds})
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["seconds"] for row in rows[kind]] == [3.0, 2.0]
    assert all(row["date"] and row["versions"]["torch"] == torch.__version__ for row in rows[kind])
