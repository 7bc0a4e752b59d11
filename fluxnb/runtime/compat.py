"""Private and undocumented attributes of libraries that this package uses, one documented item each.

`tests/runtime/test_compat.py` fails for each item that a library no longer has.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "ATTENTION_BACKENDS",
    "ExecutionDevice",
    "attention_backends",
    "class_of",
    "compiled_call",
    "compiler_options",
    "discard_compiled_call",
    "exchange",
    "execution_device",
    "gather",
    "gguf_types",
    "has_execution_device",
    "has_stateful_hooks",
    "hook_count",
    "is_cast_by_layer",
    "is_changed_at_run_time",
    "is_group_offloaded",
    "is_library_error",
    "model_offload_hooks",
    "models_of",
    "module_call_frame",
    "modules_in_float32",
    "named_like",
    "placement_markers",
    "reinstall_group_offload",
    "remember_device",
    "remove_unfused_projections",
    "restore_fused_projections",
    "separate_projections",
    "set_attention_backend",
    "set_compiled_call",
    "set_execution_device",
    "split_tokens_over",
    "tied_weights",
    "tokenizer_method",
    "tuner_layers",
]

# Names for `transformer.set_attention_backend` in diffusers 0.42, without those that quantize (sage). The names with
# an underscore are PyTorch's own kernels. A backend whose package is missing raises when it is set or used.
ATTENTION_BACKENDS = ("native", "_native_cudnn", "_native_flash", "flash", "_flash_3")


# -------------------------------------------------------------------------------------------------------------- torch
def module_call_frame() -> FrameType:
    """The frame of `nn.Module._call_impl` that runs the hook this function is called from.

    Hooks are called from `_call_impl` or from a function nested in it. Checked on torch 2.13.

    Raises:
        RuntimeError: not called from a hook of a module.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "_call_impl":
        frame = frame.f_back
    if frame is None:
        raise RuntimeError("no call of a module is running in this thread")
    return frame


def hook_count(module: nn.Module) -> int:
    """The number of forward hooks and forward pre-hooks of a module, in torch 2.13 `_forward_hooks` and
    `_forward_pre_hooks`.
    """
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def discard_compiled_call(module: nn.Module) -> None:
    """Undo `module.compile()`, which torch 2.13 stores in `_compiled_call_impl` and has no method to undo."""
    module._compiled_call_impl = None


def compiled_call(module: nn.Module) -> Any:
    """What `module.compile()` stored, or None; see `discard_compiled_call`."""
    return module._compiled_call_impl


def set_compiled_call(module: nn.Module, call: Any) -> None:
    """Restore what `compiled_call` returned. Code that is compiled already is used again."""
    module._compiled_call_impl = call


@contextlib.contextmanager
def compiler_options(autotune: bool) -> Iterator[None]:
    """Settings of torch.compile inside the block. Checked on torch 2.13.

    `torch._dynamo.config.cache_size_limit` is the number of versions of one function. Both kinds of block, with and
    without a cached modulation, exceed the default. `torch._inductor.config` holds the settings for autotuning.
    """
    import torch._dynamo.config
    import torch._inductor.config as inductor

    with torch._dynamo.config.patch(cache_size_limit=128):
        if not autotune:
            yield
            return
        with inductor.patch(max_autotune=True, coordinate_descent_tuning=True):
            yield


def gather(part: Tensor) -> Tensor:
    """The tensors (count, ...) that the processes give here, in all of them; all have the same shape.

    The functional collectives are what torch.compile traces. torch 2.13 calls `all_gather_tensor` deprecated, and its
    successor, `all_gather_single`, is not in earlier versions.
    """
    import torch.distributed._functional_collectives as collectives
    from torch.distributed import group

    function = getattr(collectives, "all_gather_single", None) or collectives.all_gather_tensor
    gathered: Tensor = function(part[None].contiguous(), 0, group.WORLD)
    return gathered


def exchange(parts: Tensor) -> Tensor:
    """Send `parts[i]` to process i, and return what each process sent to this one, in the order of the processes.

    A functional collective, which torch.compile traces, as in `gather`.

    Arguments:
        parts: (count, ...), one part for each process, of the same shape in all processes.
    """
    import torch.distributed._functional_collectives as collectives
    from torch.distributed import group

    # Flat, as diffusers does it: otherwise inductor may give the collective a tensor that is not contiguous.
    received: Tensor = collectives.all_to_all_single(parts.flatten(), None, None, group.WORLD)
    return collectives.wait_tensor(received).view(parts.shape)


