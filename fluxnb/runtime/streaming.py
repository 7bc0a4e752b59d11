"""Where weights lie when they are not on the device, and how they get there: one tensor at a time.

A model is first built without memory (PyTorch's meta device). Then either every tensor is streamed from its file to
the device, so that main memory holds a few tensors and never a model; or only the layer that is running is on the
device, as the text encoders are, which run once a prompt.
"""

from __future__ import annotations

import contextlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fluxnb.errors import StorageError, shorten

__all__ = ["Shelf", "by_layer", "computes_on", "parked", "stream_in", "without_memory"]

AHEAD = 6  # tensors read before they are asked for, at most 0.7 GB for FLUX.1
Arrival = Callable[[nn.Module, str, Tensor], None]


class Shelf(Mapping[str, Tensor]):
    """A component's weights in its safetensors files, read when asked for.

    Arguments:
        folder: holds one safetensors file, or several and their index.
        keep: True keeps what was read in page-locked main memory, from which it reaches a GPU several times faster.
        windows: True gives windows on the file, which take no memory of their own. They begin where they lie in the
            file, and some kernels of a CPU sum in another order when a weight is not aligned; False gives copies.

    Raises:
        StorageError: no weights there, a file of the index missing, a damaged file, a name that no file has.

    Example:
        >>> Shelf("schnell/transformer")["proj_out.bias"].shape                     # doctest: +SKIP
        torch.Size([64])
    """

    def __init__(self, folder: str | Path, *, keep: bool = False, windows: bool = False) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self.windows = windows
        self._files = _files(self.folder)
        self._open: dict[Path, Any] = {}
        self._kept: dict[str, Tensor] = {}
        self._same: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __contains__(self, name: object) -> bool:
        return name in self._files or name in self._same

    def __repr__(self) -> str:
        return f"Shelf({self.folder.name!r}, {len(self)} tensors)"

    def __getitem__(self, name: str) -> Tensor:
        if name in self._kept:
            return self._kept[name]
        try:
            tensor = self._handle(self._files[self._same.get(name, name)]).get_tensor(self._same.get(name, name))
        except KeyError:
            raise StorageError(
                f"{self.folder} holds no {shorten(name)}",
                "the model's configuration asks for it",
                "fetch the folder again",
            ) from None
        if self.keep:
            tensor = self._kept[name] = tensor.pin_memory() if torch.cuda.is_available() else tensor.clone()
        return tensor if self.windows or self.keep else tensor.clone()

    def also(self, name: str, same_as: str) -> None:
        """Give the same weight under a second name, for layers that share one."""
        self._same[name] = same_as

    @property
    def bytes(self) -> int:
        """The size of the files together."""
        return sum(path.stat().st_size for path in set(self._files.values()))

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """These tensors in this order, the next few being read meanwhile."""
        rest = iter(names)
        waiting: deque[tuple[str, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(max_workers=2) as readers:
            for name in rest:
                waiting.append((name, readers.submit(self._touched, name)))
                if len(waiting) > AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for name, future in waiting:
                yield name, future.result()

    def close(self) -> None:
        """Give the files back. They open again when something is asked for."""
        self._open.clear()

    def _touched(self, name: str) -> Tensor:
        tensor = self[name]
        if self.windows and not self.keep:
            # One byte of each page: this thread waits for the disk, and the GPU does not. A copy would do it too, but
            # what a thread allocates its allocator keeps, which came to gigabytes.
            tensor.reshape(-1).view(torch.uint8)[::4096].sum()
        return tensor

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt", device="cpu")
            except (SafetensorError, OSError) as problem:
                raise StorageError(
                    f"{path} does not open ({shorten(str(problem), 120)})",
                    "it is missing, damaged or not safetensors",
                    "fetch the file again",
                ) from problem
        return self._open[path]


def _files(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if indices:
        try:
            told = json.loads(indices[0].read_text(encoding="utf-8"))["weight_map"]
            places = {str(name): folder / Path(str(file)).name for name, file in told.items()}
        except (OSError, ValueError, KeyError, AttributeError) as problem:
            raise StorageError(
                f"{indices[0]} ({type(problem).__name__})", "it does not say which file holds what", "fetch it again"
            ) from None
        return places
    single = sorted(folder.glob("*.safetensors"))
    if not single:
        raise StorageError(f"{folder} holds no safetensors", "weights are read from safetensors only", "fetch it again")
    try:
        with safe_open(single[0], framework="pt") as opened:
            return dict.fromkeys(opened.keys(), single[0])
    except (SafetensorError, OSError) as problem:
        raise StorageError(
            f"{single[0]} does not open ({shorten(str(problem), 120)})", "it is damaged", "fetch the file again"
        ) from problem


def without_memory(build: Callable[[], nn.Module], dtype: torch.dtype) -> Any:
    """A model in its final shape whose weights take no memory yet; its constants are real.

    Arguments:
        build: makes it, for example `lambda: T5EncoderModel(config)`.
        dtype: of the weights to come. What a model keeps in float32 beside float16 stays float32.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = build()
    model.eval().requires_grad_(False)
    guarded = getattr(model, "_keep_in_fp32_modules", None) or ()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        precise = dtype is torch.float16 and any(part in name.split(".") for part in guarded)
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if precise else dtype)
    return model


def stream_in(model: nn.Module, shelf: Any, device: torch.device, arrive: Arrival | None = None) -> None:
    """Fill a model built without memory, tensor by tensor.

    Arguments:
        shelf: where the weights are, a Shelf or what answers like one.
        arrive: puts one tensor, already on the device and in the model's format, into its layer; by default as it is.
            What makes weights smaller does it here, so that the large form of all of them never exists at once.
    """
    empty = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if tensor.device.type == "meta"}
    _share(model, shelf)
    # Weights that stay where they are, windows on the CPU, have no use for being read ahead.
    stay = shelf.windows and device.type == "cpu"
    tensors = ((name, shelf[name]) for name in empty) if stay else shelf.read(empty)
    for name, tensor in tensors:
        layer, leaf = _layer_of(model, name)
        arrived = tensor.to(device)
        # Weights in blocks of few bits are bytes and stay so.
        (arrive or put)(layer, leaf, arrived.to(empty[name].dtype) if arrived.is_floating_point() else arrived)
    for name, constant in list(model.named_buffers()):
        layer, leaf = _layer_of(model, name)
        layer._buffers[leaf] = constant.to(device)
    shelf.close()


def put(layer: nn.Module, leaf: str, tensor: Tensor) -> None:
    """Set one weight or constant of a layer."""
    if leaf in layer._buffers:
        layer._buffers[leaf] = tensor
    else:
        layer._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def by_layer(model: nn.Module, shelf: Shelf, device: torch.device) -> None:
    """Let a model built without memory run on a device that holds only the layer at work.

    Exact: the same kernels see the same numbers. Each call reads every weight once.
    """
    _share(model, shelf)
    for name, constant in list(model.named_buffers()):
        layer, leaf = _layer_of(model, name)
        layer._buffers[leaf] = constant.to(device)
    computes_on(model, device)
    for path, layer in model.named_modules():
        if layer._parameters:
            _Coming(path, layer, shelf, device)


def computes_on(model: nn.Module, device: torch.device) -> None:
    """Say where a model computes, for diffusers, which would otherwise take the place of its weights for it."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    add_hook_to_module(model, AlignDevicesHook(execution_device=device))


class _Coming:
    """Brings one layer's weights before its call and lets them go after it."""

    def __init__(self, path: str, layer: nn.Module, shelf: Shelf, device: torch.device) -> None:
        self.path, self.shelf, self.device = path, shelf, device
        self.empty = {leaf: weight for leaf, weight in layer._parameters.items() if weight is not None}
        layer.register_forward_pre_hook(self.come)
        layer.register_forward_hook(self.go, always_call=True)

    def come(self, layer: nn.Module, _: Any) -> None:
        for leaf, empty in self.empty.items():
            tensor = self.shelf[f"{self.path}.{leaf}" if self.path else leaf]
            put(layer, leaf, tensor.to(self.device, non_blocking=True).to(empty.dtype))

    def go(self, layer: nn.Module, *_: Any) -> None:
        layer._parameters.update(self.empty)


def _share(model: nn.Module, shelf: Any) -> None:
    """Files hold a weight that two layers share under one of its names."""
    for name, twin in (getattr(model, "_tied_weights_keys", None) or {}).items():
        if name in shelf and twin not in shelf:
            shelf.also(twin, name)
        elif twin in shelf and name not in shelf:
            shelf.also(name, twin)


def _layer_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


@contextlib.contextmanager
def parked(layers: Sequence[nn.Module], shelf: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """Keep the weights of these layers in main memory while something else needs the device.

    Arguments:
        shelf: remembers the copies in page-locked memory; they are made once, since weights do not change.
    """
    weights = [weight for layer in layers for weight in layer.parameters() if weight.device.type != "cpu"]
    devices = {weight: weight.device for weight in weights}
    try:
        for weight in weights:
            if weight not in shelf:
                shelf[weight] = weight.data.to("cpu").pin_memory()
            weight.data = torch.empty(0, dtype=weight.dtype, device=weight.device)
        yield
    finally:
        for weight in weights:
            if weight.numel() == 0:
                weight.data = shelf[weight].to(devices[weight], non_blocking=True)
