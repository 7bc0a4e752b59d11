"""Where a model's weights are: our own package data, a folder, or the hub; whether they are whole; and reading them.

Weights are safetensors only: other formats can run code when they are opened.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fluxnb.errors import FluxnbError, InputError, StorageError, cut, one_of

__all__ = ["HUB", "NAMES", "Source", "configurations", "fetch", "gguf_file", "locate", "read", "sampled_fingerprint"]

HUB = {"schnell": "black-forest-labs/FLUX.1-schnell", "dev": "black-forest-labs/FLUX.1-dev"}
NAMES = ("pocket", "pocket-base", *HUB)
POCKET = Path(__file__).parent / "pocket"
REINSTALL = "run pip install --force-reinstall fluxnb"
WHOLE_HASH = 64 * 2**20  # files up to here are hashed to the last byte, larger ones at both ends


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


def locate(model: str | Path) -> Source:
    """Find a model by name, folder or hub id, and check that its files are whole.

    Raises:
        InputError: no such name, or a folder that holds no FluxPipeline.
        StorageError: a missing folder, a damaged or missing file, a hub that says no.
    """
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
            f"model={cut(text, 200)}",
            "there is no such folder" if not Path(text).exists() else "that is a file; a model is a folder",
            "give the folder that holds model_index.json",
        )
    raise one_of("model", text, NAMES)


def _packaged(name: str) -> Source:
    base, student = POCKET / "base", POCKET / "transformer"
    if not (base / "model_index.json").is_file():
        raise StorageError(f"no weights in {POCKET}", "the wheel carries them", REINSTALL)
    card = _card(POCKET)
    _verify(POCKET, card, remedy=REINSTALL)
    parts = {"transformer": student} if name == "pocket" and student.is_dir() else {}
    folders = [base, *parts.values()]
    # Asking for pocket before there is a student gives the teacher under the name asked for.
    return Source(place=str(base), name=name, revision=_fingerprint(folders), parts=parts, card=card)


def _folder(folder: Path) -> Source:
    index = folder / "model_index.json"
    if not index.is_file():
        raise StorageError(
            f"model={str(folder)!r}", "it holds no model_index.json", "give the top folder of a saved FluxPipeline"
        )
    told = _json(index)
    kind = told.get("_class_name")
    if kind != "FluxPipeline":
        raise InputError(
            f"a {cut(kind)} in {folder}", "fluxnb runs FluxPipeline", "give the folder of a FLUX.1 text-to-image model"
        )
    for part, made_of in told.items():
        # A tokenizer without its files loads all the same, empty, and every prompt becomes the same.
        here = isinstance(made_of, list) and made_of[:1] not in ([None], []) and not part.startswith("_")
        if here and not (folder / part).is_dir():
            raise StorageError(f"{folder / part} is missing", "model_index.json names it", "copy the folder again")
    card = _card(folder)
    _verify(folder, card, remedy="copy or download the folder again")
    return Source(place=str(folder), name=folder.resolve().name, revision=_fingerprint([folder]), card=card)


def _hub(repo: str, name: str) -> Source:
    """The commit that the hub (or its cache) has; the one small download that meets every refusal first."""
    from huggingface_hub import hf_hub_download

    refusal: FluxnbError
    try:
        index = Path(hf_hub_download(repo, "model_index.json"))
    except Exception as problem:  # every kind of refusal, told apart below by what it is called
        refusal = hub_error(repo, problem)
    else:
        # .../snapshots/<commit>/model_index.json
        return Source(place=repo, name=name, revision=index.parent.name, local=False)
    raise refusal


def gguf_file(source: Source, kind: str) -> Path:
    """The GGUF file of a model's transformer: beside the model, or from the hub for schnell and dev.

    Arguments:
        kind: as files are named, "Q8_0" for instance.

    Raises:
        StorageError: there is none, or the hub, the network or the disk said no.
    """
    from huggingface_hub import hf_hub_download

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
    refusal: FluxnbError
    try:
        return Path(hf_hub_download(repo, file))
    except Exception as problem:  # every kind of refusal, told apart by what it is called
        refusal = hub_error(repo, problem)
    raise refusal


def fetch(source: Source, *, without_transformer: bool = False) -> Path:
    """The folder with everything this source needs, downloaded where it is not there yet.

    The repositories of FLUX.1 hold their weights twice, in diffusers' layout and as single files; only the former is
    fetched. An interrupted download goes on where it stopped.

    Arguments:
        without_transformer: leave out the transformer's weights, which come from elsewhere.

    Raises:
        StorageError: the hub, the network or the disk said no, or a file came damaged.
    """
    if source.local:
        return Path(source.place)
    from huggingface_hub import snapshot_download

    refusal: FluxnbError
    try:
        index = Path(snapshot_download(source.place, revision=source.revision, allow_patterns=["model_index.json"]))
        parts = [name for name, kind in _json(index / "model_index.json").items() if isinstance(kind, list)]
        wanted = ["model_index.json", "card.json"]
        wanted += [f"{part}/*.{kind}" for part in parts for kind in ("json", "txt", "model", "safetensors")]
        if without_transformer:
            wanted.remove("transformer/*.safetensors")
        before = _blobs(index)
        folder = Path(snapshot_download(source.place, revision=source.revision, allow_patterns=wanted))
    except FluxnbError:
        raise
    except Exception as problem:  # every kind of refusal, told apart by what it is called
        refusal = hub_error(source.place, problem)
    else:
        _whole(folder, _blobs(folder) - before)
        return folder
    raise refusal


def configurations(repo: str) -> Path:
    """A folder with the few kilobytes that say how large a model of the hub is.

    Raises:
        StorageError: the hub, the network or the disk said no.
    """
    from huggingface_hub import snapshot_download

    refusal: FluxnbError
    try:
        return Path(snapshot_download(repo, allow_patterns=["*/config.json", "model_index.json"]))
    except Exception as problem:  # every kind of refusal, told apart by what it is called
        refusal = hub_error(repo, problem)
    raise refusal


def _blobs(snapshot: Path) -> set[Path]:
    folder = snapshot.parent.parent / "blobs"
    return set(folder.glob("*")) if folder.is_dir() else set()


def _whole(folder: Path, new: set[Path]) -> None:
    """Hold what has just come against the checksum that the hub names large files by."""
    for path in sorted(folder.rglob("*.safetensors")):
        blob = path.resolve()
        if blob not in new or not re.fullmatch(r"[0-9a-f]{64}", blob.name):
            continue
        with blob.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != blob.name:
            blob.unlink()
            path.unlink()
            raise StorageError(
                f"{path.name} came damaged",
                f"its checksum is {found[:12]}…, the hub says {blob.name[:12]}…",
                "load again: it was deleted and will be fetched anew",
            )


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
                f"{source.place} does not load ({cut(str(problem), 160)})",
                "a file is missing, damaged, or not safetensors",
                "copy or download the folder again",
            ) from problem
    return pipe


def _dtype_word() -> str:
    """What this diffusers calls the number format: `torch_dtype` up to 0.41 or so, `dtype` after."""
    from diffusers.utils import deprecation_utils

    return "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"


def hub_error(repo: str, problem: BaseException) -> FluxnbError:
    """One of our errors for whatever the hub's client raised; by class name, because its classes move about."""
    chain: list[BaseException] = []
    link: BaseException | None = problem
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    kinds = {base.__name__ for each in chain for base in type(each).__mro__}
    page = f"https://huggingface.co/{repo}"
    codes = {getattr(getattr(each, "response", None), "status_code", None) for each in chain}
    if "GatedRepoError" in kinds or 403 in codes:
        return StorageError(
            f"{repo} is gated",
            "the hub hands it only to those who accepted its terms",
            f"accept them on {page}, make a read token in your settings, and run `hf auth login` or set HF_TOKEN",
        )
    if "RepositoryNotFoundError" in kinds or 401 in codes or 404 in codes:
        return StorageError(
            f"the hub knows no {repo}, or hides it",
            "it may be misspelt, private, or without the file asked for",
            f"look at {page}; for a private one run `hf auth login` or set HF_TOKEN",
        )
    offline = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "TimeoutError"}
    if kinds & (offline | {"Timeout", "TimeoutException", "TransportError"}):
        return StorageError(
            f"{repo} could not be reached",
            "it is not in the cache and the hub does not answer",
            'check the network (and HF_HUB_OFFLINE), or try fnb.load("pocket"), which needs none',
        )
    if any(isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in chain):
        return StorageError(
            f"{repo} could not be stored",
            "the disk is full; what has arrived stays and is not fetched again",
            "make room, or set HF_HOME to a larger disk",
        )
    first = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    return StorageError(
        f"{repo} could not be fetched ({cut(first, 160)})", "the hub or the disk refused", f"see {page}"
    )


