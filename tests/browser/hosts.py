"""Fake hosts: pages with the style variables of JupyterLab, VS Code, Colab, marimo and a plain page around a view."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxnb.html.front_end import script, style

_JUPYTER_LIGHT = "--jp-layout-color0: white; --jp-ui-font-color1: rgba(0, 0, 0, 0.87); --jp-ui-font-family: sans-serif;"
_JUPYTER_DARK = "--jp-layout-color0: #111; --jp-ui-font-color1: rgba(255, 255, 255, 0.87);"


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a view sees of a host.

    Arguments:
        css: the rules of the page.
        body: attributes of the body element.
        scheme: the preference of the system, "light" or "dark".
    """

    css: str
    body: str = ""
    scheme: str = "light"


HOSTS = {
    "jupyterlab-light": Host(css=f":root {{ {_JUPYTER_LIGHT} }}", body='data-jp-theme-light="true"', scheme="dark"),
    "jupyterlab-dark": Host(
        css=f":root {{ {_JUPYTER_DARK} }} body {{ background: #111; }}", body='data-jp-theme-light="false"'
    ),
    # VS Code's style sheet for widgets defines JupyterLab's variables, with the values of the light theme.
    "vscode-dark": Host(
        css=f":root {{ {_JUPYTER_LIGHT} --vscode-editor-foreground: #cccccc; --vscode-editor-background: #1f1f1f; }}"
        "body { background: #1f1f1f; color: #cccccc; }",
        body='class="vscode-dark" data-vscode-theme-kind="vscode-dark"',
    ),
    "colab-dark": Host(
        css=":root { --colab-primary-text-color: #d5d5d5; --colab-primary-surface-color: #383838; }"
        "body { background: #383838; color: #d5d5d5; }"
    ),
    # marimo has its own variables; a view follows the color scheme of the page.
    "marimo-dark": Host(
        css=":root { color-scheme: dark; } body { background: #181c1a; color: #eee; }", body='class="dark"'
    ),
    "page-light": Host(css=""),
    "page-dark": Host(css=":root { color-scheme: light dark; }", scheme="dark"),
}

# A model as anywidget passes it to `render`; `trigger` delivers what a kernel would send.
_MODEL = """
const listeners = {};
const model = {
  sent: [],
  get: (name) => traits[name],
  set: (name, value) => { traits[name] = value; (listeners[`change:${name}`] ?? []).forEach((act) => act()); },
  save_changes: () => {},
  send: (message) => model.sent.push(message),
  on: (name, act) => (listeners[name] ??= []).push(act),
  off: (name, act) => (listeners[name] = (listeners[name] ?? []).filter((each) => each !== act)),
  trigger: (name, ...values) => (listeners[name] ?? []).forEach((act) => act(...values)),
};
"""


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>host</title><style>{css}</style><style>{style}</style></head>
<body {body}><main id="host"></main><script type="application/json" id="traits">{traits}</script>
<script type="module">{script}
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer);
const decode = (_, value) => (value?.base64 === undefined ? value : bytes(value.base64));
const traits = JSON.parse(document.getElementById("traits").textContent, decode);
{model}
window.model = model;
view.default.initialize?.({{ model }});
window.close_view = view.default.render({{ model, el: document.getElementById("host") }});
</script></body></html>"""


def page_of(view: str, traits: dict[str, Any], host: Host) -> str:
    """An HTML page that displays a widget from its traits; bytes arrive as DataViews, as they do in JupyterLab."""
    encoded = json.dumps(traits, default=lambda data: {"base64": base64.b64encode(data).decode()})
    return _PAGE.format(
        css=host.css,
        style=style(view),
        body=host.body,
        traits=encoded.replace("<", "\\u003c"),
        script=script(view),
        model=_MODEL,
    )


def open_widget(page: Any, widget: Any, host: str, folder: Path) -> Any:
    """Display a widget in a fake host, in `page`."""
    view = {"Scrubber": "scrubber", "Explorer": "explore", "Lab": "lab", "Canvas": "canvas"}[type(widget).__name__]
    names = [name for name in widget.keys if not name.startswith("_") and name not in ("layout", "tooltip", "tabbable")]
    traits = widget.get_state(names)
    path = folder / f"{view}-{host}.html"
    path.write_text(page_of(view, traits, HOSTS[host]), encoding="utf-8")
    page.emulate_media(color_scheme=HOSTS[host].scheme)
    page.goto(path.as_uri())
    page.locator(".fluxnb[data-ground]").first.wait_for()
    return page


# Every visible text with its color, and the ground below it: the colors of all ancestors, from the page upwards.
TEXT_CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  canvas.canvas.width = canvas.canvas.height = 1;
  const paint = (colors) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const color of colors) { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const base = getComputedStyle(document.documentElement).colorScheme.includes("dark")
    && (matchMedia("(prefers-color-scheme: dark)").matches
        || !getComputedStyle(document.documentElement).colorScheme.includes("light")) ? "#121212" : "white";
  const found = [];
  const walk = document.createTreeWalker(document.querySelector(".fluxnb"), NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const text = walk.currentNode.textContent.trim();
    const node = walk.currentNode.parentElement;
    if (!text || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    const parents = [];
    for (let each = node; each; each = each.parentElement) parents.unshift(getComputedStyle(each));
    const grounds = [base, ...parents.map((style) => style.backgroundColor)];
    // A text on a picture is judged on the lightest and on the darkest picture.
    const onPicture = node.closest(".fluxnb-tile, .fluxnb-box, .fluxnb-divider");
    for (const picture of onPicture ? ["white", "black"] : [null]) {
      const ground = picture ? [picture, ...parents.slice(-1).map((style) => style.backgroundColor)] : grounds;
      const color = getComputedStyle(node).color;
      const [a, b] = [luminance(paint([...ground, color])), luminance(paint(ground))].sort((x, y) => y - x);
      found.push({ text: text.slice(0, 40), ratio: (a + 0.05) / (b + 0.05), color, where: node.className });
    }
  }
  return found;
}"""


def low_contrasts(page: Any, least: float = 4.5) -> list[str]:
    """The visible texts of a view whose contrast with their ground is below `least`."""
    found = page.evaluate(TEXT_CONTRAST)
    assert len(found) > 3, "a view has text"
    return [f"{each['text']!r} ({each['where']}): {each['ratio']:.2f}" for each in found if each["ratio"] < least]
