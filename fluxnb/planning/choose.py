"""plan(): which preset, what it will cost and why the others were refused, before anything is downloaded."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxnb.checkpoints import hub
from fluxnb.checkpoints import sources as weights
from fluxnb.errors import RunError, unknown_choice, validates_own_input
from fluxnb.planning.detection import detect
from fluxnb.planning.hardware import GIB, Hardware, described
from fluxnb.planning.model_size import Anatomy, anatomy_of, counted
from fluxnb.planning.plan import Option, Plan
from fluxnb.planning.presets import PRESETS, Needs, Preset, needs

__all__ = ["is_large", "plan"]

ROOMY = 0.8  # beyond this share of the card, small weights make room for the decoder while it runs
LARGE = 10**9  # weights from which a model is held in 16 bits and put together part by part


@validates_own_input
def plan(
    model: str | Path = "pocket",
    hardware: Hardware | str | Mapping[str, Any] | None = None,
    *,
    preset: str = "auto",
    size: int | None = None,
) -> Plan:
    """The preset for a model on this machine, or on one that is described, before anything is downloaded.

    Of what fits, the quickest is taken; an exact preset may take half as long again, or longer beside four bits,
    before a lossy one is preferred.

    Arguments:
        model: a name, a folder, or a hub id, whose configuration is asked for.
        hardware: a name such as "colab-t4" or "rtx-3060-12gb", "12gb/32gb", a mapping such as {"vram_gib": 12}, a
            Hardware; None looks at this machine.
        preset: one of `fluxnb.planning.presets.PRESETS`, to have it or the reason why not.
        size: of the pictures in pixels; 1024, or 128 for pocket, by default.

    Raises:
        InputError: no such preset, or hardware that says nothing.
        RunError: the preset asked for, or every preset, needs more than there is.

    Example:
        >>> plan("schnell", "rtx-4090").preset
        'lean'
    """
    machine = detect() if hardware is None else described(hardware)
    if preset != "auto" and preset not in PRESETS:
        raise unknown_choice("preset", preset, ("auto", *PRESETS))
    model = weights.expanded(model)
    anatomy = _anatomy(model)
    large = is_large(anatomy)
    pixels = size or (1024 if large else 128)
    there = _cached(model) if hardware is None else 0.0
    room = machine.disk_gib + there if _from_hub(model) else math.inf
    options = tuple(
        _option(each, anatomy, machine, pixels, hardware is None, preset == each.name, room)
        for each in PRESETS.values()
    )
    fits = [option for option in options if not option.refused and preset in ("auto", option.preset.name)]
    refused = tuple((option.preset.name, option.refused) for option in options if option.refused)
    if not fits:
        raise _nothing(model, machine, preset, refused, options, room)
    best = min(fits, key=lambda option: option.cost)
    return Plan(
        preset=best.preset.name,
        device="cpu" if best.preset.name == "cpu" else machine.device,
        vram_gib=best.needs.vram_gib,
        ram_gib=best.needs.ram_gib,
        exact=best.preset.exact,
        why=_why(best, fits, options, preset),
        refused=refused,
        disk_gib=best.needs.disk_gib,
        download_gib=max(0.0, best.needs.disk_gib - there) if _from_hub(model) else 0.0,
        seconds=best.needs.seconds,
        prompt_seconds=best.needs.prompt_seconds,
        dtype=natural_dtype(machine.without_accelerator if best.preset.name == "cpu" else machine, large),
        park=best.needs.park,
        keep=best.needs.keep,
        model=str(model) if not Path(str(model)).is_absolute() else Path(str(model)).name,
        machine=machine,
        options=options,
    )


def is_large(anatomy: Anatomy) -> bool:
    """Whether a model is held in 16 bits and put together part by part."""
    return anatomy.total >= LARGE


def natural_dtype(machine: Hardware, large: bool) -> str:
    """What a model computes in when nothing is said."""
    if not large:
        return "float32"
    return "bfloat16" if machine.bf16 or machine.device != "cuda" else "float16"


def _anatomy(model: str | Path) -> Anatomy:
    if str(model) in ("pocket", "pocket-base") and not isinstance(model, Path):
        return anatomy_of(weights.POCKET / "base") if (weights.POCKET / "base").is_dir() else _tiny()
    folder = Path(str(model))
    if (folder / "transformer" / "config.json").is_file():
        return anatomy_of(folder)
    if str(model) in weights.HUB or weights.HUB.get("schnell") == str(model):
        return counted()
    return anatomy_of(hub.configurations(str(model))) if _from_hub(model) else _tiny()


def _tiny() -> Anatomy:
    return Anatomy(
        modulation=0, blocks=10**7, rest=0, t5=10**6, clip=10**6, vae=10**6, layer=10**5, text_layer=10**5, width=192,
        depth=9,
    )  # fmt: skip


def _from_hub(model: str | Path) -> bool:
    return str(model) in weights.HUB or (isinstance(model, str) and model.count("/") == 1 and not Path(model).exists())


def _cached(model: str | Path) -> float:
    """GiB of this model that the hub's cache has already."""
    from huggingface_hub import constants

    repo = weights.HUB.get(str(model), str(model)).replace("/", "--")
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo}" / "blobs"
    return sum(path.stat().st_size for path in blobs.glob("*") if path.is_file()) / GIB if blobs.is_dir() else 0.0


