"""How this package and its libraries were installed: remedies that can be typed, and versions that were tested."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
from urllib.parse import unquote, urlsplit

from fluxnb.errors import warn_caller

__all__ = ["TESTED", "VersionWarning", "restore_command", "update_command", "warn_of_newer_libraries"]

# The newest versions that the tests run with: those of constraints.txt, for the libraries whose insides are observed.
TESTED = {
    "accelerate": "1.15.0",
    "anywidget": "0.11.0",
    "diffusers": "0.42.1",
    "huggingface_hub": "2.4.0",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}
_checked = False  # once in a process


class VersionWarning(UserWarning):
    """A library is newer than the version that fluxnb was tested with."""


def warn_of_newer_libraries() -> None:
    """Warn of libraries with a newer major or minor version than the tested one, once in a process.

    Releases that differ in the last number alone, such as 0.42.2 for 0.42.1, correct faults and are not named.

    Warns:
        VersionWarning: with the installed and the tested version, and the commands that install the tested one and
            silence the warning.
    """
    global _checked
    if _checked:
        return
    _checked = True
    newer = {name: version for name, tested in TESTED.items() if _minor(version := _installed(name)) > _minor(tested)}
    if newer:
        listed = ", ".join(f"{name} {version} (tested: {TESTED[name]})" for name, version in newer.items())
        pins = " ".join(f"{name}=={TESTED[name]}" for name in newer)
        warn_caller(
            f"newer than the versions that fluxnb was tested with: {listed}. If something fails, type pip install "
            f'{pins}. To silence this: warnings.filterwarnings("ignore", category=fluxnb.VersionWarning).',
            VersionWarning,
        )


def _installed(name: str) -> str:
    """The version of an installed distribution; "" for none."""
    try:
        return importlib.metadata.version(name) or ""
    except importlib.metadata.PackageNotFoundError:
        return ""


def _minor(version: str) -> tuple[int, int]:
    """Major and minor number; a version without them, such as that of a checkout, is older than all."""
    found = re.match(r"(?:\d+!)?(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (-1, -1)


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
