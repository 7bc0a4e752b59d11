"""The ways to hold a model in memory, as values, and what each will need: memory, disk and seconds.

A new preset is one line of `PRESETS`.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxnb.planning.hardware import GIB, Hardware
from fluxnb.planning.model_size import Anatomy

__all__ = ["BYTES", "PRESETS", "Needs", "Preset", "course", "needs", "stages"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One way to hold a model.

    Arguments:
        says: one clause for people.
        text: where the text encoders are: "resident"; "by layer", read and let go layer by layer; "offloaded".
        tables: whether adaLN tables stand for the modulation layers.
        storage: how the blocks' weights are stored, see `fluxnb.runtime.quantisation`.
        offload: "" keeps the transformer on the device; "leaf" streams it through from page-locked memory, "mapped"
            from the disk's cache; "model" and "sequential" are diffusers' offloads.
        devices: where it makes sense.
        patience: how many times longer than this one a person would wait for an exact preset; long for those that
            are compiled for minutes first, so that they are chosen by hand.
        library: what has to be installed beside diffusers.
        compiled: whether it is only worth having compiled.
    """

    name: str
    says: str
    text: str = "by layer"
    tables: bool = True
    storage: str = "plain"
    offload: str = ""
    devices: tuple[str, ...] = ("cuda",)
    patience: float = 1.0
    library: str = ""
    compiled: bool = False

    @property
    def gguf(self) -> str:
        """The kind of GGUF file that holds the transformer, as files are named; "" where it is the model's own."""
        return {"gguf-q8": "Q8_0", "gguf-q4": "Q4_K_S"}.get(self.storage, "")

    @property
    def exact(self) -> bool:
        """Whether every number is that of the plain model."""
        return self.storage == "plain"


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="resident", says="everything on the device", text="resident", tables=False, devices=("cuda", "mps")
        ),
        Preset(name="lean", says="adaLN tables for 3.2 billion weights", devices=("cuda", "mps")),
        Preset(name="lean-fp8", says="and 8-bit storage, computed in 16", storage="fp8", patience=1.6),
        Preset(
            name="lean-fp8-rows", says="and 8-bit arithmetic, compiled", storage="fp8-rows", patience=5.0,
            library="torchao", compiled=True,
        ),
        Preset(
            name="lean-int8", says="and 8-bit integer arithmetic, compiled", storage="int8", patience=5.0,
            library="torchao", compiled=True,
        ),
        Preset(name="lean-nf4", says="and 4-bit storage", storage="nf4", patience=2.5, library="bitsandbytes"),
        Preset(name="gguf-q8", says="a GGUF file of 12.7 GB", storage="gguf-q8", patience=1.6, library="gguf"),
        Preset(name="gguf-q4", says="a GGUF file of 6.8 GB", storage="gguf-q4", patience=2.5, library="gguf"),
        Preset(name="stream", says="layers come from main memory as they run", offload="leaf"),
        Preset(name="stream-mapped", says="layers come from the disk's cache as they run", offload="mapped"),
        Preset(
            name="model-offload", says="diffusers' recipe: one part at a time", text="offloaded", tables=False,
            offload="model",
        ),
        Preset(
            name="sequential-offload", says="diffusers' recipe: one layer at a time", text="offloaded", tables=False,
            offload="sequential",
        ),
        Preset(name="cpu", says="weights read from the disk's cache", devices=("cuda", "mps", "cpu")),
    )
}  # fmt: skip

# Bytes a weight of the blocks takes; NF4 has a scale for 64 weights in 8 bits, and one for 256 scales in 32.
BYTES = {
    "plain": 2.0,
    "fp8": 1.0,
    "int8": 1.0 + 2 / 3072,
    "fp8-rows": 1.0 + 4 / 3072,
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
    "gguf-q8": 1.0 + 2 / 32,
    "gguf-q4": 0.5625,
}

