"""Metadata of A1111, Forge, SwarmUI, InvokeAI, mflux and Black Forest Labs' own code as recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from fluxnb.io.comfy_levels import SCHEDULERS, Table, levels
from fluxnb.io.comfyui import MODELS
from fluxnb.io.containers import DESCRIPTION, MODEL, Contents
from fluxnb.io.imported import Imported, imported, quoted, refusal
from fluxnb.io.model_files import has_fewer_bits, known_model
from fluxnb.io.weighted_text import without_weights
from fluxnb.records.recipe import LONGEST_TEXT, MOST_STEPS, SAMPLERS

__all__ = ["read_a1111", "read_bfl", "read_invokeai", "read_mflux", "read_swarmui"]

LONGEST_SETTINGS = 20_000
MOST_SETTINGS = 300
BATCHED = "The noise of the picture was not compared with fluxnb's."


# -------------------------------------------------------------------------------------------------------- A1111, Forge
# Settings of A1111 that a recipe holds or that change nothing.
A1111_KNOWN = {
    "Steps", "Sampler", "Schedule type", "Sigmas", "Shift", "CFG scale", "Distilled CFG Scale", "Seed", "Size",
    "T5 tokens", "Model", "Revision", "Precision", "Version", "RNG", "Model hash", "VAE hash", "VAE", "Numerics",
    "Module 1", "Module 2", "Module 3", "Beta schedule alpha", "Beta schedule beta", "User", "Hashes", "TI hashes",
    "Clip skip", "Diffusion in Low Bits", "Eta", "Emphasis",
}  # fmt: skip


def read_a1111(text: str) -> Imported:
    """The recipe of a `parameters` text: prompt, negative prompt, and a line of settings.

    Raises:
        InputError: settings that a recipe cannot repeat.
    """
    if len(text) > 3 * LONGEST_TEXT:
        raise refusal(f"a parameters text of {len(text)} characters", f"at most {3 * LONGEST_TEXT} are read")
    lines = text.rstrip().split("\n")
    settings = _settings(lines[-1])
    if len(settings) < 3 or "Steps" not in settings:
        raise refusal("a parameters text without settings", "its last line has Steps, Sampler and Seed")
    start = next(
        (i for i, line in enumerate(lines[:-1]) if line.strip().startswith("Negative prompt:")), len(lines) - 1
    )
    prompt = "\n".join(lines[:start])
    negative = "\n".join(lines[start:-1]).lstrip().removeprefix("Negative prompt:").removeprefix(" ")
    ours, forge = settings.get("Version") == "fluxnb", settings.get("Version", "").startswith("f")
    source = "fluxnb" if ours else "forge" if forge else "a1111"
    differs: list[str] = []
    _require_plain_text(source, prompt)
    for name in ("Denoising strength", "Hires upscale", "Hires steps", "Lora hashes", "Mask blur"):
        if name in settings:
            raise refusal(f"{name}: {settings[name]}", f"a recipe of {source} cannot repeat it")
    prompt, weights = without_weights(prompt, brackets="()[]")
    negative = without_weights(negative, brackets="()[]")[0]
    differs += [f"Parts of the prompt are weighted: {', '.join(map(quoted, weights[:3]))}."] if weights else []
    model = _model(source, settings.get("Model", ""), differs, exact=ours)
    fields: dict[str, Any] = {"prompt": prompt, "model": model, "seed": _whole(source, "Seed", settings.get("Seed"))}
    fields["width"], fields["height"] = _size(source, settings)
    fields |= _a1111_schedule(source, settings, differs, model)
    fields |= _a1111_guidance(source, settings, model, negative)
    fields["max_sequence_length"] = _optional(settings.get("T5 tokens"), int)
    if ours:
        fields |= {"revision": settings.get("Revision"), "dtype": settings.get("Precision")}
        differs += [f"Numerics: {settings['Numerics']}."] if "Numerics" in settings else []
    else:
        differs.append(BATCHED if settings.get("RNG") == "CPU" else "Its noise was not drawn on the CPU.")
        differs += [f"Weights in fewer bits: {settings['Diffusion in Low Bits']}."
                    if settings.get("Diffusion in Low Bits", "Automatic") != "Automatic" else ""]  # fmt: skip
        differs += [f"{name}: {quoted(settings[name])} is no field of a recipe." for name in settings
                    if name not in A1111_KNOWN]  # fmt: skip
    return imported(source, fields, filter(None, differs))


def _settings(line: str) -> dict[str, str]:
    """The settings of a line `name: value, name: value`, where a value may be quoted."""
    found: dict[str, str] = {}
    place = 0
    line = line[:LONGEST_SETTINGS]
    while place < len(line) and len(found) < MOST_SETTINGS:
        colon = line.find(":", place)
        if colon < 0:
            break
        name = line[place:colon].strip()
        rest = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|\Z)').match(line, colon + 1)
        if rest is None:
            break
        value = rest[1].strip()
        if value[:1] == '"':
            try:
                value = str(json.loads(value))
            except ValueError:
                value = value.strip('"')
        found.setdefault(name, value)
        place = rest.end()
    return found


def _a1111_schedule(source: str, settings: Mapping[str, str], differs: list[str], model: str) -> dict[str, Any]:
    steps = _whole(source, "Steps", settings.get("Steps"))
    sampler = settings.get("Sampler", "Euler")
    if sampler.lower() not in (SAMPLERS if source == "fluxnb" else ("euler",)):
        raise refusal(f"Sampler: {sampler}", "a recipe samples with Euler", "make a picture with Euler")
    schedule = settings.get("Schedule type", "Simple").lower().replace(" ", "_")
    fields: dict[str, Any] = {
        "steps": steps,
        "sampler": sampler.lower(),
        "shift": _optional(settings.get("Shift"), float),
    }
    if "Sigmas" in settings:
        fields["sigmas"] = tuple(_optional(each, float) for each in settings["Sigmas"].split(",")[: MOST_STEPS + 1])
    if source != "fluxnb":
        differs.append(f"The noise levels of {source} were not compared with fluxnb's.")
        if schedule not in ("simple", "automatic"):
            fields |= _levels_by_name(source, schedule, steps, model)
    return fields


def _levels_by_name(source: str, name: str, steps: int, model: str) -> dict[str, Any]:
    """The levels of a scheduler that has the name of one of ComfyUI's."""
    if name not in SCHEDULERS or not 1 <= steps <= MOST_STEPS:
        raise refusal(f"the schedule {quoted(name)} of {source}", f"known are {', '.join(SCHEDULERS)}")
    try:
        found = levels(name, steps, Table(1000, 1.0) if model != "dev" else Table(10_000, 1.0))
    except ZeroDivisionError:
        raise refusal(f"the schedule {name} with {steps} step", "it needs more steps") from None
    return {"sigmas": tuple(found), "steps": len(found)}


