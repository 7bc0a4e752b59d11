"""Reading weights one tensor at a time, and moving them to the device when they are used.

A model is built without memory, on PyTorch's meta device. Then either every tensor is read from its file to the device,
so that main memory holds a few tensors and never a model, or only the layer that runs is on the device, as for the text
encoders, which run once per prompt.
"""

from __future__ import annotations

import contextlib
import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fluxnb.checkpoints.checksums import read_json
from fluxnb.checkpoints.sources import weight_files
from fluxnb.cleanup import undoing
from fluxnb.errors import StorageError, shorten
from fluxnb.io.headers import Header, StoredTensor, safetensors_header
from fluxnb.progress import Progress
from fluxnb.runtime.compat import modules_in_float32, set_execution_device, tied_weights

__all__ = [
    "TensorSetter",
    "WeightReader",
    "buffers_of_floats",
    "build_without_memory",
    "check_weights",
    "load_by_layer",
    "load_weights",
    "offloaded_blocks",
    "set_tensor",
]

READ_AHEAD = 6  # tensors read before they are used, at most 0.7 GB for FLUX.1
PAGE = 4096  # bytes of a page of memory
TensorSetter = Callable[[nn.Module, str, Tensor], None]  # stores a tensor under a name in a layer


class WeightReader:
    """The weights of a component, read from its safetensors files by name.

    Arguments:
        folder: holds one safetensors file, or several with their index.
        cache: keep tensors in page-locked main memory, from which they reach a GPU several times faster.
        memory_mapped: return views of the file, which take no memory of their own. Such a view may be unaligned, and
            some CPU kernels sum unaligned weights in another order; False returns copies.
        variant: of the files, such as "fp16"; a folder without it is read without one.

    Raises:
        StorageError: no weights, a missing or damaged file, or an unknown name.

    Example:
        >>> WeightReader("schnell/transformer")["proj_out.bias"].shape              # doctest: +SKIP
        torch.Size([64])
    """

    def __init__(
        self, folder: str | Path, *, cache: bool = False, memory_mapped: bool = False, variant: str = ""
    ) -> None:
        self.folder = Path(folder)
        self.cache = cache
        self.memory_mapped = memory_mapped
        self.place = self.folder
        self._stored = _stored_tensors(self.folder, variant)
        self._open: dict[Path, Any] = {}
        self._cached: dict[str, Tensor] = {}
        self.aliases: dict[str, str] = {}  # second names of stored weights, see `add_alias`
        # safetensors refuses more than our check of the header does, such as ranges that overlap.
        for path in {file: None for file, _ in self._stored.values()}:
            self._handle(path)

    def __contains__(self, name: object) -> bool:
        return name in self._stored or name in self.aliases

    def __repr__(self) -> str:
        return f"WeightReader({self.folder.name!r}, {len(self._stored)} tensors)"

    def __getitem__(self, name: str) -> Tensor:
        name = self.aliases.get(name, name)
        if name in self._cached:
            return self._cached[name]
        path = self._entry(name)[0]
        try:
            tensor = self._handle(path).get_tensor(name)
        except SafetensorError as problem:  # such as a number format that PyTorch lacks
            raise _does_not_open(path, problem) from problem
        if self.cache:
            tensor = self._cached[name] = tensor.pin_memory() if torch.cuda.is_available() else tensor.clone()
        return tensor if self.memory_mapped or self.cache else tensor.clone()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}  # open files cannot be copied; a copy opens its own

    def stored(self, name: str) -> tuple[tuple[int, ...], bool]:
        """Shape of a weight, and whether it holds floats, from the header of its file.

        Raises:
            StorageError: an unknown name.
        """
        _, tensor = self._entry(name)
        return tensor.shape, tensor.is_float

    def _entry(self, name: str) -> tuple[Path, StoredTensor]:
        try:
            return self._stored[self.aliases.get(name, name)]
        except KeyError:
            raise StorageError(
                f"{self.folder} holds no {shorten(name)}",
                "the model's configuration requires it",
                "download the folder again",
            ) from None

    def add_alias(self, name: str, stored: str) -> None:
        """Return the weight `stored` under a second name, for layers that share one."""
        self.aliases[name] = stored

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield these tensors in this order while the next ones are read in threads."""
        pending: deque[tuple[str, Future[Tensor]]] = deque()
        with ThreadPoolExecutor(max_workers=2) as readers:
            for name in names:
                pending.append((name, readers.submit(self._read_pages, name)))
                if len(pending) > READ_AHEAD:
                    first, future = pending.popleft()
                    yield first, future.result()
            for name, future in pending:
                yield name, future.result()

    def close(self) -> None:
        """Close the files. The next access opens them again."""
        self._open.clear()

    def _read_pages(self, name: str) -> Tensor:
        tensor = self[name]
        if self.memory_mapped and not self.cache:
            # Reading one byte per page makes this thread wait for the disk instead of the GPU. A copy would also do,
            # but the allocator keeps the memory of every copy made in a thread, which amounted to gigabytes.
            tensor.reshape(-1).view(torch.uint8)[::PAGE].sum()
        return tensor

    def _handle(self, path: Path) -> Any:
        if path not in self._open:
            try:
                self._open[path] = safe_open(path, framework="pt", device="cpu")
            except (SafetensorError, OSError) as problem:
                raise _does_not_open(path, problem) from problem
        return self._open[path]


def _does_not_open(path: Path, problem: object) -> StorageError:
    return StorageError(
        f"{path} does not open ({shorten(str(problem), 120)})",
        "it is missing, damaged or not safetensors",
        "download the file again",
    )


def _stored_tensors(folder: Path, variant: str) -> dict[str, tuple[Path, StoredTensor]]:
    """File, shape and number format of each tensor, from the headers of the files."""
    found = weight_files(folder)
    chosen = found.get(variant) or found.get("") or []
    indices = [path for path in chosen if path.suffix == ".json"]
    files = [path for path in chosen if path.suffix == ".safetensors"][:1]
    if indices:
        listed = read_json(indices[0]).get("weight_map")
        names = {str(file) for file in listed.values()} if isinstance(listed, dict) else {"nothing"}
        if not all(Path(name).name == name and name.endswith(".safetensors") for name in names):
            raise StorageError(
                f"{indices[0]}", "an index maps the names of tensors to safetensors files of "
                "its folder", "download the file again",
            )  # fmt: skip
        files = [folder / name for name in sorted(names)]
    if not files:
        raise StorageError(
            f"{folder} holds no safetensors", "weights are read from safetensors only", "download the folder again"
        )
    return {name: (file, stored) for file in files for name, stored in _header(file).tensors.items()}


def _header(file: Path) -> Header:
    try:
        return safetensors_header(file)
    except StorageError as problem:
        raise _does_not_open(file, problem.given) from problem


def check_weights(model: nn.Module, reader: Any) -> None:
    """Check that a reader has every weight of a model built without memory, in its shape and as floats.

    An assignment would take a tensor of any shape, and a bias of one number would then be added to every feature.
    Without its stored statistics, a batch norm would have those of a new one.

    Arguments:
        reader: a WeightReader or GgufReader.

    Raises:
        StorageError: a weight is missing, has another shape or another kind of numbers.
    """
    _alias_tied_weights(model, reader)
    buffers = buffers_of_floats(model)
    for name, weight in model.state_dict(keep_vars=True).items():
        if weight.device.type != "meta" and name not in buffers:
            continue
        shape, is_float = reader.stored(name)
        if shape != tuple(weight.shape) or (weight.is_floating_point() and not is_float):
            raise StorageError(
                f"{name} in {reader.place} has the shape {shape}"
                + ("" if is_float else " and holds numbers of another kind"),
                f"the model's configuration requires floats of the shape {tuple(weight.shape)}",
                "download the folder again",
            )


def buffers_of_floats(model: nn.Module) -> list[str]:
    """Names of the buffers of floats that a model's files hold, such as the statistics of a batch norm."""
    stored = model.state_dict().keys()
    return [name for name, buffer in model.named_buffers() if buffer.is_floating_point() and name in stored]


