"""The hub: what is asked of it by repository, and every refusal of it, the network or the disk told in our words."""

from __future__ import annotations

import errno
from pathlib import Path

from fluxnb.checkpoints.checksums import read_json, verify_downloads
from fluxnb.errors import FluxnbError, StorageError, shorten

__all__ = ["configurations", "download", "hub_error", "snapshot"]


def download(repo: str, file: str) -> Path:
    """One file of a repository, from the cache where it is there already.

    Raises:
        StorageError: the hub, the network or the disk said no.
    """
    from huggingface_hub import hf_hub_download

    refusal: FluxnbError
    try:
        return Path(hf_hub_download(repo, file))
    except Exception as problem:  # every kind of refusal, told apart by what it is called
        refusal = hub_error(repo, problem)
    raise refusal


def snapshot(repo: str, revision: str, *, without_transformer: bool = False) -> Path:
    """The folder with every part of a pipeline, downloaded where it is not there yet.

    The repositories of FLUX.1 hold their weights twice, in diffusers' layout and as single files; only the former is
    fetched. An interrupted download goes on where it stopped.

    Arguments:
        without_transformer: leave out the transformer's weights, which come from elsewhere.

    Raises:
        StorageError: the hub, the network or the disk said no, or a file came damaged.
    """
    from huggingface_hub import snapshot_download

    refusal: FluxnbError
    try:
        index = Path(snapshot_download(repo, revision=revision, allow_patterns=["model_index.json"]))
        parts = [name for name, kind in read_json(index / "model_index.json").items() if isinstance(kind, list)]
        wanted = ["model_index.json", "card.json"]
        wanted += [f"{part}/*.{kind}" for part in parts for kind in ("json", "txt", "model", "safetensors")]
        if without_transformer:
            wanted.remove("transformer/*.safetensors")
        before = _blobs(index)
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=wanted))
    except FluxnbError:
        raise
    except Exception as problem:  # every kind of refusal, told apart by what it is called
        refusal = hub_error(repo, problem)
    else:
        verify_downloads(folder, _blobs(folder) - before)
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


def _blobs(folder: Path) -> set[Path]:
    blobs = folder.parent.parent / "blobs"  # .../snapshots/<commit>
    return set(blobs.glob("*")) if blobs.is_dir() else set()


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
        f"{repo} could not be fetched ({shorten(first, 160)})", "the hub or the disk refused", f"see {page}"
    )
