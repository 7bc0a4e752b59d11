"""Results on disk: trajectories in one file each, and a folder of pictures addressed by their recipe's key.

Everything is written under another name and renamed when it is whole, so a reader sees a file complete or not at
all, whenever the writer was killed. Tensors are safetensors, the rest is JSON; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import math
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fluxnb.errors import FluxnbError, StorageError, checks_itself, cut
from fluxnb.export.png import encode_png
from fluxnb.latents import LinearRGB, tokens_in
from fluxnb.recipe import Recipe
from fluxnb.records import KINDS, Cell, Step, Trajectory

__all__ = ["Store", "open_trajectory", "save"]

FORMAT = 1
LEASE = 60.0  # seconds without a sign of life after which a claim from another machine is taken over
LARGEST_IMAGE = 2**26  # bytes of PNG; an 8192 px picture has less


# ------------------------------------------------------------------------------------------------------ trajectories
def save(walk: Trajectory, path: str | Path) -> Path:
    """Write a trajectory to one safetensors file; its recipe and numbers stand in the header as JSON.

    Returns:
        The path, with `.safetensors` added if it had no suffix.

    Raises:
        StorageError: the disk or the folder said no; nothing half-written remains.
    """
    from safetensors.torch import save as encode

    target = Path(path)
    target = target if target.suffix else target.with_suffix(".safetensors")
    tensors: dict[str, Tensor] = {}
    previous: Tensor | None = None
    for step in walk.steps:
        for name, value in step.tensors.items():
            if name == "x" and previous is not None and (value is previous or value.data_ptr() == previous.data_ptr()):
                continue  # it is the x_next of the step before
            tensors[f"{step.index:04d}.{name}"] = value.clone().contiguous()
        previous = step.tensors.get("x_next")
    if walk.image is not None:
        tensors["image"] = torch.from_numpy(np.frombuffer(encode_png(walk.image, walk.recipe), np.uint8).copy())
    steps = [
        {
            "index": s.index,
            "sigma": s.sigma,
            "dt": s.dt,
            "seconds": s.seconds,
            "norms": dict(s.norms),
            "kept": sorted(s.tensors),
        }
        for s in walk.steps
    ]
    header = {
        "format": FORMAT,
        "recipe": None if walk.recipe is None else walk.recipe.to_json(),
        "finished": walk.finished,
        "sigmas": walk.sigmas,
        "height": walk.height,
        "width": walk.width,
        "seconds": dict(walk.seconds),
        "versions": dict(walk.versions),
        "model": walk.model,
        "preset": walk.preset,
        "preview": None if walk.preview is None else walk.preview.to_json(),
        "words": walk.words,
        "steps": steps,
    }
    # An empty file would be no safetensors file; a walk kept without tensors and without a picture still has a header.
    tensors = tensors or {"empty": torch.zeros(1)}
    _write(target, encode(tensors, metadata={"fluxnb": json.dumps(header, sort_keys=True, allow_nan=False)}))
    return target


def open_trajectory(path: str | Path) -> Trajectory:
    """Read a trajectory that `save` wrote. Needs no model and no GPU; everything in the file is checked.

    Raises:
        StorageError: no such file, damaged, from a newer format, or not a trajectory.
    """
    from safetensors import SafetensorError, safe_open

    source = Path(path)
    if not source.is_file():
        raise StorageError(f"{source}", "there is no such file", "check the path; fnb.save returns it")
    try:
        with safe_open(source, framework="pt", device="cpu") as opened:
            header = json.loads((opened.metadata() or {})["fluxnb"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        return _walk(header, tensors)
    except FluxnbError as problem:
        raise StorageError(f"{source} ({problem.came})", "it is no whole trajectory", "save it again") from problem
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError) as problem:
        reason = cut(f"{type(problem).__name__}: {problem}", 120)
        raise StorageError(f"{source} ({reason})", "it is no whole trajectory", "save it again") from problem


def _walk(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Trajectory:
    if header["format"] != FORMAT:
        raise ValueError(f"format {cut(header['format'])}; this fluxnb reads {FORMAT}")
    height, width = _number(header["height"], int), _number(header["width"], int)
    steps: list[Step] = []
    previous: Tensor | None = None
    for position, told in enumerate(header["steps"]):
        if told["index"] != position:
            raise ValueError(f"step {cut(told['index'])} in place {position}")
        kept: dict[str, Tensor] = {}
        for name in told["kept"]:
            if name not in KINDS:
                raise ValueError(f"unknown tensor {cut(name)}")
            stored = tensors.get(f"{position:04d}.{name}")
            value = previous if stored is None and name == "x" else stored
            if value is None:
                raise ValueError(f"step {position} lacks {name}")
            if value.ndim != 2 or value.shape[0] != tokens_in(height, width) or not value.is_floating_point():
                raise ValueError(f"{name} of step {position} is {value.dtype} {tuple(value.shape)}")
            kept[name] = value
        previous = kept.get("x_next")
        steps.append(
            Step(
                index=position,
                sigma=_number(told["sigma"], float),
                dt=_number(told["dt"], float),
                height=height,
                width=width,
                tensors=kept,
                norms={str(name): _number(value, float) for name, value in told["norms"].items()},
                seconds=_number(told["seconds"], float),
            )
        )
    sigmas = tuple(_number(sigma, float) for sigma in header["sigmas"])
    if len(sigmas) < len(steps) + 1:
        raise ValueError(f"{len(sigmas)} sigmas for {len(steps)} steps")
    preview, words = header["preview"], tuple(str(word) for word in header.get("words", ()))
    if any(step.attention.shape[1] != len(words) for step in steps if "attention" in step.tensors):
        raise ValueError(f"{len(words)} words do not fit the maps of attention")
    return Trajectory(
        image=_picture(tensors["image"]) if "image" in tensors else None,
        recipe=None if header["recipe"] is None else Recipe.from_json(header["recipe"]),
        finished=header["finished"] is True,
        sigmas=sigmas,
        steps=tuple(steps),
        height=height,
        width=width,
        seconds={str(name): _number(value, float) for name, value in header["seconds"].items()},
        versions={str(name): str(value) for name, value in header["versions"].items()},
        model=str(header["model"]),
        preset=str(header["preset"]),
        preview=None if preview is None else LinearRGB.from_json(preview),
        words=words,
    )


def _number(value: object, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{cut(value)} is no number")
    return kind(value)


def _picture(stored: Tensor) -> Image.Image:
    if stored.dtype != torch.uint8 or stored.ndim != 1 or stored.numel() > LARGEST_IMAGE:
        raise ValueError("the picture is no PNG")
    # Only the PNG decoder is let near the bytes, and it refuses to fill more memory than a picture needs.
    with Image.open(io.BytesIO(stored.numpy().tobytes()), formats=("PNG",)) as opened:
        return opened.convert("RGB")


# --------------------------------------------------------------------------------------------------------- the store
@checks_itself
@dataclass(frozen=True)
class Store:
    """A folder of finished cells: `<key[:2]>/<key>.png`, beside it a JSON that says it is whole.

    Any number of processes may share one. A cell is claimed by a lock file before it is made; a claim whose process
    died, or that gave no sign of life for a minute, is taken over.
    """

    folder: Path
    lease: float = LEASE

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        with _told(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep_up()

    def path(self, key: str, suffix: str = ".png") -> Path:
        """Where a cell's file is or would be."""
        return self.folder / key[:2] / f"{key}{suffix}"

    def get(self, key: str, recipe: Recipe, *, trajectory: bool = False) -> Cell | None:
        """The finished cell, or None if there is none, or a damaged one."""
        try:
            told = json.loads(self.path(key, ".json").read_bytes())
            if told["recipe"] != recipe.to_json() or _sum(self.path(key)) != told["png"]:
                return None
            walk = None
            if trajectory:
                if _sum(self.path(key, ".safetensors")) != told["trajectory"]:
                    return None
                walk = open_trajectory(self.path(key, ".safetensors"))
            return Cell(
                recipe=recipe,
                key=key,
                path=self.path(key),
                exact=recipe.exact and told["exact"] is True,
                made=False,
                seconds={str(name): _number(value, float) for name, value in told["seconds"].items()},
                trajectory=walk,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # not there, not whole, or not ours: in each case it is made anew

    def put(
        self,
        key: str,
        recipe: Recipe,
        image: Image.Image,
        *,
        seconds: Mapping[str, float],
        versions: Mapping[str, str],
        exact: bool = True,
        trajectory: Trajectory | None = None,
    ) -> Path:
        """Write a cell; its JSON comes last and makes it count.

        Raises:
            StorageError: the disk is full or not writable; finished cells are as they were.
        """
        told: dict[str, Any] = {
            "recipe": recipe.to_json(),
            "seconds": dict(seconds),
            "versions": dict(versions),
            "exact": exact,
        }
        with _told(self.folder):
            self.path(key).parent.mkdir(parents=True, exist_ok=True)
        if trajectory is not None:
            save(trajectory, self.path(key, ".safetensors"))
            told["trajectory"] = _sum(self.path(key, ".safetensors"))
        png = encode_png(image, recipe)
        told["png"] = hashlib.sha256(png).hexdigest()
        _write(self.path(key), png)
        _write(self.path(key, ".json"), json.dumps(told, sort_keys=True).encode())
        return self.path(key)

    @contextlib.contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process may make the cell; the claim ends with the block."""
        lock, token = self.path(key, ".lock"), f"{socket.gethostname()} {os.getpid()} {uuid.uuid4().hex}"
        with _told(self.folder):
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
        rival = lock.with_name(f"{lock.name}.{uuid.uuid4().hex}.tmp")
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
            for leftover in self.folder.glob("*/*.tmp"):
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


def _write(target: Path, data: bytes) -> None:
    """All of it under the final name, or nothing at all."""
    temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex}.tmp")
    with _told(target):
        try:
            temporary.write_bytes(data)
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _told(place: Path) -> Iterator[None]:
    """Tell a refusal of the disk in our words; a full one by its name."""
    try:
        yield
    except FluxnbError:
        raise
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            told = StorageError(
                f"the disk of {place.parent} is full ({_free(place)})",
                "what was finished before is whole",
                "make room, or give a store on another disk, and run again: only the missing cells are made",
            )
        else:
            told = StorageError(
                f"{place} ({problem.strerror or problem})",
                "a writable folder is needed",
                "check the path and its rights",
            )
        told.errno = problem.errno
        raise told from problem


def _free(place: Path) -> str:
    with contextlib.suppress(OSError):
        return f"{shutil.disk_usage(place.parent).free / 2**20:.0f} MiB free"
    return "it does not say how much is free"
