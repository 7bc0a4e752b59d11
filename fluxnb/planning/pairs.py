"""The plan of a pair: whether teacher and student are both on the device, and how their text encoder is held."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fluxnb.errors import RunError, unknown_choice
from fluxnb.families.family import Family
from fluxnb.planning.hardware import GIB, Hardware, describe_hardware, detect
from fluxnb.planning.model_facts import is_large, natural_dtype, small_workload
from fluxnb.planning.model_size import ModelSize
from fluxnb.planning.plan import Plan
from fluxnb.planning.presets import Preset, presets_of
from fluxnb.planning.requirements import PINNED_TRANSFORMER, Workload, memory_by_stage, requirements

__all__ = ["HOLDINGS", "Holding", "plan_pair"]


@dataclass(frozen=True, kw_only=True)
class Holding:
    """One way to hold a pair.

    Arguments:
        name: as in `fnb.load_pair(preset=...)`.
        preset: of the parts that both models share, and of the transformer that is on the device.
        swapped: whether one transformer at a time is on the device.
        description: one clause, printed in a plan.
    """

    name: str
    preset: str
    swapped: bool
    description: str


HOLDINGS: Mapping[str, Holding] = {
    holding.name: holding
    for holding in (
        Holding(
            name="both", preset="resident", swapped=False,
            description="both transformers are on the device, with one text encoder and one VAE",
        ),
        Holding(
            name="both-text-by-layer", preset="text-by-layer", swapped=False,
            description="both transformers are on the device; the text encoder is read layer by layer for each prompt",
        ),
        Holding(
            name="swapped", preset="resident", swapped=True,
            description="one transformer at a time is on the device, with one text encoder and one VAE",
        ),
        Holding(
            name="swapped-text-by-layer", preset="text-by-layer", swapped=True,
            description="one transformer at a time is on the device; the text encoder is read layer by layer",
        ),
    )
}  # fmt: skip


def plan_pair(
    name: str,
    family: Family,
    size: ModelSize,
    hardware: Hardware | str | Mapping[str, Any] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
    preset: str = "auto",
) -> Plan:
    """Choose how to hold a teacher and its student on a machine.

    Arguments:
        name: of the pair, for messages.
        size: of one of the models; both have the same.
        hardware: as in `fnb.plan`.
        defaults: of the student, as in `fluxnb.planning.model_facts.known_defaults`.
        preset: one of `HOLDINGS`, or "auto".

    Raises:
        InputError: an unknown preset.
        RunError: no way fits, or not the requested one.

    Example:
        >>> from fluxnb.families.klein import KLEIN
        >>> from fluxnb.planning.model_size import klein_size
        >>> plan_pair("klein", KLEIN, klein_size(), "colab-l4").preset
        'both-text-by-layer'
    """
    if preset != "auto" and preset not in HOLDINGS:
        raise unknown_choice("preset", preset, ("auto", *HOLDINGS))
    machine = detect() if hardware is None else describe_hardware(hardware)
    large = is_large(size)
    workload = Workload(text=512) if large else small_workload(defaults or {})
    refused: list[tuple[str, str]] = []
    presets = presets_of(family)
    for holding in HOLDINGS.values():
        if holding.preset not in presets:
            refused.append((holding.name, f"{family.name} has no preset {holding.preset}"))
            continue
        vram, ram = _memory(holding, presets[holding.preset], size, machine, workload)
        reason = _too_little(vram, ram, machine, large=large)
        if reason or preset not in ("auto", holding.name):
            refused.append((holding.name, reason or f"{preset} was requested"))
            continue
        return Plan(
            preset=holding.name,
            device=machine.device,
            vram_gib=vram,
            ram_gib=ram,
            why=holding.description,
            refused=tuple(refused),
            dtype=natural_dtype(machine, large),
            model=name,
            size=workload.size,
            machine=machine,
        )
    reasons = "; ".join(f"{way}: {reason}" for way, reason in refused)
    raise RunError(f"the pair {name} on {machine.name}", f"no way to hold it fits ({reasons})", "load one model alone")


def _memory(
    holding: Holding, preset: Preset, size: ModelSize, machine: Hardware, workload: Workload
) -> tuple[float, float]:
    """GiB on the device and in main memory."""
    transformer = size.transformer * workload.bytes / GIB
    one = max(memory_by_stage(preset, size, workload).values())
    ram = requirements(preset, size, machine, workload).ram_gib
    if machine.device == "cpu":
        return 0.0, ram + transformer
    return (one, ram + PINNED_TRANSFORMER * transformer) if holding.swapped else (one + transformer, ram)


def _too_little(vram: float, ram: float, machine: Hardware, *, large: bool) -> str:
    if machine.device != "cpu" and vram > machine.vram_gib:
        return f"needs {vram:.1f} GiB on the GPU, {machine.vram_gib:.1f} are free"
    if large and ram > machine.ram_gib:
        return f"needs {ram:.0f} GiB of RAM, {machine.ram_gib:.1f} are free"
    return ""
