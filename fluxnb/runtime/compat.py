"""Private and undocumented attributes of libraries that this package uses, one documented item each.

`tests/runtime/test_compat.py` fails for each item that a library no longer has.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

from torch import nn

__all__ = [
    "ATTENTION_BACKENDS",
    "compiler_options",
    "discard_compiled_call",
    "gguf_types",
    "has_stateful_hooks",
    "hook_count",
    "is_changed_at_run_time",
    "model_offload_hooks",
    "module_call_frame",
    "modules_in_float32",
    "remove_unfused_projections",
    "tied_weights",
    "tokenizer_method",
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


# ---------------------------------------------------------------------------------------------------------- diffusers
def model_offload_hooks(pipe: Any) -> list[Any]:
    """The hooks of `pipe.enable_model_cpu_offload()`, each with an `offload()` method; empty without it.

    Checked on diffusers 0.42: `DiffusionPipeline._all_hooks`. The list is replaced when offloading is enabled again.
    """
    hooks: list[Any] | None = getattr(pipe, "_all_hooks", None)
    return [] if hooks is None else hooks


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


def gguf_types() -> tuple[Any, Any, Any]:
    """The linear layer, the parameter class and the dequantizing function for GGUF, undocumented in diffusers 0.42."""
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter, dequantize_gguf_tensor

    return GGUFLinear, GGUFParameter, dequantize_gguf_tensor


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
