"""Base class of the widgets: an anywidget with a readable repr, whose output remains when the notebook is closed."""

from __future__ import annotations

import base64
import os
import secrets
import sys
from collections.abc import Sequence
from typing import Any

import anywidget
import traitlets

from fluxnb.display import ipython_shell
from fluxnb.html.output import host, output
from fluxnb.html.page import Still

__all__ = ["View", "displays_widgets_only"]

WIDGET = "application/vnd.jupyter.widget-view+json"
# Environments that put each output into a frame of its own, or create no widget without its own kind of output.
WIDGET_HOSTS = ("VSCODE_PID", "VSCODE_CWD", "PYCHARM_HOSTED", "DATABRICKS_RUNTIME_VERSION", "DEEPNOTE_PROJECT_ID")


def displays_widgets_only() -> bool:
    """Whether the front end of this kernel cannot connect an HTML output to a live widget.

    JupyterLab, Notebook, Voila and their converters can. `FLUXNB_DISPLAY=widget` and `FLUXNB_DISPLAY=html` override
    the detection.
    """
    chosen = os.environ.get("FLUXNB_DISPLAY", "")
    if chosen in ("widget", "html"):
        return chosen == "widget"
    if not hasattr(ipython_shell(), "kernel") or "google.colab" in sys.modules:
        return True
    return "JPY_SESSION_NAME" not in os.environ and any(name in os.environ for name in WIDGET_HOSTS)


class View(anywidget.AnyWidget):
    """A widget whose output is self-contained HTML that displays the live widget while it exists.

    A notebook that is opened again, with or without a kernel, therefore displays the contents instead of an error.
    Hosts that cannot connect HTML to a widget get the widget's own kind of output, with the HTML beside it. A widget
    whose contents come later has two outputs: a place for the live widget, and one that `_complete` fills at the end
    and that is visible only while the widget does not exist.

    Subclasses set `_view`, define `_content`, `_stills` and `__repr__` (the inherited repr holds a memory address,
    which differs between two runs of a notebook), and set `_fallback` to PNG bytes for readers that display no HTML.

    Attributes:
        key: name of the widget in its output.
    """

    _view = ""
    _absent = ""  # text in place of a live widget that does not exist
    _fallback: bytes | None = None

    key = traitlets.Unicode().tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        self._display_ids: list[str] = []
        super().__init__(key=f"fluxnb-{secrets.token_hex(6)}", **traits)

    def _content(self) -> tuple[dict[str, Any], Sequence[bytes]] | None:
        """The data and frames of the page, None while there are none."""
        raise NotImplementedError

    def _stills(self, data: dict[str, Any]) -> Sequence[Still]:
        """The pictures of the page for readers without scripts."""
        raise NotImplementedError

    @property
    def _is_complete(self) -> bool:
        """Whether the contents will not change any more."""
        return True

    def _html(self, *, behind: bool = False) -> str | None:
        content = self._content()
        if content is None:
            return None
        data, frames = content
        view = "explore" if self._view == "lab" else self._view  # the results of a lab are a grid
        return output(view, data, frames, key=self.key, stills=self._stills, behind=behind)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The HTML of the contents or the live widget, and the fallback image."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        data = {**data, "text/plain": repr(self)}
        if self._fallback is not None:
            data["image/png"] = base64.b64encode(self._fallback).decode("ascii")
        text = self._html() if self._is_complete else None  # None as well for a stream that failed at its first cell
        if not displays_widgets_only():
            data.pop(WIDGET, None)
            if text is None:
                text = host(self._view, key=self.key, text=self._absent)
                self._reserve()
        if text is not None:
            data["text/html"] = text
        return data, metadata

    if hasattr(anywidget.AnyWidget, "_ipython_display_"):  # ipywidgets 7, whose own method displays the widget alone

        def _ipython_display_(self, **kwargs: Any) -> None:
            from IPython.display import display

            if (bundle := self._repr_mimebundle_()) is not None:
                display(bundle[0], raw=True)
                self._handle_displayed(**kwargs)

    def _reserve(self) -> None:
        """Display an empty output that `_complete` fills."""
        from IPython.display import HTML, display

        name = f"{self.key}-{len(self._display_ids)}"
        self._display_ids.append(name)
        display(HTML(self._html(behind=True) or "<div></div>"), display_id=name)

    def _complete(self) -> None:
        """Fill the reserved outputs with the contents."""
        if not self._display_ids or ipython_shell() is None:
            return
        from IPython.display import HTML, display

        text = self._html(behind=True)
        for name in self._display_ids if text is not None else ():
            display(HTML(text), display_id=name, update=True)