def _a1111_guidance(source: str, settings: Mapping[str, str], model: str, negative: str) -> dict[str, Any]:
    cfg = _optional(settings.get("CFG scale"), float)
    embedded = _optional(settings.get("Distilled CFG Scale"), float)
    known = MODELS.get(model)
    if source == "fluxnb":
        guidance = embedded if embedded is not None else (None if cfg == 1 and known and not known.guided_by else cfg)
        return {"guidance": guidance, "negative": negative or None}
    _require_no_cfg(source, model, cfg)
    return {"guidance": embedded if known and known.guided_by == "embedded" else None}


# ------------------------------------------------------------------------------------------------------------- SwarmUI
SWARM_KNOWN = {
    "prompt", "negativeprompt", "model", "seed", "steps", "cfgscale", "width", "height", "sampler", "scheduler",
    "comfyuisampler", "comfyuischeduler", "fluxguidancescale", "aspectratio", "swarm_version", "images", "date",
    "generation_time", "automaticvae", "batchsize", "saveonlyifneeded", "preferreddtype", "sigmashift",
}  # fmt: skip


def read_swarmui(document: Mapping[str, Any]) -> Imported:
    """The recipe of SwarmUI's `sui_image_params`.

    Raises:
        InputError: settings that a recipe cannot repeat.
    """
    values = _mapping("swarmui", document.get("sui_image_params"))
    differs: list[str] = []
    for name in ("loras", "initimage", "controlnetmodel", "refinermethod", "refinermodel", "variationseedstrength"):
        if values.get(name):
            raise refusal(f"{name}: {quoted(values[name])} of swarmui", "a recipe cannot repeat it")
    sampler = values.get("comfyuisampler", values.get("sampler", "euler"))
    if sampler != "euler":
        raise refusal(f"sampler: {quoted(sampler)} of swarmui", "a recipe samples with euler")
    prompt, weights = without_weights(_text("swarmui", "prompt", values.get("prompt")))
    _require_plain_text("swarmui", prompt)
    differs += [f"Parts of the prompt are weighted: {', '.join(map(quoted, weights[:3]))}."] if weights else []
    model = _model("swarmui", values.get("model", ""), differs)
    _require_no_cfg("swarmui", model, _optional(values.get("cfgscale", 1), float))
    fields: dict[str, Any] = {"prompt": prompt, "model": model}
    fields |= {name: _whole("swarmui", name, values.get(name)) for name in ("seed", "steps", "width", "height")}
    if model == "dev":
        fields["guidance"] = _optional(values.get("fluxguidancescale", 3.5), float)
    fields["shift"] = _optional(values.get("sigmashift"), float)
    fields["max_sequence_length"] = 256  # as ComfyUI, which samples for it
    scheduler = values.get("comfyuischeduler", values.get("scheduler", "simple"))
    if scheduler != "simple":
        fields |= _levels_by_name("swarmui", str(scheduler)[:50], fields["steps"], model)
    differs.append(BATCHED)
    differs += [f"{str(name)[:40]}: {quoted(values[name])} is no field of a recipe." for name in values
                if name not in SWARM_KNOWN]  # fmt: skip
    return imported("swarmui", fields, differs)


