"""FluxnbRecipe: the values of a recipe as inputs for other nodes."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import folder_paths

import fluxnb as fnb
from fluxnb.io.comfyui import escaped

__all__ = ["FluxnbRecipe"]


class FluxnbRecipe:
    """The recipe of a picture in the input folder, or of a JSON text."""

    CATEGORY = "fluxnb"
    FUNCTION = "read"
    RETURN_TYPES = ("STRING", "INT", "INT", "INT", "INT", "FLOAT")
    RETURN_NAMES = ("prompt", "seed", "steps", "width", "height", "guidance")
    DESCRIPTION = (
        "Reads the recipe of a picture of fluxnb, ComfyUI, A1111, Forge, SwarmUI, InvokeAI or mflux: the name of a "
        "file in the input folder, or the JSON text of a recipe."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """One text."""
        return {"required": {"recipe": ("STRING", {"multiline": True, "dynamicPrompts": False})}}

    @classmethod
    def IS_CHANGED(cls, recipe: str | None) -> str | float:
        """A digest of the file, so that a changed file is read again; NaN for a linked text, read each time."""
        if recipe is None:
            return float("nan")
        path = None if recipe.lstrip().startswith("{") else _input_file(recipe)
        return hashlib.sha256(path.read_bytes() if path else recipe.encode()).hexdigest()

    def read(self, recipe: str) -> tuple[str, int, int, int, int, float]:
        """Prompt, seed, steps, width, height and guidance; 1024 pixels and guidance 1 where the recipe has none.

        Raises:
            ValueError: no recipe, or a file outside of the input folder.
        """
        source: Any = recipe.encode() if recipe.lstrip().startswith("{") else _input_file(recipe)
        if source is None:
            raise ValueError(f"fluxnb: {recipe[:60]!r} is no file of the input folder. Upload the picture first.")
        read = fnb.import_recipe(source)
        for sentence in read.differs:
            logging.info("fluxnb: %s", sentence)
        found = read.recipe
        guidance = 1.0 if found.guidance is None else found.guidance
        return escaped(found.prompt), found.seed, found.steps, found.width or 1024, found.height or 1024, guidance


def _input_file(name: str) -> Path | None:
    """A file of the input folder; None for any other path."""
    folder = Path(folder_paths.get_input_directory()).resolve()
    try:
        path = (folder / name.strip()).resolve()
        return path if path.is_relative_to(folder) and path.is_file() else None
    except (OSError, ValueError):  # a name that no file can have
        return None
