"""What decides the pictures of a pipeline, as a digest that is read when a key is made.

A pipeline changes after it was loaded: adapters are added and scaled, weights are fused or quantized, the scheduler or
the VAE is exchanged, a cache is enabled, an attention processor is replaced. The digest covers all of these and is
cheap enough to compute for every sweep: of each tensor it reads a few values, not all. What it cannot see is listed, so
that pictures of such a pipeline are computed and not stored.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fluxnb.pipeline.compat import cache_config, hook_names
from fluxnb.runtime.adaln_cache import CachedModulation

__all__ = [
    "COMPONENTS",
    "TOKENIZERS",
    "VAE_SETTINGS",
    "Identity",
    "adapters_of",
    "describe_device",
    "identity_of",
    "is_known_forward",
    "is_random",
    "versions_of_libraries",
]

SAMPLES = 16  # values read of each tensor
COMPONENTS = ("transformer", "vae", "text_encoder", "text_encoder_2")
TOKENIZERS = ("tokenizer", "tokenizer_2")
TOKENIZER_SETTINGS = ("padding_side", "truncation_side", "model_max_length", "special_tokens_map", "vocab_size")
VAE_SETTINGS = ("use_tiling", "use_slicing", "tile_sample_min_size", "tile_overlap_factor")
# Their own forward methods and hooks leave the numbers as they are.
LIBRARIES = ("accelerate", "diffusers", "fluxnb", "torch")
# Entries of configurations that do not change pictures: where a model came from, and the names of the entries that have
# their default values, in the random order of a set.
WITHOUT_EFFECT = ("_name_or_path", "_diffusers_version", "transformers_version", "_use_default_values")
ADDRESS = b" at 0x"  # in the text of an object that has no text of its own
# Hooks of diffusers and accelerate that move weights and leave the numbers as they are.
HARMLESS_HOOKS = {"group_offloading", "lazy_prefetch_group_offloading", "layer_execution_tracker"}


@dataclass(frozen=True)
class Identity:
    """Everything that decides a picture besides the recipe and the library versions.

    Arguments:
        digest: twelve hex digits, equal for pipelines that draw the same pictures.
        unknown: what the digest does not cover, in words; empty where it covers everything.
    """

    digest: str
    unknown: tuple[str, ...] = ()


def identity_of(pipe: Any) -> Identity:
    """The identity of a pipeline as it is now.

    Example:
        >>> before = identity_of(pipe)                                              # doctest: +SKIP
        >>> pipe.load_lora_weights("style"); identity_of(pipe) == before            # doctest: +SKIP
        False
    """
    digest, unknown = hashlib.sha256(), list[str]()
    digest.update(type(pipe).__name__.encode())
    for name in COMPONENTS:
        module = getattr(pipe, name, None)
        digest.update(f"\n{name}:{type(module).__name__}\n".encode())
        if isinstance(module, nn.Module):
            digest.update(_plain(getattr(module, "config", {})))
            _update_with_module(digest, module, unknown, name)
    for name in TOKENIZERS:
        digest.update(_tokenizer(getattr(pipe, name, None)))
    digest.update(_scheduler(pipe.scheduler))
    if settings := _settings(pipe):
        digest.update(_plain(settings))
    digest.update(_plain(getattr(getattr(pipe, "image_processor", None), "config", {})))
    return Identity(digest.hexdigest()[:12], tuple(unknown))


def _settings(pipe: Any) -> dict[str, Any]:
    """Entries of a pipeline's own configuration that are no components, such as whether its network is distilled."""
    config = dict(getattr(pipe, "config", {}))
    return {name: value for name, value in config.items() if isinstance(value, bool) and not name.startswith("_")}


