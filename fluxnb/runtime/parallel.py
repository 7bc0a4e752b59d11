"""parallel: one picture over several GPUs, with one process on each of them.

Every process runs the same program and holds all weights. The transformer's tokens are split over the processes by
diffusers (context parallelism after Ulysses, 2309.14509); the decoder's rows are split here. All processes receive the
same result. A call of the pipeline is complete only when every process makes it.
"""

from __future__ import annotations

import atexit
import copy
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as distributed
import torch.nn.functional as F
from torch import Tensor, nn

from fluxnb.errors import InputError
from fluxnb.planning.processes import Processes
from fluxnb.runtime.compat import exchange, gather, split_tokens_over
from fluxnb.runtime.cuda_graphs import free_graphs

__all__ = ["agreed", "is_split", "join", "local_decoder", "split_decoder", "split_transformer"]

T = TypeVar("T")
_LOCAL = "_fluxnb_local"  # on a split decoder: a tuple with the decoder that it was made from


def join(processes: Processes, device: torch.device) -> None:
    """Connect this process with those that were launched beside it; without effect where they are connected already.

    Raises:
        InputError: no other process was launched, or not by a launcher that connects them.
    """
    if distributed.is_initialized():
        return
    if processes.count < 2 or "MASTER_ADDR" not in os.environ:
        raise InputError(
            f'preset="parallel" in {"a single process" if processes.count < 2 else "processes without an address"}',
            "two or more processes are needed, each on a GPU of its own, that a launcher connects",
            "type torchrun --nproc-per-node 2 script.py",
        )
    on_cuda = device.type == "cuda"
    distributed.init_process_group("nccl" if on_cuda else "gloo", device_id=device if on_cuda else None)
    atexit.register(_leave)


def _leave() -> None:
    """Leave the other processes at the end of this one."""
    free_graphs()
    if distributed.is_initialized():
        distributed.destroy_process_group()


def agreed(value: T) -> T:
    """What the first process gives here, in all processes.

    Measurements differ between processes, and a choice that depends on them has to be the same.
    """
    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


# -------------------------------------------------------------------------------------------------------- transformer
def split_transformer(transformer: Any) -> None:
    """Split the tokens of each evaluation over all processes, in place.

    Raises:
        InputError: the attention heads cannot be divided by the number of processes. Calls raise it for inputs whose
            numbers of tokens cannot be divided.

    Example:
        >>> split_transformer(pipe.transformer)                                     # doctest: +SKIP
    """
    count, heads = distributed.get_world_size(), transformer.config.num_attention_heads
    if heads % count:
        raise InputError(
            f"{count} processes for a transformer with {heads} attention heads",
            f"a number that divides {heads} is possible",
            f"type torchrun --nproc-per-node {max(n for n in range(1, count) if heads % n == 0)} script.py",
        )
    split_tokens_over(transformer, count, _attention)
    transformer.register_forward_pre_hook(_check_tokens, with_kwargs=True, prepend=True)


def _attention(query: Tensor, key: Tensor, value: Tensor, attend: Callable[..., Tensor]) -> Tensor:
    """Attention of tokens that are split over the processes: each process attends to all tokens with some of the heads.

    Queries, keys and values are sent in one message, in an order in which what arrives needs no copy.

    Arguments:
        query, key, value: of this process's tokens, (B, tokens, heads, d).
        attend: attention of queries, keys and values of all tokens, (B, all tokens, some heads, d).

    Returns:
        (B, tokens, heads, d)
    """
    (batch, tokens, heads, width), count = query.shape, distributed.get_world_size()
    own = heads // count
    sent = torch.stack((query, key, value), 2).view(batch, tokens, 3, count, own, width).permute(3, 1, 0, 2, 4, 5)
    attended = attend(*exchange(sent).flatten(0, 1).transpose(0, 1).unbind(2))
    sent = attended.reshape(batch, count, tokens, own, width).permute(1, 2, 0, 3, 4)
    return exchange(sent).permute(2, 1, 0, 3, 4).flatten(2, 3)


