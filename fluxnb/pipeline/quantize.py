"""quantize(): a copy of a model with weights of fewer bits, to see what they change."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten, unknown_choice
from fluxnb.pipeline.compat import cache_config, is_compiled, progress_bar_config
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.identity import COMPONENTS
from fluxnb.pipeline.load import remember
from fluxnb.planning.plan import convert_out_of_memory
from fluxnb.runtime.compat import has_stateful_hooks, tuner_layers
from fluxnb.runtime.exclusive import group_of, protect
from fluxnb.runtime.rounding import block_weights, round_weight

__all__ = ["quantize"]

FEWEST, MOST = 2, 8  # bits


@entry_point("flux", bits="bits=4", group="group=64", parts='parts=["transformer"]')
def quantize(
    flux: Flux, bits: int = 4, *, group: int | None = 64, parts: str | Sequence[str] = ("transformer",)
) -> Flux:
    """A new handle of a model whose weights are rounded to few bits; the given one stays as it is.

    Each row of a weight matrix (the weights of one output) is cut into groups of consecutive numbers. A group is stored
    as integers of `bits` bits from -n to n, with n = 2**(bits - 1) - 1, and a scale, its largest absolute value divided
    by n. Linear layers and convolutions inside the blocks are rounded. Norms, modulation, embeddings and the layers at
    both ends of a network keep their bits, as under the presets for small cards.

    It is for lessons: the rounded weights are stored in the number format of the model and no memory is saved. To hold
    a large model in few bits, use a preset such as "lean-nf4" or "gguf-q8". Those formats differ in details: NF4 has
    uneven levels, and some of GGUF have scales that are rounded themselves.

    Arguments:
        bits: 2 to 8.
        group: numbers with one scale; None for a scale for each row.
        parts: what is rounded: "transformer", "text_encoder" (CLIP), "text_encoder_2" (T5), "vae". The other parts are
            shared with the given handle.

    Returns:
        A handle with the same model and defaults and a revision of its own, so that a store never mixes up their
        pictures. Its `plan.exact` is False, and `numerics` of its records names the bits.

    Raises:
        InputError: bits, group or parts that are not possible; weights that are not in memory in 16 or 32 bits, are
            compiled, or have an adapter.
        RunError: the copy does not fit the GPU.

    Example:
        >>> few = quantize(flux, bits=4)                                            # doctest: +SKIP
        >>> fnb.compare([fnb.run(each, "a fox in the snow", seed=3) for each in (flux, few)])  # doctest: +SKIP
    """
    names = _checked(flux, bits, group, parts)
    flux.refresh_if_changed()
    pipe = flux.pipe
    with convert_out_of_memory(flux.plan, f"copying {flux.model} with {bits} bits"):
        changed = {name: _rounded(getattr(pipe, name), bits, group) for name in names}
    settings = {name: value for name, value in dict(pipe.config).items() if isinstance(value, bool)}
    made: Any = type(pipe)(**{**pipe.components, **changed}, **settings)
    made.set_progress_bar_config(**progress_bar_config(pipe))
    protect(made, flux.device)
    how = f"{bits} bits, {'rows' if group is None else f'groups of {group}'}"
    numerics = how if names == ("transformer",) else f"{how}, {' and '.join(names)}"
    plan = dataclasses.replace(
        flux.plan,
        preset=numerics if flux.plan.exact else f"{flux.plan.preset}, {numerics}",
        exact=False,
        why=f"the weights of {' and '.join(names)} are rounded",
        options=(),
        refused=(),
    )
    marker = f"q{bits}{'rows' if group is None else f'g{group}'}-{'+'.join(names)}"
    rounded = Flux(made, model=flux.model, revision=f"{flux.revision}-{marker}", defaults=flux.defaults, plan=plan)
    _ = rounded.preview
    return remember(rounded)


def _checked(flux: Flux, bits: int, group: int | None, parts: str | Sequence[str]) -> tuple[str, ...]:
    """The names of the parts in the order of `COMPONENTS`.

    Raises:
        InputError: see `quantize`.
    """
    if not FEWEST <= bits <= MOST:
        raise InputError(
            f"bits={shorten(bits)}", f"{FEWEST} to {MOST}: fewer cannot be symmetric about 0", "type bits=4"
        )
    if group is not None and group < 1:
        raise InputError(f"group={shorten(group)}", "at least 1, or None for whole rows", "type group=64")
    given = [parts] if isinstance(parts, str) else list(parts)
    held = [name for name in COMPONENTS if isinstance(getattr(flux.pipe, name, None), nn.Module)]
    for name in given:
        if name not in held:
            raise unknown_choice("part", name, held)
    if not given:
        raise InputError("parts=()", f"{', '.join(held)} are possible", 'type parts=["transformer"]')
    names = tuple(name for name in held if name in given)
    for name in names:
        _check_part(flux, name)
    return names


def _check_part(flux: Flux, name: str) -> None:
    part = getattr(flux.pipe, name)
    if tuner_layers(part):
        raise InputError(
            f"a {name} with an adapter",
            "weights are rounded without adapters, or with one that is fused into them",
            "type flux.pipe.fuse_lora(); flux.pipe.unload_lora_weights()",
        )
    moved = has_stateful_hooks(part) or group_of(part) is not None or is_compiled(part)
    if moved or cache_config(part) is not None or not all(map(_is_plain, part.parameters())):
        raise InputError(
            f"a {name} under preset {flux.plan.preset!r}",
            "weights are rounded where they are in memory in 16 or 32 bits, not compiled and with nothing cached",
            f'type fnb.load("{flux.model}", preset="{"cpu" if flux.plan.device == "cpu" else "resident"}")',
        )


def _is_plain(weight: nn.Parameter) -> bool:
    return type(weight) is nn.Parameter and not weight.is_meta and weight.is_floating_point() and weight.itemsize >= 2


def _rounded(part: nn.Module, bits: int, group: int | None) -> nn.Module:
    """A copy of a model with rounded weights."""
    made = copy.deepcopy(part)
    with torch.no_grad():
        for layer in block_weights(made).values():
            layer.weight.copy_(round_weight(layer.weight, bits, group))
    return made
