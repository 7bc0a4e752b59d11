"""Adapters (LoRA) on a transformer whose weights are cached, streamed, stored in 8 bits, fused or compiled.

diffusers and peft wrap the layers that an adapter targets and read shape, dtype and device of their weights. Under a
preset these weights may be elsewhere. The methods that load, fuse and remove adapters are therefore replaced on the
pipeline and its models by functions that present such weights while the original method runs, and that bring hooks,
projections and compiled code into agreement with the layers afterwards. What cannot give the right picture is refused
before anything changes, and a method that raises leaves every layer as it was.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fluxnb.errors import InputError
from fluxnb.runtime.adaln_cache import CachedModulation
from fluxnb.runtime.compat import (
    FusedProjections,
    compiled_call,
    discard_compiled_call,
    has_execution_device,
    is_cast_by_layer,
    is_group_offloaded,
    reinstall_group_offload,
    restore_fused_projections,
    separate_projections,
    set_compiled_call,
    tuner_layers,
)
from fluxnb.runtime.exclusive import group_of

__all__ = ["support_adapters"]

KEEP_SEPARATE = "keep the adapter beside the weights, where pipe.set_adapters scales it, or load with preset={preset!r}"
PROJECTIONS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")
# Initializations of LoRA that do not change the weights of the layer.
PLAIN_INITIALIZATIONS = (True, False, "gaussian")
OFFLOADS = ("enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload")


def support_adapters(pipe: Any, device: torch.device, *, copies: dict[Any, Tensor] | None = None) -> None:
    """Make the methods for adapters and for moving weights work on this pipeline, or refuse before they change it.

    Without effect on a pipeline that has this support.

    Arguments:
        device: of the computation.
        copies: copies of the transformer's weights, which are discarded when an adapter is fused into these.

    Example:
        >>> flux = fnb.load("schnell", preset="lean")                                # doctest: +SKIP
        >>> flux.pipe.load_lora_weights("style.safetensors")                        # doctest: +SKIP
    """
    if isinstance(vars(pipe).get("load_lora_weights"), _Method):
        return
    models = {}
    for name in ("transformer", "text_encoder"):
        if isinstance(model := getattr(pipe, name, None), nn.Module):
            models[name] = _Model(model, device, {} if copies is None else copies)
            models[name].replace_methods()
    _Pipeline(pipe, device, models).replace_methods()


@dataclass(eq=False)
class _Method:
    """In place of a method: calls `behavior` with the original method, while no forward pass of these models runs."""

    owner: Any
    name: str
    behavior: Callable[..., Any]
    models: tuple[nn.Module, ...] = ()

    def __post_init__(self) -> None:
        functools.update_wrapper(self, getattr(self.owner, self.name))
        setattr(self.owner, self.name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(self.behavior, functools.partial(getattr(type(self.owner), self.name), self.owner))
        for group in {id(group): group for model in self.models if (group := group_of(model))}.values():
            call = functools.partial(group.wrap(_called), call)
        return call(*args, **kwargs)


def _called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


# --------------------------------------------------------------------------------------------------------- a pipeline
@dataclass(eq=False)
class _Pipeline:
    """The replaced methods of a pipeline."""

    pipe: Any
    device: torch.device
    models: dict[str, _Model]

    def replace_methods(self) -> None:
        """Install the methods."""
        modules = tuple(model.module for model in self.models.values())
        behaviors: dict[str, Callable[..., Any]] = {
            "load_lora_weights": self.load,
            "load_lora_into_text_encoder": self.load_into_text_encoder,
            "fuse_lora": self.fuse,
            "unfuse_lora": _called,
            "load_textual_inversion": self.load_textual_inversion,
            "to": self.move,
            "remove_all_hooks": self.remove_all_hooks,
            **{name: functools.partial(self.offload, name) for name in OFFLOADS},
        }
        for name, behavior in behaviors.items():
            if hasattr(self.pipe, name):
                _Method(self.pipe, name, behavior, modules)

    def load(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for model in self.models.values():
            model.refuse_quantized()
        with ExitStack() as stack:
            for model in self.models.values():
                stack.enter_context(model.changing())
            return original(*args, **kwargs)

    def load_into_text_encoder(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        # A class method. With `_pipeline` diffusers would stream the components again before their weights are back.
        unbound = type(self.pipe).load_lora_into_text_encoder
        if is_group_offloaded(self.models["transformer"].module):
            kwargs["_pipeline"] = None
        return unbound(*args, **kwargs)

    def fuse(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        components = args[0] if args else kwargs.get("components", ["transformer"])
        for name in components if isinstance(components, list | tuple) else ():
            if name in self.models:
                self.models[name].refuse_fusing()
        return original(*args, **kwargs)

    def load_textual_inversion(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._reads_encoders():
            raise InputError(
                "load_textual_inversion on text encoders that are read layer by layer",
                "new embeddings require text encoders in memory",
                'load with preset="resident"',
            )
        return original(*args, **kwargs)

    def move(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._reads_encoders():
            return original(*args, **kwargs)
        given = [value for value in (*args, kwargs.get("device"), kwargs.get("dtype")) if value is not None]
        if all(self._is_current(value) for value in given):
            return self.pipe
        raise InputError(
            f"pipe.to({', '.join(map(str, given))})",
            f"the preset holds this pipeline part by part for {self.device} in {self._dtype()}, and some weights are"
            " only in their files",
            'load again, with fnb.load(..., dtype=...) or preset="resident"',
        )

    def offload(self, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self._reads_encoders():
            return original(*args, **kwargs)
        preset = {"model": "model-offload", "sequential": "sequential-offload"}.get(name.split("_")[1], "stream")
        raise InputError(
            f"pipe.{name}(...)",
            "the preset of this pipeline moves the weights already, and two kinds of offloading exclude each other",
            f'load again with preset="{preset}"',
        )

    def remove_all_hooks(self, original: Callable[..., Any]) -> None:
        if not self._reads_encoders():  # otherwise every hook belongs to the preset
            original()

    def _reads_encoders(self) -> bool:
        return any(_is_read_by_layer(getattr(self.pipe, name, None)) for name in ("text_encoder", "text_encoder_2"))

    def _dtype(self) -> torch.dtype:
        return _ordinary(self.models["transformer"].module).dtype

    def _is_current(self, value: Any) -> bool:
        if isinstance(value, torch.dtype):
            return value == self._dtype()
        try:
            place = torch.device(value)
        except (RuntimeError, TypeError):
            return False
        same_index = None in (place.index, self.device.index) or place.index == self.device.index
        return place.type == self.device.type and same_index


# ------------------------------------------------------------------------------------------------------------ a model
@dataclass(eq=False)
class _Model:
    """The replaced methods of a transformer or a text encoder, and what is set aside while it has adapters.

    Arguments:
        fused: fused projections, set aside while their separate layers may have adapters.
        compiled: compiled calls of blocks. An adapter would compile them again for each of its scales.
    """

    module: Any
    device: torch.device
    copies: dict[Any, Tensor]
    fused: FusedProjections = field(default_factory=dict)
    compiled: dict[nn.Module, Any] = field(default_factory=dict)
    depth: int = 0

    def replace_methods(self) -> None:
        """Install the methods."""
        behaviors: dict[str, Callable[..., Any]] = {
            "load_lora_adapter": self.load,
            "load_adapter": self.load,  # of transformers
            "add_adapter": self.add,
            "fuse_lora": self.fuse,
            "unload_lora": self.remove,
            "delete_adapters": self.remove,
            "fuse_qkv_projections": self.fuse_projections,
            "unfuse_qkv_projections": self.separate_projections,
            "state_dict": self.state_dict,
            "save_pretrained": self.save,
        }
        for name, behavior in behaviors.items():
            if hasattr(self.module, name):
                _Method(self.module, name, behavior, (self.module,))

    def load(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.refuse_quantized()
        metadata = kwargs.get("metadata") or {}
        self._refuse_reading(*(name.rpartition(".")[2] for name, value in metadata.items() if value))
        if "_pipeline" in kwargs and is_group_offloaded(self.module):
            kwargs["_pipeline"] = None  # `changing` streams the new layers, once the weights are back
        with self.changing():
            return original(*args, **kwargs)

    def add(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.refuse_quantized()
        config = args[0] if args else kwargs.get("adapter_config")
        start = getattr(config, "init_lora_weights", True)
        self._refuse_reading(
            *(name for name in ("use_dora", "modules_to_save") if getattr(config, name, None)),
            *([f"init_lora_weights={start!r}"] if start not in PLAIN_INITIALIZATIONS else []),
        )
        with self.changing():
            return original(*args, **kwargs)

    def fuse(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.refuse_fusing()
        return original(*args, **kwargs)

    def remove(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        self.settle()
        return result

    def fuse_projections(self, original: Callable[[], Any]) -> None:
        if tuner_layers(self.module):
            raise InputError(
                "fuse_qkv_projections with adapters",
                "a fused projection would leave out the adapters of its parts",
                "call pipe.unload_lora_weights() before it, after pipe.fuse_lora() to keep them",
            )
        layers = [layer for name, layer in self.module.named_modules() if name.endswith(PROJECTIONS)]
        if stored := next(filter(None, map(_obstacle, layers)), ""):
            raise InputError(
                f"fuse_qkv_projections on weights that are {stored}",
                "projections can be fused in 16 or 32 bits",
                'load with preset="lean"',
            )
        original()
        reinstall_group_offload(self.module)

    def separate_projections(self, original: Callable[[], Any]) -> None:
        self.refuse_quantized()
        separate_projections(self.module)
        self.fused.clear()
        original()
        reinstall_group_offload(self.module)

    def state_dict(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The state with cached layers on the meta device: diffusers looks up the shapes of an adapter's targets."""
        result = original(*args, **kwargs)
        prefix = kwargs.get("prefix", args[1] if len(args) > 1 else "")
        for name, layer in self.module.named_modules(prefix=prefix.rstrip(".")):
            if isinstance(layer, CachedModulation):
                rows, columns = layer.out_features, layer.in_features
                result.setdefault(f"{name}.weight", torch.empty(rows, columns, device="meta"))
                result.setdefault(f"{name}.bias", torch.empty(rows, device="meta"))
        return result

    def save(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(layer, CachedModulation) or _obstacle(layer) == ABSENT for layer in self.module.modules()):
            raise InputError(
                f"save_pretrained of a {type(self.module).__name__} under this preset",
                "some of its weights are only in the files that it was loaded from",
                'copy these files, or load with preset="resident"',
            )
        return original(*args, **kwargs)

    @contextlib.contextmanager
    def changing(self) -> Iterator[None]:
        """The layers may be wrapped inside the block; on an error they become what they were."""
        if self.depth:  # called by another replaced method
            yield
            return
        self.depth += 1
        try:
            with _restored_on_error(self.module), _presented_weights(self.module, self.device):
                fused = separate_projections(self.module)
                yield
        finally:
            self.depth -= 1
        self.fused.update(fused)
        if is_group_offloaded(self.module):
            reinstall_group_offload(self.module)
        self.settle()

    def settle(self) -> None:
        """Bring methods of the wrapped layers, compiled code and fused projections into agreement with the layers."""
        adapted = tuner_layers(self.module)
        for layer in adapted:
            for name in ("merge", "unmerge"):
                if not isinstance(vars(layer).get(name), _Merging):
                    setattr(layer, name, _Merging(layer, name, self))
        if adapted:
            for part in self.module.modules():
                if (call := compiled_call(part)) is not None:
                    self.compiled[part] = call
                    discard_compiled_call(part)
        else:
            restore_fused_projections(self.fused)
            self.fused.clear()
            for part, call in self.compiled.items():
                set_compiled_call(part, call)
            self.compiled.clear()
        self.copies.clear()

    def refuse_quantized(self) -> None:
        """Raise InputError where weights are quantized by torchao, whose layers peft does not wrap exactly."""
        if any(_obstacle(layer) == TORCHAO for layer in self.module.modules()):
            raise InputError(
                f"an adapter on weights that are {TORCHAO}",
                "these layers compute in 8 bits and take no adapter",
                'load with preset="lean" or "lean-fp8"',
            )

    def refuse_fusing(self) -> None:
        """Raise InputError where an adapter is on weights that it cannot be added to."""
        obstacles = (_obstacle(layer.get_base_layer()) for layer in tuner_layers(self.module))
        if stored := next(filter(None, obstacles), ""):
            preset = "resident" if stored == ABSENT else "lean"
            raise InputError(
                f"fuse_lora on weights that are {stored}",
                "an adapter can be added to weights in 16 or 32 bits that are in memory",
                KEEP_SEPARATE.format(preset=preset),
            )

    def _refuse_reading(self, *options: str) -> None:
        """Raise InputError for an adapter that reads the weights of its layers, where some of these are elsewhere."""
        reading = [name for name in options if name.startswith(("use_dora", "modules_to_save", "init_lora_weights="))]
        if reading and any(_is_elsewhere(layer) for layer in self.module.modules()):
            raise InputError(
                f"an adapter with {reading[0]}",
                "it reads the weights of its layers, some of which are not in memory under this preset",
                'load with preset="resident"',
            )