# ---------------------------------------------------------------------------------------------------------- diffusers
def attention_backends(*, parallel: bool = False) -> tuple[str, ...]:
    """The names of `ATTENTION_BACKENDS`; with `parallel` those that diffusers can split over processes.

    Checked on diffusers 0.42: `_AttentionBackendRegistry._supports_context_parallel` holds their names.
    """
    if not parallel:
        return ATTENTION_BACKENDS
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    return tuple(name for name in ATTENTION_BACKENDS if name in Registry._supports_context_parallel)


def split_tokens_over(transformer: nn.Module, count: int, attention: Callable[..., Tensor]) -> None:
    """Split the tokens of a transformer's evaluations over all processes, each with its share of the attention heads.

    `enable_parallelism` is experimental in diffusers 0.42 and warns of it with each call. Its
    `TemplatedUlyssesAttention` cannot be traced by torch.compile, which therefore interrupts every block, and it
    exchanges queries, keys and values one after another. Calls without gradients use `attention` in its place.

    Arguments:
        attention: takes queries, keys and values of this process's tokens, (B, tokens, heads, d) each, and a function
            that computes attention of all tokens; returns the result for this process's tokens.
    """
    from diffusers import ContextParallelConfig
    from diffusers.models import attention_dispatch
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=count))
    finally:
        logging.set_verbosity(level)
    vars(transformer._parallel_config)[_ATTENTION] = attention
    if not hasattr(attention_dispatch.TemplatedUlyssesAttention, "of_diffusers"):
        attention_dispatch.TemplatedUlyssesAttention = _replaceable(attention_dispatch.TemplatedUlyssesAttention)


_ATTENTION = "_fluxnb_attention"  # on a transformer's `ParallelConfig`: the attention of `split_tokens_over`


def _replaceable(ulysses: Any) -> type:
    """A class to use as `TemplatedUlyssesAttention`, which replaces it for the transformers of `split_tokens_over`."""

    class Ulysses:
        of_diffusers = ulysses

        @staticmethod
        def apply(*inputs: Any) -> Any:
            query, key, value, mask, *options, with_sums, forward, _, config = inputs
            own = getattr(config, _ATTENTION, None)
            if own is None or mask is not None or with_sums or torch.is_grad_enabled():
                return ulysses.apply(*inputs)

            def attend(*projections: Tensor) -> Any:
                return forward(None, *projections, mask, *options, False, _save_ctx=False, _parallel_config=config)

            return own(query, key, value, attend)

    return Ulysses


def model_offload_hooks(pipe: Any) -> list[Any]:
    """The hooks of `pipe.enable_model_cpu_offload()`, each with an `offload()` method; empty without it.

    Checked on diffusers 0.42: `DiffusionPipeline._all_hooks`. The list is replaced when offloading is enabled again.
    """
    hooks: list[Any] | None = getattr(pipe, "_all_hooks", None)
    return [] if hooks is None else hooks


def set_attention_backend(transformer: nn.Module, name: str) -> None:
    """Set the attention backend of one transformer.

    `set_attention_backend` of diffusers 0.42 also makes the backend the default of every model in the process, in
    `_AttentionBackendRegistry`. The previous default is restored, because a kernel that is available for this
    transformer may not support the number format of another.
    """
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as Registry

    default, _ = Registry.get_active_backend()
    try:
        transformer.set_attention_backend(name)
    finally:
        Registry.set_active_backend(default)


def has_stateful_hooks(module: nn.Module) -> bool:
    """Whether hooks of accelerate or diffusers move or cast weights of a module during its forward pass.

    accelerate 1.15 stores its hook as `module._hf_hook`; `AlignDevicesHook.offload` is False where it only aligns
    devices. diffusers 0.42 stores its hooks, by name, in `module._diffusers_hook.hooks`.
    """
    for part in module.modules():
        hook = getattr(part, "_hf_hook", None)
        if hook is not None and getattr(hook, "offload", True):
            return True
        if getattr(getattr(part, "_diffusers_hook", None), "hooks", None):
            return True
    return False


@dataclass(frozen=True)
class ExecutionDevice:
    """In place of a hook of accelerate, reports to diffusers the device that a model computes on.

    diffusers 0.42 reads `module._hf_hook.execution_device`. An `AlignDevicesHook` or a `CpuOffload` there means an
    offload of diffusers, which loading an adapter removes and enables again for every component. accelerate calls
    `detach_hook` when hooks are removed.
    """

    execution_device: torch.device
    offload: bool = False

    def detach_hook(self, module: nn.Module) -> nn.Module:
        """The module, which this hook left as it was."""
        return module


