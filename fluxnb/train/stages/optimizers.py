"""AdamW, Muon, and their combination: Muon for the matrices of the transformer's blocks, AdamW for all other weights.

Muon is designed for hidden layers. Input and output layers, embeddings, vectors and the text encoders therefore use
AdamW. Optimizer state is not saved: a resumed training starts from weights only.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fluxnb.errors import InputError, unknown_choice
from fluxnb.train.config import OPTIMIZERS, Schedule

DECAY = 0.01  # weight decay of matrices, relative to the learning rate
BLOCKS = ("transformer.transformer_blocks.", "transformer.single_transformer_blocks.")
#: Coefficients and number of the Newton-Schulz iterations (Keller Jordan, kellerjordan.github.io/posts/muon). The
#: polynomial is steep at zero, so the singular values end between 0.7 and 1.2 rather than at exactly 1.
POLYNOMIAL, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """Muon with batched matrices: the update of each matrix is orthogonalized.

    `torch.optim.Muon` (torch 2.9 and later) processes one matrix at a time with about two dozen small kernels each,
    which doubled the time of a teacher step on an H100 (74 ms instead of 37 ms). Here matrices of equal shape are
    processed as one batch.

    Arguments:
        matrices: two-dimensional parameters; those of equal shape form one group.
        lr: learning rate. An update has the typical root mean square of an AdamW update, 0.2 (2502.16982), so the
            learning rate of AdamW is a good start.
        weight_decay: relative to the learning rate.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float = 0.0, weight_decay: float = 0.0):
        shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        groups = [{"params": alike} for alike in shapes.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update all weights that have a gradient."""
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if weight not in self.state:
                    self.state[weight]["momentum"] = torch.zeros_like(weight)
            gradients, momenta = [p.grad for p in weights], [self.state[p]["momentum"] for p in weights]
            torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
            nesterov = torch._foreach_lerp(gradients, momenta, MOMENTUM)
            updates = orthogonalize(torch.stack(nesterov)).to(weights[0].dtype)
            scale = 0.2 * max(weights[0].shape) ** 0.5
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, list(updates.unbind()), alpha=-group["lr"] * scale)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Move the singular values of matrices (N, rows, columns) close to 1; singular vectors stay. In bfloat16."""
    a, b, c = POLYNOMIAL
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above one
    for _ in range(ITERATIONS):
        squared = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(squared, squared, squared, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class MuonAndAdamW:
    """Muon and AdamW with the interface of one optimizer.

    Arguments:
        muon: optimizes the matrices of the blocks.
        adamw: optimizes all other parameters.
        lr_ratio: learning rate of Muon relative to AdamW's.
    """

    def __init__(self, muon: Muon, adamw: torch.optim.Optimizer, lr_ratio: float = 1.0):
        self.muon, self.adamw = muon, adamw
        for group in muon.param_groups:
            group["lr_ratio"] = lr_ratio

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of both."""
        return [*self.muon.param_groups, *self.adamw.param_groups]

    def step(self) -> None:
        """Update all weights."""
        self.muon.step()
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients."""
        self.muon.zero_grad(set_to_none=set_to_none)
        self.adamw.zero_grad(set_to_none=set_to_none)


Optimizer: TypeAlias = torch.optim.Optimizer | MuonAndAdamW


def make_optimizer(module: nn.Module, schedule: Schedule, betas: tuple[float, float] = (0.9, 0.98)) -> Optimizer:
    """The optimizer that `schedule` names, for the parameters of `module` that require gradients.

    Raises:
        InputError: for an unknown optimizer, or for Muon if no block has a trainable matrix.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if schedule.optimizer == "adamw":
        return make_adamw(list(trainable.values()), schedule.learning_rate, betas)
    if schedule.optimizer != "muon":
        raise unknown_choice("optimizer", schedule.optimizer, OPTIMIZERS)
    matrices = {name: p for name, p in trainable.items() if name.startswith(BLOCKS) and p.ndim == 2}
    if not matrices:
        raise InputError(
            f"optimizer='muon' for a {type(module).__name__}",
            "Muon optimizes the matrices of a transformer's blocks, and none of those is trainable here",
            "train it with 'adamw'",
        )
    others = make_adamw([p for name, p in trainable.items() if name not in matrices], schedule.learning_rate, betas)
    return MuonAndAdamW(Muon(matrices.values(), weight_decay=DECAY), others, schedule.muon_lr_ratio)


def make_adamw(parameters: list[nn.Parameter], rate: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW with weight decay for matrices and none for vectors."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=parameters[0].is_cuda)
