"""Smaller weights: each way of storing the blocks' linear layers in 8 or 4 bits, applied as the weights arrive.

Only the linear layers inside the blocks are touched; the small layers at both ends keep 16 bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fluxnb.errors import InputError, unknown_choice
from fluxnb.planning.presets import WEIGHT_BYTES
from fluxnb.runtime.streaming import Arrival, put

__all__ = ["STORAGES", "block_layers", "finish", "prepare", "quantise_now"]

STORAGES = tuple(WEIGHT_BYTES)
SKIPPED = ("norm", "pos_embed", "time_text_embed", "x_embedder", "context_embedder", "^proj_out$")


def block_layers(transformer: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of the blocks, modulation left out."""
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(("transformer_blocks.", "single_transformer_blocks."))
        and "norm" not in name
    }


def prepare(transformer: nn.Module, storage: str, compute: torch.dtype) -> Arrival | None:
    """Make a transformer without memory ready to take its weights in this form.

    Arguments:
        storage: one of `STORAGES`.
        compute: what the layers compute in.

    Returns:
        What `stream_in` is to do with each tensor; None for "plain".

    Raises:
        InputError: an unknown form, or one whose library is not installed.
    """
    if storage not in STORAGES:
        raise unknown_choice("storage", storage, STORAGES)
    if storage == "plain":
        return None
    chosen = block_layers(transformer)
    if storage == "fp8":
        layers = set(chosen.values())
        return lambda layer, leaf, tensor: put(
            layer, leaf, tensor.to(torch.float8_e4m3fn) if layer in layers else tensor
        )
    if storage == "nf4":
        return _four_bits(transformer, chosen, compute)
    if storage.startswith("gguf"):
        return _by_gguf(transformer, chosen, compute)
    return _by_torchao(chosen, storage)


def finish(transformer: Any, storage: str, compute: torch.dtype) -> None:
    """What is to be done once all weights are there: 8-bit storage is cast for each layer as it runs."""
    if storage == "fp8":
        from diffusers.hooks import apply_layerwise_casting

        apply_layerwise_casting(
            transformer,
            storage_dtype=torch.float8_e4m3fn,
            compute_dtype=compute,
            skip_modules_pattern=SKIPPED,
        )


def _four_bits(transformer: nn.Module, chosen: dict[str, nn.Module], compute: torch.dtype) -> Arrival:
    bnb = _library("bitsandbytes")
    taken: set[nn.Module] = set()
    for name, layer in chosen.items():
        path, _, leaf = name.rpartition(".")
        small = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=compute,
            quant_type="nf4", device="meta",
        )  # fmt: skip
        if small.bias is not None:
            small.bias.data = small.bias.data.to(compute)
        small.requires_grad_(False).eval()
        setattr(transformer.get_submodule(path), leaf, small)
        taken.add(small)

    def arrive(layer: nn.Module, leaf: str, tensor: Tensor) -> None:
        if layer in taken and leaf == "weight":
            # bitsandbytes makes the four bits when a weight is moved to a device.
            weight = bnb.nn.Params4bit(tensor.to(compute), requires_grad=False, quant_type="nf4", module=layer)
            layer._parameters[leaf] = weight.to(tensor.device)
        else:
            put(layer, leaf, tensor)

    return arrive


def _by_gguf(transformer: nn.Module, chosen: dict[str, nn.Module], compute: torch.dtype) -> Arrival:
    from diffusers.quantizers.gguf.utils import GGUFLinear

    for name, layer in chosen.items():
        path, _, leaf = name.rpartition(".")
        small = GGUFLinear(layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=compute,
                           device="meta")  # fmt: skip
        setattr(transformer.get_submodule(path), leaf, small.requires_grad_(False).eval())

    def arrive(layer: nn.Module, leaf: str, tensor: Tensor) -> None:
        if tensor.is_floating_point():
            put(layer, leaf, tensor)
        else:
            layer._parameters[leaf] = tensor  # a parameter already, which knows its kind of block

    return arrive


def _by_torchao(chosen: dict[str, nn.Module], storage: str) -> Arrival:
    ao = _library("torchao").quantization
    # Unless told not to, torchao has PyTorch's compiler try each kernel in many shapes from then on, whatever it is of:
    # on an H100 `fast="fp8"` took 686 seconds to set up, the decoder's compiling alone 404 instead of 26.
    alone = {"set_inductor_config": False}
    config = (
        ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow(), **alone)
        if storage == "fp8-rows"
        else ao.Int8DynamicActivationInt8WeightConfig(**alone)
    )
    layers = set(chosen.values())

    def arrive(layer: nn.Module, leaf: str, tensor: Tensor) -> None:
        put(layer, leaf, tensor)
        if layer in layers and leaf == "weight":
            ao.quantize_(layer, config, filter_fn=lambda module, _: module is layer)

    return arrive


def quantise_now(transformer: nn.Module, storage: str) -> None:
    """Turn a transformer whose weights are there already to a torchao form, layer by layer."""
    arrive = _by_torchao(block_layers(transformer), storage)
    for layer in block_layers(transformer).values():
        arrive(layer, "weight", layer.weight.data)


def _library(name: str) -> Any:
    import importlib

    try:
        module = importlib.import_module(name)
        return importlib.import_module(f"{name}.quantization") and module if name == "torchao" else module
    except ImportError as problem:
        raise InputError(
            f"this preset needs {name} ({problem})", "it is not installed, or does not fit this PyTorch",
            f"run pip install {name}, or choose another preset",
        ) from None  # fmt: skip
