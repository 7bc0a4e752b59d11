"""Progress bars, which appear when work is predicted to take more than a few seconds.

The prediction is made from the work that is done so far. In a notebook the bar is HTML and is removed at the end, so
that a saved notebook holds no widget; on a terminal it is a line of tqdm; elsewhere, such as in a log, there is none.
The environment variable TQDM_DISABLE=1 switches the bars off, as it does those of tqdm.
"""

from __future__ import annotations

import html
import os
import secrets
import sys
import time
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from fluxnb.display import ipython_shell
from fluxnb.units import byte_size, duration

__all__ = ["LONG", "Progress"]

LONG = 3.0  # seconds of predicted work from which a bar is displayed
SURE = 0.25  # seconds before a prediction is made
INTERVAL = 0.2  # seconds between two updates


@runtime_checkable
class _Bar(Protocol):
    def show(self, done: int, total: int, text: str) -> None: ...

    def close(self) -> None: ...


class Progress:
    """The progress of some work.

    Arguments:
        total: the amount of work, in units.
        unit: name of a unit, as in "3 of 16 cells"; "bytes" are displayed as sizes.
        displayed: True displays the bar at once, False never; None when the prediction exceeds `LONG` seconds.

    Example:
        >>> with Progress(2, unit="cells") as progress:
        ...     progress.update()
        ...     progress.update()
    """

    def __init__(self, total: int, *, unit: str, displayed: bool | None = None) -> None:
        self.total, self.done, self.unit = total, 0, unit
        self._displayed, self._note = displayed, ""
        self._bar: _Bar | None = None
        self._begin = self._latest = time.monotonic()

    def __enter__(self) -> Progress:
        if self._displayed:
            self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def possible(self) -> bool:
        """Whether a bar may be displayed here."""
        if self._displayed is False or _disabled():
            return False
        return bool(self._displayed) or _in_notebook() or sys.stderr.isatty()

    def update(self, count: int = 1) -> None:
        """Add finished units."""
        self.done += count
        now = time.monotonic()
        if self._bar is not None and (now - self._latest >= INTERVAL or self.done >= self.total):
            self._latest = now
            self._draw()
        elif self._bar is None and self._displayed is None and now - self._begin >= SURE:
            predicted = (now - self._begin) * self.total / max(self.done, 1)
            if predicted > LONG and self.done < self.total:
                self._open()

    def note(self, text: str) -> None:
        """Display a text beside the bar."""
        self._note = text
        if self._bar is not None:
            self._draw()

    def _open(self) -> None:
        self._bar = _bar(required=bool(self._displayed))
        if self._bar is None:
            self._displayed = False
        else:
            self._draw()

    def _draw(self) -> None:
        if self._bar is not None:
            self._bar.show(self.done, self.total, self._text())

    def _text(self) -> str:
        amounts = [byte_size(each) if self.unit == "bytes" else str(each) for each in (self.done, self.total)]
        text = f"{amounts[0]} of {amounts[1]}" + ("" if self.unit == "bytes" else f" {self.unit}")
        left = (time.monotonic() - self._begin) * (self.total - self.done) / self.done if self.done else 0.0
        remaining = f", about {duration(left)} left" if left else ""
        return text + remaining + (f"; {self._note}" if self._note else "")


def _bar(*, required: bool) -> _Bar | None:
    """The bar of this environment; None where a bar would only fill a log, unless it is required."""
    if _disabled():
        return None
    if _in_notebook():
        return _Html()
    return _Line() if required or sys.stderr.isatty() else None


def _disabled() -> bool:
    return os.environ.get("TQDM_DISABLE", "") not in ("", "0")


def _in_notebook() -> bool:
    return hasattr(ipython_shell(), "kernel")


class _Html:
    """An output of a notebook cell, which is empty at the end."""

    def __init__(self) -> None:
        self._id = f"fluxnb-progress-{secrets.token_hex(6)}"
        self._update = False

    def show(self, done: int, total: int, text: str) -> None:
        bar = f'<progress max="{total}" value="{done}" aria-label="progress" style="width:180px"></progress>'
        self._display(f"<div>{bar} {html.escape(text)}</div>", text)

    def close(self) -> None:
        self._display("", "")

    def _display(self, page: str, text: str) -> None:
        from IPython.display import display

        data = {"text/html": page, "text/plain": text}
        display(data, raw=True, display_id=self._id, update=self._update)
        self._update = True


class _Line:
    """A line of a terminal, which is removed at the end."""

    def __init__(self) -> None:
        from tqdm.std import tqdm

        self._bar: Any = tqdm(leave=False, bar_format="{percentage:3.0f}% {bar:20} {desc}", file=sys.stderr)

    def show(self, done: int, total: int, text: str) -> None:
        self._bar.total, self._bar.n = total, done
        self._bar.set_description_str(text)

    def close(self) -> None:
        self._bar.close()
