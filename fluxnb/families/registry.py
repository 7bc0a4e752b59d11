"""The families that fluxnb loads and samples, and the models that have a name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fluxnb.families.family import Family, Model
from fluxnb.families.flux1 import FLUX1
from fluxnb.families.klein import KLEIN
from fluxnb.families.z_image import Z_IMAGE
from fluxnb.records import Pair

__all__ = ["FAMILIES", "MODELS", "family_of", "family_of_class", "family_of_model", "pair_of"]

FAMILIES = (FLUX1, KLEIN, Z_IMAGE)
MODELS: Mapping[str, Model] = {name: model for family in FAMILIES for name, model in family.models.items()}


def family_of(pipe: Any) -> Family | None:
    """The family of a pipeline; None for one that fluxnb records and does not sample."""
    return next((family for family in FAMILIES if family.owns(pipe)), None)


def family_of_class(name: object) -> Family | None:
    """The family of a pipeline class, by its name in a model_index.json."""
    return next((family for family in FAMILIES if name in family.pipelines), None)


def family_of_model(name: str) -> Family | None:
    """The family of a model, by its name or its repository on the hub."""
    for family in FAMILIES:
        if any(name in (known, model.repo) for known, model in family.models.items()):
            return family
    return None


def pair_of(model: str) -> Pair | None:
    """The pair that a model belongs to, by its name or its repository; None for a model without a public partner."""
    names = {name for name, each in MODELS.items() if model and model in (name, each.repo)}
    found = (pair for family in FAMILIES for pair in family.pairs if names & {pair.teacher, pair.student})
    return next(found, None)
