"""How this package was installed, for remedies that can be typed as they are."""

from __future__ import annotations

import importlib.metadata
import json
import shlex
from urllib.parse import unquote, urlsplit

__all__ = ["restore_command", "update_command"]


def restore_command() -> str:
    """The command that installs the files of this package again.

    Example:
        >>> restore_command().split()[0] in ("pip", "git")
        True
    """
    folder, requirement = _origin()
    return f"git -C {folder} checkout -- fluxnb" if folder else f"pip install --force-reinstall --no-deps {requirement}"


def update_command() -> str:
    """The command that installs the newest version of this package from where it was installed."""
    folder, requirement = _origin()
    return f"git -C {folder} pull" if folder else f"pip install --upgrade {requirement}"


def _origin() -> tuple[str, str]:
    """The folder of an editable installation, "" for another kind; and the requirement that pip was given.

    pip records the folder or address that it installed from (PEP 610); without a record it was a package index.
    """
    try:
        record = json.loads(importlib.metadata.distribution("fluxnb").read_text("direct_url.json") or "{}")
        url, system = str(record.get("url", "")), record.get("vcs_info", {}).get("vcs", "")
        editable = bool(record.get("dir_info", {}).get("editable"))
    except (importlib.metadata.PackageNotFoundError, ValueError, AttributeError):
        url, system, editable = "", "", False
    if not url:
        return "", "fluxnb"
    parts = urlsplit(url)
    if parts.scheme == "file" and not system:
        folder = shlex.quote(unquote(parts.path))
        return (folder, folder) if editable else ("", folder)
    return "", shlex.quote(f"{system}+{url}" if system else url)
