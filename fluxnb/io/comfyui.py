"""A recipe as a ComfyUI graph.

ComfyUI opens a PNG whose `prompt` chunk holds a graph in the API format. The graph is that of the official FLUX.1
templates: one loader each for the transformer, the two text encoders and the VAE, and one KSampler. It gives the same
composition but not the same bytes: the encoders round differently, and the levels of the "simple" schedule are rounded
to thousandths, which matters for step counts that do not divide 1000, such as 3.
"""

from __future__ import annotations

from typing import Any

from fluxnb.arguments import entry_point
from fluxnb.records.recipe import Recipe

__all__ = ["comfy_graph"]

# From the model of a recipe to the file name in the templates of ComfyUI and on the hub.
FILES = {
    "schnell": "flux1-schnell.safetensors",
    "dev": "flux1-dev.safetensors",
    "black-forest-labs/FLUX.1-schnell": "flux1-schnell.safetensors",
    "black-forest-labs/FLUX.1-dev": "flux1-dev.safetensors",
}


@entry_point("recipe")
def comfy_graph(recipe: Recipe) -> dict[str, Any] | None:
    """The graph in the API format, nodes by number; None for a recipe that ComfyUI cannot repeat.

    That is any model other than FLUX.1 schnell and dev, the sampler "renoise", own sigmas or an own shift, a negative
    prompt, a recipe without a size, and a prompt that names an embedding file.

    Example:
        >>> recipe = Recipe(prompt="a fox", seed=3, height=1024, width=1024, model="schnell")
        >>> comfy_graph(recipe)["31"]["inputs"]["seed"], comfy_graph(recipe.replace(model="pocket"))
        (3, None)
    """
    file = FILES.get(recipe.model or "")
    plain = recipe.sampler == "euler" and recipe.sigmas is None and recipe.shift is None
    if file is None or not plain or recipe.negative or not recipe.height or not recipe.width:
        return None
    if "embedding:" in recipe.prompt.lower():
        return None  # ComfyUI would load a file of that name; the syntax cannot be escaped
    graph = {
        "38": _node("UNETLoader", unet_name=file, weight_dtype="default"),
        "40": _node(
            "DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp16.safetensors", type="flux"
        ),
        "39": _node("VAELoader", vae_name="ae.safetensors"),
        "6": _node("CLIPTextEncode", text=_literal(recipe.prompt), clip=["40", 0]),
        "42": _node("ConditioningZeroOut", conditioning=["6", 0]),
        "27": _node("EmptySD3LatentImage", width=recipe.width, height=recipe.height, batch_size=1),
        "31": _node(
            "KSampler",
            seed=recipe.seed,
            steps=recipe.steps,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
            model=["38", 0],
            positive=["6", 0],
            negative=["42", 0],
            latent_image=["27", 0],
        ),
        "8": _node("VAEDecode", samples=["31", 0], vae=["39", 0]),
        "9": _node("SaveImage", filename_prefix="fluxnb", images=["8", 0]),
    }
    if "dev" in file:
        # The levels of dev are shifted by the size of the image, and its guidance is an input of the network.
        sizes = {"width": recipe.width, "height": recipe.height}
        graph["30"] = _node("ModelSamplingFlux", model=["38", 0], max_shift=1.15, base_shift=0.5, **sizes)
        graph["26"] = _node(
            "FluxGuidance", conditioning=["6", 0], guidance=3.5 if recipe.guidance is None else recipe.guidance
        )
        graph["31"]["inputs"].update(model=["30", 0], positive=["26", 0])
    return graph


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _literal(prompt: str) -> str:
    """The prompt with its brackets escaped, which ComfyUI would read as weights."""
    return prompt.replace("(", "\\(").replace(")", "\\)")