def _option(
    preset: Preset, model: Anatomy, machine: Hardware, size: int, here: bool, asked: bool, room: float
) -> Option:
    each = 2 if is_large(model) else 4
    text = 256 if is_large(model) else 48
    if preset.name == "cpu":
        machine = machine.without_accelerator
    need = needs(preset, model, machine, size=size, text=text, bytes_each=each)
    parks = preset.storage != "plain" and not preset.compiled  # what is compiled must find its weights where they were
    if parks and machine.device == "cuda" and need.vram_gib > ROOMY * machine.vram_gib:
        need = needs(preset, model, machine, size=size, text=text, bytes_each=each, park=True)
    return Option(
        preset=preset, needs=need, refused=_refusal(preset, need, machine, is_large(model), here, asked, room)
    )


def _refusal(preset: Preset, need: Needs, machine: Hardware, large: bool, here: bool, asked: bool, room: float) -> str:
    if need.disk_gib > room:
        return f"needs {need.disk_gib:.0f} GiB of disk, {room:.0f} are free"
    if preset.name == "cpu":
        # A busy laptop has room for pocket, whatever it says.
        return "" if not large else _too_little(preset, need, machine)
    if machine.device == "cpu":
        # Each way of holding weights works on a CPU too; it is of use there to whoever wants to look at it.
        works = asked and preset.offload in ("", "leaf") and not preset.compiled
        return "" if works else "there is no GPU"
    if machine.device not in preset.devices:
        return "on Apple the GPU's memory is the main memory" if preset.offload else "needs a CUDA card"
    if machine.device == "cuda" and machine.capability < (7, 0):
        return f"PyTorch's builds have no kernels for capability {machine.capability[0]}.{machine.capability[1]} now"
    if not large and not asked and preset.name != "resident":
        return "the model is small"
    if preset.storage == "fp8-rows" and not machine.float8:
        return "needs 8-bit matrix units (capability 8.9)"
    if preset.storage == "int8" and machine.capability < (8, 0):
        return "needs 8-bit matrix units and a compiler for them (capability 8.0)"
    if reason := _too_little(preset, need, machine):
        return reason
    if here and preset.library and importlib.util.find_spec(preset.library) is None:
        return f"needs pip install {preset.library}"
    return ""


def _too_little(preset: Preset, need: Needs, machine: Hardware) -> str:
    if preset.name != "cpu" and need.vram_gib > machine.vram_gib:
        return f"needs {need.vram_gib:.1f} GiB on the GPU, {machine.vram_gib:.1f} are free"
    if need.ram_gib > machine.ram_gib and need.ram_gib > 4:
        return f"needs {need.ram_gib:.0f} GiB of RAM, {machine.ram_gib:.1f} are free"
    return ""


def _why(best: Option, fits: list[Option], options: tuple[Option, ...], asked: str) -> str:
    if asked != "auto":
        return "asked for"
    if len(fits) == 1:
        return "the only one that fits"
    quicker = [each for each in fits if each.needs.seconds < best.needs.seconds and not each.preset.compiled]
    if best.preset.exact and quicker:
        return "exact, and nearly as quick as the lossy ones that fit"
    if best.preset.exact:
        return "exact, and the quickest that fits"
    exact = [option for option in fits if option.preset.exact]
    if exact:
        slower = min(option.needs.seconds for option in exact) / best.needs.seconds
        return f"the exact ones that fit take {slower:.0f} times as long"
    return "no exact one fits"


def _nothing(
    model: str | Path,
    machine: Hardware,
    preset: str,
    refused: tuple[tuple[str, str], ...],
    options: tuple[Option, ...],
    room: float,
) -> RunError:
    given = f"{model} on {machine.name} ({machine.vram_gib:.0f} GiB free there, {machine.ram_gib:.0f} GiB of RAM)"
    least = min(option.needs.disk_gib for option in options)
    if least > room:
        return RunError(
            given,
            f"at least {least:.0f} GiB have to be downloaded and {room:.0f} GiB of disk are free",
            'set HF_HOME to a larger disk, or try fnb.load("pocket")',
        )
    reasons = dict(refused)
    if preset != "auto":
        return RunError(given, f"{preset}: {reasons[preset]}", 'leave preset out, or try fnb.load("pocket")')
    listed = "; ".join(f"{name}: {reason}" for name, reason in refused)
    return RunError(given, f"no preset fits ({listed})", 'free some memory, or try fnb.load("pocket")')
