"""The memory, disk space and seconds that a preset requires for a model on a machine.

The constants are measurements; the numbers of single cards, such as FLOP/s and bandwidth, are in `hardware.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxnb.planning.hardware import GIB, Hardware
from fluxnb.planning.model_size import ModelSize
from fluxnb.planning.presets import WEIGHT_BYTES, Preset

__all__ = [
    "DECODING",
    "PINNED_TRANSFORMER",
    "Requirements",
    "Workload",
    "memory_by_stage",
    "memory_timeline",
    "requirements",
    "text_bytes",
    "transformer_bytes",
]

# Measured on an H200 at 1024 px, 4096 + 256 tokens, bfloat16 (see tests/benchmarks/results).
ACTIVATIONS = 0.44 * GIB / 4352 / 3072  # bytes per token and unit of width
DECODING = 2.42 * GIB / 1024**2  # bytes per pixel
DECODING_COMPILED = 1.33 * GIB / 1024**2  # the same, compiled in channels-last; measured on an H100
DECODE_FLOP = 10.47e12 / 1024**2  # per pixel
DECODE_RATE = 0.29  # of the transformer's FLOP/s
DECODE_COMPILED = 0.42  # of the plain time, on an H100
# The time of a compiled evaluation as a share of a plain one, on an H100.
COMPILED = {"int8": 0.82, "fp8-rows": 0.54}
# An evaluation over n GPUs takes (divided / n + whole) of a plain one's time on one GPU. Fitted to 80.1 ms on two H200
# and 44.9 ms on four, where a plain one takes 164.5 ms (compiled and replayed as a CUDA graph, 1024 px).
PARALLEL_DIVIDED, PARALLEL_WHOLE = 0.856, 0.059
# Bytes of memory traffic per weight for converting the storage format to the compute format. Those of GGUF are from
# seconds published for an H100 (huggingface/blog, "Exploring Quantization Backends").
CAST_BYTES = {
    "fp8": 158e9 / 8.6e9,
    "nf4": 64e9 / 8.6e9,
    "gguf-q8": 23.0,
    "gguf-q4": 82.0,
}
PAGEABLE = 2.5  # GB/s of diffusers' offloads, whose memory is not page-locked; measured 1.8 to 3.4
READING = 2.5  # GB/s from the page cache to the device, tensor by tensor; up to 7 were measured
COPYING = 1.5  # GB/s per core from the page cache to page-locked memory during computation; 25 with 16 cores
# Page-locked blocks are rounded up to powers of two.
PINNED_TRANSFORMER = 1.7
PINNED_CACHE = 1.35  # text encoders and modulation layers
SPARE_RAM = 16.0  # GiB that must remain free for weights to be cached in main memory
OFFLOADED_SHARE = 0.25  # of the transformer, during decoding
PYTHON = 3.0  # GiB of main memory for the libraries and the CUDA context


@dataclass(frozen=True, kw_only=True)
class Workload:
    """The pictures a plan is made for.

    Arguments:
        size: height and width in pixels.
        steps: denoising steps.
        text: T5 tokens.
        bytes: of a weight that is not quantized: 2, or 4 for float32.
        evaluations: of the transformer in each step; 2 under true CFG.
    """

    size: int = 1024
    steps: int = 4
    text: int = 256
    bytes: int = 2
    evaluations: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of the transformer, image and text together."""
        return (self.size // 16) ** 2 + self.text

    @property
    def pixels(self) -> int:
        """Pixels of a picture."""
        return self.size**2


FULL_SIZE = Workload()


@dataclass(frozen=True, kw_only=True)
class Requirements:
    """Predicted memory, disk space and seconds of a preset for one model, machine and workload.

    Arguments:
        vram_gib: peak on the accelerator, from the prompt to the picture.
        ram_gib: main memory, without the page cache of the operating system.
        disk_gib: size of the downloaded files.
        seconds: for a picture of a prompt that is already encoded.
        prompt_seconds: added by a new prompt.
        offload_blocks: whether part of the transformer moves to main memory during decoding.
        cache_weights: whether main memory is large enough to cache the weights that each new prompt reads.
    """

    vram_gib: float
    ram_gib: float
    disk_gib: float
    seconds: float
    prompt_seconds: float
    offload_blocks: bool = False
    cache_weights: bool = False


def requirements(
    preset: Preset,
    model: ModelSize,
    machine: Hardware,
    workload: Workload = FULL_SIZE,
    *,
    offload_blocks: bool = False,
    gpus: int = 1,
) -> Requirements:
    """Predict what a preset requires on a machine.

    Arguments:
        offload_blocks: predict with part of the transformer in main memory during decoding.
        gpus: that compute one picture under a parallel preset.
    """
    held = transformer_bytes(preset, model, workload.bytes)
    encoders = text_bytes(preset, model, workload.bytes)
    peak = max(memory_by_stage(preset, model, workload, offload_blocks=offload_blocks).values()) * GIB
    moved_blocks = held * OFFLOADED_SHARE if offload_blocks else 0.0
    in_ram = {"model": held + model.vae * workload.bytes, "sequential": held, "leaf": held * PINNED_TRANSFORMER}
    ram = PYTHON + in_ram.get(preset.offload, 0.0) / GIB
    ram += encoders / GIB if preset.text_encoders == "offloaded" else 0
    ram += PINNED_TRANSFORMER * moved_blocks / GIB
    if machine.device in ("cpu", "mps"):
        ram, peak = 1.5 + peak / GIB, 0.0 if machine.device == "cpu" else peak
    if machine.device == "cpu" and preset.offload:
        ram += held / GIB  # streamed weights are in main memory too
    read = 0.0  # bytes for each new prompt
    if preset.text_encoders == "by layer":
        read = float(encoders + (model.modulation * workload.bytes if preset.adaln_cache else 0))
    cached_gib = PINNED_CACHE * read / GIB
    cache = machine.device == "cuda" and 0 < ram + cached_gib < machine.ram_gib - SPARE_RAM and read > GIB
    ram += cached_gib if cache else 0.0
    page_cache = (machine.ram_gib - ram) * GIB
    streamed = held if preset.offload == "mapped" or machine.device == "cpu" else 0.0
    costs = _Costs(preset, model, machine, workload, gpus)
    quantized_files = model.transformer * (2 - WEIGHT_BYTES[preset.storage]) if preset.gguf else 0
    return Requirements(
        vram_gib=peak / GIB,
        ram_gib=ram,
        disk_gib=(model.total * 2 - quantized_files) / GIB,
        seconds=costs.picture(held, in_page_cache=page_cache > streamed) + 2 * moved_blocks / (machine.pcie * 1e9),
        prompt_seconds=costs.prompt(read, pinned=cache, in_page_cache=page_cache > streamed + read),
        offload_blocks=offload_blocks,
        cache_weights=cache,
    )


def memory_by_stage(
    preset: Preset, model: ModelSize, workload: Workload = FULL_SIZE, *, offload_blocks: bool = False
) -> dict[str, float]:
    """GiB on the accelerator in each stage: "prompt", "modulation", "denoise" and "decode"."""
    held, each = transformer_bytes(preset, model, workload.bytes), workload.bytes
    vae, encoders = float(model.vae * each), text_bytes(preset, model, each)
    activations = ACTIVATIONS * workload.tokens * model.width * each / 2
    decoding = (DECODING_COMPILED if preset.compiled else DECODING) * workload.pixels * each / 2
    layer = 3 * model.layer * each  # one that computes and two in transfer
    text_layer = model.text_layer * each * 1.3
    modulation = 9.0 * model.width**2 * each if preset.adaln_cache else 0.0
    stages: tuple[float, float, float, float]
    if preset.offload == "model":
        stages = (encoders, 0.0, held + activations, vae + decoding)
    elif preset.offload == "sequential":
        stages = (text_layer, 0.0, layer + activations, decoding)
    elif preset.offload:
        stages = (vae + text_layer, vae + modulation, vae + layer + activations, vae + decoding)
    else:
        resident_text = preset.text_encoders == "resident"
        fixed = held + vae + (encoders if resident_text else 0.0)
        moved = held * OFFLOADED_SHARE if offload_blocks else 0.0
        arriving = 0.0 if resident_text else text_layer
        stages = (fixed + arriving, fixed + modulation, fixed + activations, fixed - moved + decoding)
    return dict(zip(("prompt", "modulation", "denoise", "decode"), (part / GIB for part in stages), strict=True))


def memory_timeline(preset: Preset, model: ModelSize, machine: Hardware) -> list[tuple[float, float]]:
    """Predicted (seconds, GiB) for one picture of a new prompt at 1024 px; a level holds until the next point.

    Example:
        >>> memory_timeline(PRESETS["lean"], flux1_size(), describe_hardware("rtx-4090"))[0]  # doctest: +SKIP
        (0.0, 16.6)
    """
    required = requirements(preset, model, machine)
    levels = list(memory_by_stage(preset, model, offload_blocks=required.offload_blocks).values())
    modulation = required.prompt_seconds * 0.4 if preset.adaln_cache else 0.0
    decoding = DECODE_FLOP * FULL_SIZE.pixels / (DECODE_RATE * _flop_rate(machine, FULL_SIZE.bytes))
    durations = (required.prompt_seconds - modulation, modulation, required.seconds - decoding, decoding)
    starts = [sum(durations[:i]) for i in range(5)]
    return [*zip(starts, levels, strict=False), (starts[-1], levels[-1])]


def transformer_bytes(preset: Preset, model: ModelSize, weight_bytes: int) -> float:
    """Bytes of the transformer's weights as the preset stores them."""
    each = float(weight_bytes) if preset.storage == "plain" else WEIGHT_BYTES[preset.storage]
    modulation = 0 if preset.adaln_cache else model.modulation * weight_bytes
    return float(model.blocks * each + model.rest * weight_bytes + modulation)


def text_bytes(preset: Preset, model: ModelSize, weight_bytes: int) -> float:
    """Bytes of the text encoders' weights as the preset stores them; in "fp8" the token embedding keeps 16 bits."""
    if preset.text_storage == "plain":
        return float((model.t5 + model.clip) * weight_bytes)
    return float((model.t5 - model.text_layer) + (model.text_layer + model.clip) * weight_bytes)


def _flop_rate(machine: Hardware, weight_bytes: int) -> float:
    return machine.tflops * 1e12 * (1.0 if weight_bytes == 2 or machine.device == "cpu" else 0.5)


@dataclass(frozen=True)
class _Costs:
    """Predicted seconds."""

    preset: Preset
    model: ModelSize
    machine: Hardware
    workload: Workload
    gpus: int = 1

    def picture(self, held: float, *, in_page_cache: bool) -> float:
        """A picture of an encoded prompt, with `held` bytes of weights in the transformer."""
        preset, machine = self.preset, self.machine
        rate = _flop_rate(machine, self.workload.bytes)
        step = self.model.flop(self.workload.tokens) / rate
        step += CAST_BYTES.get(preset.storage, 0.0) * self.model.blocks / (machine.bandwidth * 1e9)
        step *= COMPILED.get(preset.storage, 1.0)
        if preset.offload == "leaf":
            step = max(step, held / (machine.pcie * 1e9))
        elif preset.offload == "mapped":
            source = COPYING * machine.cores if in_page_cache else machine.disk
            step = max(step, held / (min(source, machine.pcie) * 1e9))
        elif preset.offload == "sequential":
            step += held / (PAGEABLE * 1e9)
        elif machine.device == "cpu":
            step = max(step, held / ((machine.bandwidth if in_page_cache else machine.disk) * 1e9))
        decoding = DECODE_FLOP * self.workload.pixels / (DECODE_RATE * rate)
        if preset.parallel:
            step *= PARALLEL_DIVIDED / self.gpus + PARALLEL_WHOLE
        total = self.workload.steps * self.workload.evaluations * step + decoding * (
            (DECODE_COMPILED if preset.compiled else 1.0) / (self.gpus if preset.parallel else 1)
        )
        if preset.offload == "model":
            total += 2 * (held + self.model.vae * self.workload.bytes) / (PAGEABLE * 1e9)
        return total

    def prompt(self, read: float, *, pinned: bool, in_page_cache: bool) -> float:
        """What a new prompt adds, for which `read` bytes are read again."""
        encoders = self.model.t5 + self.model.clip
        computing = 2 * encoders * 256 / _flop_rate(self.machine, self.workload.bytes)
        if self.preset.text_storage == "fp8":
            computing += CAST_BYTES["fp8"] * encoders / (self.machine.bandwidth * 1e9)
        if self.preset.text_encoders == "offloaded":
            return computing + 2 * encoders * self.workload.bytes / (PAGEABLE * 1e9)
        source = self.machine.pcie if pinned else READING if in_page_cache else min(READING, self.machine.disk)
        return computing + read / (source * 1e9)
