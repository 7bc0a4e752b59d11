"""The front end as text: the JavaScript and the style of a view, for its widget and for its page.

A view is one module in two places, so what views share is put in front of it here instead of being imported there.
"""

from __future__ import annotations

from importlib import resources

__all__ = ["VIEWS", "script", "style"]

# The files of each view, in order; `.js` and `.css` of the same names.
VIEWS = {
    "scrubber": ("shared", "scrubber"),
    "explore": ("shared", "download", "compare", "stage", "viewer", "axes", "table", "explore"),
    "lab": ("shared", "lab"),
}


def script(view: str) -> str:
    """The ES module of a view, as anywidget and a page take it.

    Example:
        >>> "export default" in script("scrubber")
        True
    """
    return "\n".join(_read(f"{name}.js") for name in VIEWS[view])


def style(view: str) -> str:
    """The CSS of a view; a file that a view's script has and its style does not is no mistake."""
    return "\n".join(_read(f"{name}.css") for name in VIEWS[view] if _file(f"{name}.css").is_file())


def _file(name: str) -> resources.abc.Traversable:
    # Through the package root: naming fluxnb.widgets would import ipywidgets for a page that needs none.
    return resources.files("fluxnb") / "widgets" / "static" / name


def _read(name: str) -> str:
    return _file(name).read_text(encoding="utf-8")
