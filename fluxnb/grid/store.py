"""A folder of finished cells, addressed by their recipe's key; any number of processes may share one.

Everything is written under another name and renamed when it is whole, so a reader sees a cell complete or not at
all, whenever the writer was killed.
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

__all__ = ["Store"]

LEASE = 60.0  # seconds without a sign of life after which a claim from another machine is taken over


@validates_own_input
@dataclass(frozen=True)
class Store:
    """A folder of finished cells: `<key[:2]>/<key>.png`, beside it a JSON that says it is whole.

    Any number of processes may share one. A cell is claimed by a lock file before it is made; a claim whose process
    died, or that gave no sign of life for a minute, is taken over.
    """

    folder: Path
    lease: float = LEASE

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", user_path(self.folder))
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep_up()

    def path(self, key: str, suffix: str = ".png") -> Path:
        """Where a cell's file is or would be."""
        return self.folder / key[:2] / f"{key}{suffix}"

    def get(
        self, key: str, recipe: ResolvedRecipe, *, numerics: str = "exact", trajectory: bool = False
    ) -> Cell | None:
        """The finished cell of this recipe and these numerics, or None if there is none, or a damaged one."""
        try:
            facts = json.loads(self.path(key, ".json").read_bytes())
            if (facts["recipe"], facts["numerics"]) != (recipe.to_json(), numerics):
                return None
            if _sum(self.path(key)) != facts["png"]:
                return None
            loaded = None
            if trajectory:
                if _sum(self.path(key, ".safetensors")) != facts["trajectory"]:
                    return None
                loaded = open_trajectory(self.path(key, ".safetensors"))
            return Cell(
                recipe=recipe,
                key=key,
                path=self.path(key),
                numerics=numerics,
                made=False,
                seconds={str(name): float(value) for name, value in facts["seconds"].items()},
                trajectory=loaded,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # not there, not whole, or not ours: in each case it is made anew

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
        """Write a cell; its JSON comes last and makes it count.

        Raises:
            StorageError: the disk is full or not writable; finished cells are as they were.
        """
        facts: dict[str, Any] = {
            "recipe": recipe.to_json(),
            "seconds": dict(seconds),
            "versions": dict(versions),
            "numerics": numerics,
        }
        with disk_errors(self.folder):
            self.path(key).parent.mkdir(parents=True, exist_ok=True)
        if trajectory is not None:
            save(trajectory, self.path(key, ".safetensors"))
            facts["trajectory"] = _sum(self.path(key, ".safetensors"))
        png = encode_png(image, recipe, numerics=numerics)
        facts["png"] = hashlib.sha256(png).hexdigest()
        self._write(self.path(key), png)
        self._write(self.path(key, ".json"), json.dumps(facts, sort_keys=True).encode())
        return self.path(key)

    @staticmethod
    def _write(target: Path, data: bytes) -> None:
        with atomic_write(target) as part:
            part.write_bytes(data)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process may make the cell; the claim ends with the block."""
        lock, token = self.path(key, ".lock"), f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        with disk_errors(self.folder):
            lock.parent.mkdir(parents=True, exist_ok=True)
            mine = self._take(lock, token)
        try:
            yield mine
        finally:
            if mine and _read(lock) == token:
                lock.unlink(missing_ok=True)

    def touch(self, key: str) -> None:
        """A sign of life for a claim that takes long."""
        with contextlib.suppress(OSError):
            os.utime(self.path(key, ".lock"))

    def _take(self, lock: Path, token: str) -> bool:
        try:
            with open(lock, "x") as stream:  # O_EXCL: of two, one wins
                stream.write(token)
            return True
        except FileExistsError:
            if not self._abandoned(lock):
                return False
        # The claim is dead. Each that saw this puts its own in place; the last to do so finds its own after a moment.
        rival = lock.with_name(f"{lock.name}.{uuid.uuid4().hex}.part")
        rival.write_text(token)
        if not self._abandoned(lock):
            rival.unlink(missing_ok=True)
            return False
        os.replace(rival, lock)
        time.sleep(0.05)
        return _read(lock) == token

    def _abandoned(self, lock: Path) -> bool:
        try:
            age = time.time() - lock.stat().st_mtime
        except OSError:
            return True  # it was let go this moment
        host, _, rest = _read(lock).partition(" ")
        pid = rest.split(" ")[0]
        if host == socket.gethostname() and pid.isdecimal():
            return not _alive(int(pid)) or age > 10 * self.lease
        return age > self.lease

    def _sweep_up(self) -> None:
        """Remove what killed writers left under temporary names, once it is surely nobody's any more."""
        with contextlib.suppress(OSError):
            for leftover in self.folder.glob("*/*.part"):
                if time.time() - leftover.stat().st_mtime > self.lease:
                    leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name == "nt":  # there, signal 0 would end the process
        import psutil

        return bool(psutil.pid_exists(pid))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _read(lock: Path) -> str:
    try:
        return lock.read_text()
    except OSError:
        return ""


def _sum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