def _check_tokens(_: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
    """Raise InputError, in every process, for numbers of tokens that cannot be divided."""
    count = distributed.get_world_size()
    image = args[0] if args else inputs["hidden_states"]
    text = inputs.get("encoder_hidden_states")
    if image.shape[1] % count:
        raise InputError(
            f"a picture of {image.shape[1]} tokens over {count} processes",
            "(height / 16) x (width / 16) has to be a multiple of the number of processes",
            "try height=1024, width=1024",
        )
    if text is not None and text.shape[1] % count:
        raise InputError(
            f"a prompt of {text.shape[1]} tokens over {count} processes",
            "a multiple of the number of processes is possible",
            "try max_sequence_length=256",
        )


# ------------------------------------------------------------------------------------------------------------ decoder
def split_decoder(decoder: nn.Module) -> nn.Module:
    """A decoder that computes a part of a picture's rows in each process and gives the whole picture in all.

    Convolutions receive the rows that border on theirs from the neighbors, group norms combine the statistics of all
    parts, and attention reads the keys and values of all parts. The result equals that of the given decoder up to the
    order of sums. The weights are shared with it.

    Raises:
        InputError: from calls, for latents whose rows cannot be divided by the number of processes.

    Example:
        >>> pipe.vae.decoder = split_decoder(pipe.vae.decoder)                      # doctest: +SKIP
    """
    shared = {id(tensor): tensor for tensor in (*decoder.parameters(), *decoder.buffers())}
    split = copy.deepcopy(decoder, shared)
    for part in list(split.modules()):
        for name, child in list(part.named_children()):
            if isinstance(child, nn.Conv2d) and child.padding[0]:
                setattr(part, name, _Convolution(child))
            elif isinstance(child, nn.GroupNorm):
                setattr(part, name, _GroupNorm(child))
            elif name in ("to_k", "to_v"):
                setattr(part, name, _Gathered(child))
    split.register_forward_pre_hook(_own_rows)
    split.register_forward_hook(_all_rows)
    vars(split)[_LOCAL] = (decoder,)  # in a tuple, so that its weights do not count twice
    return split


def is_split(vae: Any) -> bool:
    """Whether the decoder of a VAE computes a part of the rows in each process; False for a VAE without a decoder."""
    decoder = getattr(vae, "decoder", None)
    return isinstance(decoder, nn.Module) and _LOCAL in vars(decoder)


def local_decoder(decoder: nn.Module) -> nn.Module:
    """The decoder that a split decoder was made from, which needs no other process; others are returned as they are."""
    local: tuple[nn.Module] = vars(decoder).get(_LOCAL, (decoder,))
    return local[0]


def _own_rows(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    latents, count = args[0], distributed.get_world_size()
    if latents.shape[2] % count:
        raise InputError(
            f"a picture of {8 * latents.shape[2]} rows over {count} processes",
            f"heights that are multiples of {8 * count} are possible",
            "try height=1024",
        )
    return (latents.chunk(count, 2)[distributed.get_rank()], *args[1:])


def _all_rows(_: nn.Module, __: Any, rows: Tensor) -> Tensor:
    return torch.cat(gather(rows).unbind(), 2)


class _Convolution(nn.Module):  # type: ignore[misc]
    """A convolution of an image whose rows are split over the processes."""

    def __init__(self, whole: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias, self.padding, self.stride = whole.weight, whole.bias, whole.padding, whole.stride

    def forward(self, x: Tensor) -> Tensor:
        height, width = self.padding
        edges = gather(torch.cat((x[:, :, :height], x[:, :, -height:]), 2))
        rank, last = distributed.get_rank(), distributed.get_world_size() - 1
        above = edges[rank - 1, :, :, height:] if rank > 0 else torch.zeros_like(x[:, :, :height])
        below = edges[rank + 1, :, :, :height] if rank < last else torch.zeros_like(x[:, :, :height])
        return F.conv2d(torch.cat((above, x, below), 2), self.weight, self.bias, self.stride, (0, int(width)))


class _GroupNorm(nn.Module):  # type: ignore[misc]
    """A group norm of an image whose rows are split over the processes, in parts of equal size."""

    def __init__(self, whole: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.groups, self.eps = whole.weight, whole.bias, whole.num_groups, whole.eps

    def forward(self, x: Tensor) -> Tensor:
        groups = x.reshape(len(x), self.groups, -1).float()
        variance, mean = torch.var_mean(groups, 2, correction=0, keepdim=True)
        means, variances = gather(torch.stack((mean, variance))).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        normal = ((groups - mean) * (variance + self.eps).rsqrt()).reshape(x.shape).to(x.dtype)
        channels = (1, -1, *(1,) * (x.ndim - 2))
        return normal * self.weight.view(channels) + self.bias.view(channels)


class _Gathered(nn.Module):  # type: ignore[misc]
    """A linear layer of tokens that are split over the processes, whose results are those of all tokens."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = whole.weight, whole.bias

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat(gather(F.linear(tokens, self.weight, self.bias)).unbind(), 1)