@dataclass(eq=False)
class _Merging:
    """In place of `merge` or `unmerge` of a wrapped layer: they run on the weights and the device of the computation.

    The result is then that of a pipeline whose weights are on the device.
    """

    layer: Any
    name: str
    model: _Model

    def __post_init__(self) -> None:
        functools.update_wrapper(self, getattr(self.layer, self.name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        original = functools.partial(getattr(type(self.layer), self.name), self.layer)
        if self.name == "unmerge" and not self.layer.merged:
            return None
        device = self.model.device
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            base = self.layer.get_base_layer()
            if isinstance(base, CachedModulation):
                like = torch.empty(0, device=device, dtype=_ordinary(self.model.module).dtype)
                stack.enter_context(base.cache.editing(base, like))
            stack.enter_context(_on_device(self.layer, device))
            result = original(*args, **kwargs)
        self.model.copies.clear()
        return result


# ------------------------------------------------------------------------------------------------------------ weights
ABSENT, TORCHAO = "read from a file for each call", "quantized by torchao"


def _obstacle(layer: Any) -> str:
    """Why nothing can be added to the weights of a layer; "" where it can."""
    weight = None if isinstance(layer, CachedModulation) else getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return ""
    if hasattr(weight.data, "__tensor_flatten__"):
        return TORCHAO
    if weight.is_meta:
        return ABSENT
    if _is_float8(weight) or is_cast_by_layer(layer):  # whose weights are in 32 bits until its next call
        return "stored in 8 bits"
    return "" if weight.is_floating_point() else "quantized"


def _is_elsewhere(layer: nn.Module) -> bool:
    return isinstance(layer, CachedModulation) or bool(_obstacle(layer))


def _is_read_by_layer(model: Any) -> bool:
    """Whether the layers of a model read their weights from a file for each call."""
    return has_execution_device(model)


def _is_float8(weight: Tensor) -> bool:
    return weight.is_floating_point() and weight.dtype.itemsize == 1


def _ordinary(model: nn.Module) -> Tensor:
    """The first weight in 16 or 32 bits and in memory, which shows the dtype of the computation."""
    return next(
        weight for weight in model.parameters()
        if weight.is_floating_point() and weight.dtype.itemsize > 1 and not weight.is_meta
    )  # fmt: skip


@contextlib.contextmanager
def _presented_weights(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the block, layers whose weights are cached, in a file or in 8 bits have weights of the right kind.

    They have the shape, dtype and device that an adapter requires, take no memory and hold no values.
    """
    by_layer = _is_read_by_layer(model)
    like = None if all(weight.is_meta for weight in model.parameters()) else _ordinary(model)

    def presented(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        place = device if like is None else like.device
        return torch.empty((), device=place, dtype=dtype if like is None else like.dtype).expand(shape)

    with ExitStack() as stack:
        for layer in list(model.modules()):
            if isinstance(layer, CachedModulation):
                rows, columns = layer.out_features, layer.in_features
                kind = torch.float32
                stack.enter_context(layer.as_linear(presented((rows, columns), kind), presented((rows,), kind)))
                continue
            for leaf, weight in layer.named_parameters(recurse=False):
                if (weight.is_meta and by_layer) or _is_float8(weight):
                    stack.callback(layer._parameters.__setitem__, leaf, weight)
                    stored = presented(tuple(weight.shape), weight.dtype)
                    layer._parameters[leaf] = nn.Parameter(stored, requires_grad=False)
        yield


@contextlib.contextmanager
def _on_device(layer: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the block the weights of a layer are on a device; what they become is copied back."""
    moved = [(weight, weight.data) for weight in layer.parameters() if weight.device != device]
    for weight, data in moved:
        weight.data = data.to(device)
    try:
        yield
    finally:
        for weight, data in moved:
            weight.data = data.copy_(weight.data)


@contextlib.contextmanager
def _restored_on_error(model: nn.Module) -> Iterator[None]:
    """On an error inside the block, every module has the attributes, children and hooks it had before.

    Values of tensors are not restored.
    """
    before = [(module, [(name, value, _contents(value)) for name, value in vars(module).items()])
              for module in model.modules()]  # fmt: skip
    try:
        yield
    except BaseException:
        for module, attributes in before:
            vars(module).clear()
            for name, value, contents in attributes:
                if contents is not None:
                    value.clear()
                    (value.extend if isinstance(value, list) else value.update)(contents)
                vars(module)[name] = value
        raise


def _contents(value: Any) -> Any:
    return copy.copy(value) if type(value) in (dict, OrderedDict, list, set) else None
