"""What every training here shares: the ranks, the pace, the moving average and the log.

A training asks `Pace` how far it is, and nothing else depends on the clock: the number of iterations
is fixed once, from the first measured ones, and every rank takes the same.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fluxnb.train.config import Schedule
from fluxnb.train.stages.optimisers import Optimiser

COMPILED = 3  # iterations: compiled, recorded as a CUDA graph, replayed


@dataclasses.dataclass(frozen=True)
class Rank:
    """One of the processes that train together, and the device it has."""

    index: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.index == 0

    @staticmethod
    def join() -> Rank:
        """This process as `torchrun` started it, or the only one."""
        index, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
            torch.backends.cuda.enable_cudnn_sdp(False)  # its backward crashes at our shapes (torch 2.11)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        if world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
        return Rank(index, world, device)

    def share(self, value: float) -> float:
        """The first rank's value, on every rank."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return float(tensor.item())

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average gradients over the ranks, in one message."""
        if self.world == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        pieces = flat.split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [piece.view_as(t) for piece, t in zip(pieces, tensors, strict=True)])

    def same_weights(self, module: nn.Module) -> None:
        """Start every rank from the first rank's weights."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def leave(self) -> None:
        """Wait for the others and part."""
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


class Pace:
    """Counts iterations and knows how many there will be.

    The clock starts after the first few, in which the code compiles: that takes from ten seconds to two minutes, and
    runs of equal seconds should be. A schedule by seconds is planned again every `trial` iterations from the speed so
    far, looks at pictures among it, until the learning rate begins to fall.
    """

    compiling = 0.0  # seconds that came before the clock

    def __init__(self, schedule: Schedule, rank: Rank, trial: int = 100):
        self.schedule, self.rank, self.trial = schedule, rank, trial
        self.total = schedule.iterations
        self.planning = self.total is None
        self.started = time.perf_counter()

    def __iter__(self) -> Iterator[int]:
        iteration, first = 0, 0
        while self.total is None or iteration < self.total:
            if iteration == COMPILED:
                self._settle()
                self.compiling = self.seconds()
                self.started, first = time.perf_counter(), iteration
            if self.planning and iteration > self.trial and iteration % self.trial == 0:
                self._settle()
                gone = self.seconds()
                left = (self.schedule.seconds - gone) / (gone / (iteration - first))
                self.total = int(self.rank.share(iteration + max(1.0, left)))
                self.planning = iteration < self.total * (1 - self.schedule.cooldown) * 0.9
            yield iteration
            iteration += 1

    def _settle(self) -> None:
        if self.rank.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, iteration: int) -> float:
        """The learning rate: up over `warmup`, level, then down to zero over the last `cooldown` (1 - sqrt)."""
        up = min(1.0, (iteration + 1) / self.schedule.warmup)
        if self.total is None:
            return self.schedule.learning_rate * up
        left = (self.total - iteration) / self.total / self.schedule.cooldown
        down = 1.0 if left >= 1 else 1 - math.sqrt(max(0.0, 1 - left))
        return self.schedule.learning_rate * min(up, down)

    def seconds(self) -> float:
        """Since the training began."""
        return time.perf_counter() - self.started


class Average:
    """Exponential moving average of a module's parameters, warmed up so that the start is forgotten.

    `known` keeps the start instead, for weights that were averaged before: they are better than the live ones will be
    for a while.
    """

    def __init__(self, module: nn.Module, decay: float, *, known: bool = False):
        self.decay, self.updates, self.known = decay, 0, known
        self.live = [p for p in module.parameters() if p.requires_grad]
        self.mean = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the live weights; once an iteration."""
        self.updates += 1
        decay = self.decay if self.known else min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.mean, self.live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and live weights; a second call puts them back."""
        for live, mean in zip(self.live, self.mean, strict=True):
            live_now = live.detach().clone()
            live.copy_(mean)
            mean.copy_(live_now)


def descend(loss: Tensor, module: nn.Module, optimiser: Optimiser, rate: float, rank: Rank) -> Tensor:
    """One step of gradient descent; returns the norm of the gradient before clipping."""
    loss.backward()
    return step_with(module, optimiser, rate, rank)


def step_with(module: nn.Module, optimiser: Optimiser, rate: float, rank: Rank, clip: float = 1.0) -> Tensor:
    """Follow the gradients that are there, averaged over the ranks; returns their norm before clipping."""
    moving = [p for p in module.parameters() if p.grad is not None]
    rank.average([p.grad for p in moving if p.grad is not None])
    norm = nn.utils.clip_grad_norm_(moving, clip)
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("times", 1.0)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return norm


class Log:
    """One JSON object a line, in a file and on the screen; only the first rank writes."""

    def __init__(self, path: Path, rank: Rank):
        self.file = None
        if rank.first:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a", buffering=1)

    def __call__(self, **facts: object) -> None:
        """Write one line."""
        if self.file is not None:
            line = json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in facts.items()})
            self.file.write(line + "\n")
            print(line, flush=True)


def read_log(path: Path) -> list[dict[str, object]]:
    """The lines that a `Log` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]
