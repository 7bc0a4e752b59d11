"""What takes a step downhill: AdamW, or Muon for the matrices inside the transformer's blocks and AdamW for the rest.

Muon is meant for hidden layers: what reads the input, what writes the output, embeddings, vectors and the text encoders
stay with AdamW. Neither keeps anything on disk: a run goes on from weights alone.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn

from fluxnb.errors import InputError, unknown_choice
from fluxnb.train.config import OPTIMIZERS, Schedule
from fluxnb.train.stages.muon import Muon

DECAY = 0.01  # of matrices, towards zero, in shares of the learning rate
BLOCKS = ("transformer.transformer_blocks.", "transformer.single_transformer_blocks.")


class MuonAndAdamW:
    """Both optimisers as one: what a training asks of either, and no more.

    Arguments:
        muon: of the matrices inside the blocks.
        rest: AdamW of all others.
        times: Muon's learning rate, in those of AdamW.
    """

    def __init__(self, muon: Muon, rest: torch.optim.Optimizer, times: float = 1.0):
        self.muon, self.rest = muon, rest
        for group in muon.param_groups:
            group["times"] = times

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [*self.muon.param_groups, *self.rest.param_groups]

    def step(self) -> None:
        """Move all weights."""
        self.muon.step()
        self.rest.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        self.muon.zero_grad(set_to_none=set_to_none)
        self.rest.zero_grad(set_to_none=set_to_none)


Optimiser: TypeAlias = torch.optim.Optimizer | MuonAndAdamW


def optimiser(module: nn.Module, schedule: Schedule, betas: tuple[float, float] = (0.9, 0.98)) -> Optimiser:
    """What the schedule names, for those of the module's parameters that learn."""
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if schedule.optimizer == "adamw":
        return adamw(list(learning.values()), schedule.learning_rate, betas)
    if schedule.optimizer != "muon":
        raise unknown_choice("optimizer", schedule.optimizer, OPTIMIZERS)
    inside = {name: p for name, p in learning.items() if name.startswith(BLOCKS) and p.ndim == 2}
    if not inside:
        raise InputError(
            f"optimizer='muon' for a {type(module).__name__}",
            "Muon moves the matrices of a transformer's blocks, and none of those learns here",
            "train it with 'adamw'",
        )
    rest = adamw([p for name, p in learning.items() if name not in inside], schedule.learning_rate, betas)
    return MuonAndAdamW(Muon(inside.values(), weight_decay=DECAY), rest, schedule.muon_times)


def adamw(parameters: list[nn.Parameter], rate: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors do not."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=parameters[0].is_cuda)
