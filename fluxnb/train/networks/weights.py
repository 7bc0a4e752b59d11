"""The weights of a network in one file: float16 in the file, float32 in memory."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn


def save_weights(network: nn.Module, path: Path, *, without: Collection[str] = ()) -> None:
    """Write the weights of a network to one file in float16, atomically.

    Arguments:
        network: the network.
        path: of the file; its folder is created.
        without: names of weights that are not stored.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    half = {name: t.detach().half().cpu().contiguous() for name, t in network.state_dict().items()}
    save_file({name: tensor for name, tensor in half.items() if name not in without}, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read what `save_weights` wrote, in float32."""
    return {name: tensor.float() for name, tensor in load_file(path).items()}
