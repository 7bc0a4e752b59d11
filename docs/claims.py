"""The claims of the notebooks: collect them into a page of the site, or try them on other prompts and seeds.

`python docs/claims.py` prints the table of the committed notebooks, which `conf.py` writes as a page. `make claims`
runs `python docs/claims.py --long`: every notebook is executed with FLUXNB_CLAIMS=long, and the counts are written to
docs/claims.json with a checksum of the shipped weights. Counts of other weights are not in the table. Paths of
notebooks as arguments limit both to these.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fluxnb.lessons.claims import read_claims
from fluxnb.metrics import Count

ROOT = Path(__file__).parents[1]
LONG = ROOT / "docs" / "claims.json"
CARD = ROOT / "fluxnb" / "pocket" / "card.json"
CASES = 96  # of the long form: 12 prompts x 8 seeds


def committed(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The tables of executed notebooks by the name of the notebook."""
    found = {path.stem: read_claims(path) for path in paths}
    return {name: table for name, table in found.items() if table}


def markdown(short: dict[str, dict[str, Any]], long: dict[str, dict[str, Any]]) -> str:
    """A table of all claims: the committed outputs of the notebooks, and the long form where it was run."""
    lines = ["| notebook | claim | required | in the notebook | long form |", "| --- | --- | --- | --- | --- |"]
    for name, table in sorted(short.items()):
        other = {row["sentence"]: row for row in long.get(name, {}).get("claims", ())}
        for row in table["claims"]:
            far = other.get(row["sentence"])
            cells = [
                f"[{name}](notebooks/{name}.ipynb)",
                _text(row["sentence"]),
                row["required"],
                _counted(row),
                _counted(far) if far else "not run",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n" if len(lines) > 2 else "No notebook states its claims as data.\n"


def _counted(row: dict[str, Any]) -> str:
    return f"{row['status']}: {Count(row['holds'], row['of'])}"


def _text(sentence: str) -> str:
    return sentence.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def table() -> str:
    """The page's table, from the committed notebooks and docs/claims.json."""
    found = json.loads(LONG.read_text(encoding="utf-8")) if LONG.exists() else {}
    long = {name: each for name, each in found.items() if each["weights"] in (None, weights())}
    return markdown(committed(sorted((ROOT / "notebooks").glob("*.ipynb"))), long)


def weights() -> str:
    """A checksum of the shipped models, since what holds for some weights need not hold for others."""
    files = json.loads(CARD.read_text(encoding="utf-8"))["files"]
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]


def run_long(paths: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Execute notebooks with the cases of the long form, and return their tables."""
    found: dict[str, dict[str, Any]] = {}
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", str(path.resolve())]
            command += ["--output-dir", folder, "--output", path.name, "--ExecutePreprocessor.timeout=-1"]
            environment = {**os.environ, "FLUXNB_CLAIMS": "long", "PYTHONPATH": str(ROOT)}
            subprocess.run(command, check=True, env=environment, cwd=path.parent)
            for name, each in committed([Path(folder) / path.name]).items():
                found[name] = {**each, "weights": weights() if each["model"].startswith("pocket") else None}
        print(
            f"{path.name}:", *(_line(row) for row in found.get(path.stem, {}).get("claims", ())), sep="\n  ", flush=True
        )
    return found


def _line(row: dict[str, Any]) -> str:
    few = "" if row["of"] >= CASES else f"  (fewer than {CASES} cases: {row['tried']})"
    return f"{_counted(row)}, {row['required']}: {row['sentence']}{few}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or try the claims; the exit status is 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of notebooks/ by default")
    parser.add_argument(
        "--long", action="store_true", help="execute them on 12 prompts x 8 seeds and write claims.json"
    )
    given = parser.parse_args(arguments)
    paths = given.notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    if given.long:
        found = run_long(paths)
        known = json.loads(LONG.read_text(encoding="utf-8")) if LONG.exists() else {}
        LONG.write_text(json.dumps({**known, **found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    else:
        found = committed(paths)
        print(markdown(found, {}))
    return int(any(row["status"] == "fail" for each in found.values() for row in each["claims"]))


if __name__ == "__main__":
    sys.exit(main())
