"""JavaScript and CSS of each view, for its widget and its page.

A view is a single ES module in both places, so shared code is concatenated in front of it instead of imported.
"""

from __future__ import annotations

from importlib import resources

__all__ = ["VIEWS", "script", "style"]

# Files of each view, in order; each name has a `.js` file and may have a `.css` file.
VIEWS = {
    "scrubber": ("shared", "scrubber"),
    "explore": ("shared", "download", "compare", "stage", "viewer", "axes", "table", "explore"),
    "lab": ("shared", "lab"),
}


def script(view: str) -> str:
    """The ES module of a view, for anywidget and for a page.

    Example:
        >>> "export default" in script("scrubber")
        True
    """
    return "\n".join(_read(f"{name}.js") for name in VIEWS[view])


def style(view: str) -> str:
    """The CSS of a view, of those of its files that have some."""
    return "\n".join(_read(f"{name}.css") for name in VIEWS[view] if _file(f"{name}.css").is_file())


def _file(name: str) -> resources.abc.Traversable:
    # Through the package root: resources.files("fluxnb.widgets") would import that package.
    return resources.files("fluxnb") / "widgets" / "static" / name


def _read(name: str) -> str:
    return _file(name).read_text(encoding="utf-8")
