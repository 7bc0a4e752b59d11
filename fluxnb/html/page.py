"""One page that holds everything: a walk or a grid as HTML with no kernel, no network and no other file.

The page is made of the very JavaScript and CSS that the notebook widget runs, with its frames as data: addresses. It
opens from a file, from a mail, in nbconvert's output. Its content policy forbids every request, so it stays so.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fluxnb.html.front_end import script, style
from fluxnb.io.files import whole
from fluxnb.records import Film, Sweep, Trajectory
from fluxnb.visuals.frames import SHOWS, Decode, frame_sets, payload

__all__ = ["Page", "document", "page", "save", "write", "write_page"]

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
body {{ margin: 28px auto; max-width: 1080px; padding: 0 18px; }}
{css}</style>
</head>
<body>
{body}
</body>
</html>
"""

_BODY = """<div id="{name}">{still}</div>
<script type="module">
{js}
const {{ data, urls }} = {content};
mount(document.getElementById("{name}"), data, urls);
</script>"""


class Page:
    """A scrubber for a notebook that will be read without a kernel: shows itself as HTML, and as text without one.

    Example:
        >>> Page(walk)                                                              # doctest: +SKIP
        Page('a fox in the snow, pocket, seed 3, 4 steps')
    """

    def __init__(self, record: Any, *, shows: Sequence[str] = SHOWS, decode: Decode | None = None) -> None:
        self._data, self._frames = _content(record, shows, decode)
        self.title = str(self._data["title"])

    def __repr__(self) -> str:
        return f"Page({self.title!r})"

    def _repr_html_(self) -> str:
        body = _body("scrubber", self.title, self._data, self._frames, _final(self._data))
        return f"<style>{style('scrubber')}</style>\n{body}"


def page(record: Any, *, shows: Sequence[str] = SHOWS, decode: Decode | None = None) -> str:
    """The whole page as text.

    Arguments:
        record: a Trajectory, a Film, a Sweep, or a list of walks.
        shows: what can be chosen, of "clean", "x", "v", "noise".
        decode: from latents (n, 16, h/8, w/8) to pictures; None for each walk's own linear preview.

    Raises:
        InputError: nothing to show.
    """
    data, frames = _content(record, shows, decode)
    return document("scrubber", str(data["title"]), data, frames, _final(data))


def write(
    record: Trajectory | Film | Sweep | Sequence[Trajectory | Film],
    path: str | Path,
    *,
    shows: Sequence[str] = SHOWS,
    decode: Decode | None = None,
) -> Path:
    """Write the page; folders are made, and a page is there whole or not at all.

    Returns:
        The path written.

    Raises:
        InputError: nothing to show.
        StorageError: the file cannot be written.

    Example:
        >>> write(walk, "walk.html")                                                # doctest: +SKIP
        PosixPath('walk.html')
    """
    return save(page(record, shows=shows, decode=decode), path)


def write_page(path: str | Path, data: dict[str, Any], frames: Sequence[bytes]) -> Path:
    """Write the page of frames that were made before, as `fluxnb.visuals.frames.payload` returns them."""
    return save(document("scrubber", str(data["title"]), data, frames, _final(data)), path)


def _content(record: Any, shows: Sequence[str], decode: Decode | None) -> tuple[dict[str, Any], list[bytes]]:
    return payload(record, frame_sets(record, shows=shows, decode=decode))


def document(view: str, title: str, content: dict[str, Any], frames: Sequence[bytes], final: int | None) -> str:
    """A whole page around one view.

    Arguments:
        view: whose front end, of `fluxnb.html.front_end`.
        title: plain text.
        content: JSON, what the view's `mount` is given.
        frames: the WebP pictures it numbers.
        final: the number of the picture that stands there before the script runs, and where none may run.
    """
    text, body = html.escape(title), _body(view, title, content, frames, final)
    return _PAGE.format(policy=_POLICY, title=text, css=style(view), body=body)


def _final(data: dict[str, Any]) -> int | None:
    return next((trajectory["final"] for trajectory in data["trajectories"] if trajectory["final"] is not None), None)


def _body(view: str, title: str, data: dict[str, Any], frames: Sequence[bytes], final: int | None) -> str:
    urls = ["data:image/webp;base64," + base64.b64encode(frame).decode("ascii") for frame in frames]
    still = "" if final is None else f'<img alt="{html.escape(title)}" src="{urls[final]}">'
    # The same name for the same content: a notebook run again is the same notebook.
    content = _json({"data": data, "urls": urls})
    name = f"fluxnb-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    return _BODY.format(name=name, still=still, js=script(view), content=content)


def _json(value: object) -> str:
    r"""JSON that may stand inside a script: no `<`, so no `</script>` or `<!--` can end or open anything."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def save(text: str, path: str | Path) -> Path:
    """Write a page; folders are made, and it is there whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")
    return Path(path)
