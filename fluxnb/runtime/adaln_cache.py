"""adaLN tables: what the modulation layers say, looked up, so that their weights need not be held.

A quarter of FLUX's transformer (77 linear layers, 3.247 of 11.89 billion weights) works on one vector a picture: temb,
made of the timestep, the pooled prompt and the guidance. Its outputs, about a million numbers for each temb, are
computed once with the model's own arithmetic and kept; the layers are replaced by lookups, and their weights stay in
the files on the disk. The key is temb itself, bit for bit, so whatever led to it (bfloat16 timesteps, several prompts,
a negative prompt, an image's strength, own sigmas) is looked up correctly or computed when it first comes.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fluxnb.errors import RunError

__all__ = ["Lookup", "Tables", "expected_of", "expecting", "modulation_layers"]

_SCHEDULER: contextvars.ContextVar[Any] = contextvars.ContextVar("fluxnb_scheduler", default=None)

Temb = Float[Tensor, "batch width"]
STANDARD_STEPS = (1, 2, 3, 4)
NEAR = 8  # rows that stay on the device: the levels of all of these step counts


class Lookup(nn.Module):  # type: ignore[misc]
    """Stands in a modulation layer's place and gives what that layer would have computed.

    Arguments:
        out_features: numbers a picture.
    """

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features
        # A plain attribute and no buffer: it is a view of one tensor that all lookups share, and `.to()` would copy it.
        self.row: Tensor | None = None

    def forward(self, activated: Temb) -> Tensor:
        """What the layer would make of `activated`; which row that is, `Tables` has set."""
        if self.row is None:
            raise RunError(
                "a block of the transformer was called alone",
                "its modulation is a table, whose row the whole transformer sets when it is called",
                'call the transformer, or load with preset="resident"',
            )
        return self.row

    def extra_repr(self) -> str:
        """What print(model) says in the brackets."""
        return f"out_features={self.out_features}"


def modulation_layers(transformer: nn.Module) -> tuple[str, ...]:
    """The names of the layers that work on temb alone, in the order of the network.

    Example:
        >>> modulation_layers(flux.pipe.transformer)[:2]                               # doctest: +SKIP
        ('transformer_blocks.0.norm1.linear', 'transformer_blocks.0.norm1_context.linear')
    """
    ends = ("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear")
    return tuple(
        name
        for name, module in transformer.named_modules()
        if name.endswith(ends) and isinstance(module, nn.Linear | Lookup)
    )


@runtime_checkable
class Weights(Protocol):
    """What gives a weight for its name: a mapping, a Shelf, a GGUF file."""

    def __getitem__(self, name: str) -> Tensor: ...


@dataclass(eq=False)
class Tables:
    """The rows of one transformer, filled when first needed.

    Making one replaces the transformer's modulation layers by lookups; on the meta device is soon enough, the weights
    are then never loaded. A row is 1,056,768 numbers for FLUX.1: 2.1 MB a sigma and prompt, kept in main memory.

    Arguments:
        transformer: a FluxTransformer2DModel.
        weights: the layers' weights by their names in the checkpoint, read each time rows are made.
        expected: the timesteps (0 to 1000) that may come next. A row costs nothing once the weights are read, so what
            is named here is made along with what is needed; what is forgotten here is made later.
        embed: makes temb ahead of time; by default the transformer's own, which hooks may forbid to run out of order.
        limit: rows that are kept; the oldest go first.

    Example:
        >>> tables = Tables(transformer, Shelf(folder))                             # doctest: +SKIP
    """

    transformer: Any
    weights: Weights
    expected: Callable[[], Iterable[float]] = tuple
    embed: nn.Module | None = None
    limit: int = 512
    readings: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._rows: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self._near: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self._shown: dict[tuple[Any, ...], Tensor] = {}  # by the shape, type and device of temb; kept for good
        self._key: tuple[Any, ...] | None = None
        self._place: tuple[Any, ...] | None = None
        self._lookups: dict[str, Lookup] = {}
        for name in modulation_layers(self.transformer):
            parent, _, leaf = name.rpartition(".")
            lookup = Lookup(self.transformer.get_submodule(name).out_features)
            setattr(self.transformer.get_submodule(parent), leaf, lookup)
            self._lookups[name] = lookup
        self._width = sum(lookup.out_features for lookup in self._lookups.values())
        own = self.transformer.time_text_embed
        self._embed = self.embed or own
        own.register_forward_hook(self._serve)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"Tables({len(self._lookups)} layers, {len(self)} rows of {self._width})"

    def _serve(self, module: nn.Module, given: tuple[Tensor, ...], temb: Temb) -> None:
        """Show the rows for this temb: called after the network has made it and before any block runs."""
        if temb.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # a recording reads the rows where they were shown before it
        with torch.no_grad():
            self._show(given, temb)

    def _show(self, given: tuple[Tensor, ...], temb: Temb) -> None:
        key = _key(temb)
        if key not in self._rows:
            self._fill([temb, *self._ahead(given, temb)])
        place = (key[:2], temb.device)
        if key == self._key and place == self._place:
            return
        row = self._row(key, temb.device)
        if place not in self._shown:
            self._shown[place] = torch.empty_like(row)
        shown = self._shown[place]
        if place != self._place:
            widths = [each.out_features for each in self._lookups.values()]
            for lookup, part in zip(self._lookups.values(), shown.split(widths, dim=1), strict=True):
                lookup.row = part
        shown.copy_(row)  # one copy for all layers, and an address that compiled blocks and recordings may rely on
        self._key, self._place = key, place

    def _row(self, key: tuple[Any, ...], device: torch.device) -> Tensor:
        """A row on its device; the latest stay there, since the device stands still while one is fetched."""
        self._rows.move_to_end(key)
        near = self._near.pop((key, device), None)
        self._near[key, device] = near = self._rows[key].to(device) if near is None else near
        if len(self._near) > NEAR:
            self._near.popitem(last=False)
        return near

    def _ahead(self, given: tuple[Tensor, ...], temb: Temb) -> list[Temb]:
        """The tembs that the expected timesteps would lead to, by the arithmetic of FluxPipeline and the network.

        A wrong guess costs one row; it can never be shown, since rows are found by the temb itself.
        """
        timestep, *others = given
        made: list[Temb] = []
        even = {1000.0 * (count - i) / count for count in STANDARD_STEPS for i in range(count)}
        for level in sorted({*even, *map(float, self.expected())}, reverse=True):
            asked = torch.full_like(timestep, level, dtype=torch.float32).to(timestep.dtype)
            # What FluxPipeline and the network do to a timestep; in bfloat16 its way to 1 and back rounds.
            made.append(type(self._embed).forward(self._embed, asked / 1000 * 1000, *others))
        return made

    def _fill(self, tembs: list[Temb]) -> None:
        """Read every modulation layer once and evaluate it for each of these, each as a call of its own."""
        wanted = {key: temb for temb in tembs if (key := _key(temb)) not in self._rows}
        first = tembs[0]
        made = {
            key: torch.empty(len(temb), self._width, dtype=temb.dtype, device=temb.device)
            for key, temb in wanted.items()
        }
        start = 0
        for name, lookup in self._lookups.items():
            weight, bias = (
                self.weights[f"{name}.{part}"].to(first.device).to(first.dtype) for part in ("weight", "bias")
            )
            for key, temb in wanted.items():
                made[key][:, start : start + lookup.out_features] = functional.linear(
                    functional.silu(temb), weight, bias
                )
            start += lookup.out_features
        self.readings += 1
        for key, row in made.items():
            self._rows[key] = row.to("cpu")
        while len(self._rows) > max(self.limit, len(wanted)):
            self._rows.popitem(last=False)


def _key(temb: Tensor) -> tuple[Any, ...]:
    raw = temb.detach().contiguous().view(torch.uint8).to("cpu")
    return (tuple(temb.shape), temb.dtype, raw.numpy().tobytes())


def expected_of(pipe: Any) -> Callable[[], Iterable[float]]:
    """A function that returns the timesteps the running call is about to visit.

    They are those of the scheduler given to `expecting`, or of the pipeline's own scheduler once it has been set.
    """
    return functools.partial(_timesteps, pipe)


@contextlib.contextmanager
def expecting(scheduler: Any) -> Iterator[None]:
    """Name the scheduler of the pipeline calls made inside the block, where it is not the pipeline's own."""
    token = _SCHEDULER.set(scheduler)
    try:
        yield
    finally:
        _SCHEDULER.reset(token)


def _timesteps(pipe: Any) -> Iterable[float]:
    scheduler = _SCHEDULER.get() or pipe.scheduler
    # A scheduler that was never set holds the thousand timesteps of training.
    if getattr(scheduler, "num_inference_steps", None) is None:
        return ()
    return tuple(scheduler.timesteps.tolist())
