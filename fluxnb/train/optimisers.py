"""What takes a step downhill: AdamW, or Muon for the matrices inside the transformer's blocks and AdamW for the rest.

Muon (Keller Jordan, kellerjordan.github.io/posts/muon) makes the step of a matrix orthogonal, so that all its
directions learn at one pace. It is meant for hidden layers: what reads the input, what writes the output, embeddings,
vectors and the text encoders stay with AdamW. Neither keeps anything on disk: a run goes on from weights alone.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import nn

from fluxnb.errors import InputError, one_of
from fluxnb.train.config import OPTIMIZERS, Schedule

DECAY = 0.01  # of matrices, towards zero, in shares of the learning rate
BLOCKS = ("transformer.transformer_blocks.", "transformer.single_transformer_blocks.")
# A step of Muon is some two dozen small kernels a matrix, one behind the other, each of which fills a few of a GPU's
# multiprocessors: dealt to as many queues, the matrices go side by side.
LANES = 8


class MuonAndAdamW:
    """Both optimisers as one: what a training asks of either, and no more.

    It runs beside a CUDA graph of the loss and its gradients, never inside of one: torch's Muon hands its learning
    rate to the kernels as a number, which a graph would keep for ever.

    Arguments:
        matrices: what Muon moves, two dimensions each.
        rest: AdamW of all others.
        times: Muon's learning rate, in those of AdamW. The step of a matrix has AdamW's usual size (2502.16982), so
            that 1 is a sensible start.
    """

    def __init__(self, matrices: list[nn.Parameter], rest: torch.optim.Optimizer, times: float = 1.0):
        if not hasattr(torch.optim, "Muon"):
            raise InputError(
                f"optimizer='muon' with torch {torch.__version__}",
                "Muon is part of torch from 2.9 on; 'adamw' is part of every torch",
                "type --optimizer adamw, or pip install 'torch>=2.9'",
            )
        self.rest = rest
        cuda = matrices[0].is_cuda
        lanes = LANES if cuda else 1
        self.muons = [
            torch.optim.Muon(dealt, lr=0.0, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
            for lane in range(lanes)
            if (dealt := matrices[lane::lanes])
        ]
        self.queues = [torch.cuda.Stream(matrices[0].device) if cuda else None for _ in self.muons]
        for muon in self.muons:
            for group in muon.param_groups:
                group["times"] = times

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [group for part in (*self.muons, self.rest) for group in part.param_groups]

    def step(self) -> None:
        """Move all weights."""
        for queue, muon in zip(self.queues, self.muons, strict=True):
            if queue is not None:
                queue.wait_stream(torch.cuda.current_stream())  # until the gradients are there
            with torch.cuda.stream(queue):  # of None: where we are
                muon.step()
        self.rest.step()
        for queue in filter(None, self.queues):  # nothing reads a weight or frees a gradient before Muon is done
            torch.cuda.current_stream().wait_stream(queue)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients."""
        for part in (*self.muons, self.rest):
            part.zero_grad(set_to_none=set_to_none)


Optimiser: TypeAlias = torch.optim.Optimizer | MuonAndAdamW


def optimiser(module: nn.Module, schedule: Schedule, betas: tuple[float, float] = (0.9, 0.98)) -> Optimiser:
    """What the schedule names, for those of the module's parameters that learn."""
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if schedule.optimizer == "adamw":
        return adamw(list(learning.values()), schedule.learning_rate, betas)
    if schedule.optimizer != "muon":
        raise one_of("optimizer", schedule.optimizer, OPTIMIZERS)
    inside = {name: p for name, p in learning.items() if name.startswith(BLOCKS) and p.ndim == 2}
    if not inside:
        raise InputError(
            f"optimizer='muon' for a {type(module).__name__}",
            "Muon moves the matrices of a transformer's blocks, and none of those learns here",
            "train it with 'adamw'",
        )
    rest = adamw([p for name, p in learning.items() if name not in inside], schedule.learning_rate, betas)
    return MuonAndAdamW(list(inside.values()), rest, schedule.muon_times)


def adamw(parameters: list[nn.Parameter], rate: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors do not."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": DECAY},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=betas, fused=parameters[0].is_cuda)
