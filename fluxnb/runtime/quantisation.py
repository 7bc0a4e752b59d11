"""Quantization: storing the linear layers of the blocks in 8 or 4 bits, applied while the weights are loaded.

Layers outside the blocks, at both ends of the transformer, keep 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fluxnb.errors import InputError, unknown_choice
from fluxnb.planning.presets import WEIGHT_BYTES
from fluxnb.runtime.compat import gguf_types
from fluxnb.runtime.streaming import TensorSetter, WeightReader, load_weights, set_tensor

__all__ = [
    "STORAGES",
    "block_layers",
    "cast_for_compute",
    "load_text_encoder",
    "prepare_storage",
    "quantise_layers",
]

STORAGES = tuple(WEIGHT_BYTES)
SKIPPED = ("norm", "pos_embed", "time_text_embed", "x_embedder", "context_embedder", "^proj_out$")
SKIPPED_TEXT = ("norm", "embed_tokens")


def block_layers(transformer: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of the blocks, without modulation, by name."""
    return {
        name: module
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear)
        and name.startswith(("transformer_blocks.", "single_transformer_blocks."))
        and "norm" not in name
    }


def prepare_storage(transformer: nn.Module, storage: str, compute: torch.dtype) -> TensorSetter | None:
    """Prepare a transformer built without memory for weights in a storage format.

    Arguments:
        storage: one of `STORAGES`.
        compute: dtype of the computation.

    Returns:
        The setter for `load_weights`; None for "plain".

    Raises:
        InputError: an unknown format, or one whose library is not installed.
    """
    if storage not in STORAGES:
        raise unknown_choice("storage", storage, STORAGES)
    if storage == "plain":
        return None
    layers = block_layers(transformer)
    if storage == "fp8":
        return _in_fp8(layers.values())
    if storage == "nf4":
        return _four_bits(transformer, layers, compute)
    if storage.startswith("gguf"):
        return _by_gguf(transformer, layers, compute)
    return _by_torchao(layers, storage)


def _in_fp8(layers: Iterable[nn.Module]) -> TensorSetter:
    chosen = set(layers)

    def set_cast(layer: nn.Module, leaf: str, tensor: Tensor) -> None:
        set_tensor(layer, leaf, tensor.to(torch.float8_e4m3fn) if layer in chosen else tensor)

    return set_cast


def load_text_encoder(
    encoder: nn.Module, reader: WeightReader, device: torch.device, storage: str, compute: torch.dtype
) -> None:
    """Load a text encoder built without memory, with its linear layers in a storage format.

    Arguments:
        storage: "plain", or "fp8" for 8-bit weights that are cast while a layer runs.
        compute: dtype of the computation.
    """
    if storage == "plain":
        load_weights(encoder, reader, device)
        return
    from diffusers.hooks import apply_layerwise_casting

    # A head that shares the weights of the token embedding keeps 16 bits as well.
    tied = getattr(getattr(encoder, "config", None), "tie_word_embeddings", False)
    skipped = (*SKIPPED_TEXT, "lm_head") if tied else SKIPPED_TEXT
    layers = [
        module
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and not any(part in name for part in skipped)
    ]
    load_weights(encoder, reader, device, _in_fp8(layers))
    apply_layerwise_casting(
        encoder, storage_dtype=torch.float8_e4m3fn, compute_dtype=compute, skip_modules_pattern=skipped
    )


def cast_for_compute(transformer: Any, storage: str, compute: torch.dtype) -> None:
    """Cast layers stored in fp8 to the compute dtype while they run, once all weights are loaded."""
    if storage == "fp8":
        from diffusers.hooks import apply_layerwise_casting

        apply_layerwise_casting(
            transformer,
            storage_dtype=torch.float8_e4m3fn,
            compute_dtype=compute,
            skip_modules_pattern=SKIPPED,
        )


def _four_bits(transformer: nn.Module, layers: dict[str, nn.Module], compute: torch.dtype) -> TensorSetter:
    bnb = _library("bitsandbytes")
    replaced: set[nn.Module] = set()
    for name, layer in layers.items():
        path, _, leaf = name.rpartition(".")
        quantized = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=layer.bias is not None, compute_dtype=compute,
            quant_type="nf4", device="meta",
        )  # fmt: skip
        if quantized.bias is not None:
            quantized.bias.data = quantized.bias.data.to(compute)
        quantized.requires_grad_(False).eval()
        setattr(transformer.get_submodule(path), leaf, quantized)
        replaced.add(quantized)

    def set_quantized(layer: nn.Module, leaf: str, tensor: Tensor) -> None:
        if layer in replaced and leaf == "weight":
            # bitsandbytes quantizes when a weight moves to a device.
            weight = bnb.nn.Params4bit(tensor.to(compute), requires_grad=False, quant_type="nf4", module=layer)
            setattr(layer, leaf, weight.to(tensor.device))
        else:
            set_tensor(layer, leaf, tensor)

    return set_quantized


def _by_gguf(transformer: nn.Module, layers: dict[str, nn.Module], compute: torch.dtype) -> TensorSetter:
    linear, _, _ = gguf_types()
    for name, layer in layers.items():
        path, _, leaf = name.rpartition(".")
        quantized = linear(
            layer.in_features, layer.out_features, layer.bias is not None, compute_dtype=compute, device="meta"
        )
        setattr(transformer.get_submodule(path), leaf, quantized.requires_grad_(False).eval())

    return set_tensor  # the reader returns quantized weights as GGUFParameter


def _by_torchao(layers: dict[str, nn.Module], storage: str) -> TensorSetter:
    ao = _library("torchao").quantization
    # By default torchao sets the compiler to autotune every kernel from then on, including those of other models. On an
    # H100 the setup of `fast="fp8"` then took 686 seconds, 404 instead of 26 of them for the decoder.
    options = {"set_inductor_config": False}
    config = (
        ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow(), **options)
        if storage == "fp8-rows"
        else ao.Int8DynamicActivationInt8WeightConfig(**options)
    )
    to_quantize = set(layers.values())

    def set_quantized(layer: nn.Module, leaf: str, tensor: Tensor) -> None:
        set_tensor(layer, leaf, tensor)
        if layer in to_quantize and leaf == "weight":
            ao.quantize_(layer, config, filter_fn=lambda module, _: module is layer)

    return set_quantized


def quantise_layers(transformer: nn.Module, storage: str) -> None:
    """Quantize a loaded transformer with torchao, layer by layer."""
    set_quantized = _by_torchao(block_layers(transformer), storage)
    for layer in block_layers(transformer).values():
        set_quantized(layer, "weight", layer.weight.data)


def _library(name: str) -> Any:
    import importlib

    try:
        module = importlib.import_module(name)
        return importlib.import_module(f"{name}.quantization") and module if name == "torchao" else module
    except ImportError as problem:
        raise InputError(
            f"a preset that requires {name} ({problem})", "it is not installed, or does not fit this PyTorch",
            f"run pip install {name}, or choose another preset",
        ) from None  # fmt: skip
