"""The families that fluxnb loads and samples, and the models that have a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fluxnb.families.family import Family, Model
from fluxnb.families.flux1 import FLUX1
from fluxnb.families.klein import KLEIN
from fluxnb.families.z_image import Z_IMAGE
from fluxnb.records import Pair

__all__ = ["FAMILIES", "MODELS", "family_of", "family_of_class", "family_of_model", "name_of", "pair_of"]

FAMILIES = (FLUX1, KLEIN, Z_IMAGE)
MODELS: Mapping[str, Model] = {name: model for family in FAMILIES for name, model in family.models.items()}


def family_of(pipe: Any) -> Family | None:
    """The family of a pipeline; None for one that fluxnb records and does not sample."""
    return next((family for family in FAMILIES if family.owns(pipe)), None)


def family_of_class(name: object) -> Family | None:
    """The family of a pipeline class, by its name in a model_index.json."""
    return next((family for family in FAMILIES if name in family.pipelines), None)


def name_of(model: str) -> str:
    """The name of a model that is given by its name, its repository, or a folder with the repository's name.

    Returns:
        "" for another model.

    Example:
        >>> name_of("Tongyi-MAI/Z-Image-Turbo"), name_of("FLUX.1-schnell"), name_of("a-model")
        ('z-image-turbo', 'schnell', '')
    """
    found = (
        name for name, known in MODELS.items() if model and model in (name, known.repo, known.repo.rpartition("/")[2])
    )
    return next(found, "")


def family_of_model(model: str) -> Family | None:
    """The family of a model that has a name, see `name_of`."""
    name = name_of(model)
    return next((family for family in FAMILIES if name in family.models), None)


def pair_of(model: str) -> Pair | None:
    """The pair of a model that has a name, see `name_of`; None for a model without a public partner."""
    name = name_of(model)
    found = (pair for family in FAMILIES for pair in family.pairs if name in (pair.teacher, pair.student))
    return next(found, None)
