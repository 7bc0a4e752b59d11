"""Recipes as the `parameters` text of A1111 and Forge, which many image browsers display."""

from __future__ import annotations

import json
import re

from fluxnb.records.recipe import Recipe

__all__ = ["parameters"]

# Syntax of A1111 that cannot be escaped: a line of its own for the negative prompt, extra networks, keywords.
UNESCAPABLE = re.compile(r"^\s*Negative prompt:|\r|<\w+:[^>]*>|\bAND\b|\bBREAK\b", re.MULTILINE)


def parameters(recipe: Recipe, numerics: str = "exact") -> str | None:
    """The recipe as prompt, negative prompt, and a line with every other field that has a value.

    Brackets of the prompt are escaped, which would be weights. None for a prompt that A1111 would parse differently.

    Example:
        >>> parameters(Recipe(prompt="a fox", seed=3, model="pocket")).splitlines()[1]
        'Steps: 4, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 3, Model: pocket, Version: fluxnb'
    """
    if any(UNESCAPABLE.search(text) for text in (recipe.prompt, recipe.negative or "")):
        return None
    embedded = recipe.guidance is not None and (recipe.model or "").endswith("dev")
    cfg = recipe.guidance if recipe.guidance and not embedded else 1.0
    settings = {
        "Steps": recipe.steps,
        "Sampler": "Euler" if recipe.sampler == "euler" else recipe.sampler.capitalize(),
        # "Simple" is the even schedule; own sigmas or an own shift have no name there.
        "Schedule type": "Simple" if recipe.sigmas is None and recipe.shift is None else None,
        "Sigmas": None if recipe.sigmas is None else ", ".join(map(_number, recipe.sigmas)),
        "Shift": None if recipe.shift is None else _number(recipe.shift),
        "CFG scale": _number(cfg),
        "Distilled CFG Scale": _number(recipe.guidance) if embedded and recipe.guidance is not None else None,
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}" if recipe.width and recipe.height else None,
        "T5 tokens": recipe.max_sequence_length,
        "Model": recipe.model,
        "Revision": recipe.revision,
        "Precision": recipe.dtype,
        "Numerics": None if numerics == "exact" else numerics,
        "Version": "fluxnb",
    }
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value is not None)
    negative = [f"Negative prompt: {_escaped(recipe.negative)}"] if recipe.negative else []
    return "\n".join([_escaped(recipe.prompt), *negative, line])


def _number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _quoted(value: str) -> str:
    """A value in quotes if it contains a separator, as readers of `parameters` expect."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value


def _escaped(text: str) -> str:
    return re.sub(r"([\\()\[\]])", r"\\\1", text)