def execution_device(pipe: Any) -> torch.device:
    """The device that a pipeline computes on.

    `DiffusionPipeline.device` gives the device of the weights, which under an offload is the CPU. diffusers 0.42 looks
    for hooks of an offload in every module of the pipeline.
    """
    device: torch.device = pipe._execution_device
    return device


def models_of(pipe: Any) -> list[nn.Module]:
    """The models of a pipeline.

    The attributes are copied first, since a call of the pipeline in another thread may add some.
    """
    return [part for part in vars(pipe).copy().values() if isinstance(part, nn.Module)]


def placement_markers(pipe: Any) -> tuple[Any, ...]:
    """Values that change when `execution_device` may change; a fiftieth of its cost.

    An offload leaves a hook (`_hf_hook` of accelerate, `_diffusers_hook`) on a model or on the first of its modules
    with weights, and a move changes the device of the first weight. Checked on diffusers 0.42.
    """
    markers: list[Any] = []
    for model in models_of(pipe):
        first = next((part for part in model.modules() if part._parameters), model)
        hooks = (id(getattr(part, name, None)) for part in (model, first) for name in ("_hf_hook", "_diffusers_hook"))
        weight = next((weight for weight in first._parameters.values() if weight is not None), None)
        markers.append((id(model), None if weight is None else weight.device, *hooks))
    return tuple(markers)


def remember_device(pipe: Any, device: torch.device | None = None) -> None:
    """Make the calls of a pipeline read the device that they compute on where diffusers searches for it.

    The pipeline becomes an instance of a subclass of the same name. diffusers has no other place for a value that a
    property computes.

    Arguments:
        device: of a pipeline that is used for one call. None searches once, and again after a move or an offload.
    """
    pipe.__class__ = _remembering(class_of(pipe))
    vars(pipe)[_DEVICE] = None if device is None else (None, device)


def class_of(pipe: Any) -> type:
    """The class of a pipeline as diffusers has it, without the subclass of `remember_device`."""
    kind: type = type(pipe)
    return kind.__mro__[1] if _DEVICE in vars(kind) else kind


_DEVICE = "_fluxnb_device"  # on a pipeline: markers of its placement, or None, and its device


@functools.cache
def _remembering(kind: type) -> type:
    """A subclass of a pipeline's class whose instances remember the device that they compute on."""

    class Remembering(kind):  # type: ignore[misc]
        @property
        def _execution_device(self) -> Any:
            known = vars(self).get(_DEVICE)  # missing on a pipeline that was made by calling this class
            if known is not None and known[0] is None:
                return known[1]
            markers = placement_markers(self)
            if known is None or known[0] != markers:
                known = self.__dict__[_DEVICE] = (markers, super()._execution_device)
            return known[1]

    setattr(Remembering, _DEVICE, None)
    return named_like(Remembering, kind)


def named_like(made: type, kind: type) -> type:
    """A subclass that was made of a class, with its name, module and documentation."""
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        setattr(made, name, getattr(kind, name))
    return made


def set_execution_device(model: nn.Module, device: torch.device) -> None:
    """Set the device that diffusers reports for a model, which otherwise is that of its weights."""
    model._hf_hook = ExecutionDevice(device)


def has_execution_device(model: nn.Module) -> bool:
    """Whether `set_execution_device` was called on the model."""
    return isinstance(getattr(model, "_hf_hook", None), ExecutionDevice)


def is_cast_by_layer(layer: nn.Module) -> bool:
    """Whether diffusers stores the weights of a layer in another type between its calls, in 0.42 by a hook."""
    return "layerwise_casting" in getattr(getattr(layer, "_diffusers_hook", None), "hooks", ())


def is_group_offloaded(module: nn.Module) -> bool:
    """Whether diffusers streams parts of a module, in 0.42 by a hook of the name "group_offloading"."""
    return any(
        "group_offloading" in getattr(getattr(part, "_diffusers_hook", None), "hooks", ()) for part in module.modules()
    )


def reinstall_group_offload(module: nn.Module) -> None:
    """Stream the parts that a module has now with the settings it was streamed with; without effect on others.

    diffusers 0.42 does so itself, with this function, where it loads an adapter.
    """
    from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading

    _maybe_remove_and_reapply_group_offloading(module)


def is_changed_at_run_time(transformer: Any) -> bool:
    """Whether an adapter is loaded or block outputs are cached, which a recorded evaluation would miss.

    Checked on diffusers 0.42: `_hf_peft_config_loaded` of PeftAdapterMixin and `is_cache_enabled` of CacheMixin.
    """
    return bool(getattr(transformer, "_hf_peft_config_loaded", False) or transformer.is_cache_enabled)


