"""Trajectory files: tensors as safetensors, everything else as JSON in the header; nothing is unpickled.

Every number, name and shape of a file is checked before a Trajectory is made of it, and the size of its picture before
the picture is decoded.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fluxnb.arguments import entry_point
from fluxnb.errors import FluxnbError, InputError, StorageError, shorten
from fluxnb.io.files import atomic_write, user_path
from fluxnb.io.headers import safetensors_header
from fluxnb.io.png import decode_png, encode_png, largest_png
from fluxnb.records import KEPT_TENSORS, Pair, Step, Trajectory
from fluxnb.records.geometry import FLUX1, PREDICTIONS, Geometry
from fluxnb.records.latents import LinearRGB
from fluxnb.records.recipe import LARGEST_SIDE, LONGEST_TEXT, ResolvedRecipe

__all__ = ["largest_trajectory", "open_trajectory", "save"]

FORMAT = 3
READABLE = (1, 2, 3)  # format 1 had the numerics in its recipe; 1 and 2 state no geometry and are of FLUX.1
SIDE_WITHOUT_SIZE = 2048  # pixels of the picture of a record that states no size
LARGEST_NUMBER = 1e9  # of noise levels, seconds and norms
MOST_STEPS = 10_000  # of a recorded call; a recipe has at most 1000
MOST_FEATURES = 4096  # of a token; FLUX has 64
MOST_WORDS = 4096  # of a prompt; text encoders have at most 512 tokens
LONGEST_NAME = 1000  # characters of the name of a model, a library or a preset
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LONGEST_REASON = 2000  # characters of the reason why a recording has no recipe


@entry_point("trajectory", path='path="fox.safetensors"')
def save(trajectory: Trajectory, path: str | Path) -> Path:
    """Write a trajectory to one safetensors file with a JSON header.

    Returns:
        The path, with `.safetensors` added if it has no suffix.

    Raises:
        StorageError: the file cannot be written; an older file of that name is unchanged.
        InputError: more steps or pixels than `open_trajectory` reads.

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
            # JSON has no number for a norm that is not finite.
            "norms": {name: norm if math.isfinite(norm) else None for name, norm in s.norms.items()},
            "kept": sorted(s.tensors),
        }
        for s in trajectory.steps
    ]
    height, width = _stated_size(trajectory)
    if len(steps) > MOST_STEPS or max(height, width) > LARGEST_SIDE:
        raise InputError(
            f"a trajectory of {len(steps)} steps and {height} x {width} px",
            f"files hold at most {MOST_STEPS} steps and {LARGEST_SIDE} px a side",
            "save a shorter or smaller one",
        )
    header = {
        "format": FORMAT,
        "recipe": None if trajectory.recipe is None else trajectory.recipe.to_json(),
        "recipe_missing": trajectory.recipe_missing,
        "prompt": trajectory.prompt[:LONGEST_TEXT],
        "finished": trajectory.finished,
        "sigmas": trajectory.sigmas,
        "stages": trajectory.stages,
        "height": height,
        "width": width,
        "seconds": dict(trajectory.seconds),
        "versions": dict(trajectory.versions),
        "model": trajectory.model,
        "preset": trajectory.preset,
        "numerics": trajectory.numerics,
        "preview": None if trajectory.preview is None else trajectory.preview.to_json(),
        "words": trajectory.words,
        "geometry": trajectory.geometry.to_json(),
        "predicts": trajectory.predicts,
        "pair": None if trajectory.pair is None else dataclasses.asdict(trajectory.pair),
        "steps": steps,
    }
    # safetensors does not write a file without tensors.
    tensors = tensors or {"empty": torch.zeros(1)}
    data = encode(tensors, metadata={"fluxnb": json.dumps(header, sort_keys=True, allow_nan=False)})
    with atomic_write(target) as part:
        part.write_bytes(data)
    return target


