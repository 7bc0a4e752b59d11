"""Offload presets: how the weights of a pipeline are stored, moved and computed.

A new preset is one entry of `PRESETS`. What each requires is in `requirements.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from fluxnb.families.family import Family

__all__ = ["PRESETS", "WEIGHT_BYTES", "Preset", "all_presets", "presets_of"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One way to hold a model in memory.

    Arguments:
        name: as in `fnb.load(preset=...)`.
        description: one clause with subject and verb, printed in a plan as a sentence.
        text_encoders: "resident" on the device; "by layer", each layer read for its call; or "offloaded" by diffusers.
        adaln_cache: whether the adaLN cache replaces the modulation layers.
        storage: how the weights of the blocks are stored, see `fluxnb.runtime.quantisation`.
        text_storage: how the linear layers of a resident text encoder are stored: "plain" or "fp8".
        offload: "" for a transformer on the device; "leaf" streams it from page-locked memory and "mapped" from the
            page cache; "model" and "sequential" are the offloads of diffusers.
        devices: where the preset is available.
        penalty: factor on the predicted seconds when presets are compared, see `Option.cost`. It is 1 for exact
            presets. A lossy preset with penalty 1.6 is chosen only if every exact one takes 1.6 times as long. Presets
            that compile for minutes have 5, so that they are chosen by hand.
        library: the package that is required in addition to diffusers.
        compiled: whether the preset is always compiled.
        parallel: whether a picture is split over several GPUs, with one process on each. Such a preset is never chosen
            by itself, since every process has to make the same calls.
    """

    name: str
    description: str
    text_encoders: str = "by layer"
    adaln_cache: bool = True
    storage: str = "plain"
    text_storage: str = "plain"
    offload: str = ""
    devices: tuple[str, ...] = ("cuda",)
    penalty: float = 1.0
    library: str = ""
    compiled: bool = False
    parallel: bool = False

    @property
    def gguf(self) -> str:
        """The type of GGUF file that holds the transformer, as in file names; "" for safetensors."""
        return {"gguf-q8": "Q8_0", "gguf-q4": "Q4_K_S"}.get(self.storage, "")

    @property
    def exact(self) -> bool:
        """Whether the results equal those of the plain model."""
        return self.storage == self.text_storage == "plain" and not self.parallel


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="resident", description="all weights are on the device", text_encoders="resident", adaln_cache=False,
            devices=("cuda", "mps"),
        ),
        Preset(name="lean", description="an adaLN cache replaces 3.2 billion weights", devices=("cuda", "mps")),
        Preset(
            name="lean-fp8", description="the blocks are stored in 8 bits and computed in 16", storage="fp8",
            penalty=1.6,
        ),
        Preset(
            name="lean-fp8-rows", description="the blocks are computed in 8 bits, compiled", storage="fp8-rows",
            penalty=5.0, library="torchao", compiled=True,
        ),
        Preset(
            name="lean-int8", description="the blocks are computed in 8-bit integers, compiled", storage="int8",
            penalty=5.0, library="torchao", compiled=True,
        ),
        Preset(
            name="lean-nf4", description="the blocks are stored in 4 bits", storage="nf4", penalty=2.5,
            library="bitsandbytes",
        ),
        Preset(
            name="gguf-q8", description="the blocks are read from a GGUF file of 12.7 GB", storage="gguf-q8",
            penalty=1.6, library="gguf",
        ),
        Preset(
            name="gguf-q4", description="the blocks are read from a GGUF file of 6.8 GB", storage="gguf-q4",
            penalty=2.5, library="gguf",
        ),
        Preset(
            name="parallel", description="each picture is computed by several GPUs, compiled", compiled=True,
            parallel=True,
        ),
        Preset(name="stream", description="layers are streamed from main memory", offload="leaf"),
        Preset(name="stream-mapped", description="layers are streamed from the page cache", offload="mapped"),
        Preset(
            name="model-offload", description="diffusers moves one model at a time to the device",
            text_encoders="offloaded", adaln_cache=False, offload="model",
        ),
        Preset(
            name="sequential-offload", description="diffusers moves one layer at a time to the device",
            text_encoders="offloaded", adaln_cache=False, offload="sequential",
        ),
        Preset(name="cpu", description="weights are read from the page cache", devices=("cuda", "mps", "cpu")),
    )
}  # fmt: skip

# The presets of families without an adaLN cache, quantized storage and GGUF files.
PLAIN_PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        PRESETS["resident"],
        Preset(
            name="text-by-layer", description="the text encoder is read layer by layer for each prompt",
            adaln_cache=False, devices=("cuda", "mps"),
        ),
        Preset(
            name="text-fp8", description="the text encoder is stored in 8 bits and computed in 16",
            text_encoders="resident", adaln_cache=False, text_storage="fp8", penalty=1.6,
        ),
        *(dataclasses.replace(PRESETS[name], adaln_cache=False) for name in ("stream", "stream-mapped")),
        PRESETS["model-offload"],
        PRESETS["sequential-offload"],
        dataclasses.replace(PRESETS["cpu"], adaln_cache=False),
    )
}  # fmt: skip


def presets_of(family: Family) -> dict[str, Preset]:
    """The presets of a family by name; "lean" and what builds on it are written for FLUX.1 alone."""
    return PRESETS if family.exclusive else PLAIN_PRESETS


def all_presets() -> tuple[str, ...]:
    """The names of the presets of every family."""
    return tuple(dict.fromkeys((*PRESETS, *PLAIN_PRESETS)))


# Bytes per weight of the blocks. NF4 has an 8-bit scale per 64 weights, and a 32-bit scale per 256 of those.
WEIGHT_BYTES = {
    "plain": 2.0,
    "fp8": 1.0,
    "int8": 1.0 + 2 / 3072,
    "fp8-rows": 1.0 + 4 / 3072,
    "nf4": 0.5 + 1 / 64 + 4 / (64 * 256),
    "gguf-q8": 1.0 + 2 / 32,
    "gguf-q4": 0.5625,
}
