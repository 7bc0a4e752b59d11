"""Checksums and fingerprints of the files of a model."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from fluxnb.errors import StorageError, shorten
from fluxnb.io.files import disk_errors, open_regular, read_bytes
from fluxnb.io.headers import Header, gguf_header, safetensors_header

__all__ = ["fingerprint", "read_json", "sampled_fingerprint", "verify", "verify_downloads"]

FULL_HASH = 64 * 2**20  # bytes up to which a file is hashed completely
SAMPLES = 32  # places read in each tensor of a larger file
SAMPLE = 64  # bytes read at each place
LONGEST_JSON = 64 * 2**20  # bytes; a tokenizer has at most 20 MB
BLOCK = 2**20  # bytes read at once
HEADERS: Mapping[str, Callable[[Path], Header]] = {".safetensors": safetensors_header, ".gguf": gguf_header}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        StorageError: no regular file, a longer one than 64 MB, or no JSON object in UTF-8.
    """
    try:
        value = json.loads(read_bytes(path, at_most=LONGEST_JSON).decode("utf-8"))
    except StorageError:
        raise
    except (ValueError, RecursionError) as problem:
        raise StorageError(
            f"{path} ({type(problem).__name__})", "it is no readable JSON", "download the file again"
        ) from None
    if not isinstance(value, dict):
        raise StorageError(
            f"{path} holds JSON {type(value).__name__}", "a JSON object is required", "download the file again"
        )
    return value


def verify(folder: Path, card: Mapping[str, Any], *, remedy: str) -> None:
    """Verify the checksum of every file that the card names."""
    files = card.get("files", {})
    if not isinstance(files, Mapping):
        raise StorageError(f"{folder / 'card.json'}", 'its "files" map names to checksums', remedy)
    for name, expected in files.items():
        path = folder / name
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise StorageError(
                f"{shorten(name)} in {folder / 'card.json'}", "a card names files of its own folder", remedy
            )
        if not path.is_file():
            raise StorageError(f"{path} is missing", "the card names it", remedy)
        digest = hashlib.sha256()
        _update_with_file(digest, path)
        if digest.hexdigest() != expected:
            raise StorageError(
                f"{path} is damaged",
                f"its checksum is {digest.hexdigest()[:12]}…, that of the card is {str(expected)[:12]}…",
                remedy,
            )


def verify_downloads(folder: Path, new: set[Path]) -> None:
    """Verify new downloads by the checksum that the hub names large files with, and delete damaged ones."""
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
                f"{path.name} was damaged during the download",
                f"its checksum is {found[:12]}…, that of the hub is {blob.name[:12]}…",
                "load again: the file was deleted and will be downloaded again",
            )


def fingerprint(places: Iterable[Path]) -> str:
    """Twelve hex digits that identify the weights and configurations in these folders and files.

    Files of up to 64 MiB count completely. Of larger ones the header counts, and samples spread over every tensor, so
    that the cost depends on the number of tensors and not on their size.

    Raises:
        StorageError: a file that is not readable, not a regular one, or damaged.
    """
    digest = hashlib.sha256()
    for place in places:
        files = sorted(path for path in place.rglob("*") if _identifies(path)) if place.is_dir() else [place]
        for path in files:
            name = path.relative_to(place) if path != place else Path(path.name)
            with open_regular(path) as stream:
                size = stream.seek(0, 2)
            digest.update(f"{name.as_posix()}:{size}\n".encode("utf-8", "surrogateescape"))
            if size <= FULL_HASH or path.suffix not in HEADERS:
                _update_with_file(digest, path)
            else:
                _update_with_samples(digest, path)
    return digest.hexdigest()[:12]


def _identifies(path: Path) -> bool:
    known = path.suffix in (".json", ".safetensors", ".txt", ".model") and path.name != "card.json"
    return known and not path.is_dir()


def _update_with_file(digest: Any, path: Path) -> None:
    with open_regular(path) as stream, disk_errors(path, doing="read"):
        while block := stream.read(BLOCK):
            digest.update(block)


def _update_with_samples(digest: Any, path: Path) -> None:
    """Update a digest with the header of a file of tensors, and with bytes from the whole range of every tensor."""
    header = HEADERS[path.suffix](path)
    with open_regular(path) as stream, disk_errors(path, doing="read"):
        digest.update(stream.read(header.end))
        for tensor in header.tensors.values():
            length = tensor.stop - tensor.start
            if length <= SAMPLES * SAMPLE:
                stream.seek(tensor.start)
                digest.update(stream.read(length))
                continue
            for sample in range(SAMPLES):  # the first one at the start, the last one at the end
                stream.seek(tensor.start + sample * (length - SAMPLE) // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE))


def sampled_fingerprint(*modules: Any) -> str:
    """Twelve hex digits from samples of every weight, which distinguish models in memory."""
    digest = hashlib.sha256()
    for name, parameter in itertools.chain.from_iterable(module.named_parameters() for module in modules):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if parameter.device.type != "meta" and type(parameter.data) is torch.Tensor:
            flat = parameter.detach().flatten()
            digest.update(flat[:: max(1, flat.numel() // 8)].to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:12]
