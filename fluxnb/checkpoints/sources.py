"""Finding a model: in the package data, in a folder or on the hub.

Weights are safetensors only, since other formats can run code when they are opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxnb.checkpoints.checksums import fingerprint, read_json, verify
from fluxnb.checkpoints.hub import download_file, download_pipeline
from fluxnb.checkpoints.validation import check_model
from fluxnb.errors import InputError, StorageError, shorten, unknown_choice
from fluxnb.families.family import Family
from fluxnb.families.flux1 import FLUX1
from fluxnb.families.registry import FAMILIES, MODELS, family_of_class
from fluxnb.installation import restore_command
from fluxnb.io.files import user_path
from fluxnb.io.packaged import POCKET

__all__ = [
    "HUB",
    "NAMES",
    "POCKET",
    "Source",
    "check_name",
    "check_revision",
    "expand_user",
    "fetch",
    "gguf_file",
    "is_on_hub",
    "locate",
    "public_name",
    "revision_with_gguf",
    "variant_of",
    "weight_files",
]

HUB = {name: model.repo for name, model in MODELS.items() if model.repo}
NAMES = tuple(MODELS)
HUB_ID = r"[\w.-]+/[\w.-]+"


@dataclass(frozen=True, kw_only=True)
class Source:
    """The location, name and revision of a model.

    Arguments:
        place: the argument of `from_pretrained`, a folder or a hub id.
        name: used in recipes and captions.
        revision: the hub's commit, or a fingerprint of the files.
        parts: components that are in another folder.
        card: the contents of card.json, empty if there is none.
        local: whether the files are in a folder and not on the hub.
        variant: the requested variant of the weight files, "" for none.
        family: of the model.
    """

    place: str
    name: str
    revision: str
    parts: Mapping[str, Path] = field(default_factory=dict)
    card: Mapping[str, Any] = field(default_factory=dict)
    local: bool = True
    variant: str = ""
    family: Family = FLUX1


def expand_user(model: str | Path) -> str | Path:
    """A model argument with a leading `~` expanded; names and hub ids stay text."""
    return model if isinstance(model, str) and not model.startswith("~") else user_path(model)


def locate(model: str | Path, *, variant: str | None = None, revision: str | None = None) -> Source:
    """Find a model by name, folder or hub id, and verify its checksums.

    Arguments:
        variant: of the weight files, such as "fp16".
        revision: a branch, tag or commit of the hub.

    Raises:
        InputError: no such name or variant, a folder that holds no pipeline of a known family, or a revision of a
            folder.
        StorageError: a missing folder, a damaged or missing file, or an error of the hub.
    """
    model = expand_user(model)
    check_name(model)
    check_revision(model, revision)
    text = str(model)
    if is_on_hub(model):
        source = _hub(HUB.get(text, text), text, revision)
        return dataclasses.replace(source, variant=variant or "")
    source = _packaged(text) if isinstance(model, str) and text in NAMES else _folder(Path(text))
    variant_of(Path(source.place), variant or "", name=source.name)
    return dataclasses.replace(source, variant=variant or "")


def check_name(model: str | Path) -> None:
    """Raise an error for a model that is no known name, no folder and no hub id; no request is sent.

    Raises:
        InputError: an unknown name.
        StorageError: a missing folder.
    """
    text = str(model)
    if (isinstance(model, str) and model in NAMES) or (text and Path(text).is_dir()):
        return
    looks_like_path = isinstance(model, Path) or text.startswith((".", "/", "~", "\\")) or text.count("/") > 1
    if not looks_like_path and re.fullmatch(HUB_ID, text):
        return
    if looks_like_path:
        raise StorageError(
            f"model={shorten(text, 200)}",
            "there is no such folder" if not Path(text).exists() else "that is a file; a model is a folder",
            "give the folder that holds model_index.json",
        )
    raise unknown_choice("model", text, NAMES)


def is_on_hub(model: str | Path) -> bool:
    """Whether a model is downloaded: it is neither part of the package nor a folder."""
    if isinstance(model, str) and model in NAMES:
        return model in HUB
    return not Path(model).is_dir()


def check_revision(model: str | Path, revision: str | None) -> None:
    """Raise InputError for a revision of a model that is not on the hub."""
    if revision is not None and not is_on_hub(model):
        raise InputError(
            f"revision={revision!r} of {shorten(str(model))}",
            "only models of the hub have revisions",
            "leave revision out",
        )


def _packaged(name: str) -> Source:
    base, student = POCKET / "base", POCKET / "transformer"
    if not (base / "model_index.json").is_file():
        raise StorageError(f"no weights in {POCKET}", "the package contains them", f"run {restore_command()}")
    if not MODELS[name].defaults:
        raise StorageError(
            f"no readable card.json in {POCKET}", "the package contains it", f"run {restore_command()}, then restart"
        )
    card = _card(POCKET)
    verify(POCKET, card, remedy=f"run {restore_command()}")
    parts = {"transformer": student} if name == "pocket" and student.is_dir() else {}
    folders = [base, *parts.values()]
    # Without a student, "pocket" is the teacher.
    return Source(place=str(base), name=name, revision=fingerprint(folders), parts=parts, card=card)


def _folder(folder: Path) -> Source:
    index = folder / "model_index.json"
    if not index.is_file():
        raise StorageError(
            f"model={str(folder)!r}", "it holds no model_index.json", "give the top folder of a saved pipeline"
        )
    contents = read_json(index)
    kind = contents.get("_class_name")
    family = family_of_class(kind)
    if family is None:
        raise InputError(
            f"a {shorten(kind)} in {folder}",
            f"fluxnb runs {', '.join(name for family in FAMILIES for name in family.pipelines)}",
            "give the folder of a text-to-image model of these, or record this one with fnb.recording(pipe)",
        )
    for part, made_of in contents.items():
        # A tokenizer without its files loads without an error and encodes every prompt alike.
        required = isinstance(made_of, list) and made_of[:1] not in ([None], []) and not part.startswith("_")
        if required and not (folder / part).is_dir():
            raise StorageError(f"{folder / part} is missing", "model_index.json names it", "copy the folder again")
    card = _card(folder)
    verify(folder, card, remedy="copy or download the folder again")
    return Source(
        place=str(folder), name=folder.resolve().name, revision=fingerprint([folder]), card=card, family=family
    )


def _card(folder: Path) -> Mapping[str, Any]:
    path = folder / "card.json"
    return read_json(path) if path.is_file() else {}


def weight_files(folder: Path) -> dict[str, list[Path]]:
    """Variant to the safetensors files of a component and their index; "" is the variant of files without one.

    Example:
        >>> sorted(weight_files(Path("models/toy/transformer")))                    # doctest: +SKIP
        ['', 'fp16']
    """
    found: dict[str, list[Path]] = {}
    for path in sorted((*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index*.json"))):
        # model.safetensors, model.fp16-00001-of-00002.safetensors, model.safetensors.index.fp16.json
        words = re.sub(r"-\d{5}-of-\d{5}", "", path.name).split(".")
        variant = [word for word in words[1:] if word not in ("safetensors", "index", "json")]
        found.setdefault(".".join(variant), []).append(path)
    return found


def variant_of(folder: Path, requested: str, *, name: str) -> str:
    """The variant of the weight files to read: the one requested, none, or the only one that there is.

    Arguments:
        name: of the model, for errors.

    Raises:
        InputError: no component has the requested variant, or one has several and none without.
    """
    components = [found for place in sorted(folder.iterdir()) if place.is_dir() and (found := weight_files(place))]
    known = sorted({variant for found in components for variant in found if variant})
    if requested:
        if requested not in known:
            listed = f"its files have {', '.join(known)}" if known else "its files have none"
            remedy = f'type variant="{known[0]}"' if known else "leave variant out"
            raise InputError(f"variant={requested!r} of {name}", listed, remedy)
        return requested
    needed = {tuple(sorted(found)) for found in components if "" not in found}
    if not needed:
        return ""
    shared = sorted(set.intersection(*map(set, needed)))
    if len(shared) != 1:
        raise InputError(
            f"{name} without a variant", f"its files have {', '.join(known)}", f'type variant="{known[0]}"'
        )
    return shared[0]


def _hub(repo: str, name: str, revision: str | None) -> Source:
    """A model of the hub, with its commit. This small download raises any error of the hub first."""
    index = download_file(repo, "model_index.json", revision=revision)
    family = family_of_class(read_json(index).get("_class_name")) or FLUX1
    # .../snapshots/<commit>/model_index.json
    return Source(place=repo, name=name, revision=index.parent.name, local=False, family=family)


def gguf_file(source: Source, kind: str) -> Path:
    """The GGUF file of a model's transformer: beside the model, or from the hub for schnell and dev.

    Arguments:
        kind: the type in the file name, for example "Q8_0".

    Raises:
        StorageError: there is none, or an error of the hub, the network or the disk.
    """
    if source.local:
        found = sorted(Path(source.place).rglob(f"*{kind}*.gguf"))
        if found:
            return found[0]
        raise StorageError(
            f"{source.place} holds no {kind} GGUF file", "a file such as flux1-schnell-Q8_0.gguf is required",
            "put one there, or choose another preset",
        )  # fmt: skip
    title = source.place.rpartition("/")[2]
    repo, file = f"city96/{title}-gguf", f"{title.lower().replace('flux.1', 'flux1')}-{kind}.gguf"
    return download_file(repo, file)


def revision_with_gguf(source: Source, file: Path) -> str:
    """The revision of a source whose transformer is in a GGUF file: of both, by commit or by fingerprint."""
    revision = fingerprint([file]) if source.local else f"{file.parent.name}:{file.name}"
    return hashlib.sha256(f"{source.revision}+{revision}".encode()).hexdigest()[:12]


def public_name(name_or_path: str) -> str:
    """The name of a pipeline without folders of the user, since recipes, pages and stores are shared.

    A hub id remains whole if its repository is known or in the cache of the hub; anything else may be a path, which is
    reduced to its last component.

    Example:
        >>> public_name("black-forest-labs/FLUX.1-dev"), public_name("../alice/secret/model"), public_name("")
        ('black-forest-labs/FLUX.1-dev', 'model', 'pipeline')
    """
    if re.fullmatch(HUB_ID, name_or_path) and not Path(name_or_path).exists():
        from huggingface_hub import constants

        cached = Path(constants.HF_HUB_CACHE) / f"models--{name_or_path.replace('/', '--')}"
        if name_or_path in HUB.values() or cached.is_dir():
            return name_or_path
    last = re.split(r"[\\/]", name_or_path.rstrip("\\/"))[-1]
    return last if re.search(r"[^.~]", last) and not last.endswith(":") else "pipeline"


def fetch(source: Source, *, without_transformer: bool = False) -> Path:
    """The folder with all files of a source, downloaded where they are not in the cache, and checked.

    Arguments:
        without_transformer: skip the transformer's weights, which are in a GGUF file.

    Raises:
        StorageError: an error of the hub, the network or the disk, a damaged file, or one that `check_model` refuses.
    """
    folder = Path(source.place)
    if not source.local:
        folder = download_pipeline(
            source.place, source.revision, variant=source.variant, without_transformer=without_transformer
        )
    check_model(folder, source.parts)
    return folder
