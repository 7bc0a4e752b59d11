"""What is known of a model before it is loaded: its family, its size, its default settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fluxnb.checkpoints import hub
from fluxnb.checkpoints import sources as weights
from fluxnb.checkpoints.checksums import read_json
from fluxnb.errors import InputError
from fluxnb.families.family import Family
from fluxnb.families.flux1 import FLUX1
from fluxnb.families.registry import MODELS, family_of_class, family_of_model, name_of
from fluxnb.planning.hardware import GIB, Hardware
from fluxnb.planning.model_size import ModelSize, flux1_size, model_size_of, named_size
from fluxnb.planning.requirements import Workload
from fluxnb.records.recipe import LARGEST_SIDE, MOST_STEPS

__all__ = [
    "configurations_of",
    "downloaded_gib",
    "family_of_checkpoint",
    "is_large",
    "known_defaults",
    "natural_dtype",
    "size_of_model",
    "small_workload",
    "workload_of",
]

LARGE = 10**9  # weights from which a model computes in 16 bits and is assembled part by part
TINY = ModelSize(
    modulation=0, blocks=10**7, rest=0, t5=10**6, clip=10**6, vae=10**6, layer=10**5, text_layer=10**5, width=192,
    depth=9,
)  # fmt: skip


def is_large(model: ModelSize) -> bool:
    """Whether a model computes in 16 bits and is assembled part by part."""
    return model.total >= LARGE


def natural_dtype(machine: Hardware, large: bool) -> str:
    """The number format of a model on a machine where none is requested."""
    if not large:
        return "float32"
    return "bfloat16" if machine.bf16 or machine.device != "cuda" else "float16"


def workload_of(model: ModelSize, size: int | None, steps: int | None, defaults: Mapping[str, Any]) -> Workload:
    """One picture of a model; what is not requested is the model's default.

    Raises:
        InputError: a size or a number of steps that is not possible.
    """
    steps = defaults.get("steps", Workload().steps) if steps is None else steps
    if size is not None and (not 16 <= size <= LARGEST_SIDE or size % 16):
        raise InputError(f"size={size}", f"multiples of 16 from 16 to {LARGEST_SIDE} are possible", "try size=1024")
    if not 1 <= steps <= MOST_STEPS:
        raise InputError(f"steps={steps}", f"1 to {MOST_STEPS} are possible", "try steps=4")
    settings = {**defaults, "steps": steps, **({} if size is None else {"size": size})}
    if is_large(model):
        return Workload(size=settings.get("size", Workload().size), steps=steps)
    return small_workload(settings)


def small_workload(defaults: Mapping[str, Any]) -> Workload:
    """One picture of a small model, which computes in float32, with its default settings."""
    known = {"size": "size", "steps": "steps", "max_sequence_length": "text"}
    return Workload(**{field: defaults[name] for name, field in known.items() if name in defaults}, bytes=4)


def configurations_of(model: str | Path, revision: str | None = None) -> Path | None:
    """The folder with the configurations of a model; None for a model whose size and steps are known by name."""
    if isinstance(model, str) and model in weights.NAMES:
        return None
    if Path(model).is_dir():
        return Path(model)
    if model == weights.HUB["schnell"] and revision is None:
        return None
    return hub.download_configurations(str(model), revision=revision)


def size_of_model(model: str | Path, folder: Path | None) -> ModelSize:
    """The size of a model by its configurations, or by its name without them."""
    if folder is not None:
        return model_size_of(folder)
    family = family_of_model(str(model))
    if family is not None and not family.exclusive:
        return named_size(family.name)
    if model in ("pocket", "pocket-base"):
        return model_size_of(weights.POCKET / "base") if (weights.POCKET / "base").is_dir() else TINY
    return flux1_size()


def family_of_checkpoint(model: str | Path, folder: Path | None) -> Family:
    """The family of a model; a folder without a known class is of FLUX.1."""
    index = None if folder is None else folder / "model_index.json"
    if index is not None and index.is_file():
        return family_of_class(read_json(index).get("_class_name")) or FLUX1
    return family_of_model(str(model)) or FLUX1


def known_defaults(model: str | Path, folder: Path | None, family: Family) -> Mapping[str, Any]:
    """The defaults of a model with a name, also by its repository; of others those that its configurations give."""
    if name := name_of(str(model)):
        return MODELS[name].defaults
    if folder is None:
        return {}
    index, transformer, vae = (
        folder / "model_index.json",
        folder / "transformer/config.json",
        folder / "vae/config.json",
    )
    settings = {**(read_json(index) if index.is_file() else {}), "_name_or_path": str(model)}
    # What a family reads from a loaded pipeline.
    described = SimpleNamespace(
        config=SimpleNamespace(**settings),
        transformer=SimpleNamespace(config=SimpleNamespace(**read_json(transformer))),
        vae=SimpleNamespace(config=SimpleNamespace(**(read_json(vae) if vae.is_file() else {}))),
    )
    return family.configured(described)


def downloaded_gib(model: str | Path) -> float:
    """GiB of this model in the hub's cache."""
    from huggingface_hub import constants

    repo = weights.HUB.get(str(model), str(model)).replace("/", "--")
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo}" / "blobs"
    return sum(path.stat().st_size for path in blobs.glob("*") if path.is_file()) / GIB if blobs.is_dir() else 0.0
