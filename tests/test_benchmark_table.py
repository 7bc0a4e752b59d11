from __future__ import annotations

import json
import sys

import pytest

from tests.benchmarks import table
from tests.benchmarks.bench import thinned
from tests.benchmarks.claims import ratios

TOLD = {
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


def test_the_table_has_a_line_for_each_case_that_was_measured():
    made = table.table(TOLD)
    assert "| `lean`, exact | 24 GB | 18.6 GiB | 18.7 GiB | 0.76 |" in made
    assert "nf4" not in made and "H200" in made


def test_the_table_is_written_between_its_marks(tmp_path, monkeypatch):
    results, readme = tmp_path / "fullsize.json", tmp_path / "README.md"
    results.write_text(json.dumps(TOLD))
    readme.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    monkeypatch.setattr(sys, "argv", ["table", "--results", str(results), "--write", str(readme)])
    for _ in range(2):
        table.main()
        text = readme.read_text()
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
        assert text.count("18.6 GiB") == 1
    readme.write_text("no marks")
    with pytest.raises(SystemExit, match="marks"):
        table.main()


def test_ratios_are_of_cases_that_were_measured_and_say_whether_they_hold():
    rows = {says: (value, holds) for says, value, _, holds in ratios(TOLD["cases"])}
    assert rows["lean: a further picture beside resident"] == (pytest.approx(0.76 / 0.75), True)
    assert rows["lean: bytes of plain bf16"] == (1.0, True)
    assert rows["lean-24: predicted peak beside measured"][1] is True
    assert not any("NF4" in says for says in rows)


def test_a_timeline_is_thinned_and_keeps_its_peak():
    long = [(i / 100, float(i == 777)) for i in range(1000)]
    short = thinned(long)
    assert len(short) <= 160 and max(level for _, level in short) == 1.0 and thinned([]) == []


def test_a_prediction_is_held_against_the_picture_and_where_compiling_takes_more_against_that_too():
    told = ratios({"compiled": {"predicted GiB": 10.0, "peak allocated GiB": 9.0, "loading peak GiB": 10.1}})
    assert [(says.split(": ")[1], holds) for says, _, _, holds in told] == [
        ("predicted peak beside measured", False),
        ("predicted peak beside the highest, compiling included", True),
    ]


def test_where_loading_takes_less_than_a_picture_one_peak_is_told():
    told = ratios({"plain": {"predicted GiB": 9.1, "peak allocated GiB": 9.0, "loading peak GiB": 8.0}})
    assert [holds for *_, holds in told] == [True]
