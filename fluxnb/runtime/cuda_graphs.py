"""CUDA graphs: an evaluation recorded once and replayed whole, started by the host with one call instead of thousands.

What the host needs to start the kernels of an evaluation one by one, the device waits for where it is quicker than
that: with 8-bit products, or beside a slow processor. A replay runs the same kernels on the same addresses, so its
numbers are those of the evaluation it recorded.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxnb.runtime.exclusive import ExclusiveGroup, group_of

__all__ = ["Replay"]

_log = logging.getLogger(__name__)
LIMIT = 8  # recordings that are kept, one for each shape of the question; further shapes are evaluated as before
CHANGED = ("_hf_peft_config_loaded", "is_cache_enabled")  # where diffusers says so: adapters, cached blocks

#: a call without arguments that gives a tensor, to one that computes it again, into the tensor given beside it.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], Any], Tensor]]


@dataclass(frozen=True)
class _Recording:
    given: dict[str, Tensor]  # where a replay reads its question
    again: Callable[[], Any]
    answer: Tensor  # where it writes its answer


class Replay:
    """Takes the place of a transformer's `forward` until `remove`.

    The first question of a shape is answered as ever, the second is recorded, and from then on it is replayed. Whoever
    listens inside sees nothing of a replay; while a hook hangs on any part of the transformer that had none when this
    was made, while gradients are on, an adapter is loaded or diffusers caches blocks, questions are answered as before.
    Weights may change in place; where they have moved, a question is recorded anew. Where attention is computed by
    another backend, make another.

    Arguments:
        transformer: a FluxTransformer2DModel on a CUDA device; its blocks may be compiled.
        record: how to record; `cuda_graph`.

    Example:
        >>> replay = Replay(pipe.transformer)                                       # doctest: +SKIP
    """

    def __init__(self, transformer: Any, record: Record | None = None) -> None:
        self._transformer, self._plain, self._how = transformer, transformer.forward, record or cuda_graph()
        self._before = vars(transformer).get("forward")  # somebody else's, in the class's place
        self._parts = [part for part in transformer.modules() if part is not transformer]
        self._usual = self._hooks()
        # Those that are held in a subclass, in 8 bits for instance, move with the others and tell no address.
        self._weights = [weight for weight in transformer.parameters() if type(weight.data) is Tensor]
        self._places = self._where()
        self._met: set[object] = set()
        self._recordings: dict[object, _Recording | None] = {}  # None: this one cannot be recorded
        functools.update_wrapper(self, self._plain)  # so that whoever asks for the signature finds the network's
        transformer.forward = self
        if group_of(transformer) is None:
            ExclusiveGroup(transformer, device=next(transformer.parameters()).device)

    def remove(self) -> None:
        """Give `forward` back, and the recordings' memory."""
        if self._before is None:
            del self._transformer.forward
        else:
            self._transformer.forward = self._before
        self._recordings.clear()

    def __call__(self, *args: Any, **asked: Any) -> Any:
        """What `forward` would return."""
        tensors = {name: value for name, value in asked.items() if isinstance(value, Tensor)}
        others = {name: value for name, value in asked.items() if name not in tensors}
        if args or others.get("return_dict") is not False or not self._may(others):
            return self._plain(*args, **asked)
        if (places := self._where()) != self._places:  # a recording would read where they no longer lie
            self._met.clear()
            self._recordings.clear()
            self._places = places
        key = (tuple((name, value.shape, value.dtype, value.device) for name, value in tensors.items()), str(others))
        if key not in self._met or (key not in self._recordings and len(self._recordings) >= LIMIT):
            self._met.add(key)  # compiling, and filling what is kept, must be over before a recording
            return self._plain(**asked)
        self._embed(tensors)
        if key not in self._recordings:
            self._recordings[key] = self._record(tensors, others)
        recording = self._recordings[key]
        if recording is None:
            return self._plain(**asked)
        for name, value in tensors.items():
            recording.given[name].copy_(value)
        recording.again()
        return (recording.answer.clone(),)

    def _may(self, others: dict[str, Any]) -> bool:
        """Whether this question can be replayed at all: nothing in it or around it that a recording would miss."""
        plain = all(value is None or isinstance(value, bool) or value == {} for value in others.values())
        changed = any(getattr(self._transformer, name, False) for name in CHANGED)
        return plain and not changed and not torch.is_grad_enabled() and self._hooks() == self._usual

    def _hooks(self) -> int:
        return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in self._parts)

    def _where(self) -> tuple[int, ...]:
        return tuple(weight.data_ptr() for weight in self._weights)

    def _embed(self, tensors: dict[str, Tensor]) -> None:
        """What the network does first, for those who listen there: tables of modulation ask the host for their rows."""
        dtype = tensors["hidden_states"].dtype
        levels = [tensors[name].to(dtype) * 1000 for name in ("timestep", "guidance") if name in tensors]
        self._transformer.time_text_embed(*levels, tensors["pooled_projections"])

    def _record(self, tensors: dict[str, Tensor], others: dict[str, Any]) -> _Recording | None:
        given = {name: value.clone() for name, value in tensors.items()}
        try:
            again, answer = self._how(lambda: self._plain(**given, **others)[0])
        except RuntimeError as problem:  # something waits for the device, which a recording cannot, or memory is short
            _log.warning("not recorded as a CUDA graph, so evaluated as before: %s", str(problem).splitlines()[0])
            return None
        return _Recording(given, again, answer)


def cuda_graph() -> Record:
    """A way to record as CUDA graphs; all of them share one pool of memory, since they never run at once."""
    pool = torch.cuda.graph_pool_handle()

    def record(call: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # Other threads, which decode, may ask the device for memory meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            answer = call()
        return graph.replay, answer

    return record
