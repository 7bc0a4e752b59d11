"""Where a model's weights are, our own package data, a folder or the hub, and the pipeline that is read from there.

Weights are safetensors only: other formats can run code when they are opened.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fluxnb.checkpoints.checksums import fingerprint, read_json, verify
from fluxnb.checkpoints.hub import download, hub_error, snapshot
from fluxnb.errors import InputError, StorageError, shorten, unknown_choice
from fluxnb.io.files import user_path

__all__ = ["HUB", "NAMES", "Source", "expanded", "fetch", "gguf_file", "locate", "read"]

HUB = {"schnell": "black-forest-labs/FLUX.1-schnell", "dev": "black-forest-labs/FLUX.1-dev"}
NAMES = ("pocket", "pocket-base", *HUB)
POCKET = Path(__file__).parents[1] / "pocket"
REINSTALL = "run pip install --force-reinstall fluxnb"


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model that was found: its folder or hub id, the name to call it by, and the revision that its bytes have.

    Arguments:
        place: what `from_pretrained` takes, a folder or a hub id.
        name: as it stands in recipes and captions.
        revision: the hub's commit, or a fingerprint of the files.
        parts: components that live in another folder than the rest.
        card: the model's card.json, empty where there is none.
        local: whether nothing needs to be downloaded.
    """

    place: str
    name: str
    revision: str
    parts: Mapping[str, Path] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    local: bool = True


def expanded(model: str | Path) -> str | Path:
    """A model argument with a leading `~` expanded; names and hub ids stay text."""
    return model if isinstance(model, str) and not model.startswith("~") else user_path(model)


def locate(model: str | Path) -> Source:
    """Find a model by name, folder or hub id, and check that its files are whole.

    Raises:
        InputError: no such name, or a folder that holds no FluxPipeline.
        StorageError: a missing folder, a damaged or missing file, a hub that says no.
    """
    model = expanded(model)
    text = str(model)
    if isinstance(model, str):
        if model in ("pocket", "pocket-base"):
            return _packaged(model)
        if model in HUB:
            return _hub(HUB[model], model)
    if Path(text).is_dir():
        return _folder(Path(text))
    looks_like_path = isinstance(model, Path) or text.startswith((".", "/", "~", "\\")) or text.count("/") > 1
    if not looks_like_path and re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return _hub(text, text)
    if looks_like_path:
        raise StorageError(
            f"model={shorten(text, 200)}",
            "there is no such folder" if not Path(text).exists() else "that is a file; a model is a folder",
            "give the folder that holds model_index.json",
        )
    raise unknown_choice("model", text, NAMES)


def _packaged(name: str) -> Source:
    base, student = POCKET / "base", POCKET / "transformer"
    if not (base / "model_index.json").is_file():
        raise StorageError(f"no weights in {POCKET}", "the wheel carries them", REINSTALL)
    card = _card(POCKET)
    verify(POCKET, card, remedy=REINSTALL)
    parts = {"transformer": student} if name == "pocket" and student.is_dir() else {}
    folders = [base, *parts.values()]
    # Asking for pocket before there is a student gives the teacher under the name asked for.
    return Source(place=str(base), name=name, revision=fingerprint(folders), parts=parts, card=card)


def _folder(folder: Path) -> Source:
    index = folder / "model_index.json"
    if not index.is_file():
        raise StorageError(
            f"model={str(folder)!r}", "it holds no model_index.json", "give the top folder of a saved FluxPipeline"
        )
    told = read_json(index)
    kind = told.get("_class_name")
    if kind != "FluxPipeline":
        raise InputError(
            f"a {shorten(kind)} in {folder}",
            "fluxnb runs FluxPipeline",
            "give the folder of a FLUX.1 text-to-image model",
        )
    for part, made_of in told.items():
        # A tokenizer without its files loads all the same, empty, and every prompt becomes the same.
        here = isinstance(made_of, list) and made_of[:1] not in ([None], []) and not part.startswith("_")
        if here and not (folder / part).is_dir():
            raise StorageError(f"{folder / part} is missing", "model_index.json names it", "copy the folder again")
    card = _card(folder)
    verify(folder, card, remedy="copy or download the folder again")
    return Source(place=str(folder), name=folder.resolve().name, revision=fingerprint([folder]), card=card)


