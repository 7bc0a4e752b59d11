"""adaLN cache: outputs of the modulation layers, stored so that the weights of these layers need not be in memory.

A quarter of FLUX.1's transformer (77 linear layers, 3.247 of 11.89 billion weights) is applied to one vector per
picture: temb, computed from the timestep, the pooled prompt and the guidance. The outputs of all these layers, about a
million numbers per temb, form one row. Rows are computed once with the arithmetic of the model, and the weights remain
in their files. The key of a row is temb itself, bit for bit. Any cause of a new temb (bfloat16 timesteps, several
prompts, a negative prompt, the strength of an image, custom sigmas) therefore finds the right row or computes it.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fluxnb.cleanup import undoing
from fluxnb.errors import RunError

__all__ = ["AdaLNCache", "CachedModulation", "expected_timesteps", "expecting", "modulation_layers"]

_SCHEDULER: contextvars.ContextVar[Any] = contextvars.ContextVar("fluxnb_scheduler", default=None)

Temb = Float[Tensor, "batch width"]
Key: TypeAlias = tuple[Any, ...]
STANDARD_STEPS = (1, 2, 3, 4)
ON_DEVICE = 8  # rows that stay on the device; enough for the timesteps of all of these step counts


class CachedModulation(nn.Module):  # type: ignore[misc]
    """Replaces a modulation layer and returns its cached output.

    An adapter may wrap this layer, since an adapter adds its own product to the output of the layer it wraps.

    Arguments:
        in_features: features of the input.
        out_features: features of the output.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        # Neither is a buffer. `row` is a view of a tensor that all of these modules share, and `.to()` would copy it.
        # `changed` holds weights that an adapter was fused into; they remain in main memory.
        self.row: Tensor | None = None
        self.changed: dict[str, Tensor] = {}
        self.cache: AdaLNCache  # set by the cache

    def forward(self, activated: Temb) -> Tensor:
        """The layer's output for the temb that `AdaLNCache` has set."""
        if self.row is None:
            raise RunError(
                "a block of the transformer was called on its own",
                "its modulation is cached, and the call of the whole transformer sets it",
                'call the transformer, or load with preset="resident"',
            )
        return self.row

    @property
    def weight(self) -> Tensor:
        """The weight inside `as_linear`; elsewhere its shape on the meta device, which diffusers reads of a target."""
        known: Tensor | None = self._parameters.get("weight")
        return torch.empty(self.out_features, self.in_features, device="meta") if known is None else known

    def extra_repr(self) -> str:
        """The part in parentheses of the module's text form."""
        return f"in_features={self.in_features}, out_features={self.out_features}"

    @contextlib.contextmanager
    def as_linear(self, weight: Tensor, bias: Tensor) -> Iterator[None]:
        """Inside the block this module is an `nn.Linear` with these weights, as libraries for adapters require."""
        self.__class__ = _CachedLinear
        for leaf, tensor in (("weight", weight), ("bias", bias)):
            self._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
        try:
            yield
        finally:
            for leaf in ("weight", "bias"):
                del self._parameters[leaf]
            self.__class__ = CachedModulation


class _CachedLinear(CachedModulation, nn.Linear):  # type: ignore[misc]
    """The class of a CachedModulation inside `as_linear`."""


def modulation_layers(transformer: nn.Module) -> tuple[str, ...]:
    """The names of the layers that are applied to temb, in the order of the network.

    Example:
        >>> modulation_layers(flux.pipe.transformer)[:2]                               # doctest: +SKIP
        ('transformer_blocks.0.norm1.linear', 'transformer_blocks.0.norm1_context.linear')
    """
    ends = ("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear")
    return tuple(
        name
        for name, module in transformer.named_modules()
        if name.endswith(ends) and isinstance(module, nn.Linear | CachedModulation)
    )


@runtime_checkable
class Weights(Protocol):
    """Weights by name: a mapping, a WeightReader or a GgufReader."""

    def __getitem__(self, name: str) -> Tensor: ...