def build_without_memory(build: Callable[[], nn.Module], dtype: torch.dtype) -> Any:
    """Build a model whose weights are on the meta device and whose constants are real.

    Arguments:
        build: for example `lambda: T5EncoderModel(config)`.
        dtype: of the weights. Parts that a model keeps in float32 beside float16 are float32.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = build()
    model.eval().requires_grad_(False)
    in_float32, stored = modules_in_float32(model), model.state_dict().keys()
    # Constants that files do not hold, such as rotary frequencies, keep their precision.
    buffers = ((name, tensor) for name, tensor in model.named_buffers() if name in stored)
    for name, tensor in (*model.named_parameters(), *buffers):
        precise = dtype is torch.float16 and not in_float32.isdisjoint(name.split("."))
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if precise else dtype)
    return model


def load_weights(model: nn.Module, reader: Any, device: torch.device, setter: TensorSetter | None = None) -> None:
    """Fill a model built without memory, tensor by tensor.

    Arguments:
        reader: a WeightReader or GgufReader.
        setter: stores one tensor, which is on the device and in the model's dtype, in its layer; `set_tensor` by
            default. Quantization happens here, so that the model never exists in its original size.
    """
    check_weights(model, reader)
    # Buffers that files hold, such as the statistics of a batch norm, are real in a model built without memory.
    buffers = {name for name, _ in model.named_buffers()}
    empty = {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if name not in reader.aliases and (tensor.device.type == "meta" or (name in buffers and name in reader))
    }
    # Memory-mapped weights that remain on the CPU need no reading ahead.
    unread = reader.memory_mapped and device.type == "cpu"
    tensors = ((name, reader[name]) for name in empty) if unread else reader.read(empty)
    with Progress(sum(tensor.nbytes for tensor in empty.values()), unit="bytes") as progress:
        for name, tensor in tensors:
            layer, leaf = _layer_of(model, name)
            moved = tensor.to(device)
            # Quantized blocks are bytes and keep their type.
            (setter or set_tensor)(layer, leaf, moved.to(empty[name].dtype) if moved.is_floating_point() else moved)
            progress.update(empty[name].nbytes)
    for name, stored in reader.aliases.items():
        (layer, leaf), (source, weight) = _layer_of(model, name), _layer_of(model, stored)
        setattr(layer, leaf, getattr(source, weight))  # one weight in memory, as in the model that was saved
    _move_buffers(model, device)
    reader.close()


def set_tensor(layer: nn.Module, leaf: str, tensor: Tensor) -> None:
    """Set one weight or constant of a layer."""
    constants = dict(layer.named_buffers(recurse=False))
    keep = leaf in constants or isinstance(tensor, nn.Parameter)
    setattr(layer, leaf, tensor if keep else nn.Parameter(tensor, requires_grad=False))


def load_by_layer(model: nn.Module, reader: WeightReader, device: torch.device) -> Callable[[], None]:
    """Run a model built without memory on a device that holds only the layer that is running.

    Exact: the same kernels compute on the same numbers. Each call of the model reads every weight once.

    Returns:
        A function that releases the weights of layers whose call was interrupted, to be called after each call of the
        model. PyTorch runs no hooks after a KeyboardInterrupt.
    """
    check_weights(model, reader)
    _move_buffers(model, device)
    set_execution_device(model, device)
    loaders = [
        (layer, _LayerLoader(path, layer, reader, device))
        for path, layer in model.named_modules()
        if next(layer.parameters(recurse=False), None) is not None
    ]
    return functools.partial(_release, loaders)


def _release(loaders: Sequence[tuple[nn.Module, _LayerLoader]]) -> None:
    for layer, loader in loaders:
        loader.release(layer)


class _LayerLoader:
    """Hooks that read the weights of one layer before its call and release them after it."""

    def __init__(self, path: str, layer: nn.Module, reader: WeightReader, device: torch.device) -> None:
        self.path, self.reader, self.device = path, reader, device
        self.empty = dict(layer.named_parameters(recurse=False, remove_duplicate=False))
        layer.register_forward_pre_hook(self.load)
        layer.register_forward_hook(self.release, always_call=True)

    def load(self, layer: nn.Module, _: Any) -> None:
        for leaf, empty in self.empty.items():
            tensor = self.reader[f"{self.path}.{leaf}" if self.path else leaf]
            set_tensor(layer, leaf, tensor.to(self.device, non_blocking=True).to(empty.dtype))

    def release(self, layer: nn.Module, *_: Any) -> None:
        for leaf, empty in self.empty.items():
            if getattr(layer, leaf) is not empty:
                setattr(layer, leaf, empty)


def _alias_tied_weights(model: nn.Module, reader: Any) -> None:
    """Files store a weight that two layers share under one of its names only."""
    for name, twin in tied_weights(model).items():
        if name in reader and twin not in reader:
            reader.add_alias(twin, name)
        elif twin in reader and name not in reader:
            reader.add_alias(name, twin)


def _move_buffers(model: nn.Module, device: torch.device) -> None:
    for name, constant in list(model.named_buffers()):
        layer, leaf = _layer_of(model, name)
        setattr(layer, leaf, constant.to(device))


def _layer_of(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


@contextlib.contextmanager
def offloaded_blocks(blocks: Sequence[nn.Module], copies: dict[nn.Parameter, Tensor]) -> Iterator[None]:
    """Keep the weights of these blocks in main memory inside the block, to free memory of the device.

    Arguments:
        copies: copies of the weights in page-locked memory. They are made once, since weights do not change.
    """
    weights = [weight for block in blocks for weight in block.parameters() if weight.device.type != "cpu"]
    devices = {weight: weight.device for weight in weights}

    def restore() -> None:
        for weight in weights:
            if weight.numel() == 0:
                weight.data = copies[weight].to(devices[weight], non_blocking=True)

    with undoing(restore):
        for weight in weights:
            if weight not in copies:
                copies[weight] = weight.data.to("cpu").pin_memory()
            weight.data = torch.empty(0, dtype=weight.dtype, device=weight.device)
        yield