def _card(folder: Path) -> Mapping[str, Any]:
    path = folder / "card.json"
    return read_json(path) if path.is_file() else {}


def _hub(repo: str, name: str) -> Source:
    """The commit that the hub (or its cache) has; the one small download that meets every refusal first."""
    index = download(repo, "model_index.json")
    # .../snapshots/<commit>/model_index.json
    return Source(place=repo, name=name, revision=index.parent.name, local=False)


def gguf_file(source: Source, kind: str) -> Path:
    """The GGUF file of a model's transformer: beside the model, or from the hub for schnell and dev.

    Arguments:
        kind: as files are named, "Q8_0" for instance.

    Raises:
        StorageError: there is none, or the hub, the network or the disk said no.
    """
    if source.local:
        found = sorted(Path(source.place).rglob(f"*{kind}*.gguf"))
        if found:
            return found[0]
        raise StorageError(
            f"{source.place} holds no {kind} GGUF file", "a file such as flux1-schnell-Q8_0.gguf is looked for",
            "put one there, or choose another preset",
        )  # fmt: skip
    title = source.place.rpartition("/")[2]
    repo, file = f"city96/{title}-gguf", f"{title.lower().replace('flux.1', 'flux1')}-{kind}.gguf"
    return download(repo, file)


def fetch(source: Source, *, without_transformer: bool = False) -> Path:
    """The folder with everything this source needs, downloaded where it is not there yet.

    Arguments:
        without_transformer: leave out the transformer's weights, which come from elsewhere.

    Raises:
        StorageError: the hub, the network or the disk said no, or a file came damaged.
    """
    if source.local:
        return Path(source.place)
    return snapshot(source.place, source.revision, without_transformer=without_transformer)


def read(source: Source, dtype: torch.dtype, *, loud: bool) -> Any:
    """The pipeline from disk or hub, every refusal and every damage told in our words."""
    with contextlib.nullcontext() if loud else _quiet():
        from diffusers import FluxPipeline, FluxTransformer2DModel

        options: dict[str, Any] = {_dtype_word(): dtype, "use_safetensors": True}
        if not source.local:
            options["revision"] = source.revision
        try:
            if "transformer" in source.parts:
                folder = source.parts["transformer"]
                options["transformer"] = FluxTransformer2DModel.from_pretrained(
                    folder, **{_dtype_word(): dtype, "use_safetensors": True}
                )
            pipe = FluxPipeline.from_pretrained(source.place, **options)
        except Exception as problem:  # safetensors, JSON, missing files, the hub: each raises something else
            if not source.local:
                raise hub_error(source.place, problem) from problem
            raise StorageError(
                f"{source.place} does not load ({shorten(str(problem), 160)})",
                "a file is missing, damaged, or not safetensors",
                "copy or download the folder again",
            ) from problem
    return pipe


def _dtype_word() -> str:
    """What this diffusers calls the number format: `torch_dtype` up to 0.41 or so, `dtype` after."""
    from diffusers.utils import deprecation_utils

    return "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No bars and no advice about torchvision while a small model loads, which takes a second."""
    import transformers.utils.logging as theirs
    from diffusers.utils import logging as ours

    level, shown = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    ours_shown = ours.is_progress_bar_enabled() if hasattr(ours, "is_progress_bar_enabled") else True
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    ours.disable_progress_bar()
    restore: list[Callable[[], None]] = [theirs.enable_progress_bar] if shown else []
    restore += [ours.enable_progress_bar] if ours_shown else []
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        for enable in restore:
            enable()
