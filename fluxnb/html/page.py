"""Self-contained HTML pages: a trajectory or several as one file that needs no kernel, network or further file.

A page contains the JavaScript and CSS of the notebook widget and its frames as data URLs. Its content security policy
forbids every request, and every script and style sheet other than its own, which it names by their hashes. It works as
a local file, as a mail attachment and in the output of nbconvert.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxnb.arguments import entry_point
from fluxnb.html.front_end import script, style
from fluxnb.io.files import atomic_write, user_path
from fluxnb.records import Film, Sweep, Trajectory
from fluxnb.visuals.frames import SHOWS, Decode, frame_sets, payload

__all__ = ["Page", "Still", "document", "elements", "page", "save", "stills_of", "write", "write_page"]

_POLICY = (
    "default-src 'none'; img-src data:; style-src '{style}'; script-src '{script}'; base-uri 'none'; form-action 'none'"
)

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main data-page>
{body}
</main>
</body>
</html>
"""

_MARGINS = "body { margin: 28px auto; max-width: 1080px; padding: 0 18px; }"

_BODY = """<div id="{name}" data-fluxnb="{name}">{sheet}</div>
<script type="module">{script}</script>"""

_SCRIPT = """
{js}
const {{ data, urls }} = {content};
mountPage({arguments});
"""

_SHEET = '<div class="fluxnb-sheet">{heading}{figures}</div>'
_FIGURE = (
    '<figure><img alt="{caption}" src="{url}" data-frame="{number}" width="{width}">'
    "<figcaption>{caption}</figcaption></figure>"
)
SHEET_WIDTH = 160  # pixels of a picture in the sheet


class Page:
    """A scrubber as HTML output of a notebook cell, for readers without a kernel.

    Arguments:
        record: a Trajectory, a Film, a Sweep, or a list of the first two.
        shows: the quantities to choose from, of "clean", "x", "v", "noise".
        decode: from latents in space to pictures; None for each trajectory's own linear preview.

    Raises:
        InputError: an empty record, or an unknown name in `shows`.

    Example:
        >>> Page(trajectory)                                                        # doctest: +SKIP
        Page('a fox in the snow, pocket, seed 3, 4 steps')
    """

    @entry_point("shows", "decode")
    def __init__(self, record: Any, *, shows: Sequence[str] = SHOWS, decode: Decode | None = None) -> None:
        self._data, self._frames = _content(record, shows, decode)
        self.title = str(self._data["title"])

    def __repr__(self) -> str:
        return f"Page({self.title!r})"

    def _repr_html_(self) -> str:
        body, _ = elements("scrubber", self._data, self._frames, stills_of(self._data))
        return f"<style>{style('scrubber')}</style>\n{body}"


@entry_point("shows", "decode")
def page(record: Any, *, shows: Sequence[str] = SHOWS, decode: Decode | None = None) -> str:
    """The HTML text of the page.

    Arguments:
        record: a Trajectory, a Film, a Sweep, or a list of the first two.
        shows: the quantities to choose from, of "clean", "x", "v", "noise".
        decode: from latents in space to pictures; None for each trajectory's own linear preview.

    Raises:
        InputError: an empty record, or an unknown name in `shows`.
    """
    data, frames = _content(record, shows, decode)
    return document("scrubber", str(data["title"]), data, frames, stills_of(data))


@entry_point("path", "shows", "decode")
def write(
    record: Trajectory | Film | Sweep | Sequence[Trajectory | Film],
    path: str | Path,
    *,
    shows: Sequence[str] = SHOWS,
    decode: Decode | None = None,
) -> Path:
    """Write the page to a file, atomically; missing folders are created.

    Arguments:
        record: a Trajectory, a Film, a Sweep, or a list of the first two.
        path: the file to write.
        shows: the quantities to choose from, of "clean", "x", "v", "noise".
        decode: from latents in space to pictures; None for each trajectory's own linear preview.

    Returns:
        The path written.

    Raises:
        InputError: an empty record, or an unknown name in `shows`.
        StorageError: the file cannot be written.

    Example:
        >>> write(trajectory, "fox.html")                                           # doctest: +SKIP
        PosixPath('fox.html')
    """
    return save(page(record, shows=shows, decode=decode), path)