# Measured on an H200 at 1024 px, 4096 + 256 tokens, bfloat16 (see tests/benchmarks/results).
ACTIVATIONS = 0.44 * GIB / 4352 / 3072  # bytes a token and unit of width, weights and text apart
DECODING = 2.42 * GIB / 1024**2  # bytes a pixel
DECODING_COMPILED = 1.33 * GIB / 1024**2  # the same, compiled in channels-last; measured on an H100
DECODE_FLOP = 10.47e12 / 1024**2  # a pixel; the decoder reaches 0.29 of the transformer's rate
DECODE_RATE = 0.29
DECODE_COMPILED = 0.42  # of the time, on an H100, where one compiled evaluation takes these shares of a plain one:
COMPILED = {"int8": 0.82, "fp8-rows": 0.54}
# The GGUF rows from seconds published for an H100 (huggingface/blog, "Exploring Quantization Backends").
CAST = {
    "fp8": 158e9 / 8.6e9,
    "nf4": 64e9 / 8.6e9,
    "gguf-q8": 23.0,
    "gguf-q4": 82.0,
}  # bytes of traffic a weight that undoing the storage costs
PAGEABLE = 2.5  # GB/s both ways of diffusers' model offload, which moves memory that is not page-locked: 1.8 to 3.4
READING = 2.5  # GB/s from the disk's cache to the device, tensor by tensor; the best host measured reached 7
COPYING = 1.5  # GB/s a core from the disk's cache to page-locked memory, while the device computes: 25 by 16 cores
PINNED = 1.7  # page-locked blocks are rounded up to powers of two: the transformer's, and
KEPT = 1.35  # those of the text encoders and the modulation layers
SPARE = 16.0  # GiB that a machine has left before anything is kept that need not be
PARKED = 0.25  # of the transformer, while the decoder runs
PYTHON = 3.0  # GiB of main memory for the libraries and the CUDA context


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a preset takes for one model at one size.

    Arguments:
        vram_gib: the peak on the device, from the prompt to the picture.
        ram_gib: main memory that cannot be given back; the disk's cache comes on top and may go at any time.
        disk_gib: of the downloaded files; as much is downloaded.
        seconds: a picture of a prompt that is known.
        prompt_seconds: in addition, for a new prompt.
        park: whether part of the transformer has to wait in main memory during decoding.
        keep: whether there is room to keep in main memory what is read again for each new prompt.
    """

    vram_gib: float
    ram_gib: float
    disk_gib: float
    seconds: float
    prompt_seconds: float
    park: bool = False
    keep: bool = False


def needs(
    preset: Preset, model: Anatomy, machine: Hardware, *, size: int = 1024, steps: int = 4, text: int = 256,
    bytes_each: int = 2, park: bool = False,
) -> Needs:  # fmt: skip
    """What this preset takes on this machine.

    Arguments:
        size: height and width in pixels.
        text: T5 tokens.
        bytes_each: of a weight that is not quantised; 4 for float32.
        park: count with part of the transformer in main memory during decoding.
    """
    tokens, pixels = (size // 16) ** 2 + text, size**2
    held = transformer_bytes(preset, model, bytes_each)
    encoders = (model.t5 + model.clip) * bytes_each
    peak = max(stages(preset, model, size=size, text=text, bytes_each=bytes_each, park=park).values()) * GIB
    waiting = held * PARKED if park else 0.0
    moved = {"model": held + model.vae * bytes_each, "sequential": held, "leaf": held * PINNED}
    ram = PYTHON + moved.get(preset.offload, 0.0) / GIB + (encoders / GIB if preset.text == "offloaded" else 0)
    ram += PINNED * waiting / GIB
    if machine.device in ("cpu", "mps"):
        ram, peak = 1.5 + peak / GIB, 0.0 if machine.device == "cpu" else peak
    reading = 0.0
    if preset.text == "by layer":
        reading = float(encoders + (model.modulation * bytes_each if preset.tables else 0))
    keep = machine.device == "cuda" and 0 < ram + KEPT * reading / GIB < machine.ram_gib - SPARE and reading > GIB
    ram += KEPT * reading / GIB if keep else 0.0
    cached = machine.ram_gib - ram
    streamed = held if preset.offload == "mapped" or machine.device == "cpu" else 0.0
    seconds = _seconds(preset, model, machine, tokens, pixels, steps, bytes_each, held, cached * GIB > streamed)
    return Needs(
        vram_gib=peak / GIB,
        ram_gib=ram,
        disk_gib=(model.total * 2 - (model.transformer * (2 - BYTES[preset.storage]) if preset.gguf else 0)) / GIB,
        seconds=seconds + 2 * waiting / (machine.pcie * 1e9),
        prompt_seconds=_prompt_seconds(
            preset, model, machine, bytes_each, reading, keep, cached * GIB > streamed + reading
        ),
        park=park,
        keep=keep,
    )


def stages(
    preset: Preset, model: Anatomy, *, size: int = 1024, text: int = 256, bytes_each: int = 2, park: bool = False
) -> dict[str, float]:
    """GiB on the device while the prompt is encoded, while modulation is tabled, while it denoises and decodes.

    Arguments:
        size, text, bytes_each, park: as for `needs`.
    """
    tokens, pixels = (size // 16) ** 2 + text, size**2
    held, vae = transformer_bytes(preset, model, bytes_each), float(model.vae * bytes_each)
    encoders = float((model.t5 + model.clip) * bytes_each)
    active = ACTIVATIONS * tokens * model.width * bytes_each / 2
    decoding = (DECODING_COMPILED if preset.compiled else DECODING) * pixels * bytes_each / 2
    layer = 3 * model.layer * bytes_each  # the one at work and the two on their way
    coming = model.text_layer * bytes_each * 1.3
    modulation = 9.0 * model.width**2 * bytes_each if preset.tables else 0.0
    parts: tuple[float, float, float, float]
    if preset.offload == "model":
        parts = (encoders, 0.0, held + active, vae + decoding)
    elif preset.offload == "sequential":
        parts = (coming, 0.0, layer + active, decoding)
    elif preset.offload:
        parts = (vae + coming, vae + modulation, vae + layer + active, vae + decoding)
    else:
        fixed = held + vae + (encoders if preset.text == "resident" else 0.0)
        arriving = 0.0 if preset.text == "resident" else coming
        left = held * PARKED if park else 0.0
        parts = (fixed + arriving, fixed + modulation, fixed + active, fixed - left + decoding)
    return dict(zip(("prompt", "modulation", "denoise", "decode"), (part / GIB for part in parts), strict=True))


def course(preset: Preset, model: Anatomy, machine: Hardware) -> list[tuple[float, float]]:
    """Predicted (seconds, GiB) over one picture of a new prompt at 1024 px; each level holds until the next point.

    Example:
        >>> course(PRESETS["lean"], counted(), described("rtx-4090"))[0]            # doctest: +SKIP
        (0.0, 16.6)
    """
    need = needs(preset, model, machine)
    levels = list(stages(preset, model, park=need.park).values())
    modulation = need.prompt_seconds * 0.4 if preset.tables else 0.0
    decoding = DECODE_FLOP * 1024**2 / (DECODE_RATE * _rate(machine, 2))
    lasts = (need.prompt_seconds - modulation, modulation, need.seconds - decoding, decoding)
    starts = [sum(lasts[:i]) for i in range(5)]
    return [*zip(starts, levels, strict=False), (starts[-1], levels[-1])]


def transformer_bytes(preset: Preset, model: Anatomy, bytes_each: int) -> float:
    """The transformer's weights as the preset holds them."""
    each = float(bytes_each) if preset.storage == "plain" else BYTES[preset.storage]
    modulation = 0 if preset.tables else model.modulation * bytes_each
    return float(model.blocks * each + model.rest * bytes_each + modulation)


