"""Rounding of weights to integers with a scale for each group, the arithmetic that formats of few bits have in common.

The rounded weights keep their number format, so that the arithmetic is unchanged and only the values differ. Nothing
here saves memory; `quantisation` stores weights in fewer bits.
"""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["block_weights", "round_weight"]


def round_weight(weight: Tensor, bits: int, group: int | None) -> Tensor:
    """Round a weight to `2**bits - 1` evenly spaced values per group, symmetric about 0.

    The scale of a group is its largest absolute value divided by `2**(bits - 1) - 1`; a value becomes the nearest
    multiple of the scale. The scales are not rounded.

    Arguments:
        weight: (outputs, ...); one row of all its inputs for each output.
        bits: at least 2; 2 bits leave -scale, 0 and scale.
        group: consecutive numbers of a row with one scale, the last group of a row may be shorter; None for whole rows.

    Example:
        >>> round_weight(Tensor([[0.1, 0.6, -1.0, 0.2]]), bits=2, group=None).tolist()
        [[0.0, 1.0, -1.0, 0.0]]
    """
    rows = weight.detach().float().flatten(1)
    numbers = rows.shape[1]
    size = min(group or numbers, numbers)
    groups = nn.functional.pad(rows, (0, -numbers % size)).unflatten(1, (-1, size))
    scales = groups.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)
    rounded = (groups / scales.where(scales > 0, 1.0)).round() * scales
    return rounded.flatten(1)[:, :numbers].reshape(weight.shape).to(weight.dtype)


def block_weights(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers and convolutions of a model's blocks, without modulation, by name.

    Blocks are what a model holds in lists of modules. Layers at both ends of the model are outside of them.
    """
    lists = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and name.startswith(lists)
        and not any(word in name for word in ("norm", "modulation"))
    }