def write_page(path: str | Path, data: dict[str, Any], frames: Sequence[bytes]) -> Path:
    """Write a page of frames that are encoded already, as `fluxnb.visuals.frames.payload` returns them."""
    return save(document("scrubber", str(data["title"]), data, frames, stills_of(data)), path)


def _content(record: Any, shows: Sequence[str], decode: Decode | None) -> tuple[dict[str, Any], list[bytes]]:
    return payload(record, frame_sets(record, shows=shows, decode=decode))


@dataclass(frozen=True)
class Still:
    """A picture of the sheet that is displayed where scripts do not run, and printed.

    Arguments:
        frame: number of the frame.
        caption: plain text; it is escaped here.
    """

    frame: int
    caption: str


def document(view: str, title: str, content: dict[str, Any], frames: Sequence[bytes], stills: Sequence[Still]) -> str:
    """The HTML text of a page with one view.

    Arguments:
        view: a name of `fluxnb.html.front_end.VIEWS`.
        title: plain text; it is escaped here.
        content: JSON data for the `mount` function of the view.
        frames: WebP bytes, to which `content` refers by number.
        stills: the pictures of the sheet.
    """
    body, program = elements(view, content, frames, stills, heading=title)
    css = f"\n{_MARGINS}\n{style(view)}"
    policy = _POLICY.format(style=_source_hash(css), script=_source_hash(program))
    return _PAGE.format(policy=policy, title=html.escape(title), css=css, body=body)


def _source_hash(text: str) -> str:
    """The name of an inline script or style sheet in a content security policy (CSP level 3, section 6.7)."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def stills_of(data: dict[str, Any]) -> list[Still]:
    """The final pictures of a scrubber's trajectories."""
    trajectories = data["trajectories"]
    return [Still(each["final"], each["caption"]) for each in trajectories if each["final"] is not None]


def elements(
    view: str,
    data: dict[str, Any],
    frames: Sequence[bytes],
    stills: Sequence[Still],
    *,
    heading: str = "",
    key: str | None = None,
    options: dict[str, Any] | None = None,
) -> tuple[str, str]:
    """The elements of a view, and the text of their script.

    Frames of the sheet are stored there alone, and the script reads them from its images.

    Arguments:
        heading: plain text above the sheet, for a page of its own.
        key: name of the elements. By default it is derived from the content, so that a notebook that is run again has
            the same output.
        options: further arguments for the script.
    """
    urls = ["data:image/webp;base64," + base64.b64encode(frame).decode("ascii") for frame in frames]
    captions: dict[int, list[str]] = {}  # equal pictures are displayed once, with the captions of all
    for still in stills:
        captions.setdefault(still.frame, []).append(still.caption)
    content = _json({"data": data, "urls": [None if i in captions else url for i, url in enumerate(urls)]})
    figures = []
    for number, texts in captions.items():
        caption = html.escape("; ".join(dict.fromkeys(texts)))
        figures.append(_FIGURE.format(number=number, caption=caption, width=SHEET_WIDTH, url=urls[number]))
    head = f"<h1>{html.escape(heading)}</h1>" if heading else ""
    sheet = _SHEET.format(heading=head, figures="".join(figures)) if head or figures else ""
    name = key or f"fluxnb-{hashlib.sha256((content + sheet).encode()).hexdigest()[:12]}"
    arguments = ", ".join([f'"{name}"', "data", "urls", *([_json(options)] if options else [])])
    program = _SCRIPT.format(js=script(view), content=content, arguments=arguments)
    return _BODY.format(name=name, sheet=sheet, script=program), program


def _json(value: object) -> str:
    r"""JSON for a script element: without `<`, so that no `</script>` or `<!--` in it can be parsed as HTML."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def save(text: str, path: str | Path) -> Path:
    """Write a page to a file, atomically; missing folders are created."""
    target = user_path(path)
    with atomic_write(target) as part:
        part.write_text(text, encoding="utf-8")
    return target
