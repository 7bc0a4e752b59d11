"""The table of GPU memory and time, from the recorded results: `python -m tests.benchmarks.table`.

`--write docs/benchmarks.md` replaces the text between the two markers in that file, as `python docs/tables.py` does.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from tests.benchmarks.comparisons import highest_peak

RESULTS = Path(__file__).with_name("results") / "fullsize.json"
BEGIN, END = "<!-- table gpu, written by python docs/tables.py -->", "<!-- end of table -->"
ROWS = {
    "resident": "plain diffusers, everything on the GPU",
    "model-offload-24": "diffusers' model offload",
    "lean-24": "`lean`, exact",
    "fp8-16": "`lean-fp8`",
    "nf4-8": "`lean-nf4`",
    "gguf-16": "`gguf-q8`",
    "int8-16": "`lean-int8`",
    "fp8-rows-16": "`lean-fp8-rows`",
    "stream": "`stream`, exact",
    "mapped": "`stream-mapped`, exact",
    "fast": "`lean`, `fast=True`, embeddings given",
    "fast-fp8": '`lean`, `fast="fp8"`, embeddings given',
}


def table(results: dict[str, Any]) -> str:
    """The table in Markdown, with one line per measured case in the order of `ROWS`."""
    lines = [
        "| | GPU memory limit | peak | predicted | s per picture | card |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, title in ROWS.items():
        case = results["cases"].get(name, {})
        facts = ("picture seconds", "fluxnb picture from embeddings seconds", "picture from embeddings seconds")
        seconds = next((case[fact] for fact in facts if fact in case), None)
        peak = highest_peak(case)
        if seconds is None or case.get("failed"):
            continue
        cap = f"{case['cap GiB']:g} GB" if case.get("cap GiB") else "-"
        predicted = f"{case['predicted GiB']:.1f} GiB" if case.get("predicted GiB") else "-"
        measured = f"{peak:.1f} GiB" if peak else "-"
        card = case.get("card", results["card"])
        lines.append(f"| {title} | {cap} | {measured} | {predicted} | {seconds:.2f} | {card} |")
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    size = f"{results['pixels']} px, {results['steps']} steps, {results['tokens']} tokens"
    dates = sorted({results["date"], *(case["date"] for case in results["cases"].values() if "date" in case)})
    period = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return "\n".join([*lines, "", f"{period}, {versions}; {results['what']}; {size}."])


def main() -> None:
    """Print the table, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="a file with the two markers")
    options = parser.parse_args()
    text_of_table = table(json.loads(options.results.read_text(encoding="utf-8")))
    if options.write is None:
        print(text_of_table)
        return
    text = options.write.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{options.write} has no markers. Insert these lines where the table belongs:\n{BEGIN}\n{END}")
    between = re.escape(BEGIN) + ".*?" + re.escape(END)
    options.write.write_text(
        re.sub(between, lambda _: f"{BEGIN}\n{text_of_table}\n{END}", text, flags=re.DOTALL), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
