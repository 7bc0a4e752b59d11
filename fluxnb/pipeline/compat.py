"""Private and undocumented parts of diffusers, transformers and torch that fluxnb relies on.

Each is used here alone, with the reason why the public interface is not enough. `tests/pipeline/test_compat.py` checks
them on the oldest and the newest supported versions, so that a change upstream fails there first.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fluxnb.cleanup import undoing
from fluxnb.runtime.compat import remember_device

__all__ = [
    "apply_rope",
    "cache_config",
    "calculate_shift",
    "compute_dtype",
    "config_object",
    "dtype_keyword",
    "empirical_shift",
    "forward_hooks",
    "has_model_hooks",
    "hook_names",
    "interrupt",
    "is_caching",
    "is_compiled",
    "is_parallel",
    "own_instance",
    "progress_bar_config",
    "remove_hooks",
    "silenced",
    "tensor_version",
    "without_loading_output",
]


def has_model_hooks(pipe: Any) -> bool:
    """Whether `enable_model_cpu_offload` is on; there is no public way to find out."""
    return bool(getattr(pipe, "_all_hooks", None))


def interrupt(pipe: Any) -> None:
    """End the denoising loop of a running call after the current step.

    This is the documented way of diffusers (guide "Pipeline callbacks"), which has no public setter for it.
    """
    pipe._interrupt = True


def own_instance(pipe: Any, scheduler: Any, device: torch.device) -> Any:
    """A pipeline over the same modules with attributes of its own, so that a call changes nothing on the original.

    `from_pipe` re-runs the constructor and registers every module again; a shallow copy costs a thousandth of that.
    The attributes are set without `DiffusionPipeline.__setattr__`, which would register the scheduler in the
    configuration. Freeing model hooks stays with the original, whose list of hooks it replaces.

    Arguments:
        device: that the pipeline computes on.
    """
    view = copy.copy(pipe)
    remember_device(view, device)
    vars(view)["scheduler"] = scheduler
    if has_model_hooks(pipe):
        vars(view)["maybe_free_model_hooks"] = pipe.maybe_free_model_hooks
    return view


def progress_bar_config(pipe: Any) -> dict[str, Any]:
    """The settings that `set_progress_bar_config` stored; there is a public setter and no getter."""
    return dict(getattr(pipe, "_progress_bar_config", None) or {})


def config_object(part: Any) -> Any:
    """The configuration object of a scheduler or model, which `register_to_config` replaces by another.

    The public `config` property returns the same object today, and a copy in some versions.
    """
    return getattr(part, "_internal_dict", None)


def cache_config(transformer: Any) -> Any:
    """The configuration that `enable_cache` was given, or None; there is a public flag and no public configuration."""
    return getattr(transformer, "_cache_config", None)


def is_caching(transformer: Any) -> bool:
    """Whether the transformer keeps activations from one evaluation to the next (`enable_cache`)."""
    return bool(getattr(transformer, "is_cache_enabled", False))


def hook_names(module: Any) -> tuple[str, ...]:
    """The names of diffusers' own hooks on a module (caching, casting, group offloading)."""
    return tuple(getattr(getattr(module, "_diffusers_hook", None), "hooks", {}))


def calculate_shift(tokens: int, config: Any) -> float:
    """The shift `mu` that FluxPipeline computes from the number of image tokens (module function, undocumented)."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift as original

    return float(
        original(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
    )


def empirical_shift(tokens: int, steps: int) -> float:
    """The shift `mu` that Flux2KleinPipeline computes from size and steps (module function, undocumented)."""
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    return float(compute_empirical_mu(image_seq_len=tokens, num_steps=steps))


def apply_rope(x: Tensor, cos_sin: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding of queries or keys (batch, tokens, heads, features) as FLUX's attention applies it."""
    from diffusers.models.embeddings import apply_rotary_emb

    rotated: Tensor = apply_rotary_emb(x, cos_sin, sequence_dim=1)
    return rotated


def is_compiled(module: Any) -> bool:
    """Whether `torch.compile` wrapped a module (`_orig_mod`) or `Module.compile` replaced its call."""
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


def is_parallel(transformer: Any) -> bool:
    """Whether diffusers splits the sequence over several devices (`enable_parallelism`)."""
    return getattr(transformer, "_parallel_config", None) is not None


def remove_hooks(module: Any, chosen: Callable[[Any], bool]) -> None:
    """Remove the forward hooks and pre-hooks of a module that `chosen` accepts, without their handles.

    The handle is the public way. An interrupt between the registration and the return of the handle loses it.
    """
    for registry in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in registry.items() if chosen(hook)]:
            registry.pop(key, None)
            for kind in ("with_kwargs", "always_called"):
                for extra in (f"_forward_hooks_{kind}", f"_forward_pre_hooks_{kind}"):
                    getattr(module, extra, {}).pop(key, None)


def forward_hooks(module: Any) -> list[Any]:
    """The forward hooks and pre-hooks of a module; there is no public way to list them."""
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]


def tensor_version(tensor: Tensor) -> int | None:
    """How often a tensor was written in place, or None in inference mode, where torch does not count."""
    return None if tensor.is_inference() else int(tensor._version)


def compute_dtype(model: Any) -> torch.dtype:
    """The number format that a model of diffusers computes with.

    Its property `dtype` searches all modules for hooks first, which takes most of a millisecond; they need be searched
    only where weights are stored in a format that nothing computes with.
    """
    first = next(iter(model.parameters()), None)
    if first is not None and first.is_floating_point() and first.itemsize >= 2:
        return first.dtype
    dtype: torch.dtype = model.dtype
    return dtype


# The loggers that warn about truncated prompts; fluxnb warns itself and quotes the right words.
LOGGERS = (
    "diffusers.pipelines.flux.pipeline_flux",
    "transformers.tokenization_utils_base",
)
_SILENCED: contextvars.ContextVar[bool] = contextvars.ContextVar("fluxnb_silenced", default=False)


def _pass_unless_silenced(record: logging.LogRecord) -> bool:
    return not _SILENCED.get()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Drop the truncation warnings of diffusers and transformers in this context; other threads still get them."""
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_pass_unless_silenced)  # adding a filter twice has no effect
    with undoing(functools.partial(_SILENCED.set, _SILENCED.get())):
        _SILENCED.set(True)
        yield


def dtype_keyword() -> str:
    """The keyword of `from_pretrained` for the number format: "torch_dtype", or "dtype" in later versions of diffusers.

    The versions that accept both have `_resolve_dtype` in `diffusers.utils.deprecation_utils`. Checked on diffusers
    0.39 and 0.42.
    """
    from diffusers.utils import deprecation_utils

    return "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"


@contextlib.contextmanager
def without_loading_output() -> Iterator[None]:
    """Suppress progress bars and warnings of diffusers and transformers while a small model loads.

    Both have `logging` modules with functions for their own progress bars. diffusers 0.39 has no
    `is_progress_bar_enabled`; its progress bars are enabled by default.
    """
    import transformers.utils.logging as of_transformers
    from diffusers.utils import logging as of_diffusers

    level = of_transformers.get_verbosity()
    restore: list[Callable[[], None]] = []
    if of_transformers.is_progress_bar_enabled():
        restore.append(of_transformers.enable_progress_bar)
    if getattr(of_diffusers, "is_progress_bar_enabled", lambda: True)():
        restore.append(of_diffusers.enable_progress_bar)
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    of_diffusers.disable_progress_bar()
    try:
        yield
    finally:
        of_transformers.set_verbosity(level)
        for enable in restore:
            enable()
