"""Downloads from the Hugging Face hub, with errors of the hub, the network and the disk as StorageError."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from fluxnb.checkpoints.checksums import read_json, verify_downloads
from fluxnb.errors import FluxnbError, StorageError, shorten

__all__ = ["download_configurations", "download_file", "download_pipeline", "hub_error"]


def download_file(repo: str, file: str, *, revision: str | None = None) -> Path:
    """One file of a repository, from the cache if it is there.

    Arguments:
        revision: a branch, tag or commit; None for the main branch.

    Raises:
        StorageError: an error of the hub, the network or the disk.
    """
    from huggingface_hub import hf_hub_download

    refusal: FluxnbError
    try:
        return Path(hf_hub_download(repo, file, revision=revision))
    except Exception as problem:  # classified by class name in hub_error
        refusal = hub_error(repo, problem)
    raise refusal


def download_pipeline(
    repo: str, revision: str, *, variant: str = "", without_transformer: bool = False, only: Sequence[str] = ()
) -> Path:
    """The folder with every part of a pipeline, downloaded where it is not in the cache.

    The repositories of FLUX.1 contain their weights twice, in diffusers' layout and as single files. Only the
    former are downloaded, and of each component one variant. An interrupted download resumes where it stopped.

    Arguments:
        variant: of the weight files, such as "fp16"; a component without it is downloaded without one.
        without_transformer: skip the transformer's weights.
        only: the components to download; all of them where left out.

    Raises:
        StorageError: an error of the hub, the network or the disk, or a damaged file.
    """
    from huggingface_hub import snapshot_download

    refusal: FluxnbError
    try:
        index = Path(snapshot_download(repo, revision=revision, allow_patterns=["model_index.json"]))
        parts = [name for name, kind in read_json(index / "model_index.json").items() if isinstance(kind, list)]
        parts = [name for name in parts if not only or name in only]
        patterns = ["model_index.json", "card.json"]
        patterns += [f"{part}/*.{kind}" for part in parts for kind in ("json", "txt", "model", "jinja")]
        weighted = [part for part in parts if not (part == "transformer" and without_transformer)]
        names = (f"*.{variant}.safetensors", f"*.{variant}-*.safetensors") if variant else ("*.safetensors",)
        patterns += [f"{part}/{name}" for part in weighted for name in names]
        # Weights of other variants, which have a further dot in their names.
        others = [] if variant else ["*/*.*.safetensors"]
        before = _blobs(index)
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, ignore_patterns=others))
        # Components without the preferred variant are downloaded in the others.
        models = [part for part in weighted if (folder / part / "config.json").is_file()]
        if rest := [f"{part}/*.safetensors" for part in models if not list((folder / part).glob("*.safetensors"))]:
            snapshot_download(repo, revision=revision, allow_patterns=rest)
    except FluxnbError:
        raise
    except Exception as problem:  # classified by class name in hub_error
        refusal = hub_error(repo, problem)
    else:
        verify_downloads(folder, _blobs(folder) - before)
        return folder
    raise refusal


def download_configurations(repo: str, *, revision: str | None = None) -> Path:
    """A folder with the configuration files of a pipeline, from which its size is computed.

    Arguments:
        revision: a branch, tag or commit; None for the main branch.

    Raises:
        StorageError: an error of the hub, the network or the disk.
    """
    from huggingface_hub import snapshot_download

    refusal: FluxnbError
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=["*/config.json", "model_index.json"]))
    except Exception as problem:  # classified by class name in hub_error
        refusal = hub_error(repo, problem)
    raise refusal


def _blobs(folder: Path) -> set[Path]:
    blobs = folder.parent.parent / "blobs"  # .../snapshots/<commit>
    return set(blobs.glob("*")) if blobs.is_dir() else set()


def hub_error(repo: str, problem: BaseException) -> FluxnbError:
    """The StorageError for an exception of huggingface_hub.

    Exceptions are recognized by class name, since their modules differ between versions.
    """
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
            "the hub serves it only to accounts that accepted its terms",
            f"accept them on {page}, make a read token in your settings, and run `hf auth login` or set HF_TOKEN",
        )
    if "RevisionNotFoundError" in kinds:
        return StorageError(
            f"{repo} has no such revision",
            "a branch, a tag or a commit is possible",
            f"see {page}/commits/main, or leave revision out",
        )
    if "RepositoryNotFoundError" in kinds or 401 in codes or 404 in codes:
        return StorageError(
            f"{repo} is not on the hub, or not visible",
            "it may be misspelt, private, or without the requested file",
            f"see {page}; for a private one run `hf auth login` or set HF_TOKEN",
        )
    offline = {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectionError", "ConnectError", "TimeoutError"}
    if kinds & (offline | {"Timeout", "TimeoutException", "TransportError"}):
        return StorageError(
            f"{repo} could not be reached",
            "it is not in the cache and the hub does not respond",
            'check the network (and HF_HUB_OFFLINE), or try fnb.load("pocket"), which needs no network',
        )
    if any(isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in chain):
        return StorageError(
            f"{repo} could not be stored",
            "the disk is full; downloaded files stay in the cache and are not downloaded again",
            "free disk space, or set HF_HOME to a larger disk",
        )
    first = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    return StorageError(
        f"{repo} could not be downloaded ({shorten(first, 160)})",
        "the hub or the disk returned an error",
        f"see {page}",
    )