# ------------------------------------------------------------------------------------------------------------ InvokeAI
def read_invokeai(document: Mapping[str, Any]) -> Imported:
    """The recipe of InvokeAI's `invokeai_metadata`.

    Raises:
        InputError: settings that a recipe cannot repeat.
    """
    differs: list[str] = []
    for name in ("loras", "controlnets", "ipAdapters", "init_image", "canvas_v2_metadata", "ref_images"):
        if document.get(name):
            raise refusal(f"{name} of invokeai", "a recipe cannot repeat it")
    mode = document.get("generation_mode", "flux_txt2img")
    if mode != "flux_txt2img":
        raise refusal(f"generation_mode: {quoted(mode)} of invokeai", "flux_txt2img is possible")
    file = _mapping("invokeai", document.get("model"))
    if file.get("base", "flux") != "flux":
        raise refusal(f"a model of the base {quoted(file['base'])} of invokeai", "flux is possible")
    model = _model("invokeai", file.get("name", ""), differs)
    _require_no_cfg("invokeai", model, _optional(document.get("cfg_scale", 1), float))
    fields: dict[str, Any] = {"prompt": _text("invokeai", "positive_prompt", document.get("positive_prompt"))}
    fields |= {name: _whole("invokeai", name, document.get(name)) for name in ("seed", "steps", "width", "height")}
    fields["model"] = model
    if model == "dev":
        fields["guidance"] = _optional(document.get("guidance", 3.5), float)
    if document.get("scheduler", "euler") != "euler":
        raise refusal(f"scheduler: {quoted(document['scheduler'])} of invokeai", "a recipe samples with euler")
    differs.append(BATCHED)
    return imported("invokeai", fields, differs)