def _card(folder: Path) -> Mapping[str, Any]:
    path = folder / "card.json"
    return _json(path) if path.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise StorageError(
            f"{path} ({type(problem).__name__})", "it is no readable JSON", "fetch the file again"
        ) from None
    if not isinstance(value, dict):
        raise StorageError(f"{path} holds JSON {type(value).__name__}", "an object is needed", "fetch the file again")
    return value


def _verify(folder: Path, card: Mapping[str, Any], *, remedy: str) -> None:
    """Hold every file the card names against its checksum."""
    files = card.get("files", {})
    if not isinstance(files, Mapping):
        raise StorageError(f"{folder / 'card.json'}", 'its "files" map names to checksums', remedy)
    for name, expected in files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise StorageError(f"{cut(name)} in {folder / 'card.json'}", "a card names files of its own folder", remedy)
        if not path.is_file():
            raise StorageError(f"{path} is missing", "the card names it", remedy)
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise StorageError(
                f"{path} is damaged", f"its checksum is {found[:12]}…, the card says {str(expected)[:12]}…", remedy
            )


def _fingerprint(folders: list[Path]) -> str:
    """Twelve hex digits that change with any weight or configuration."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix not in (".json", ".safetensors", ".txt", ".model") or path.name == "card.json":
                continue
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix()}:{size}\n".encode())
            with path.open("rb") as stream:
                if size <= WHOLE_HASH:
                    digest.update(stream.read())
                else:
                    digest.update(stream.read(WHOLE_HASH // 8))
                    stream.seek(-WHOLE_HASH // 8, 2)
                    digest.update(stream.read())
    return digest.hexdigest()[:12]


def sampled_fingerprint(module: Any) -> str:
    """Twelve hex digits from a few numbers of each weight, so that two pipelines are not taken for one."""
    digest = hashlib.sha256()
    for name, parameter in module.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if parameter.device.type != "meta" and type(parameter.data) is torch.Tensor:
            flat = parameter.detach().flatten()
            digest.update(flat[:: max(1, flat.numel() // 8)].to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:12]


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
