"""The README's table of GPU memory and seconds, from the recorded results: `python -m tests.benchmarks.table`.

With `--write README.md` it replaces what stands between the two marks there; the file is otherwise left alone.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from tests.benchmarks.claims import most

RESULTS = Path(__file__).with_name("results") / "fullsize.json"
BEGIN, END = "<!-- gpu table: python -m tests.benchmarks.table --write README.md -->", "<!-- end of gpu table -->"
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


def table(told: dict[str, Any]) -> str:
    """Markdown: one line a way of holding the model, in the order above, those that were measured."""
    lines = ["| | card made smaller to | peak | predicted | s a picture |", "| --- | --- | --- | --- | --- |"]
    for name, says in ROWS.items():
        case = told["cases"].get(name, {})
        further = ("picture seconds", "our picture from embeddings seconds", "picture from embeddings seconds")
        seconds = next((case[fact] for fact in further if fact in case), None)
        peak = most(case)
        if seconds is None or case.get("failed"):
            continue
        cap = f"{case['cap GiB']:g} GB" if case.get("cap GiB") else "-"
        predicted = f"{case['predicted GiB']:.1f} GiB" if case.get("predicted GiB") else "-"
        held = f"{peak:.1f} GiB" if peak else "-"
        elsewhere = f" ({case['card']})" if case.get("card", told["card"]) != told["card"] else ""
        lines.append(f"| {says}{elsewhere} | {cap} | {held} | {predicted} | {seconds:.2f} |")
    versions = ", ".join(f"{name} {number}" for name, number in told["versions"].items())
    size = f"{told['pixels']} px, {told['steps']} steps, {told['tokens']} tokens"
    return "\n".join([*lines, "", f"{told['card']}, {told['date']}, {versions}; {told['what']}; {size}."])


def main() -> None:
    """Print the table, or put it into a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", type=Path, help="a file with the two marks")
    asked = parser.parse_args()
    made = table(json.loads(asked.results.read_text(encoding="utf-8")))
    if asked.write is None:
        print(made)
        return
    text = asked.write.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{asked.write} holds no marks; put these where the table belongs:\n{BEGIN}\n{END}")
    between = re.escape(BEGIN) + ".*?" + re.escape(END)
    asked.write.write_text(
        re.sub(between, lambda _: f"{BEGIN}\n{made}\n{END}", text, flags=re.DOTALL), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
