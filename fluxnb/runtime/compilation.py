"""fast: compile repeated blocks, choose the fastest attention backend, decode in channels-last.

The speedup of each step is measured on this machine and reported. Compiled kernels sum in another order, so pictures
equal those of the plain model up to rounding, and recipes record that.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from fluxnb.errors import InputError
from fluxnb.planning.model_size import ModelSize
from fluxnb.planning.requirements import Workload
from fluxnb.runtime.adapters import support_adapters
from fluxnb.runtime.compat import (
    attention_backends,
    compiler_options,
    discard_compiled_call,
    remember_device,
    remove_unfused_projections,
    set_attention_backend,
)
from fluxnb.runtime.cuda_graphs import GraphReplay
from fluxnb.runtime.exclusive import ExclusiveGroup, group_of
from fluxnb.runtime.parallel import agreed, split_decoder, split_transformer
from fluxnb.runtime.pictures import convert_on_device
from fluxnb.runtime.quantisation import block_layers, quantise_layers
from fluxnb.units import duration

__all__ = ["Speedup", "SpeedupReport", "compile_pipeline", "evaluation_inputs", "matmul_ceiling", "share_of_ceiling"]

# The largest share of the previous time at which CUDA graphs are used: a graph holds as much memory as the activations
# of an evaluation. With 8-bit rows on an H100 it saves 2.6 of 95.5 ms.
WORTHWHILE = 0.99


@dataclass(frozen=True)
class Speedup:
    """Seconds before and after one step, and seconds of its setup; `before` is None where it was not measured."""

    name: str
    before: float | None
    after: float
    setup: float = 0.0

    @property
    def factor(self) -> float | None:
        """Time before, divided by time after."""
        return None if self.before is None else self.before / self.after

    def __repr__(self) -> str:
        times = f"{self.after * 1e3:.1f} ms"
        if self.before is not None:
            times = f"{self.before * 1e3:.1f} -> {times}, {self.before / self.after:.2f} times"
        return f"{self.name}: {times}" + (f" (once {duration(self.setup)})" if self.setup >= 1 else "")


@dataclass(frozen=True)
class SpeedupReport:
    """Measurements of `fast`.

    Arguments:
        speedups: one for each step.
        attention: seconds of one evaluation with each attention backend that is available.
    """

    speedups: tuple[Speedup, ...]
    attention: dict[str, float] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [repr(speedup) for speedup in self.speedups]
        if self.attention:
            lines.append("attention: " + ", ".join(f"{name} {s * 1e3:.2f} ms" for name, s in self.attention.items()))
        return "\n".join(lines)


def compile_pipeline(
    pipe: Any,
    device: torch.device,
    workload: Workload,
    *,
    fp8: bool = False,
    autotune: bool = False,
    fuse: bool = True,
    graphs: bool = True,
    low_memory: bool = False,
    parallel: bool = False,
    rounds: int = 5,
) -> SpeedupReport:
    """Compile a pipeline whose weights are on the device, in place, and measure every step.

    Arguments:
        workload: size and text tokens to compile for; other sizes compile again when first used.
        fp8: compute the linear layers of the blocks in 8-bit floats with a scale per row (lossy).
        autotune: let the compiler try many kernels, which takes minutes.
        fuse: compute queries, keys and values in one matrix product; their separate layers are deleted.
        graphs: replay evaluations as CUDA graphs where that is faster. Not for weights that move.
        low_memory: never run the plain decoder, which needs the most memory; its speedup is then not known.
        parallel: split each picture over the processes of `fluxnb.runtime.parallel`, which all make this call.
        rounds: number of timed calls per measurement.

    Raises:
        InputError: the pipeline moves its weights while it runs, which compiled code does not support.
    """
    transformer = pipe.transformer
    if any(weight.device.type != device.type for weight in transformer.parameters()):
        raise InputError(
            "fast with an offloading preset",
            "compiled blocks need their weights in one place",
            'load with preset="resident" or preset="lean"',
        )
    with torch.no_grad():
        inputs = evaluation_inputs(transformer, device, workload)
        steps = _Steps(pipe, device, rounds, lambda: transformer(**inputs), parallel=parallel)
        steps.choose_attention()
        if parallel:
            steps.split()
        with compiler_options(autotune):
            steps.compile_blocks(fuse=fuse, fp8=fp8)
            if graphs and device.type == "cuda":
                steps.add(_use_graphs(transformer, steps.evaluate, steps.seconds, rounds, agree=steps.agreed))
            steps.add(_compile_decoder(pipe, _decoding(pipe, device, workload), device, rounds, low_memory=low_memory))
    if group_of(transformer) is None:
        # Compiling while another thread calls compiled code is an error in PyTorch.
        ExclusiveGroup(transformer, device=device)
    support_adapters(pipe, device)
    remember_device(pipe)
    convert_on_device(pipe.image_processor)
    return SpeedupReport(tuple(steps.speedups), steps.attention)


class _Steps:
    """The steps that change the evaluation of the transformer, each measured against the one before it."""

    def __init__(
        self, pipe: Any, device: torch.device, rounds: int, evaluate: Callable[[], Any], *, parallel: bool
    ) -> None:
        self.pipe, self.device, self.rounds, self.evaluate = pipe, device, rounds, evaluate
        self.transformer, self.parallel = pipe.transformer, parallel
        self.speedups: list[Speedup] = []
        self.attention: dict[str, float] = {}
        self.seconds = seconds(evaluate, rounds)

    def add(self, speedup: Speedup) -> None:
        self.speedups.append(speedup)
        self.seconds = speedup.after

    def choose_attention(self) -> None:
        self.attention = _time_attention(self.transformer, self.evaluate, self.device, parallel=self.parallel)
        if len(self.attention) > 1:
            best = self.agreed(min(self.attention, key=self.attention.__getitem__))
            set_attention_backend(self.transformer, best)
            self.add(Speedup(f"attention {best}", self.seconds, seconds(self.evaluate, self.rounds)))

    def agreed(self, choice: Any) -> Any:
        """The choice of this process, or where a picture is split over several, of the first one."""
        return agreed(choice) if self.parallel else choice

    def split(self) -> None:
        started = time.perf_counter()
        split_transformer(self.transformer)
        self.pipe.vae.decoder = split_decoder(self.pipe.vae.decoder)
        setup, after = time.perf_counter() - started, seconds(self.evaluate, self.rounds)
        self.add(Speedup(f"tokens split over {distributed.get_world_size()} processes", self.seconds, after, setup))

    def compile_blocks(self, *, fuse: bool, fp8: bool) -> None:
        fused = fuse and _fuse_projections(self.transformer)
        if fp8:
            quantise_layers(self.transformer, "fp8-rows")
        started = time.perf_counter()
        self.transformer.compile_repeated_blocks(fullgraph=not self.parallel, **({"dynamic": False} if fp8 else {}))
        self.evaluate()
        _synchronize(self.device)
        setup = time.perf_counter() - started
        name = "compiled blocks" + (", one product for q, k and v" if fused else "") + (", 8-bit rows" if fp8 else "")
        self.add(Speedup(name, self.seconds, seconds(self.evaluate, self.rounds), setup))


def _decoding(pipe: Any, device: torch.device, workload: Workload) -> Callable[[], Any]:
    side = workload.size // 8
    latents = torch.zeros(1, pipe.vae.config.latent_channels, side, side, device=device, dtype=pipe.vae.dtype)

    def decode() -> Any:
        # In the mode that pictures are decoded in; tensors of another mode would compile again.
        with torch.inference_mode() if device.type == "cpu" else torch.no_grad():
            return pipe.vae.decode(latents.clone(), return_dict=False)

    return decode


def _fuse_projections(transformer: Any) -> bool:
    """Replace three matrix products by one, which uses the GPU better; False for quantized weights, left unchanged."""
    plain = all(
        type(layer) is nn.Linear and type(layer.weight.data) is Tensor and layer.weight.dtype.itemsize >= 2
        for layer in block_layers(transformer).values()
    )
    if plain:
        transformer.fuse_qkv_projections()
        remove_unfused_projections(transformer)
    return plain


def _use_graphs(
    transformer: Any,
    evaluate: Callable[[], Any],
    before: float,
    rounds: int,
    *,
    agree: Callable[[bool], bool] = bool,
) -> Speedup:
    """Replay evaluations as CUDA graphs where that is faster."""
    started = time.perf_counter()
    replay = GraphReplay(transformer)
    for _ in range(3):  # evaluated, recorded, replayed
        evaluate()
    _synchronize(next(transformer.parameters()).device)
    setup, after = time.perf_counter() - started, seconds(evaluate, rounds)
    used = agree(after < WORTHWHILE * before)
    if not used:
        replay.remove()
    return Speedup("one CUDA graph an evaluation" + ("" if used else ", not used"), before, after, setup)


def _compile_decoder(
    pipe: Any, decode: Callable[[], Any], device: torch.device, rounds: int, *, low_memory: bool = False
) -> Speedup:
    plain = None if low_memory else seconds(decode, rounds)
    started = time.perf_counter()
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.vae.decoder.compile()
    decode()
    _synchronize(device)
    setup, after = time.perf_counter() - started, seconds(decode, rounds)
    used = plain is None or after < plain
    if not used:  # as on a CPU without 16-bit instructions
        pipe.vae.to(memory_format=torch.contiguous_format)
        discard_compiled_call(pipe.vae.decoder)
    return Speedup("decoder compiled in channels-last" + ("" if used else ", not used"), plain, after, setup)


def _time_attention(
    transformer: Any, evaluate: Callable[[], Any], device: torch.device, *, parallel: bool = False
) -> dict[str, float]:
    """Seconds of one evaluation with each attention backend that is available."""
    times: dict[str, float] = {}
    if device.type != "cuda" or not hasattr(transformer, "set_attention_backend"):
        return times
    for name in attention_backends(parallel=parallel):
        try:
            set_attention_backend(transformer, name)
            times[name] = seconds(evaluate, 3)
        except Exception:  # not installed or not for this card; diffusers and the kernels raise various classes
            continue
    set_attention_backend(transformer, "native")
    return times


def evaluation_inputs(transformer: Any, device: torch.device, workload: Workload) -> dict[str, Any]:
    """Random inputs of one evaluation, in the shapes of this workload."""
    config, dtype, side = transformer.config, transformer.dtype, workload.size // 16

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device=device, dtype=dtype)

    rows = torch.arange(side, device=device, dtype=dtype)
    positions = torch.zeros(side, side, 3, device=device, dtype=dtype)
    positions[..., 1], positions[..., 2] = rows[:, None], rows[None, :]
    return {
        "hidden_states": normal(1, side * side, config.in_channels),
        "encoder_hidden_states": normal(1, workload.text, config.joint_attention_dim),
        "pooled_projections": normal(1, config.pooled_projection_dim),
        "timestep": torch.ones(1, device=device, dtype=dtype),
        "guidance": torch.full((1,), 3.5, device=device) if config.guidance_embeds else None,
        "img_ids": positions.reshape(-1, 3),
        "txt_ids": torch.zeros(workload.text, 3, device=device, dtype=dtype),
        "joint_attention_kwargs": {},  # as in the pipeline's call; None would compile again
        "return_dict": False,
    }


def seconds(call: Callable[[], Any], rounds: int = 5) -> float:
    """The median time of a call, after two calls for warm-up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for _ in range(2):
        call()
    times = []
    for _ in range(rounds):
        _synchronize(device)
        started = time.perf_counter()
        call()
        _synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def matmul_ceiling(device: torch.device, dtype: torch.dtype = torch.bfloat16, side: int = 8192) -> float:
    """TFLOP/s of one large matrix product, an upper bound for an evaluation."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, 10) / 1e12


def share_of_ceiling(model: ModelSize, tokens: int, evaluation: float, ceiling: float) -> float:
    """The share of the matmul ceiling that one evaluation reaches, 0 to 1."""
    return model.flop(tokens) / evaluation / 1e12 / ceiling


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
