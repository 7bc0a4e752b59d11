"""Default size, steps, guidance and text length per model.

They come from the name of the model, from its card, or from the configuration of the pipeline, in this order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten, unknown_choice
from fluxnb.families.registry import MODELS, family_of, name_of, pair_of
from fluxnb.records.recipe import Recipe, ResolvedRecipe

__all__ = ["DefaultChanges", "ModelDefaults", "defaults_of"]

GUIDANCE = ("none", "true_cfg", "embedded")


class DefaultChanges(TypedDict, total=False):
    """The fields of ModelDefaults as keyword arguments, of which any may be left out."""

    size: int
    steps: int
    guidance_kind: str
    guidance: float | None
    max_sequence_length: int


@entry_point()
@dataclass(frozen=True, kw_only=True)
class ModelDefaults:
    """The defaults of one model.

    Arguments:
        size: height and width in pixels.
        steps: the number of steps that the model is trained for.
        guidance_kind: "none"; "true_cfg", two evaluations per step, one with the negative prompt; or "embedded", a
            number that the network takes as an input, as FLUX.1-dev does.
        guidance: strength, None for "none".
        max_sequence_length: tokens that the text encoder reads.

    Raises:
        InputError: a value that a recipe cannot have, or guidance without a strength.

    Example:
        >>> defaults = ModelDefaults(size=128, guidance_kind="true_cfg", guidance=1.5)
        >>> recipe = defaults.resolve(Recipe(prompt="a fox"), model="toy", revision="1", dtype="float32")
        >>> recipe.height, recipe.guidance, recipe.negative
        (128, 1.5, '')
    """

    size: int = 1024
    steps: int = 4
    guidance_kind: str = "none"
    guidance: float | None = None
    max_sequence_length: int = 256

    def __post_init__(self) -> None:
        if self.guidance_kind not in GUIDANCE:
            raise unknown_choice("guidance_kind", self.guidance_kind, GUIDANCE)
        if self.guidance_kind != "none" and self.guidance is None:
            raise InputError(
                f"guidance_kind={self.guidance_kind!r} without guidance",
                "it has a default strength",
                "try guidance=3.5",
            )
        # The values may come from a card, which is a file and not trusted; a recipe checks them.
        Recipe(
            prompt="-",
            steps=self.steps,
            height=self.size,
            guidance=self.guidance,
            max_sequence_length=self.max_sequence_length,
        )

    def resolve(self, recipe: Recipe, *, model: str, revision: str, dtype: str) -> ResolvedRecipe:
        """Fill in the defaults of this model.

        Arguments:
            recipe: values for guidance, the negative prompt and the text length are dropped if it was made for another
                model.
            model, revision, dtype: of the loaded pipeline; they replace those of the recipe.

        Raises:
            InputError: guidance or a negative prompt for a model that takes none.
        """
        if recipe.model is not None and recipe.model != model:
            recipe = recipe.replace(guidance=None, negative=None, max_sequence_length=None)
        guidance, negative = recipe.guidance, recipe.negative
        if self.guidance_kind == "none" and guidance:
            raise InputError(
                f"guidance={guidance:g}",
                f"{model} takes none{', since it is distilled' if _is_distilled(model) else ' by default'}",
                _without("guidance", model, guidance),
            )
        if self.guidance_kind != "true_cfg" and negative:
            raise InputError(
                f"negative={shorten(negative)}", f"{model} takes no negative prompt", _without("negative", model)
            )
        if self.guidance_kind == "none":
            guidance = None
        elif guidance is None:
            guidance = self.guidance
        return ResolvedRecipe(
            prompt=recipe.prompt,
            negative=(negative or "") if self.guidance_kind == "true_cfg" else None,
            seed=recipe.seed,
            steps=recipe.steps,
            height=recipe.height or self.size,
            width=recipe.width or self.size,
            guidance=guidance,
            sampler=recipe.sampler,
            sigmas=recipe.sigmas,
            shift=recipe.shift,
            max_sequence_length=recipe.max_sequence_length or self.max_sequence_length,
            model=model,
            revision=revision,
            dtype=dtype,
        )


def _is_distilled(model: str) -> bool:
    """Whether a model with a name takes no guidance."""
    name = name_of(model)
    return bool(name) and "guidance" not in MODELS[name].defaults


def _without(name: str, model: str, guidance: float = 3.5) -> str:
    """What to do where a model takes no guidance: true CFG needs a model without distillation."""
    if _is_distilled(model):
        pair = pair_of(model)
        return f"leave {name} out, or use {pair.teacher if pair else 'pocket-base'}"
    true_cfg = f'flux = flux.with_defaults(guidance_kind="true_cfg", guidance={guidance:g})'
    return f"leave {name} out, or for a model without distillation type {true_cfg}"


DEFAULTS: Mapping[str, Mapping[str, Any]] = {name: model.defaults for name, model in MODELS.items()}


def defaults_of(pipe: Any, name: str = "", card: Mapping[str, Any] | None = None) -> ModelDefaults:
    """The defaults of a loaded pipeline.

    Arguments:
        pipe: a pipeline of a family that fluxnb samples.
        name: of the model, such as "schnell".
        card: the content of its card.json, whose "defaults" are used where the name has none.
    """
    if name in DEFAULTS:
        return ModelDefaults(**DEFAULTS[name])
    family = family_of(pipe)
    values = {} if family is None else family.configured(pipe)
    on_card = (card or {}).get("defaults", {})
    if isinstance(on_card, Mapping):
        on_card = on_card.get(name, on_card)  # one card may hold the defaults of several models, by name
    if isinstance(on_card, Mapping):
        known = {field.name for field in dataclasses.fields(ModelDefaults)}
        values.update({key: value for key, value in on_card.items() if key in known})
    return ModelDefaults(**values)
