"""Trajectory files: tensors as safetensors, everything else as JSON in the header; nothing is unpickled.

Every number, name and shape of a file is checked before a Trajectory is made of it.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fluxnb.errors import FluxnbError, StorageError, shorten
from fluxnb.io.files import atomic_write, user_path
from fluxnb.io.png import encode_png
from fluxnb.records import KEPT_TENSORS, Step, Trajectory
from fluxnb.records.latents import LinearRGB, tokens_in
from fluxnb.records.recipe import ResolvedRecipe

__all__ = ["open_trajectory", "save"]

FORMAT = 2
READABLE = (1, 2)  # format 1 had the numerics in its recipe
LARGEST_IMAGE = 2**26  # bytes of PNG; an 8192 px picture has less


def save(trajectory: Trajectory, path: str | Path) -> Path:
    """Write a trajectory to one safetensors file with a JSON header.

    Returns:
        The path, with `.safetensors` added if it has no suffix.

    Raises:
        StorageError: the file cannot be written; an older file of that name is unchanged.

    Example:
        >>> open_trajectory(save(trajectory, "fox")).caption                        # doctest: +SKIP
        'a fox, pocket, seed 3, 4 steps'
    """
    from safetensors.torch import save as encode

    target = user_path(path)
    target = target if target.suffix else target.with_suffix(".safetensors")
    tensors: dict[str, Tensor] = {}
    previous: Tensor | None = None
    for step in trajectory.steps:
        for name, value in step.tensors.items():
            if name == "x" and previous is not None and (value is previous or value.data_ptr() == previous.data_ptr()):
                continue  # equal to x_next of the previous step, stored once
            tensors[f"{step.index:04d}.{name}"] = value.clone().contiguous()
        previous = step.tensors.get("x_next")
    if trajectory.image is not None:
        tensors["image"] = torch.from_numpy(
            np.frombuffer(
                encode_png(trajectory.image, trajectory.recipe, numerics=trajectory.numerics), np.uint8
            ).copy()
        )
    steps = [
        {
            "index": s.index,
            "sigma": s.sigma,
            "dt": s.dt,
            "seconds": s.seconds,
            "norms": dict(s.norms),
            "kept": sorted(s.tensors),
        }
        for s in trajectory.steps
    ]
    header = {
        "format": FORMAT,
        "recipe": None if trajectory.recipe is None else trajectory.recipe.to_json(),
        "finished": trajectory.finished,
        "sigmas": trajectory.sigmas,
        "height": trajectory.height,
        "width": trajectory.width,
        "seconds": dict(trajectory.seconds),
        "versions": dict(trajectory.versions),
        "model": trajectory.model,
        "preset": trajectory.preset,
        "numerics": trajectory.numerics,
        "preview": None if trajectory.preview is None else trajectory.preview.to_json(),
        "words": trajectory.words,
        "steps": steps,
    }
    # safetensors does not write a file without tensors.
    tensors = tensors or {"empty": torch.zeros(1)}
    data = encode(tensors, metadata={"fluxnb": json.dumps(header, sort_keys=True, allow_nan=False)})
    with atomic_write(target) as part:
        part.write_bytes(data)
    return target


def open_trajectory(path: str | Path) -> Trajectory:
    """Read a trajectory file written by `save`; needs neither a model nor a GPU.

    Raises:
        StorageError: no such file, a damaged one, one of a newer format, or not a trajectory.
    """
    from safetensors import SafetensorError, safe_open

    source = user_path(path)
    if not source.is_file():
        raise StorageError(f"{source}", "there is no such file", "check the path; fnb.save returns it")
    try:
        with safe_open(source, framework="pt", device="cpu") as opened:
            header = json.loads((opened.metadata() or {})["fluxnb"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        return _trajectory(header, tensors)
    except FluxnbError as problem:
        raise StorageError(
            f"{source} ({problem.given})", "it is not a complete trajectory file", "save it again"
        ) from problem
    except (SafetensorError, KeyError, TypeError, ValueError, AttributeError, RecursionError, OSError) as problem:
        reason = shorten(f"{type(problem).__name__}: {problem}", 120)
        raise StorageError(f"{source} ({reason})", "it is not a complete trajectory file", "save it again") from problem


def _trajectory(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Trajectory:
    if type(header["format"]) is not int or header["format"] not in READABLE:
        raise ValueError(f"format {shorten(header['format'])}; this fluxnb reads {READABLE[0]} to {READABLE[-1]}")
    height, width = _number(header["height"], int), _number(header["width"], int)
    steps: list[Step] = []
    previous: Tensor | None = None
    for position, values in enumerate(header["steps"]):
        if values["index"] != position:
            raise ValueError(f"step {shorten(values['index'])} in place {position}")
        kept: dict[str, Tensor] = {}
        for name in values["kept"]:
            if name not in KEPT_TENSORS:
                raise ValueError(f"unknown tensor {shorten(name)}")
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
                sigma=_number(values["sigma"], float),
                dt=_number(values["dt"], float),
                height=height,
                width=width,
                tensors=kept,
                norms={str(name): _number(value, float) for name, value in values["norms"].items()},
                seconds=_number(values["seconds"], float),
            )
        )
    sigmas = tuple(_number(sigma, float) for sigma in header["sigmas"])
    if len(sigmas) < len(steps) + 1:
        raise ValueError(f"{len(sigmas)} sigmas for {len(steps)} steps")
    preview, words = header["preview"], tuple(str(word) for word in header.get("words", ()))
    if any(step.attention.shape[1] != len(words) for step in steps if "attention" in step.tensors):
        raise ValueError(f"{len(words)} words do not fit the columns of attention")
    return Trajectory(
        image=_picture(tensors["image"]) if "image" in tensors else None,
        recipe=None if header["recipe"] is None else ResolvedRecipe.from_json(header["recipe"]),
        finished=header["finished"] is True,
        sigmas=sigmas,
        steps=tuple(steps),
        height=height,
        width=width,
        seconds={str(name): _number(value, float) for name, value in header["seconds"].items()},
        versions={str(name): str(value) for name, value in header["versions"].items()},
        model=str(header["model"]),
        preset=str(header["preset"]),
        numerics=_numerics(header),
        preview=None if preview is None else LinearRGB.from_json(preview),
        words=words,
    )


def _numerics(header: Mapping[str, Any]) -> str:
    if header["format"] > 1:
        numerics = header["numerics"]
    elif header["recipe"] is None:
        return "unknown"
    else:
        numerics = json.loads(header["recipe"]).get("numerics", "exact")
    if not isinstance(numerics, str):
        raise ValueError(f"numerics {shorten(numerics)}")
    return numerics


def _number(value: object, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{shorten(value)} is not a number")
    return kind(value)


def _picture(stored: Tensor) -> Image.Image:
    if stored.dtype != torch.uint8 or stored.ndim != 1 or stored.numel() > LARGEST_IMAGE:
        raise ValueError("the image is not a PNG")
    # Only the PNG decoder of Pillow may open the bytes; it refuses images of absurd size.
    with Image.open(io.BytesIO(stored.numpy().tobytes()), formats=("PNG",)) as opened:
        return opened.convert("RGB")
