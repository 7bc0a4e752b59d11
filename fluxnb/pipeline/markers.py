"""Signs that a pipeline may have changed since they were last read, which every run reads.

A digest of the content takes tens of milliseconds (`fluxnb.pipeline.identity`), and markers take less than one. Equal
markers mean an unchanged pipeline.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from itertools import chain, compress
from operator import attrgetter, itemgetter, methodcaller
from typing import Any

from torch import Tensor, nn

from fluxnb.pipeline.compat import cache_config, config_object, forward_hooks, tensor_version
from fluxnb.pipeline.identity import COMPONENTS, TOKENIZERS, VAE_SETTINGS, adapters_of, is_known_forward

__all__ = ["change_markers", "deep_markers", "encoding_markers", "modules_in_training", "modules_with_hooks"]

QUICK_SETTINGS = ("padding_side", "truncation_side", "model_max_length")  # of a tokenizer; the others take longer


def change_markers(pipe: Any) -> tuple[Any, ...]:
    """Cheap signs of a change: which objects the pipeline holds, their configurations, and the adapters.

    They take microseconds. They do not cover the content of the objects, which `deep_markers` does.
    """
    scheduler, transformer = pipe.scheduler, getattr(pipe, "transformer", None)
    parts = tuple(id(getattr(pipe, name, None)) for name in (*COMPONENTS, *TOKENIZERS, "scheduler"))
    configured = (pipe, scheduler, *(getattr(pipe, name, None) for name in (*COMPONENTS, "image_processor")))
    configurations = tuple(id(config_object(part)) for part in configured)
    tokenizers = [getattr(pipe, name, None) for name in TOKENIZERS]
    settings = tuple(getattr(each, name, None) for each in tokenizers for name in QUICK_SETTINGS)
    # The scale of an adapter is stored in every layer; with adapters loaded, the markers never compare equal.
    adapters = object() if getattr(transformer, "peft_config", None) else None
    return (
        *parts,
        *configurations,
        *settings,
        getattr(scheduler, "shift", None),
        adapters,
        id(cache_config(transformer)),
    )


def deep_markers(pipe: Any) -> int:
    """A hash that changes when the content of a pipeline's models changes; it takes well under a millisecond.

    It covers weights that were replaced or written in place (by their version counters), adapters and their scales,
    attention processors, tiling and training mode. Weights that an offload moves keep their hash.
    """
    found: list[Any] = []
    for name in COMPONENTS:
        model = getattr(pipe, name, None)
        if isinstance(model, nn.Module):
            found += _modules_of(model).markers()
        found += [getattr(model, setting, None) for setting in VAE_SETTINGS]
    return hash(tuple(found))


def encoding_markers(pipe: Any) -> int | None:
    """A hash that changes when prompts may be encoded differently.

    None where that cannot be known: in training mode, where dropout is random, and where hooks or methods of the user
    run, whose own state may change.
    """
    found: list[Any] = [getattr(pipe, "tokenizer_max_length", None)]
    if "encode_prompt" in vars(pipe):
        return None
    for name in (name for name in COMPONENTS if name.startswith("text_encoder")):
        model = getattr(pipe, name, None)
        if isinstance(model, nn.Module):
            modules = _modules_of(model)
            if any(map(_training, modules.contents)) or any(map(_runs_other_code, modules.modules)):
                return None
            found += [id(config_object(model)), *modules.markers()]
    for tokenizer in (getattr(pipe, name, None) for name in TOKENIZERS):
        if tokenizer is not None:
            size = len(tokenizer) if hasattr(tokenizer, "__len__") else None
            settings = (getattr(tokenizer, name, None) for name in (*QUICK_SETTINGS, "chat_template"))
            found += [id(tokenizer), size, *map(str, settings)]
    return hash(tuple(found))


def modules_with_hooks(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that have forward hooks or pre-hooks, in a fixed order."""
    known = _modules_of(model)
    hooked = (
        compress(known.modules, map(_get(name), known.contents)) for name in ("_forward_hooks", "_forward_pre_hooks")
    )
    return list(dict.fromkeys(chain.from_iterable(hooked)))


def modules_in_training(model: nn.Module) -> list[nn.Module]:
    """The modules of a model that are in training mode."""
    known = _modules_of(model)
    return list(compress(known.modules, map(_training, known.contents)))


def _runs_other_code(module: nn.Module) -> bool:
    """Whether a hook or a method on a module is not from a library that leaves the numbers as they are."""
    forward = vars(module).get("forward")
    if forward is not None and not is_known_forward(forward):
        return True
    return any(not is_known_forward(hook) for hook in forward_hooks(module))


def _get(name: str) -> methodcaller:
    return methodcaller("get", name)


_content = attrgetter("__dict__")
_children = itemgetter("_modules")
_weights = itemgetter("_parameters")
_training = _get("training")  # a compiled module has it in its original alone
_dtype = attrgetter("dtype")
_version = attrgetter("_version")


class _Modules:
    """The modules of a model in one list, so that what decides a picture is read in loops of C, not of Python."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.contents: list[dict[str, Any]] = list(map(_content, modules))
        self.children = list(map(id, chain.from_iterable(map(dict.values, map(_children, self.contents)))))

    def markers(self) -> list[Any]:
        """What decides a picture, in the order of the modules."""
        every = chain.from_iterable(map(dict.values, map(_weights, self.contents)))
        weights = [weight for weight in every if weight is not None]
        return [
            *map(type, self.modules),
            *map(_training, self.contents),
            *[id(content["processor"]) for content in self.contents if "processor" in content],
            *[adapters_of(module) for module in self.modules if "scaling" in module.__dict__],
            # A sequential offload makes new parameters on the meta device after each call.
            *[0 if weight.is_meta else id(weight) for weight in weights],
            *_versions(weights),
            *map(_dtype, weights),
            *map(Tensor.numel, weights),
            *self.children,
        ]


def _versions(weights: list[Tensor]) -> list[int | None]:
    try:
        return list(map(_version, weights))
    except RuntimeError:  # some were made in inference mode
        return list(map(tensor_version, weights))


# The modules of each model in the order of `_all_modules`, and the ids of their children. The references are weak,
# because hooks of a module may refer to the model, which would then never be freed.
_KNOWN: weakref.WeakKeyDictionary[nn.Module, tuple[list[weakref.ref[nn.Module]], list[int]]]
_KNOWN = weakref.WeakKeyDictionary()


def _modules_of(model: nn.Module) -> _Modules:
    references, children = _KNOWN.get(model, ([], []))
    known = [module for reference in references if (module := reference()) is not None]
    if references and len(known) == len(references):
        modules = _Modules(known)
        if modules.children == children:
            return modules
    modules = _Modules(list(_all_modules(model)))
    _KNOWN[model] = ([weakref.ref(module) for module in modules.modules], modules.children)
    return modules


def _all_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of `model.modules()`, whose nested generators take longer."""
    waiting, known = [model], {id(model)}
    while waiting:
        yield (module := waiting.pop())
        for child in module._modules.values():
            if child is not None and id(child) not in known:
                known.add(id(child))
                waiting.append(child)