def remove_unfused_projections(transformer: nn.Module) -> None:
    """Delete the separate query, key and value layers of attention modules whose projections are fused.

    Checked on diffusers 0.42: after `fuse_qkv_projections`, `FluxAttention.fused_projections` is True and these
    attributes remain, unused.
    """
    for module in transformer.modules():
        if getattr(module, "fused_projections", False):
            for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
                if hasattr(module, name):
                    delattr(module, name)


# The fused layer of an attention module, and the layers whose rows it holds in this order (diffusers 0.42).
_FUSED = {"to_qkv": ("to_q", "to_k", "to_v"), "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}
FusedProjections = dict[nn.Module, dict[str, nn.Linear]]


def separate_projections(transformer: nn.Module) -> FusedProjections:
    """Undo `fuse_qkv_projections` followed by `remove_unfused_projections`.

    The separate layers share the memory of the fused ones.

    Returns:
        The fused layers by attention module, for `restore_fused_projections`.
    """
    separated: FusedProjections = {}
    for attention in list(transformer.modules()):
        if not getattr(attention, "fused_projections", False) or hasattr(attention, "to_q"):
            continue
        separated[attention] = {name: getattr(attention, name) for name in _FUSED if hasattr(attention, name)}
        for name, fused in separated[attention].items():
            weights = fused.weight.data.chunk(3)
            biases = (None,) * 3 if fused.bias is None else fused.bias.data.chunk(3)
            for part, weight, bias in zip(_FUSED[name], weights, biases, strict=True):
                layer = nn.Linear(fused.in_features, len(weight), bias=bias is not None, device="meta")
                layer.weight = nn.Parameter(weight, requires_grad=False)
                if bias is not None:
                    layer.bias = nn.Parameter(bias, requires_grad=False)
                setattr(attention, part, layer.eval())
            delattr(attention, name)
        attention.fused_projections = False
    return separated


def restore_fused_projections(separated: FusedProjections) -> None:
    """Undo `separate_projections`. What the separate layers became is copied into the fused ones."""
    for attention, layers in separated.items():
        for name, fused in layers.items():
            for leaf in ("weight", "bias"):
                tensor = getattr(fused, leaf)
                for i, part in enumerate(_FUSED[name] if tensor is not None else ()):
                    rows, now = tensor.data.chunk(3)[i], getattr(getattr(attention, part), leaf).data
                    if rows.data_ptr() != now.data_ptr():
                        rows.copy_(now)
            for part in _FUSED[name]:
                delattr(attention, part)
            setattr(attention, name, fused)
        attention.fused_projections = True


def gguf_types() -> tuple[Any, Any, Any]:
    """The linear layer, the parameter class and the dequantizing function for GGUF, undocumented in diffusers 0.42."""
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    return GGUFLinear, GGUFParameter, dequantize_gguf_tensor


# -------------------------------------------------------------------------------------------------------- tokenizers
def is_library_error(problem: BaseException) -> bool:
    """Whether an exception is an error of a library and not an interrupt.

    Libraries written in Rust raise `pyo3_runtime.PanicException`, a BaseException, for damaged files. Checked on
    tokenizers 0.22.
    """
    return isinstance(problem, Exception) or type(problem).__name__ == "PanicException"


# --------------------------------------------------------------------------------------------------------------- peft
def tuner_layers(model: nn.Module) -> list[Any]:
    """The layers of peft that wrap a layer of the model and add an adapter to it, `BaseTunerLayer` in peft 0.21."""
    if "peft" not in sys.modules:
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


# ------------------------------------------------------------------------------------------------------- transformers
def modules_in_float32(model: nn.Module) -> frozenset[str]:
    """Names of submodules that a model keeps in float32 when loaded in float16.

    Checked on transformers 5.23: `PreTrainedModel._keep_in_fp32_modules`, None or a list or set.
    """
    return frozenset(getattr(model, "_keep_in_fp32_modules", None) or ())


def tied_weights(model: nn.Module) -> dict[str, str]:
    """Names of weights that are shared, each with the name of its twin.

    Checked on transformers 5.23: `PreTrainedModel._tied_weights_keys`, None or a dict.
    """
    return dict(getattr(model, "_tied_weights_keys", None) or {})


def tokenizer_method(component: Any) -> str:
    """The name of the method in which a tokenizer sets padding and truncation and then encodes; "" for other objects.

    Fast tokenizers keep padding and truncation as state of one Rust object. Checked on transformers 5.23.
    """
    from transformers import PreTrainedTokenizerBase

    return "_encode_plus" if isinstance(component, PreTrainedTokenizerBase) else ""
