"""The documentation site: `make docs` builds it into docs/_build/html.

Pages that Sphinx reads from elsewhere are written beside the others first: the notebooks as they are committed, which
are not executed, their claims, and the help of the command line. Nothing is loaded from the network when a page is
viewed: formulas become MathML, and every script and font is part of the site.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
os.environ["COLUMNS"] = "88"  # width of the command line's help
sys.path[:0] = [str(ROOT), str(DOCS)]

from tables import included  # noqa: E402

import fluxnb  # noqa: E402

project = "fluxnb"
author = "the fluxnb authors"
copyright = author
version = release = fluxnb.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "_generated"]
suppress_warnings = ["mystnb.unknown_mime_type"]  # of a widget's state, which committed outputs do not hold
smartquotes_action = "D"  # dashes alone; quotes belong to values such as "euler"

# Markdown and notebooks
nb_execution_mode = "off"
nb_render_markdown_format = "commonmark"
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

# Docstrings: single backticks are code, and signatures state types by their last name
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_preprocess_types = False
napoleon_custom_sections = [("Main arguments", "params_style"), ("Other arguments", "params_style")]

# HTML
html_theme = "furo"
html_title = "fluxnb"
html_static_path = ["_static"]
html_favicon = "_static/icon.svg"
html_css_files = ["site.css"]
html_extra_path = ["_build/gallery"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"top_of_page_buttons": []}


# ------------------------------------------------------------------------------------------------------------- formulas
def visit_math(translator: Any, node: nodes.math) -> None:
    """Write a formula as MathML, which browsers display themselves."""
    translator.body.append(latex2mathml.tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(translator: Any, node: nodes.math_block) -> None:
    """Write a formula on lines of its own as MathML."""
    mathml = latex2mathml.tex2mathml(node.astext(), as_block=True)
    translator.body.append(f'<div class="formula">{mathml}</div>')
    raise nodes.SkipNode


# ----------------------------------------------------------------------------------------------------------- docstrings
CODE = re.compile(r"(`[^`]*`)")
MARKUP = re.compile(r"[|@]|\*(?! )|(?<=\w)_(?!\w)")  # substitutions, addresses, emphasis and targets, but not lists
ENTRY = re.compile(r"^(\w[\w, ]*?) {2,}(\S.*)$")


def process_docstring(*event: Any) -> None:
    """Turn plain text into reStructuredText: no marks but backticks, and the names of a module as a list."""
    _, what, _, _, _, lines = event
    if what == "module":
        lines[:] = [ENTRY.sub(r"* `\1`: \2", line) for line in lines]
    example = False  # from a line with >>> to an empty one
    for number, line in enumerate(lines):
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if not example:
            parts = CODE.split(line)
            parts[::2] = [MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
            lines[number] = "".join(parts)


# ---------------------------------------------------------------------------------------------------------------- pages
def write(path: Path, data: bytes) -> None:
    """Write a file unless it holds the same bytes, so that Sphinx does not read it again."""
    path.parent.mkdir(exist_ok=True)
    if not path.exists() or path.read_bytes() != data:
        path.write_bytes(data)


BADGE = re.compile(r"\[!\[([^\]]+)\]\(https://[^)]+\)\]\(([^)]+)\)")  # a picture from elsewhere that is a link


def add_alternative_text(cell: dict[str, Any]) -> None:
    """Move the alternative text of a figure from the output to where MyST-NB reads it."""
    for output in cell.get("outputs", ()):
        if alt := output.get("metadata", {}).get("image/png", {}).get("alt"):
            cell["metadata"].setdefault("mystnb", {}).setdefault("image", {})["alt"] = alt


def copy_pages(app: Sphinx) -> None:
    """Copy the notebooks, their attachments as files of their own, and write the parts that pages include."""
    folder = DOCS / "notebooks"
    folder.mkdir(exist_ok=True)
    committed = {path.name: path for path in (ROOT / "notebooks").glob("*.ipynb")}
    for path in folder.glob("*.ipynb"):
        if path.name not in committed:
            path.unlink()
    for path in committed.values():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            add_alternative_text(cell)
            cell["source"] = BADGE.sub(r"[\1](\2)", "".join(cell["source"]))
            for name, data in cell.pop("attachments", {}).items():
                file = f"{path.stem}-{name}"
                write(folder / file, base64.b64decode(data["image/png"]))
                cell["source"] = cell["source"].replace(f"attachment:{name}", file)
        write(folder / path.name, json.dumps(notebook).encode())
    for name, text in included().items():
        write(DOCS / "_generated" / f"{name}.md", text.encode())


# ------------------------------------------------------------------------------------------------- finished HTML bodies
NAME = re.compile(r'<code class="[^"]*"><span class="pre">fnb\.([\w.]+)</span></code>')
SCROLLED = re.compile(r'<(pre(?: (?![^>]*tabindex)[^>]*)?|div class="table-wrapper[^"]*")>')  # wider than a phone
PARAMETERS = re.compile(r"<dl>\n((?:<dd>.*?</dd>\n)+)</dl>\n")  # of a long signature: a list without terms


def spans(items: str) -> str:
    """The parameters of a signature, each on a line of its own."""
    return items.replace("<dd>", '<span class="parameter">').replace("</dd>", "</span>")


def link_names(app: Sphinx, page: str, body: str) -> str:
    """Link each public name that is written as `fnb.name` to its place in the reference."""
    places = app.env.domaindata["py"]["objects"]

    def link(found: re.Match[str]) -> str:
        place = places.get(name := f"fluxnb.{found[1]}")
        if place is None:
            return found[0]
        address = app.builder.get_relative_uri(page, place.docname)
        return f'<a class="reference internal" href="{address}#{name}">{found[0]}</a>'

    return NAME.sub(link, body)


def complete_page(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Let the keyboard scroll code and tables, make signatures no lists, link names, give captions a level."""
    if "body" in context:
        body = SCROLLED.sub(r'<\1 tabindex="0">', context["body"])
        body = body.replace('<summary aria-label="Toggle hidden content">', "<summary>")  # it has a text that is read
        body = PARAMETERS.sub(lambda found: f'<span class="parameters">{spans(found[1])}</span>', body)
        context["body"] = link_names(app, page, body)
    if "furo_navigation_tree" in context:
        tree = context["furo_navigation_tree"]
        context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')


def setup(app: Sphinx) -> None:
    """Register the renderer of formulas, the copied pages, and what is changed on the way."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.connect("builder-inited", copy_pages)
    app.connect("autodoc-process-docstring", process_docstring, priority=100)  # before napoleon
    app.connect("html-page-context", complete_page, priority=900)  # after furo


html_math_renderer = "mathml"