# ------------------------------------------------------------------------------------------------------------ modules
def _update_with_module(digest: Any, module: nn.Module, unknown: list[str], name: str) -> None:
    samples: list[Tensor] = []
    modules = _modules(module)
    for path, tensor in _tensors(modules):
        digest.update(f"{path}:{type(tensor).__name__}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        for part in _payloads(tensor):
            if isinstance(part, Tensor):
                samples.append(_sample(part))
            else:
                digest.update(part)
                if ADDRESS in part:  # different in each process, so that a store would never be read
                    unknown.append(f"{name} has a {type(tensor).__name__} whose settings have no text")
    for values in _transferred(samples):
        digest.update(values)
    for path, part in modules:
        digest.update(_module_settings(path, part))
        digest.update(adapters_of(part))
        if is_random(part):
            unknown.append(f"{name} is in training mode, and its dropout is random")
        if "forward" in vars(part) and not is_known_forward(vars(part)["forward"]):
            unknown.append(f"{name}.{path or 'forward'} has a forward method of its own".replace("..", "."))
        for hook in hook_names(part):
            if hook not in HARMLESS_HOOKS:
                digest.update(f"{path}:{hook}".encode())
    for setting in VAE_SETTINGS:
        digest.update(f"{setting}={getattr(module, setting, None)}".encode())
    digest.update(_plain(cache_config(module)))
    for path, processor in getattr(module, "attn_processors", {}).items():
        digest.update(f"{path}:{type(processor).__module__}.{type(processor).__qualname__}".encode())
        if not _is_library_object(processor):
            unknown.append(f"{name} computes attention with {type(processor).__name__}, which is not part of diffusers")
    unknown[:] = list(dict.fromkeys(unknown))


def _modules(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """The list of `module.named_modules()`, whose nested generators take a third of the time of an identity."""
    found: list[tuple[str, nn.Module]] = []
    known: set[int] = set()

    def add(path: str, part: nn.Module) -> None:
        if id(part) in known:
            return
        known.add(id(part))
        found.append((path, part))
        for name, child in part._modules.items():
            if child is not None:
                add(f"{path}.{name}" if path else name, child)

    add("", module)
    return found


def _tensors(modules: Sequence[tuple[str, nn.Module]]) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers, scales of 8-bit layers, and weights that an adapter was fused into, each once."""
    known: set[int] = set()
    for kind in ("_parameters", "_buffers"):
        for path, part in modules:
            for leaf, tensor in vars(part)[kind].items():
                if tensor is not None and id(tensor) not in known:
                    known.add(id(tensor))
                    yield f"{path}.{leaf}" if path else leaf, tensor
    for path, part in modules:
        if (scales := _int8_scales(part)) is not None:
            yield f"{path}.SCB", scales
        if isinstance(part, CachedModulation):  # its weights are in a file until an adapter is fused into them
            yield from ((f"{path}.{leaf}", tensor) for leaf, tensor in part.changed.items())


def _payloads(tensor: Tensor) -> Iterator[Tensor | bytes]:
    """The plain tensors that hold the numbers of a parameter, and its settings; a quantized one has several."""
    held = vars(tensor)
    yield from _quantization(held.get("quant_state"))
    if settings := {name: held[name] for name in ("quant_type", "blocksize") if name in held}:
        yield _plain(settings)
    data = tensor.detach()
    if hasattr(data, "__tensor_flatten__"):
        names, settings = data.__tensor_flatten__()
        yield _plain(settings)
        for name in names:
            yield from _payloads(getattr(data, name))
    else:
        yield data.as_subclass(Tensor)


def _quantization(state: Any) -> Iterator[Tensor | bytes]:
    """What bitsandbytes keeps beside packed weights: their scales, which may be quantized too, and settings."""
    if state is None:
        return
    held = dict(vars(state))
    yield from _quantization(held.pop("state2", None))
    for name, value in sorted(held.items()):
        yield value if isinstance(value, Tensor) else _plain({name: value})


def _module_settings(path: str, module: nn.Module) -> bytes:
    """The class of a module, and how it quantizes what it computes with."""
    held = vars(module)
    types = [str(held.get(name)) for name in ("weight_qtype", "activation_qtype")]  # of quanto
    threshold = getattr(held.get("state"), "threshold", None)  # of the 8-bit layers of bitsandbytes
    return f"{path}:{type(module).__qualname__}:{types}:{threshold}".encode()


def _int8_scales(module: nn.Module) -> Tensor | None:
    """The scales of an 8-bit layer of bitsandbytes, which its first call moves from the weights to the layer."""
    weight, state = vars(module)["_parameters"].get("weight"), vars(module).get("state")
    places = (getattr(weight, "SCB", None), getattr(state, "SCB", None))
    return next((scales for scales in places if isinstance(scales, Tensor)), None)


def is_random(module: nn.Module) -> bool:
    """Whether a module draws random numbers in each call: dropout in training mode."""
    if not module.training:
        return False
    probability = getattr(module, "p", 0) if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0)
    return isinstance(probability, int | float) and probability > 0


def _sample(tensor: Tensor) -> Tensor:
    """A few values of a tensor, spread evenly, as float64 or integers on its device; empty without memory."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return torch.empty(0)
    flat = tensor.reshape(-1) if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))
    step = max(1, flat.numel() // SAMPLES)
    chosen = flat[step // 2 :: step][:SAMPLES]
    return chosen.to(torch.float32) if chosen.is_floating_point() else chosen.to(torch.int64)


def _transferred(samples: list[Tensor]) -> Iterator[bytes]:
    """The samples as bytes; those of a GPU are joined first, since each transfer waits for the device."""
    for kind in (torch.float32, torch.int64):
        for device in dict.fromkeys(sample.device for sample in samples):
            group = [sample for sample in samples if sample.dtype == kind and sample.device == device]
            if group:
                yield torch.cat(group).to("cpu").numpy().tobytes()


def adapters_of(module: nn.Module) -> bytes:
    """Which adapters of peft are active in a layer, and how strongly."""
    scaling = vars(module).get("scaling")
    if not isinstance(scaling, Mapping):
        return b""
    state = {
        "scaling": {str(name): float(value) for name, value in scaling.items()},
        "active": list(getattr(module, "active_adapters", ())),
        "merged": list(getattr(module, "merged_adapters", ())),
        "disabled": bool(getattr(module, "disable_adapters", False)),
    }
    return json.dumps(state, sort_keys=True).encode()


def is_known_forward(forward: Any) -> bool:
    """Whether a forward method on an instance leaves the numbers as they are: hooks of accelerate, and our replay."""
    inner = getattr(forward, "__wrapped__", forward)
    module = getattr(inner, "__module__", None) or type(inner).__module__
    origin = str(getattr(forward, "__module__", "") or type(forward).__module__)
    return origin.startswith(LIBRARIES) or (hasattr(forward, "func") and str(module).startswith(LIBRARIES))


def _is_library_object(thing: Any) -> bool:
    return type(thing).__module__.split(".")[0] in ("diffusers", "transformers", "torch", "fluxnb")


# -------------------------------------------------------------------------------------------- schedulers and the rest
def _scheduler(scheduler: Any) -> bytes:
    config = dict(getattr(scheduler, "config", {}))
    return _plain({"class": type(scheduler).__name__, **config, "shift now": getattr(scheduler, "shift", None)})


def _tokenizer(tokenizer: Any) -> bytes:
    if tokenizer is None:
        return b"none"
    settings = {name: getattr(tokenizer, name, None) for name in TOKENIZER_SETTINGS}
    return _plain({"class": type(tokenizer).__name__, **settings})


def _plain(value: Any) -> bytes:
    """A configuration as canonical text; objects that are no plain values are named by their class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {"class": type(value).__name__, **dataclasses.asdict(value)}
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        value = {str(k): v for k, v in value.items() if k not in WITHOUT_EFFECT}
    return json.dumps(value, sort_keys=True, default=_named).encode()


def _named(value: Any) -> str:
    return (
        value.__qualname__ if inspect.isroutine(value) or isinstance(value, type) else f"{type(value).__name__}:{value}"
    )


def describe_device(device: torch.device) -> str:
    """The device as far as it decides bits: on a CPU, the decoder's sums depend on the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


@functools.cache
def versions_of_libraries() -> dict[str, str]:
    """The versions of the libraries that compute a picture."""
    return {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}
