"""Checksums and fingerprints of the files of a model."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fluxnb.errors import StorageError, shorten

__all__ = ["fingerprint", "read_json", "sampled_fingerprint", "verify", "verify_downloads"]

FULL_HASH = 64 * 2**20  # bytes up to which a file is hashed completely; larger ones at both ends


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
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
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != expected:
            raise StorageError(
                f"{path} is damaged",
                f"its checksum is {found[:12]}…, that of the card is {str(expected)[:12]}…",
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


def fingerprint(folders: list[Path]) -> str:
    """Twelve hex digits that identify the weights and configurations in these folders."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix not in (".json", ".safetensors", ".txt", ".model") or path.name == "card.json":
                continue
            size = path.stat().st_size
            digest.update(f"{path.relative_to(folder).as_posix()}:{size}\n".encode())
            with path.open("rb") as stream:
                if size <= FULL_HASH:
                    digest.update(stream.read())
                else:
                    digest.update(stream.read(FULL_HASH // 8))
                    stream.seek(-FULL_HASH // 8, 2)
                    digest.update(stream.read())
    return digest.hexdigest()[:12]


def sampled_fingerprint(*modules: Any) -> str:
    """Twelve hex digits from samples of every weight, which distinguish models in memory."""
    digest = hashlib.sha256()
    for name, parameter in itertools.chain.from_iterable(module.named_parameters() for module in modules):
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if parameter.device.type != "meta" and type(parameter.data) is torch.Tensor:
            flat = parameter.detach().flatten()
            digest.update(flat[:: max(1, flat.numel() // 8)].to("cpu", torch.float32).numpy().tobytes())
    return digest.hexdigest()[:12]