# --------------------------------------------------------------------------------------------------------------- mflux
def read_mflux(document: Mapping[str, Any]) -> Imported:
    """The recipe of the metadata of mflux.

    Raises:
        InputError: settings that a recipe cannot repeat.
    """
    for name in ("lora_paths", "image_path", "controlnet_image_path", "masked_image_path", "depth_image_path"):
        if document.get(name):
            raise refusal(f"{name} of mflux", "a recipe cannot repeat it")
    differs: list[str] = ["MLX draws other noise for a seed."]
    # A fine-tuned model has its own name as `model`, and the model that it was made from as `base_model`.
    model = _model("mflux", document.get("model") or document.get("base_model"), differs)
    fields: dict[str, Any] = {"prompt": _text("mflux", "prompt", document.get("prompt")), "model": model}
    fields |= {name: _whole("mflux", name, document.get(name)) for name in ("seed", "steps", "width", "height")}
    if model == "dev":
        fields["guidance"] = _optional(document.get("guidance"), float)
    if document.get("quantize"):
        differs.append(f"Weights in fewer bits: {quoted(document['quantize'])}.")
    return imported("mflux", fields, differs)


# ------------------------------------------------------------------------------------------------- Black Forest Labs
def read_bfl(contents: Contents) -> Imported:
    """The recipe of a picture of Black Forest Labs' code, which stores the prompt and the model.

    Raises:
        InputError: another model.
    """
    differs = ["The seed is not in the file.", "The number of steps is not in the file."]
    model = _model("bfl", contents.exif.get(MODEL, ""), differs)
    fields: dict[str, Any] = {
        "prompt": _text("bfl", "ImageDescription", contents.exif.get(DESCRIPTION)),
        "model": model,
    }
    if contents.size is not None:
        fields["width"], fields["height"] = contents.size
    return imported("bfl", fields, differs)


# -------------------------------------------------------------------------------------------------------------- values
def _model(source: str, name: object, differs: list[str], *, exact: bool = False) -> str:
    """The model of a recipe by the name of its file; a note where its weights have fewer bits."""
    if exact and isinstance(name, str) and name:
        return name
    model = known_model(name) if isinstance(name, str) else None
    if model is None:
        raise refusal(f"the model {quoted(name)} of {source}", "FLUX.1 schnell and dev are known")
    if has_fewer_bits(str(name)):
        differs.append(f"Weights in fewer bits: {quoted(name)}.")
    return model


def _require_no_cfg(source: str, model: str, cfg: Any) -> None:
    if cfg not in (None, 1.0):
        raise refusal(f"CFG scale {quoted(cfg)} of {source}", f"FLUX.1 {model} is sampled with 1")


def _require_plain_text(source: str, prompt: str) -> None:
    if found := re.search(r"<\w+[:\[][^>]{0,200}>?", prompt):
        raise refusal(f"{quoted(found[0])} in a prompt of {source}", "a recipe holds plain text")


def _mapping(source: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise refusal(f"metadata of {source} with {quoted(value)}", "named values are needed")
    return value


def _text(source: str, name: str, value: object) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise refusal(f"{name}: {quoted(value)} of {source}", f"a text of at most {LONGEST_TEXT} characters is needed")
    return value


def _whole(source: str, name: str, value: object) -> int:
    """A whole number, which a file may hold as text."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,20}", value.strip()):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise refusal(f"{name}: {quoted(value)} of {source}", "a whole number is needed")
    return value


def _size(source: str, settings: Mapping[str, str]) -> tuple[int | None, int | None]:
    if "Size" not in settings and source == "fluxnb":
        return None, None
    match = re.fullmatch(r"(\d{1,6})x(\d{1,6})", settings.get("Size", ""))
    if match is None:
        raise refusal(f"Size: {quoted(settings.get('Size'))} of {source}", "a width and a height are needed")
    return int(match[1]), int(match[2])


def _optional(value: Any, kind: Callable[[Any], Any]) -> Any:
    """A number from a file; what is not one is left as it is, and the recipe refuses it."""
    try:
        return None if value is None else kind(value)
    except (TypeError, ValueError, OverflowError):
        return value
