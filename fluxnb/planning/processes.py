"""Processes that work on one grid: which of them this one is, and which GPU it takes.

`torchrun`, `accelerate launch`, accelerate's `notebook_launcher` and `fluxnb sweep` describe each process that they
start by the same environment variables: RANK and WORLD_SIZE among all processes, LOCAL_RANK and LOCAL_WORLD_SIZE on its
machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Processes", "launched"]


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The place of this process among those that a launcher has started.

    Arguments:
        rank: number of this process among all, from 0.
        count: number of all processes; 1 for a process that no launcher has started.
        local_rank: number of this process on its machine, from 0.
        local_count: number of processes on this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables that describe this place to a process."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.count),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_count),
        }


def launched(environment: Mapping[str, str] = os.environ) -> Processes:
    """The place of this process by its environment; a single process where the variables are missing or meaningless.

    Example:
        >>> launched({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"})
        Processes(rank=5, count=8, local_rank=1, local_count=4)
        >>> launched({})
        Processes(rank=0, count=1, local_rank=0, local_count=1)
    """
    local_rank = _number(environment, "LOCAL_RANK")
    if local_rank is None:
        return Processes()
    rank = _number(environment, "RANK")
    rank = local_rank if rank is None else rank
    count = _number(environment, "WORLD_SIZE") or 1
    # accelerate's notebook launcher names the number of processes of a machine NPROC.
    local_count = _number(environment, "LOCAL_WORLD_SIZE") or _number(environment, "NPROC") or count
    if not (rank < count and local_rank < local_count <= count):
        return Processes()
    return Processes(rank=rank, count=count, local_rank=local_rank, local_count=local_count)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 8 else None
