"""Write the address of the repository wherever it is needed: `python docs/address.py [ADDRESS]`.

`pyproject.toml` has the address. The README, the pages of the documentation, CITATION.cff and the notebooks repeat it
in commands that are copied and in links to Colab. With an argument, the address is changed in all of them.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = ROOT / "pyproject.toml"
HOST = "https://github.com/"


def address() -> str:
    """The address of the repository, as `pyproject.toml` has it."""
    return str(tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["urls"]["Repository"])


def slug() -> str:
    """Owner and name of the repository, as links to Colab have it."""
    return address().removeprefix(HOST)


def colab(notebook: str) -> str:
    """The link that opens a notebook of the repository in Colab."""
    return f"https://colab.research.google.com/github/{slug()}/blob/main/notebooks/{notebook}"


def places() -> list[Path]:
    """The files that repeat the address."""
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md")]
    files = [PROJECT, ROOT / "README.md", ROOT / "CITATION.cff", ROOT / "comfyui" / "README.md"]
    return [path for path in [*files, *pages, *(ROOT / "notebooks").glob("*.ipynb")] if path.is_file()]


def main(arguments: list[str]) -> int:
    """Replace the address in all files, and print how many were changed."""
    if len(arguments) != 1:
        print(address())
        return 0
    old, new = slug(), arguments[0].rstrip("/").removesuffix(".git").removeprefix(HOST)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", new):
        print(f"{arguments[0]}: an address such as {HOST}OWNER/NAME is required", file=sys.stderr)
        return 2
    changed = 0
    for path in places():
        text = path.read_text(encoding="utf-8")
        found = text.replace(f"github.com/{old}", f"github.com/{new}").replace(f"/github/{old}/", f"/github/{new}/")
        if found != text:
            path.write_text(found, encoding="utf-8")
            changed += 1
    print(f"{HOST}{new} in {changed} files")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