@dataclass(eq=False)
class AdaLNCache:
    """The rows of one transformer, computed when first needed.

    The constructor replaces the transformer's modulation layers by `CachedModulation`. On a transformer that is still
    on the meta device, their weights are never loaded. A row has 1,056,768 numbers for FLUX.1: 2.1 MB per sigma and
    prompt, stored in main memory.

    Arguments:
        transformer: a FluxTransformer2DModel.
        weights: the layers' weights by their names in the checkpoint, read each time that rows are computed.
        expected: returns the timesteps (0 to 1000) that may follow. Their rows are computed along with a required one,
            which costs little once the weights are read.
        embedding: computes temb for the expected timesteps; by default the transformer's own module, which some hooks
            do not allow to run out of order.
        limit: number of rows that are stored; the least recently used are removed.

    Example:
        >>> cache = AdaLNCache(transformer, WeightReader(folder))                   # doctest: +SKIP
    """

    transformer: Any
    weights: Weights
    expected: Callable[[], Iterable[float]] = tuple
    embedding: nn.Module | None = None
    limit: int = 512
    reads: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._rows: OrderedDict[Key, Tensor] = OrderedDict()
        self._on_device: OrderedDict[tuple[Key, torch.device], Tensor] = OrderedDict()
        # The tensors that the layers read, one per shape, dtype and device of temb. They are never freed, since
        # compiled code and CUDA graphs depend on their addresses.
        self._active: dict[Key, Tensor] = {}
        self._key: Key | None = None
        self._layout: Key | None = None
        self._layers: dict[str, CachedModulation] = {}
        for name in modulation_layers(self.transformer):
            parent, _, leaf = name.rpartition(".")
            replaced = self.transformer.get_submodule(name)
            layer = CachedModulation(replaced.in_features, replaced.out_features)
            setattr(self.transformer.get_submodule(parent), leaf, layer)
            layer.cache = self
            self._layers[name] = layer
        self._width = sum(layer.out_features for layer in self._layers.values())
        own = self.transformer.time_text_embed
        self._embedding = self.embedding or own
        own.register_forward_hook(self._after_embedding)

    @contextlib.contextmanager
    def editing(self, layer: CachedModulation, like: Tensor) -> Iterator[None]:
        """Inside the block a layer has its weights, and what they are at its end is used from then on.

        Arguments:
            like: gives the device and the dtype of the weights.
        """
        (name,) = (name for name, each in self._layers.items() if each is layer)
        with layer.as_linear(*self._read(name, like)):
            yield
            layer.changed = {leaf: getattr(layer, leaf).detach().to("cpu", copy=True) for leaf in ("weight", "bias")}
        self._rows.clear()
        self._on_device.clear()
        self._key = None

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"AdaLNCache({len(self._layers)} layers, {len(self)} rows of {self._width})"

    def _after_embedding(self, module: nn.Module, inputs: tuple[Tensor, ...], temb: Temb) -> None:
        """Set the row for this temb, after the network has computed it and before any block runs."""
        if temb.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # a CUDA graph reads the active tensor, which is set before a replay
        with torch.no_grad():
            self._set_row(inputs, temb)

    def _set_row(self, inputs: tuple[Tensor, ...], temb: Temb) -> None:
        self._unmerge_disabled_adapters()
        key = _key(temb)
        if key not in self._rows:
            self._compute([temb, *self._expected_tembs(inputs)])
        layout = (key[:2], temb.device)
        if key == self._key and layout == self._layout:
            return
        row = self._row(key, temb.device)
        if layout not in self._active:
            self._active[layout] = torch.empty_like(row)
        active, views_differ = self._active[layout], layout != self._layout
        self._key = self._layout = None  # until both are complete: an interrupt may leave them half set
        if views_differ:
            widths = [layer.out_features for layer in self._layers.values()]
            for layer, part in zip(self._layers.values(), active.split(widths, dim=1), strict=True):
                layer.row = part
        active.copy_(row)
        self._key, self._layout = key, layout

    def _unmerge_disabled_adapters(self) -> None:
        """Undo what a layer with a fused and disabled adapter would undo in its call, when the row is already set."""
        for name, layer in self._layers.items():
            if layer.changed:
                wrapper = self.transformer.get_submodule(name)
                if getattr(wrapper, "disable_adapters", False) and getattr(wrapper, "merged", False):
                    wrapper.unmerge()

    def _read(self, name: str, like: Tensor) -> tuple[Tensor, Tensor]:
        changed = self._layers[name].changed
        weight, bias = (
            (changed[leaf] if leaf in changed else self.weights[f"{name}.{leaf}"]).to(like.device).to(like.dtype)
            for leaf in ("weight", "bias")
        )
        return weight, bias

    def _row(self, key: Key, device: torch.device) -> Tensor:
        """A row on its device. The most recent ones stay there, since the device waits during a transfer."""
        self._rows.move_to_end(key)
        row = self._on_device.pop((key, device), None)
        self._on_device[key, device] = row = self._rows[key].to(device) if row is None else row
        if len(self._on_device) > ON_DEVICE:
            self._on_device.popitem(last=False)
        return row

    def _expected_tembs(self, inputs: tuple[Tensor, ...]) -> list[Temb]:
        """The tembs of the expected timesteps, by the arithmetic of FluxPipeline and the network.

        A wrong prediction costs one row and is never used, since rows are found by temb itself.
        """
        timestep, *others = inputs
        even = {1000.0 * (count - i) / count for count in STANDARD_STEPS for i in range(count)}
        tembs: list[Temb] = []
        for level in sorted({*even, *map(float, self.expected())}, reverse=True):
            expected = torch.full_like(timestep, level, dtype=torch.float32).to(timestep.dtype)
            # The pipeline divides by 1000 and the network multiplies; in bfloat16 this rounds.
            tembs.append(type(self._embedding).forward(self._embedding, expected / 1000 * 1000, *others))
        return tembs

    def _compute(self, tembs: list[Temb]) -> None:
        """Read every modulation layer once and evaluate it for each temb, in separate calls."""
        missing = {key: temb for temb in tembs if (key := _key(temb)) not in self._rows}
        first = tembs[0]
        rows = {
            key: torch.empty(len(temb), self._width, dtype=temb.dtype, device=temb.device)
            for key, temb in missing.items()
        }
        start = 0
        for name, layer in self._layers.items():
            weight, bias = self._read(name, first)
            end = start + layer.out_features
            for key, temb in missing.items():
                rows[key][:, start:end] = functional.linear(functional.silu(temb), weight, bias)
            start = end
        self.reads += 1
        for key, row in rows.items():
            self._rows[key] = row.to("cpu")
        while len(self._rows) > max(self.limit, len(missing)):
            self._rows.popitem(last=False)


def _key(temb: Tensor) -> Key:
    raw = temb.detach().contiguous().view(torch.uint8).to("cpu")
    return (tuple(temb.shape), temb.dtype, raw.numpy().tobytes())


def expected_timesteps(pipe: Any) -> Callable[[], Iterable[float]]:
    """A function that returns the timesteps of the running call.

    They are those of the scheduler given to `expecting`, or of the pipeline's own scheduler once it has been set.
    """
    return functools.partial(_timesteps, pipe)


@contextlib.contextmanager
def expecting(scheduler: Any) -> Iterator[None]:
    """Name the scheduler of the pipeline calls made inside the block, where it is not the pipeline's own."""
    with undoing(functools.partial(_SCHEDULER.set, _SCHEDULER.get())):
        _SCHEDULER.set(scheduler)
        yield


def _timesteps(pipe: Any) -> Iterable[float]:
    scheduler = _SCHEDULER.get() or pipe.scheduler
    # A scheduler that was never set holds the thousand timesteps of training.
    if getattr(scheduler, "num_inference_steps", None) is None:
        return ()
    return tuple(scheduler.timesteps.tolist())
