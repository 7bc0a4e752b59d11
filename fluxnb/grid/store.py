"""A folder of finished cells, addressed by the key of their recipe and shared by any number of processes.

Files are written under a temporary name and renamed, so that a reader sees a complete cell or none, even if the writer
was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fluxnb.errors import validates_own_input
from fluxnb.io.files import atomic_write, disk_errors, user_path
from fluxnb.io.png import encode_png
from fluxnb.io.trajectory_files import open_trajectory, save
from fluxnb.records import Cell, Trajectory
from fluxnb.records.recipe import ResolvedRecipe

__all__ = ["Store", "StoreWarning"]

LEASE = 60.0  # seconds without a heartbeat after which a claim of another machine is taken over


class StoreWarning(UserWarning):
    """Pictures are not stored, because nothing identifies what drew them."""


@validates_own_input
@dataclass(frozen=True)
class Store:
    """A folder of finished cells: `<key[:2]>/<key>.png` with metadata in `<key>.json`.

    Any number of processes may share a store. A process claims a cell with a lock file before it samples it. A claim
    is taken over if its process has died or has sent no heartbeat for `lease` seconds.

    Arguments:
        folder: the folder, which is created if needed.
        lease: seconds without a heartbeat after which a claim of another machine is void.

    Raises:
        StorageError: the folder cannot be created.
    """

    folder: Path
    lease: float = LEASE

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", user_path(self.folder))
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_leftovers()

    def path(self, key: str, suffix: str = ".png") -> Path:
        """Path of a file of a cell, whether it exists or not."""
        return self.folder / key[:2] / f"{key}{suffix}"

    def get(
        self, key: str, recipe: ResolvedRecipe, *, numerics: str = "exact", trajectory: bool = False
    ) -> Cell | None:
        """The finished cell of a recipe and numerics, or None if it is missing or damaged."""
        try:
            metadata = json.loads(self.path(key, ".json").read_bytes())
            if (metadata["recipe"], metadata["numerics"]) != (recipe.to_json(), numerics):
                return None
            if _sha256(self.path(key)) != metadata["png"]:
                return None
            loaded = None
            if trajectory:
                if _sha256(self.path(key, ".safetensors")) != metadata["trajectory"]:
                    return None
                loaded = open_trajectory(self.path(key, ".safetensors"))
            return Cell(
                recipe=recipe,
                key=key,
                path=self.path(key),
                numerics=numerics,
                made=False,
                seconds={str(name): float(value) for name, value in metadata["seconds"].items()},
                trajectory=loaded,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # missing, incomplete or of another format: it will be sampled again

    def put(
        self,
        key: str,
        recipe: ResolvedRecipe,
        image: Image.Image,
        *,
        seconds: Mapping[str, float],
        versions: Mapping[str, str],
        numerics: str = "exact",
        trajectory: Trajectory | None = None,
    ) -> Path:
        """Write a cell. The metadata is written last and marks the cell as complete.

        Raises:
            StorageError: the disk is full or not writable. Finished cells are unchanged.
        """
        metadata: dict[str, Any] = {
            "recipe": recipe.to_json(),
            "seconds": dict(seconds),
            "versions": dict(versions),
            "numerics": numerics,
        }
        with disk_errors(self.folder):
            self.path(key).parent.mkdir(parents=True, exist_ok=True)
        if trajectory is not None:
            save(trajectory, self.path(key, ".safetensors"))
            metadata["trajectory"] = _sha256(self.path(key, ".safetensors"))
        png = encode_png(image, recipe, numerics=numerics)
        metadata["png"] = hashlib.sha256(png).hexdigest()
        self._write(self.path(key), png)
        self._write(self.path(key, ".json"), json.dumps(metadata, sort_keys=True).encode())
        return self.path(key)

    @staticmethod
    def _write(target: Path, data: bytes) -> None:
        with atomic_write(target) as part:
            part.write_bytes(data)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Claim a cell for the duration of the block; yields whether the claim was successful."""
        lock, token = self.path(key, ".lock"), f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        with disk_errors(self.folder):
            lock.parent.mkdir(parents=True, exist_ok=True)
            claimed = self._acquire(lock, token)
        try:
            yield claimed
        finally:
            if claimed and _read_text(lock) == token:
                lock.unlink(missing_ok=True)

    def touch(self, key: str) -> None:
        """Send a heartbeat for a claim that is held for long."""
        with contextlib.suppress(OSError):
            os.utime(self.path(key, ".lock"))

    def _acquire(self, lock: Path, token: str) -> bool:
        try:
            with open(lock, "x") as stream:  # O_EXCL: of two processes one succeeds
                stream.write(token)
            return True
        except FileExistsError:
            if not self._is_void(lock):
                return False
        # The claim is void. Every process that notices it puts its own lock in place; the last one finds its own token
        # after a short wait.
        rival = lock.with_name(f"{lock.name}.{uuid.uuid4().hex}.part")
        rival.write_text(token)
        if not self._is_void(lock):
            rival.unlink(missing_ok=True)
            return False
        os.replace(rival, lock)
        time.sleep(0.05)
        return _read_text(lock) == token

    def _is_void(self, lock: Path) -> bool:
        try:
            age = time.time() - lock.stat().st_mtime
        except OSError:
            return True  # released in the meantime
        host, _, rest = _read_text(lock).partition(" ")
        pid = rest.split(" ")[0]
        if host == socket.gethostname() and pid.isdecimal():
            return not _alive(int(pid)) or age > 10 * self.lease
        return age > self.lease

    def _remove_leftovers(self) -> None:
        """Remove temporary files of killed writers, once they are older than the lease."""
        with contextlib.suppress(OSError):
            for leftover in self.folder.glob("*/*.part"):
                if time.time() - leftover.stat().st_mtime > self.lease:
                    leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name == "nt":  # signal 0 would end the process on Windows
        import psutil

        return bool(psutil.pid_exists(pid))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _read_text(lock: Path) -> str:
    try:
        return lock.read_text()
    except OSError:
        return ""


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
