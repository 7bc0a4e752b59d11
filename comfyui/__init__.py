"""Nodes of fluxnb for ComfyUI: pocket as a model, and every step of a FLUX.1 model as a film strip and a page.

Install fluxnb in the Python of ComfyUI and put this folder into `custom_nodes`.
"""

from __future__ import annotations

from .loader import FluxnbLoader
from .recipes import FluxnbRecipe
from .recorder import FluxnbFilm, FluxnbKSampler

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]

NODE_CLASS_MAPPINGS = {
    "FluxnbLoader": FluxnbLoader,
    "FluxnbKSampler": FluxnbKSampler,
    "FluxnbFilm": FluxnbFilm,
    "FluxnbRecipe": FluxnbRecipe,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "FluxnbLoader": "Load pocket (fluxnb)",
    "FluxnbKSampler": "KSampler that records (fluxnb)",
    "FluxnbFilm": "Film strip (fluxnb)",
    "FluxnbRecipe": "Recipe of a picture (fluxnb)",
}