@entry_point(path='path="fox.safetensors"')
def open_trajectory(path: str | Path) -> Trajectory:
    """Read a trajectory file written by `save`; needs neither a model nor a GPU.

    Raises:
        StorageError: no such file, a damaged one, one of a newer format, or not a trajectory.
    """
    from safetensors import SafetensorError, safe_open

    source = user_path(path)
    if not source.exists():
        raise StorageError(f"{source}", "there is no such file", "check the path; fnb.save returns it")
    try:
        header = safetensors_header(source)
        with safe_open(source, framework="pt", device="cpu") as opened:
            tensors = {name: opened.get_tensor(name) for name in header.tensors}
        return _trajectory(json.loads(header.metadata["fluxnb"]), tensors)
    except FluxnbError as problem:
        raise StorageError(
            f"{source} ({problem.given})", "it is not a complete trajectory file", "save it again"
        ) from problem
    except (
        SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError, OverflowError, OSError,
    ) as problem:  # fmt: skip
        reason = shorten(f"{type(problem).__name__}: {problem}", 120)
        raise StorageError(f"{source} ({reason})", "it is not a complete trajectory file", "save it again") from problem


def largest_trajectory(recipe: ResolvedRecipe) -> int:
    """A bound, in bytes, of the file of a run of this recipe."""
    token = 8 * (3 * MOST_FEATURES // 4 + MOST_WORDS)
    numbers = recipe.evaluations * FLUX1.tokens(recipe.height, recipe.width)
    return numbers * token + largest_png((recipe.width, recipe.height))


def _stated_size(trajectory: Trajectory) -> tuple[int, int]:
    """Height and width for the header; those of the picture where a recorded call gave none and kept no tensors."""
    if trajectory.image is None or (trajectory.height and trajectory.width):
        return trajectory.height, trajectory.width
    return trajectory.image.height, trajectory.image.width


def _trajectory(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Trajectory:
    if type(header["format"]) is not int or header["format"] not in READABLE:
        raise ValueError(f"format {shorten(header['format'])}; this fluxnb reads {READABLE[0]} to {READABLE[-1]}")
    height, width = (_whole(header[name], 0, LARGEST_SIDE) for name in ("height", "width"))
    sigmas = _numbers(header["sigmas"], MOST_STEPS + 1)
    preview = None if header["preview"] is None else LinearRGB.from_json(header["preview"])
    words = _texts(header.get("words", ()), MOST_WORDS)
    geometry, predicts = _geometry(header, tensors)
    steps = _steps(header["steps"], tensors, (height, width), geometry)
    if len(sigmas) < len(steps) + 1:
        raise ValueError(f"{len(sigmas)} sigmas for {len(steps)} steps")
    _check_tensors(steps, len(words), geometry, preview)
    recipe = None if header["recipe"] is None else ResolvedRecipe.from_json(header["recipe"])
    if recipe is not None and (recipe.height, recipe.width) != (height, width):
        raise ValueError(f"a recipe of {recipe.height} x {recipe.width} px in a record of {height} x {width} px")
    return Trajectory(
        image=_picture(tensors["image"], (width, height)) if "image" in tensors else None,
        recipe=recipe,
        finished=header["finished"] is True,
        sigmas=sigmas,
        steps=steps,
        height=height,
        width=width,
        seconds={_text(name): _number(value) for name, value in header["seconds"].items()},
        versions={_text(name): _text(value) for name, value in header["versions"].items()},
        model=_text(header["model"]),
        preset=_text(header["preset"]),
        numerics=_numerics(header),
        preview=preview,
        words=words,
        recipe_missing=_text(header.get("recipe_missing", ""), LONGEST_REASON),
        prompt=_text(header.get("prompt", ""), LONGEST_TEXT),
        geometry=geometry,
        predicts=predicts,
        stages=_whole(header.get("stages", 1), 1, 2),
        pair=_pair(header.get("pair")),
    )


def _pair(values: Any) -> Pair | None:
    return None if values is None else Pair(**{_text(name): _text(value) for name, value in values.items()})


def _geometry(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Geometry, str]:
    """The geometry of a file and what its network computes; older files are of FLUX.1, with any number of channels."""
    if header["format"] < 3:
        features = {value.shape[-1] for name, value in tensors.items() if name.endswith((".x", ".v", ".x_next"))}
        if len(features) > 1 or any(count % 4 for count in features):
            raise ValueError(f"tokens of {shorten(sorted(features))} features")
        return dataclasses.replace(FLUX1, channels=features.pop() // 4) if features else FLUX1, "velocity"
    if header["predicts"] not in PREDICTIONS:
        raise ValueError(f"predicts={shorten(header['predicts'])}")
    return Geometry.from_json(header["geometry"]), header["predicts"]


def _steps(given: Any, tensors: Mapping[str, Tensor], size: tuple[int, int], geometry: Geometry) -> tuple[Step, ...]:
    if not isinstance(given, list) or len(given) > MOST_STEPS:
        raise ValueError(f"the list of steps; at most {MOST_STEPS} are read")
    steps: list[Step] = []
    previous: Tensor | None = None
    height, width = size
    for position, values in enumerate(given):
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
            if not _fits(name, tuple(value.shape), size, geometry) or value.dtype not in FLOATS:
                raise ValueError(f"{name} of step {position} is {value.dtype} {tuple(value.shape)}")
            kept[name] = value
        previous = kept.get("x_next")
        steps.append(
            Step(
                index=position,
                sigma=_number(values["sigma"], low=0.0),
                dt=_number(values["dt"]),
                height=height,
                width=width,
                tensors=kept,
                norms={name: _norm(values["norms"][name]) for name in ("x", "v")},
                seconds=_number(values["seconds"]),
                geometry=geometry,
            )
        )
    return tuple(steps)


def _fits(name: str, shape: tuple[int, ...], size: tuple[int, int], geometry: Geometry) -> bool:
    """Whether a tensor has the shape of a picture of this size; attention has one column for each word."""
    if name == "attention":
        return len(shape) == 2 and shape[0] == geometry.tokens(*size)
    return shape == geometry.shape(*size)


def _check_tensors(steps: tuple[Step, ...], words: int, geometry: Geometry, preview: LinearRGB | None) -> None:
    """Check that the tensors fit the words and the preview; `_steps` has checked their shapes."""
    if preview is not None and len(preview.weight[0]) != geometry.channels:
        raise ValueError(f"a preview of {len(preview.weight[0])} channels for latents of {geometry.channels}")
    if any(step.attention.shape[1] != words for step in steps if "attention" in step.tensors):
        raise ValueError(f"{words} words do not fit the columns of attention")


def _numerics(header: Mapping[str, Any]) -> str:
    if header["format"] > 1:
        return _text(header["numerics"])
    if header["recipe"] is None:
        return "unknown"
    # Parsed after the recipe was checked, so that this is JSON of a bounded size.
    return _text(json.loads(header["recipe"]).get("numerics", "exact"))


def _number(value: object, low: float = -LARGEST_NUMBER) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= LARGEST_NUMBER:
        raise ValueError(f"{shorten(value)} is no number from {low:g} to {LARGEST_NUMBER:g}")
    return float(value)


def _norm(value: object) -> float:
    return math.nan if value is None else _number(value, low=0.0)


def _whole(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{shorten(value)} is no whole number from {low} to {high}")
    return value


def _numbers(values: object, most: int) -> tuple[float, ...]:
    if not isinstance(values, list) or len(values) > most:
        raise ValueError(f"{shorten(values)} is no list of at most {most} numbers")
    return tuple(_number(value, low=0.0) for value in values)


def _text(value: object, longest: int = LONGEST_NAME) -> str:
    """A text without lone surrogates, which no encoding of a page or a figure can hold."""
    if not isinstance(value, str) or len(value) > longest:
        raise ValueError(f"{shorten(value)} is no text of at most {longest} characters")
    value.encode()
    return value


def _texts(values: object, most: int) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or len(values) > most:
        raise ValueError(f"{shorten(values)} is no list of at most {most} texts")
    return tuple(_text(value, LONGEST_TEXT) for value in values)


def _picture(stored: Tensor, size: tuple[int, int]) -> Image.Image:
    known = 0 not in size
    expected = size if known else (SIDE_WITHOUT_SIZE, SIDE_WITHOUT_SIZE)
    if stored.dtype != torch.uint8 or stored.ndim != 1 or stored.numel() > largest_png(expected):
        raise ValueError("the image is not a PNG")
    return decode_png(stored.numpy().tobytes(), size if known else None, largest=SIDE_WITHOUT_SIZE)
