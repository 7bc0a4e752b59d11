"""A recipe as ComfyUI's graph, for the recipes that ComfyUI can follow.

ComfyUI opens a picture that carries its graph in the `prompt` chunk, in the form that its server takes. The graph is
that of the official FLUX.1 templates: a loader each for the transformer, the two encoders and the VAE, one KSampler.
The picture it makes has the same composition and not the same bytes: its encoders round differently, and its "simple"
levels are rounded to thousandths where the step count does not divide 1000 (3 steps, say).
"""

from __future__ import annotations

from typing import Any

from fluxnb.records.recipe import Recipe

__all__ = ["comfy_graph"]

# As they are named in recipes, and the file that ComfyUI's templates and the hub call it by.
FILES = {
    "schnell": "flux1-schnell.safetensors",
    "dev": "flux1-dev.safetensors",
    "black-forest-labs/FLUX.1-schnell": "flux1-schnell.safetensors",
    "black-forest-labs/FLUX.1-dev": "flux1-dev.safetensors",
}


def comfy_graph(recipe: Recipe) -> dict[str, Any] | None:
    """The graph in API form, nodes by number; None where ComfyUI has no such thing.

    It has none for models other than FLUX.1's own (a tiny one is refused by its loader), for "renoise", own sigmas or
    an own shift, and for a prompt that names an embedding file.

    Example:
        >>> asked = Recipe(prompt="a fox", seed=3, height=1024, width=1024, model="schnell")
        >>> comfy_graph(asked)["31"]["inputs"]["seed"], comfy_graph(asked.replace(model="pocket"))
        (3, None)
    """
    file = FILES.get(recipe.model or "")
    plain = recipe.sampler == "euler" and recipe.sigmas is None and recipe.shift is None
    if file is None or not plain or recipe.negative or not recipe.height or not recipe.width:
        return None
    if "embedding:" in recipe.prompt.lower():
        return None  # there it is the name of a file, and nothing escapes it
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
        # dev's levels are shifted by the picture's size, and its guidance is a number that the network reads.
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
    """Brackets are weights there, unless a backslash stands before them."""
    return prompt.replace("(", "\\(").replace(")", "\\)")
