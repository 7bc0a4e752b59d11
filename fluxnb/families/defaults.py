"""What a model is used with when nothing is said: size, steps, guidance, text length.

A profile comes from the model's own card, or by name, or is read off the pipeline's configuration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxnb.errors import InputError, shorten, unknown_choice, validates_own_input
from fluxnb.records.recipe import Recipe, ResolvedRecipe

__all__ = ["ModelDefaults", "defaults_of"]

GUIDANCE = ("none", "true_cfg", "embedded")


@validates_own_input
@dataclass(frozen=True, kw_only=True)
class ModelDefaults:
    """The defaults of one model.

    Arguments:
        size: default height and width in pixels.
        steps: what the model is made for.
        guidance_kind: "none"; "true_cfg", two evaluations a step, one with the negative prompt; or "embedded", a
            number given to the network, as FLUX.1-dev takes it.
        guidance: its default strength, None for "none".
        max_sequence_length: T5 tokens.
    """

    size: int = 1024
    steps: int = 4
    guidance_kind: str = "none"
    guidance: float | None = None
    max_sequence_length: int = 256

    def __post_init__(self) -> None:
        if self.guidance_kind not in GUIDANCE:
            raise unknown_choice("guidance_kind", self.guidance_kind, GUIDANCE)
        # A recipe's checks are the checks here too; a card is a file, and files are not trusted.
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
                f"{model} is distilled and takes none",
                "leave guidance out, or use pocket-base",
            )
        if self.guidance_kind != "true_cfg" and negative:
            raise InputError(
                f"negative={shorten(negative)}", f"{model} does not look at a negative prompt", "leave negative out"
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


# guidance 3.5 and 512 tokens are FLUX.1-dev's own defaults, 256 tokens schnell's (black-forest-labs/flux).
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "pocket": {"size": 128, "steps": 4, "max_sequence_length": 48},
    "pocket-base": {
        "size": 128,
        "steps": 28,
        "guidance_kind": "true_cfg",
        "guidance": 1.5,
        "max_sequence_length": 48,
    },
    "schnell": {},
    "dev": {"steps": 28, "guidance_kind": "embedded", "guidance": 3.5, "max_sequence_length": 512},
}


def defaults_of(pipe: Any, name: str = "", card: Mapping[str, Any] | None = None) -> ModelDefaults:
    """The profile of a loaded pipeline: from its card, else by its name, else from its configuration."""
    values: dict[str, Any] = dict(DEFAULTS.get(name) or _read_off(pipe))
    stated = (card or {}).get("defaults", {})
    if isinstance(stated, Mapping):
        stated = stated.get(name, stated)  # one card may speak for several models
    if isinstance(stated, Mapping):
        known = {field.name for field in dataclasses.fields(ModelDefaults)}
        values.update({key: value for key, value in stated.items() if key in known})
    return ModelDefaults(**values)


def _read_off(pipe: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if getattr(pipe.transformer.config, "guidance_embeds", False):
        values.update(DEFAULTS["dev"])
    sample = getattr(pipe.vae.config, "sample_size", None)
    if isinstance(sample, int) and 64 <= sample <= 2048 and sample % 16 == 0:
        values["size"] = sample
    # A tokenizer without a limit says 1e30; FLUX's own says 512.
    limit = getattr(pipe.tokenizer_2, "model_max_length", None)
    if isinstance(limit, int) and 0 < limit < values.get("max_sequence_length", 256):
        values["max_sequence_length"] = limit
    return values
