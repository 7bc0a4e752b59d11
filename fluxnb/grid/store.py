"""A folder of finished cells, addressed by the key of their recipe and shared by any number of processes.

Files are written under a temporary name and renamed, so that a reader sees a complete cell or none, even if the writer
was killed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from fluxnb.arguments import entry_point
from fluxnb.errors import FluxnbError, InputError, shorten
from fluxnb.grid.claims import LEASE, OLD, Claim, Claims, file_system_time
from fluxnb.io.files import atomic_write, disk_errors, open_regular, read_bytes, user_path
from fluxnb.io.png import check_png, encode_png, largest_png
from fluxnb.io.trajectory_files import largest_trajectory, open_trajectory, save
from fluxnb.records import Cell, Trajectory
from fluxnb.records.recipe import ResolvedRecipe

__all__ = ["Store", "StoreWarning"]

LONGEST_METADATA = 2_000_000  # bytes; a recipe has at most 1,000,000
WRITE_ATTEMPTS = 3  # of a cell that another machine may be writing too
TEMPORARY = re.compile(r"(?P<key>[0-9a-f]{16,})\..*\.part|(?P<locked>[0-9a-f]{16,})\.lock")


class StoreWarning(UserWarning):
    """Pictures are not stored, because nothing identifies what drew them, or a sweep waits for another process."""


@entry_point()
@dataclass(frozen=True)
class Store:
    """A folder of finished cells: `<key[:2]>/<key>.png` with metadata in `<key>.json`.

    Any number of processes may share a store. A process claims a cell with a lock file before it samples it. A claim is
    void once its process has ended, on another machine once its process has sent no heartbeat for `lease` seconds.

    Arguments:
        folder: the folder, which is created if needed.
        lease: seconds without a heartbeat after which a claim of another machine is void; the same for all processes.

    Raises:
        InputError: a lease that is no positive number.
        StorageError: the folder cannot be created.
    """

    folder: Path
    lease: float = LEASE
    _claims: Claims = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", user_path(self.folder))
        if isinstance(self.lease, bool) or not isinstance(self.lease, int | float) or not 0 < self.lease < math.inf:
            raise InputError(
                f"lease={shorten(self.lease)}", "a number of seconds above 0 is needed", f"try lease={LEASE:g}"
            )
        object.__setattr__(self, "_claims", Claims(float(self.lease)))
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
        path = self.path(key)
        try:
            metadata = json.loads(read_bytes(self.path(key, ".json"), at_most=LONGEST_METADATA))
            if (metadata["recipe"], metadata["numerics"]) != (recipe.to_json(), numerics):
                return None
            seconds = {str(name): float(value) for name, value in metadata["seconds"].items()}
            png = read_bytes(path, at_most=largest_png((recipe.width, recipe.height)))
            if hashlib.sha256(png).hexdigest() != metadata["png"] or not all(map(math.isfinite, seconds.values())):
                return None
            check_png(png, (recipe.width, recipe.height))
            loaded = None
            if trajectory:
                file = self.path(key, ".safetensors")
                if _sha256(file, at_most=largest_trajectory(recipe)) != metadata["trajectory"]:
                    return None
                loaded = open_trajectory(file)
            return Cell(
                recipe=recipe, key=key, path=path, numerics=numerics, made=False, seconds=seconds, trajectory=loaded
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
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
        """Write a cell, unless it is complete. The metadata is written last and marks the cell as complete.

        Raises:
            StorageError: the disk is full or not writable. Finished cells are unchanged.
        """
        metadata: dict[str, Any] = {
            "recipe": recipe.to_json(),
            "seconds": dict(seconds),
            "versions": dict(versions),
            "numerics": numerics,
        }
        png = encode_png(image, recipe, numerics=numerics)
        metadata["png"] = hashlib.sha256(png).hexdigest()
        # The claim, unless this process has it already, protects the temporary files.
        with self.claim(key):
            for _ in range(WRITE_ATTEMPTS):
                if self.get(key, recipe, numerics=numerics, trajectory=trajectory is not None) is not None:
                    break
                if trajectory is not None:
                    save(trajectory, self.path(key, ".safetensors"))
                    metadata["trajectory"] = _sha256(self.path(key, ".safetensors"))
                self._write(self.path(key), png)
                self._write(self.path(key, ".json"), json.dumps(metadata, sort_keys=True).encode())
                # Otherwise a machine that considers this process dead may have written some of the files.
                if self._claims.holds(self.path(key, ".lock")):
                    break
        return self.path(key)

    @staticmethod
    def _write(target: Path, data: bytes) -> None:
        with atomic_write(target) as part:
            part.write_bytes(data)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Claim a cell for the duration of the block; yields whether the claim was successful."""
        lock = self.path(key, ".lock")
        claim: Claim | None = None
        try:
            with disk_errors(lock):
                lock.parent.mkdir(parents=True, exist_ok=True)
                claim = self._claims.acquire(lock)
            yield claim is not None
        finally:
            if claim is not None:
                claim.release()

    def holder(self, key: str) -> str:
        """A description of the process that has the claim of a cell, empty if there is none."""
        with contextlib.suppress(OSError):
            return self._claims.holder(self.path(key, ".lock"))
        return ""

    def _remove_leftovers(self) -> None:
        """Remove the locks and, after some leases, the temporary files of killed processes."""
        with contextlib.suppress(OSError, FluxnbError):
            for leftover in [*self.folder.glob("*/*.lock"), *self.folder.glob("*/*.part")]:
                name = TEMPORARY.fullmatch(leftover.name)
                if name is None or leftover.parent != self.path(key := name["key"] or name["locked"]).parent:
                    continue
                if name["key"] and self._age(leftover) < OLD * self.lease:
                    continue
                with self.claim(key) as claimed:
                    if claimed:
                        leftover.unlink(missing_ok=True)

    def _age(self, file: Path) -> float:
        return file_system_time(self.folder) - file.stat().st_mtime


def _sha256(path: Path, *, at_most: int | None = None) -> str:
    digest = hashlib.sha256()
    with open_regular(path, at_most=at_most) as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
