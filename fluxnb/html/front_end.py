"""JavaScript and CSS of each view, for its widget and its page.

Both are bundles that `make front-end` builds from the modules in `front-end/src`.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

__all__ = ["VIEWS", "script", "style"]

VIEWS = ("scrubber", "explore", "lab", "canvas")


def script(view: str) -> str:
    """The ES module of a view; its default export is for anywidget, and `mountPage` displays it in a page.

    Example:
        >>> "mountPage" in script("scrubber")
        True
    """
    return _read(f"{view}.js")


def style(view: str) -> str:
    """The CSS of a view."""
    return _read(f"{view}.css")


@cache
def _read(name: str) -> str:
    # Through the package root: resources.files("fluxnb.widgets") would import that package.
    file = resources.files("fluxnb") / "widgets" / "static" / name
    return file.read_text(encoding="utf-8")
