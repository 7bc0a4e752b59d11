"""Parts shared by all trainings: ranks, iteration counts and learning rates, weight averages, the log."""

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
from fluxnb.train.stages.optimizers import Optimizer

CLIP = 1.0  # largest norm of a gradient
COMPILED = 3  # iterations until a step is fast: compilation, recording of the CUDA graph, first replay


@dataclasses.dataclass(frozen=True)
class Rank:
    """One of the processes of a distributed training, and its device."""

    index: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes the files."""
        return self.index == 0

    @staticmethod
    def join() -> Rank:
        """Join the process group of `torchrun`; without it, this process is the only rank."""
        index, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available()
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(device)
            torch.backends.cuda.enable_cudnn_sdp(False)  # its backward pass crashes at these shapes (torch 2.11)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
            torch.backends.cudnn.benchmark = True
        if world > 1 and not dist.is_initialized():
            dist.init_process_group("nccl" if cuda else "gloo", device_id=device if cuda else None)
        return Rank(index, world, device)

    def broadcast(self, value: float) -> float:
        """The value of rank 0, on every rank."""
        if self.world == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return float(tensor.item())

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average gradients over the ranks in place, with one all-reduce."""
        if self.world == 1:
            return
        tensors = list(tensors)
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        flat /= self.world
        pieces = flat.split([t.numel() for t in tensors])
        torch._foreach_copy_(tensors, [piece.view_as(t) for piece, t in zip(pieces, tensors, strict=True)])

    def broadcast_weights(self, module: nn.Module) -> None:
        """Copy the weights of rank 0 to every rank."""
        if self.world > 1:
            for tensor in module.state_dict().values():
                dist.broadcast(tensor, 0)

    def leave(self) -> None:
        """Wait for all ranks and destroy the process group."""
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()


class Pace:
    """Iterates over the iterations of a training, and gives the learning rate of each.

    The clock starts after the first iterations, in which the code compiles: compiling takes between ten seconds and two
    minutes, and should not count. A schedule in seconds is planned again every `trial` iterations from the measured
    speed, pauses for monitoring included, until the learning rate begins to decay. The planned number of iterations is
    that of rank 0 on every rank.
    """

    compiling = 0.0  # seconds before the clock started

    def __init__(self, schedule: Schedule, rank: Rank, trial: int = 100):
        self.schedule, self.rank, self.trial = schedule, rank, trial
        self.total = schedule.iterations
        self.planning = self.total is None
        self.started = time.perf_counter()

    def __iter__(self) -> Iterator[int]:
        iteration, first = 0, 0
        while self.total is None or iteration < self.total:
            if iteration == COMPILED:
                self._synchronize()
                self.compiling = self.seconds()
                self.started, first = time.perf_counter(), iteration
            if self.planning and iteration > self.trial and iteration % self.trial == 0:
                self._synchronize()
                elapsed = self.seconds()
                remaining = (self.schedule.seconds - elapsed) / (elapsed / (iteration - first))
                self.total = int(self.rank.broadcast(iteration + max(1.0, remaining)))
                self.planning = iteration < self.total * (1 - self.schedule.cooldown) * 0.9
            yield iteration
            iteration += 1

    def _synchronize(self) -> None:
        if self.rank.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, iteration: int) -> float:
        """The learning rate: linear warm-up, constant, then a decay to zero by 1 - sqrt over the last `cooldown`."""
        up = min(1.0, (iteration + 1) / self.schedule.warmup)
        if self.total is None:
            return self.schedule.learning_rate * up
        left = (self.total - iteration) / self.total / self.schedule.cooldown
        down = 1.0 if left >= 1 else 1 - math.sqrt(max(0.0, 1 - left))
        return self.schedule.learning_rate * min(up, down)

    def seconds(self) -> float:
        """Seconds since the clock started."""
        return time.perf_counter() - self.started


class Average:
    """Exponential moving average (EMA) of a module's trainable parameters.

    The decay is warmed up as min(decay, (1 + n) / (10 + n)), so that the initial weights lose their influence quickly.
    With `pretrained`, the decay is constant: the initial weights are an average already and are better than the live
    ones for a while.
    """

    def __init__(self, module: nn.Module, decay: float, *, pretrained: bool = False):
        self.decay, self.updates, self.pretrained = decay, 0, pretrained
        self.live = [p for p in module.parameters() if p.requires_grad]
        self.mean = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Add the live weights to the average; call it once per iteration."""
        self.updates += 1
        decay = self.decay if self.pretrained else min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.mean, self.live, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and live weights; a second call restores them."""
        for live, mean in zip(self.live, self.mean, strict=True):
            live_now = live.detach().clone()
            live.copy_(mean)
            mean.copy_(live_now)


def backward_and_step(loss: Tensor, module: nn.Module, optimizer: Optimizer, rate: float, rank: Rank) -> Tensor:
    """Backpropagate and update the weights; returns the norm of the gradient before clipping."""
    loss.backward()
    return optimizer_step(module, optimizer, rate, rank)


def optimizer_step(module: nn.Module, optimizer: Optimizer, rate: float, rank: Rank) -> Tensor:
    """Update the weights by the existing gradients, averaged over the ranks; returns their norm before clipping."""
    parameters = [p for p in module.parameters() if p.grad is not None]
    rank.average([p.grad for p in parameters if p.grad is not None])
    norm = nn.utils.clip_grad_norm_(parameters, CLIP)
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_ratio", 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


class Log:
    """A JSON Lines log, written to a file and to standard output by rank 0."""

    def __init__(self, path: Path, rank: Rank):
        self.path = path if rank.first else None
        if rank.first:
            path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, **facts: object) -> None:
        """Write one line."""
        if self.path is not None:
            line = json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in facts.items()})
            with self.path.open("a") as file:  # closed after each line, so that an interrupt loses none
                file.write(line + "\n")
            print(line, flush=True)


def read_log(path: Path) -> list[dict[str, object]]:
    """Parse the lines that a `Log` wrote."""
    return [json.loads(line) for line in path.read_text().splitlines()]
