"""Private and undocumented attributes of libraries that this package uses, one documented item each.

`tests/runtime/test_compat.py` fails for each item that a library no longer has.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

from torch import nn

__all__ = ["has_stateful_hooks", "model_offload_hooks", "module_call_frame", "tokenizer_method"]


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


def tokenizer_method(component: Any) -> str:
    """The name of the method in which a tokenizer sets padding and truncation and then encodes; "" for other objects.

    Fast tokenizers keep padding and truncation as state of one Rust object. Checked on transformers 5.23.
    """
    from transformers import PreTrainedTokenizerBase

    return "_encode_plus" if isinstance(component, PreTrainedTokenizerBase) else ""
