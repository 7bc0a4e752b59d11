"""import_recipe: the recipe of a picture that another program made."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxnb.arguments import entry_point
from fluxnb.errors import FluxnbError, InputError, shorten
from fluxnb.io import other_programs as others
from fluxnb.io.comfy_import import is_graph, is_window_form, read_graph, window_form_refusal
from fluxnb.io.containers import DESCRIPTION, MAKE, MODEL, SOFTWARE, USER_COMMENT, Contents, contents_of, parse_json
from fluxnb.io.files import disk_errors, open_regular
from fluxnb.io.imported import Imported, imported, shorten_text
from fluxnb.records.recipe import Recipe

__all__ = ["import_recipe"]


@entry_point(file='"picture.png"')
def import_recipe(file: str | Path | bytes | bytearray | memoryview | Mapping[str, Any]) -> Imported:
    """Read the recipe of a picture that another program made, and what a recipe cannot repeat of it.

    Known are graphs of ComfyUI in PNG, WebP and JSON, the `parameters` of A1111 and Forge, and the metadata of SwarmUI,
    InvokeAI, mflux and Black Forest Labs' code, for FLUX.1 schnell and dev and for pocket. A graph is read and never
    executed: fluxnb follows it backwards from its sampler.

    Equal noise and levels give an equal picture up to rounding, see `fnb.comfy_workflow`. What is known to differ, such
    as weights in fewer bits, is in `differs`.

    Arguments:
        file: the path of a picture or a JSON file, its bytes, or a graph as a dict.

    Raises:
        StorageError: no such file, one of another kind, or a damaged one.
        InputError: no recipe in it, or something that a recipe cannot repeat; of a graph the error names the node.

    Example:
        >>> graph = fnb.comfy_workflow(fnb.Recipe(prompt="a fox", seed=3, model="schnell", height=512, width=512))
        >>> read = import_recipe(graph)
        >>> read.recipe.seed, read.source, read.differs
        (3, 'comfyui', ())
    """
    if isinstance(file, Mapping):
        return _document(file)
    if isinstance(file, bytes | bytearray | memoryview):
        return _contents(contents_of(io.BytesIO(file)))
    with open_regular(file) as stream, disk_errors(Path(file), doing="read"):
        return _contents(contents_of(stream))


def _contents(contents: Contents) -> Imported:
    """The recipe in the texts of a file; the one with the most fields first."""
    texts, exif = contents.texts, contents.exif
    if contents.document is not None:
        return _document(contents.document)
    if "fluxnb" in texts:
        return _own(Recipe.from_json(texts["fluxnb"]))
    for name in ("prompt", "invokeai_metadata", "sui_image_params"):
        if name in texts and texts[name].lstrip()[:1] == "{":
            return _document(parse_json(texts[name]))
    if "parameters" in texts:
        return _text(texts["parameters"])
    # ComfyUI writes its graph into WebP as "prompt:{...}", under a tag for the make or the model of a camera.
    for tag in (MODEL, MAKE):
        if exif.get(tag, "").startswith("prompt:"):
            return _document(parse_json(exif[tag].removeprefix("prompt:")))
    if USER_COMMENT in exif and exif[USER_COMMENT].strip("\0 "):
        return _text(exif[USER_COMMENT].strip("\0"))
    if "flux" in exif.get(SOFTWARE, "").lower() and DESCRIPTION in exif:
        return others.read_bfl(contents)
    if "workflow" in texts:
        workflow = parse_json(texts["workflow"])
        if is_window_form(workflow):
            raise window_form_refusal(workflow)
    listed = ", ".join(shorten_text(name, 30) for name in sorted([*texts, *contents.other])[:5])
    raise InputError(
        f"a picture without a recipe (its texts: {listed or 'none'})",
        "known are ComfyUI, A1111, Forge, SwarmUI, InvokeAI, mflux and Black Forest Labs' code",
        "give the file as the program wrote it; chat programs and web sites remove metadata",
    )


def _text(text: str) -> Imported:
    """The recipe of a text that is JSON or the `parameters` of A1111."""
    if text.lstrip()[:1] == "{" and "\nSteps: " not in text:  # a prompt may begin with a brace, too
        return _document(parse_json(text))
    return others.read_a1111(text)


def _document(document: Any) -> Imported:
    """The recipe of a JSON value."""
    if isinstance(document, Mapping):
        if isinstance(document.get("prompt"), Mapping):  # the body of a request to ComfyUI
            document = document["prompt"]
        if "fluxnb_recipe" in document:
            return _own(_recipe(document))
        if "sui_image_params" in document:
            return others.read_swarmui(document)
        if "mflux_version" in document:
            return others.read_mflux(document)
        if "positive_prompt" in document:
            return others.read_invokeai(document)
        if is_graph(document):
            return read_graph(document)
        if is_window_form(document):
            raise window_form_refusal(document)
    raise InputError(
        f"JSON with {shorten(list(document)[:3] if isinstance(document, Mapping) else document)}",
        "a graph of ComfyUI in the API form, or metadata of a known program, is needed",
        "in ComfyUI choose Workflow > Export (API)",
    )


def _recipe(document: Mapping[str, Any]) -> Recipe:
    try:
        return Recipe.from_json(json.dumps(dict(document)))
    except FluxnbError:
        raise
    except (TypeError, ValueError, RecursionError) as problem:
        raise InputError(
            f"a recipe that is not JSON ({shorten(str(problem))})", "a recipe is JSON", "give the text of its file"
        ) from problem


def _own(recipe: Recipe) -> Imported:
    return imported("fluxnb", recipe._values())
