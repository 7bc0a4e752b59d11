"""CUDA graphs: an evaluation of the transformer is recorded once and replayed with one call from the host.

The host starts the kernels of an evaluation one by one. Where the device is faster than that, as with 8-bit products or
a slow processor, it waits for the host. A replay runs the same kernels on the same addresses, so its numbers are those
of the recorded evaluation.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxnb.runtime.compat import hook_count, is_changed_at_run_time
from fluxnb.runtime.exclusive import ExclusiveGroup, group_of

__all__ = ["GraphReplay", "cuda_graph", "free_graphs"]

_log = logging.getLogger(__name__)
LIMIT = 8  # recorded graphs, one per shape of the inputs; further shapes are evaluated without one

# Records a function without arguments that returns a tensor. Returns a function that computes it again and the tensor
# that it writes to.
Record = Callable[[Callable[[], Tensor]], tuple[Callable[[], Any], Tensor]]

_REPLAYS: weakref.WeakSet[GraphReplay] = weakref.WeakSet()


@dataclass(frozen=True)
class _Graph:
    inputs: dict[str, Tensor]  # where a replay reads its inputs
    replay: Callable[[], Any]
    output: Tensor  # where a replay writes its output


class GraphReplay:
    """Replaces a transformer's `forward` until `remove` is called, and replays recorded evaluations.

    The first call with inputs of a shape is evaluated as usual, the second is recorded, and later ones are replays.
    Hooks on submodules do not fire during a replay. Calls are therefore evaluated as usual while a part of the
    transformer has more hooks than at construction, while gradients are enabled, and while an adapter or a cache of
    diffusers is active. Weights may change in place; where they moved, calls are recorded again. A change of the
    attention backend requires a new GraphReplay. Calls from several threads are exclusive.

    Arguments:
        transformer: a FluxTransformer2DModel on a CUDA device; its blocks may be compiled.
        record: how to record; `cuda_graph()` by default.

    Example:
        >>> replay = GraphReplay(pipe.transformer)                                  # doctest: +SKIP
    """

    def __init__(self, transformer: Any, record: Record | None = None) -> None:
        self._transformer, self._forward, self._record_with = transformer, transformer.forward, record or cuda_graph()
        self._instance_forward = vars(transformer).get("forward")  # set on the instance, for example by accelerate
        self._parts = [part for part in transformer.modules() if part is not transformer]
        self._initial_hooks = self._hooks()
        # Tensor subclasses, as of 8-bit weights, have no address; they move with the others.
        self._weights = [weight for weight in transformer.parameters() if type(weight.data) is Tensor]
        self._addresses = self._current_addresses()
        self._evaluated: set[object] = set()
        self._graphs: dict[object, _Graph | None] = {}  # None: recording failed
        functools.update_wrapper(self, self._forward)  # diffusers inspects the signature of forward
        transformer.forward = self
        _REPLAYS.add(self)
        if group_of(transformer) is None:
            ExclusiveGroup(transformer, device=next(transformer.parameters()).device)

    def remove(self) -> None:
        """Restore `forward` and free the memory of the recorded graphs."""
        if self._instance_forward is None:
            del self._transformer.forward
        else:
            self._transformer.forward = self._instance_forward
        self._graphs.clear()

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        """What `forward` returns."""
        inputs = dict(sorted(inputs.items()))  # the order of keyword arguments does not matter
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        others = {name: value for name, value in inputs.items() if name not in tensors}
        if args or others.get("return_dict") is not False or not self._can_replay(others):
            return self._forward(*args, **inputs)
        if (addresses := self._current_addresses()) != self._addresses:
            self._evaluated.clear()
            self._graphs.clear()
            self._addresses = addresses
        key = (tuple((name, value.shape, value.dtype, value.device) for name, value in tensors.items()), str(others))
        if key not in self._evaluated or (key not in self._graphs and len(self._graphs) >= LIMIT):
            self._evaluated.add(key)  # compilation and filling of caches must be over before a recording
            return self._forward(**inputs)
        self._embed(tensors)
        if key not in self._graphs:
            self._graphs[key] = self._record(tensors, others)
        graph = self._graphs[key]
        if graph is None:
            return self._forward(**inputs)
        for name, value in tensors.items():
            graph.inputs[name].copy_(value)
        graph.replay()
        return (graph.output.clone(),)

    def _can_replay(self, others: dict[str, Any]) -> bool:
        """Whether neither the arguments nor the state of the transformer require a real evaluation."""
        plain = all(value is None or isinstance(value, bool) or value == {} for value in others.values())
        changed = torch.is_grad_enabled() or is_changed_at_run_time(self._transformer)
        return plain and not changed and self._hooks() == self._initial_hooks

    def _hooks(self) -> int:
        return sum(map(hook_count, self._parts))

    def _current_addresses(self) -> tuple[int, ...]:
        return tuple(weight.data_ptr() for weight in self._weights)

    def _embed(self, tensors: dict[str, Tensor]) -> None:
        """Run the embedding, whose hook sets the row of the adaLN cache on the host."""
        dtype = tensors["hidden_states"].dtype
        levels = [tensors[name].to(dtype) * 1000 for name in ("timestep", "guidance") if name in tensors]
        self._transformer.time_text_embed(*levels, tensors["pooled_projections"])

    def _record(self, tensors: dict[str, Tensor], others: dict[str, Any]) -> _Graph | None:
        inputs = {name: value.clone() for name, value in tensors.items()}
        try:
            replay, output = self._record_with(lambda: self._forward(**inputs, **others)[0])
        except RuntimeError as problem:  # an operation waits for the device, or there is too little memory
            _log.warning("evaluated without a CUDA graph, recording failed: %s", str(problem).splitlines()[0])
            return None
        return _Graph(inputs, replay, output)


def free_graphs() -> None:
    """Free the recorded graphs of all transformers; later calls are recorded again.

    A graph that holds collectives of NCCL keeps its communicator in use, and leaving the process group waits for it.
    """
    for replay in list(_REPLAYS):
        replay._graphs.clear()


def cuda_graph() -> Record:
    """Record CUDA graphs that share one pool of memory, since they never run at the same time."""
    pool = torch.cuda.graph_pool_handle()

    def record(call: Callable[[], Tensor]) -> tuple[Callable[[], Any], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # Other threads, which decode, may allocate memory of the device during a recording.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            output = call()
        return graph.replay, output

    return record