def _rate(machine: Hardware, bytes_each: int) -> float:
    return machine.tflops * 1e12 * (1.0 if bytes_each == 2 or machine.device == "cpu" else 0.5)


def _seconds(
    preset: Preset, model: Anatomy, machine: Hardware, tokens: int, pixels: int, steps: int, bytes_each: int,
    held: float, cached: bool,
) -> float:  # fmt: skip
    """A picture of a prompt that is known."""
    rate = _rate(machine, bytes_each)
    step = model.flop(tokens) / rate
    step += CAST.get(preset.storage, 0.0) * model.blocks / (machine.bandwidth * 1e9)
    step *= COMPILED.get(preset.storage, 1.0)
    if preset.offload == "leaf":
        step = max(step, held / (machine.pcie * 1e9))
    elif preset.offload == "mapped":
        source = COPYING * machine.cores if cached else machine.disk
        step = max(step, held / (min(source, machine.pcie) * 1e9))
    elif preset.offload == "sequential":
        step += held / (PAGEABLE * 1e9)
    elif machine.device == "cpu":
        step = max(step, held / ((machine.bandwidth if cached else machine.disk) * 1e9))
    picture = steps * step + DECODE_FLOP * pixels / (DECODE_RATE * rate) * (DECODE_COMPILED if preset.compiled else 1.0)
    if preset.offload == "model":
        picture += 2 * (held + model.vae * bytes_each) / (PAGEABLE * 1e9)
    return picture


def _prompt_seconds(
    preset: Preset, model: Anatomy, machine: Hardware, bytes_each: int, reading: float, keep: bool, cached: bool
) -> float:
    """What a new prompt adds."""
    encoders = model.t5 + model.clip
    computing = 2 * encoders * 256 / _rate(machine, bytes_each)
    if preset.text == "offloaded":
        return computing + 2 * encoders * bytes_each / (PAGEABLE * 1e9)
    source = machine.pcie if keep else READING if cached else min(READING, machine.disk)
    return computing + reading / (source * 1e9)
