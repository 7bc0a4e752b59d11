"""A recipe as a ComfyUI graph.

ComfyUI opens a PNG whose `prompt` chunk holds a graph in the API format. For FLUX.1 the graph is that of the official
templates: one loader each for the transformer, the two text encoders and the VAE, and one KSampler. For pocket it
starts with the loader of the node pack in `comfyui/`, which ComfyUI needs to run it.

A seed gives the same noise in both programs (`tests/comfyui/test_server.py`); in bfloat16 and float16 this depends on
the version of PyTorch, see `draws_other_noise`. The noise levels agree to 1e-7 for step counts that divide 1000. Other
counts differ more, because ComfyUI rounds levels to thousandths: 3 steps by 7e-4 (`tests/io/test_comfy_levels.py`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten
from fluxnb.io.packaged import packaged_defaults
from fluxnb.records.recipe import Recipe

__all__ = [
    "MODELS",
    "ComfyModel",
    "comfy_workflow",
    "draws_other_noise",
    "escaped",
    "estimated_tokens",
    "workflow_or_none",
]


@dataclass(frozen=True)
class ComfyModel:
    """What ComfyUI needs for a model, and the values of a recipe that leaves them out."""

    file: str  # of FLUX.1, as in the templates of ComfyUI and on the hub; empty for pocket
    tokens: int
    guidance: float | None = None
    guided_by: str = ""  # "embedded": an input of the network; "true_cfg": two evaluations a step


def _packaged(name: str) -> ComfyModel:
    defaults = packaged_defaults(name)
    kind = defaults.get("guidance_kind", "none")
    tokens, guidance = defaults.get("max_sequence_length", TEMPLATE_TOKENS), defaults.get("guidance")
    return ComfyModel("", tokens, guidance, "" if kind == "none" else kind)


TEMPLATE_TOKENS = 256  # to which ComfyUI pads T5's tokens
_SCHNELL = ComfyModel("flux1-schnell.safetensors", 256)
_DEV = ComfyModel("flux1-dev.safetensors", 512, 3.5, "embedded")
MODELS: Mapping[str, ComfyModel] = {
    "schnell": _SCHNELL,
    "dev": _DEV,
    "black-forest-labs/FLUX.1-schnell": _SCHNELL,
    "black-forest-labs/FLUX.1-dev": _DEV,
    "pocket": _packaged("pocket"),
    "pocket-base": _packaged("pocket-base"),
}
SAFE_INTEGER = 2**53  # JavaScript rounds integers from here on
# What the browser changes in a prompt: comments are removed, {a|b} is replaced by one choice, line ends are normalized
# and a backslash takes the next character with it.
CHANGED_TEXT = re.compile(r"[{}|\r]|//|/\*|\\\Z")
SCRIPTED = "type fnb.comfy_workflow(recipe, browser=False) for a graph that a script posts to ComfyUI"


@entry_point("recipe", browser="browser=False")
def comfy_workflow(recipe: Recipe, *, browser: bool = True) -> dict[str, Any]:
    """A recipe as a ComfyUI graph in the API format, nodes by number.

    ComfyUI draws the same picture from it. Measured with pocket in ComfyUI 0.3.64 on a CPU, for ten seeds and up to 4
    steps (`tests/comfyui/test_server.py`): in float32 the final latents agree to 2e-4 and pixels to one level; in
    bfloat16 they agree to 42 dB in the median, nearly as closely as bfloat16 agrees with float32. For FLUX.1 the graph,
    the noise and its levels are the same, and the text encoders round differently; its pictures were not compared. With
    a PyTorch that draws other noise in 16 bits, as 2.11 does, a picture of a 16-bit model is another one in ComfyUI.

    The API format does not hold what a seed does after a run; in the browser, set "control after generate" to "fixed".
    ComfyUI chooses the number format of the weights itself.

    Arguments:
        recipe: of FLUX.1 schnell or dev, or of pocket with the sampler "euler". pocket needs the node pack of fluxnb.
        browser: whether the graph is opened in ComfyUI's browser window, which removes comments, expands {a|b}, and
            rounds seeds from 2**53 and guidance. False for a graph that a script posts to the server.

    Raises:
        InputError: a recipe that a graph cannot hold: another model, own sigmas, a sampler but "euler", a negative
            prompt for FLUX.1, a prompt that names an embedding file or is longer than the encoder reads, weights
            that were changed after loading, such as by an adapter; and with `browser` what it changes.

    Example:
        >>> recipe = Recipe(prompt="a fox", seed=3, height=1024, width=1024, model="schnell")
        >>> comfy_workflow(recipe)["31"]["inputs"]["seed"]
        3
        >>> comfy_workflow(recipe.replace(prompt="a {red|blue} fox"))
        Traceback (most recent call last):
        fluxnb.errors.InputError: prompt='a {red|blue} fox': the browser changes '{'. Type fnb.comfy_workflow(recipe, \
browser=False) for a graph that a script posts to ComfyUI.
    """
    model = _model(recipe)
    _require_no_own_schedule(recipe)
    _require_supported_guidance(recipe, model)
    _require_text("prompt", recipe.prompt, browser=browser)
    _require_text("negative", recipe.negative or "", browser=browser)
    if model.file and estimated_tokens(recipe.prompt) > (recipe.max_sequence_length or model.tokens):
        raise InputError(
            f"a prompt of about {estimated_tokens(recipe.prompt)} tokens",
            f"the recipe cuts it at {recipe.max_sequence_length or model.tokens}, and ComfyUI does not",
            "shorten the prompt",
        )
    if browser:
        _require_unrounded(recipe)
    return _graph(recipe, model)


def workflow_or_none(recipe: Recipe) -> dict[str, Any] | None:
    """The graph for the browser; None for a recipe that has none."""
    try:
        return comfy_workflow(recipe)
    except InputError:
        return None


@functools.cache
def draws_other_noise() -> bool:
    """Whether this PyTorch draws other noise in 16 bits than in 32, where ComfyUI draws it.

    PyTorch 2.11 computes normal numbers of a CPU in the number format of the tensor, 2.13 in float32
    (github.com/pytorch/pytorch/issues/166853).
    """
    in_32_bits, in_16_bits = (
        torch.randn(64, dtype=dtype, generator=torch.Generator().manual_seed(0))
        for dtype in (torch.float32, torch.bfloat16)
    )
    return not torch.equal(in_32_bits.bfloat16(), in_16_bits)


def estimated_tokens(prompt: str) -> int:
    """An estimate of the number of T5's tokens, without its vocabulary; it is high for English text.

    Example:
        >>> estimated_tokens("a fox in the snow")
        8
    """
    pieces = re.findall(r"[A-Za-z]+|[0-9]+|[^\sA-Za-z0-9]", prompt)
    return 1 + sum(2 if len(piece) == 1 and not piece.isdigit() else -(-len(piece) // 3) for piece in pieces)


# --------------------------------------------------------------------------------------------------------------- checks
def _model(recipe: Recipe) -> ComfyModel:
    model = MODELS.get(recipe.model or "")
    if model is None:
        raise InputError(
            f"model={shorten(recipe.model)}", f"graphs are written for {', '.join(MODELS)}", 'try model="schnell"'
        )
    if not recipe.height or not recipe.width:
        raise InputError("a recipe without a size", "a graph has one", "try recipe.replace(height=1024, width=1024)")
    if "+" in (recipe.revision or ""):
        raise InputError(
            f"revision={shorten(recipe.revision)}",
            "the model was changed after loading, such as by an adapter, and a graph names the original file",
            "load the model again without the adapter",
        )
    return model


def _require_no_own_schedule(recipe: Recipe) -> None:
    if recipe.sampler != "euler":
        raise InputError(f"sampler={recipe.sampler!r}", "a graph samples with Euler", 'try sampler="euler"')
    if recipe.sigmas is not None:
        raise InputError(f"sigmas={shorten(recipe.sigmas)}", "no node holds own noise levels", "leave sigmas out")


def _require_supported_guidance(recipe: Recipe, model: ComfyModel) -> None:
    if recipe.negative and model.guided_by != "true_cfg":
        raise InputError(
            f"negative={shorten(recipe.negative)}", f"{recipe.model} takes no negative prompt", "leave negative out"
        )
    if recipe.guidance and not model.guided_by:
        raise InputError(f"guidance={recipe.guidance:g}", f"{recipe.model} takes none", "leave guidance out")


def _require_text(name: str, text: str, *, browser: bool) -> None:
    given = f"{name}={shorten(text)}"
    if "embedding:" in text.lower():
        raise InputError(given, "ComfyUI loads a file for what follows 'embedding:'", "write it without the colon")
    if "\0" in text:
        raise InputError(given, "ComfyUI uses the null character as a mark", "remove it")
    if browser and (changed := CHANGED_TEXT.search(text)):
        raise InputError(given, f"the browser changes {changed[0]!r}", SCRIPTED)


def _require_unrounded(recipe: Recipe) -> None:
    if recipe.seed >= SAFE_INTEGER:
        raise InputError(f"seed={recipe.seed}", "the browser rounds seeds from 2**53", SCRIPTED)
    for name, decimals in (("guidance", 1), ("shift", 2)):
        value = getattr(recipe, name)
        if value is not None and value != round(value, decimals):
            raise InputError(f"{name}={value:g}", f"the browser rounds it to {round(value, decimals):g}", SCRIPTED)


# ---------------------------------------------------------------------------------------------------------------- nodes
def _graph(recipe: Recipe, model: ComfyModel) -> dict[str, Any]:
    guidance = model.guidance if recipe.guidance is None else recipe.guidance
    graph, links = _loaders(recipe, model)
    positive = ["6", 0]
    graph["6"] = _node("CLIPTextEncode", text=escaped(recipe.prompt), clip=links["clip"])
    if model.guided_by == "true_cfg":
        graph["42"] = _node("CLIPTextEncode", text=escaped(recipe.negative or ""), clip=links["clip"])
    else:
        graph["42"] = _node("ConditioningZeroOut", conditioning=["6", 0])
    if model.guided_by == "embedded":
        graph["26"] = _node("FluxGuidance", conditioning=["6", 0], guidance=guidance)
        positive = ["26", 0]
    graph["27"] = _node("EmptySD3LatentImage", width=recipe.width, height=recipe.height, batch_size=1)
    graph["31"] = _node(
        "KSampler",
        seed=recipe.seed,
        steps=recipe.steps,
        cfg=guidance if model.guided_by == "true_cfg" else 1.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
        model=links["model"],
        positive=positive,
        negative=["42", 0],
        latent_image=["27", 0],
    )
    graph["8"] = _node("VAEDecode", samples=["31", 0], vae=links["vae"])
    graph["9"] = _node("SaveImage", filename_prefix="fluxnb", images=["8", 0])
    return graph


def _loaders(recipe: Recipe, model: ComfyModel) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """The nodes that load the model and set its schedule and text length, and the links to them."""
    graph: dict[str, Any] = {}
    tokens = recipe.max_sequence_length or model.tokens
    if model.file:
        graph["38"] = _node("UNETLoader", unet_name=model.file, weight_dtype="default")
        graph["40"] = _node(
            "DualCLIPLoader", clip_name1="clip_l.safetensors", clip_name2="t5xxl_fp16.safetensors", type="flux"
        )
        graph["39"] = _node("VAELoader", vae_name="ae.safetensors")
        links: dict[str, list[Any]] = {"model": ["38", 0], "clip": ["40", 0], "vae": ["39", 0]}
        if tokens != TEMPLATE_TOKENS:
            graph["41"] = _node("T5TokenizerOptions", clip=["40", 0], min_padding=0, min_length=tokens)
            links["clip"] = ["41", 0]
    else:
        options = {"dtype": recipe.dtype or "float32", "revision": recipe.revision or ""}
        graph["38"] = _node("FluxnbLoader", model_name=recipe.model, max_sequence_length=tokens, **options)
        links = {"model": ["38", 0], "clip": ["38", 1], "vae": ["38", 2]}
    if recipe.shift is not None:
        graph["30"] = _node("ModelSamplingAuraFlow", model=links["model"], shift=recipe.shift)
        links["model"] = ["30", 0]
    elif model.guided_by == "embedded":  # the levels of dev are shifted by the size of the picture
        size = {"width": recipe.width, "height": recipe.height}
        graph["30"] = _node("ModelSamplingFlux", model=links["model"], max_shift=1.15, base_shift=0.5, **size)
        links["model"] = ["30", 0]
    return graph, links


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def escaped(prompt: str) -> str:
    """The prompt with its brackets escaped, which ComfyUI would read as weights."""
    return prompt.replace("(", "\\(").replace(")", "\\)")
