"""How a model is held in memory: the presets as values, and `plan`, which chooses one and says why.

All presets here are exact: they move weights about and change no number.
"""

from __future__ import annotations

from dataclasses import dataclass

from fluxnb.errors import RunError, one_of
from fluxnb.hardware import Hardware, detect

__all__ = ["PRESETS", "Plan", "plan"]

# GiB that each preset needs on the accelerator and in main memory: FLUX.1 in bfloat16 at 1024 px, and pocket in
# float32. Sources: 33.8 and 22.6 GiB are the peaks measured on an H200; offloading keeps all weights in main memory.
LARGE = {"resident": (34.0, 8.0), "model-offload": (23.0, 34.0), "group-offload": (4.0, 36.0), "cpu": (0.0, 66.0)}
SMALL = {"resident": (0.5, 1.0), "cpu": (0.0, 1.0)}
PRESETS = tuple(LARGE)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which preset, what it needs, why it was chosen, and why the others were not.

    Arguments:
        preset: one of `PRESETS`.
        device: "cuda", "mps" or "cpu".
        vram_gib, ram_gib: what the preset needs.
        exact: True if the numbers are those of the plain model.
        why: one sentence.
        refused: the presets that do not fit, and why.
    """

    preset: str
    device: str
    vram_gib: float
    ram_gib: float
    exact: bool = True
    why: str = ""
    refused: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        lines = [f"Plan({self.preset} on {self.device}, exact={self.exact}: {self.why})"]
        return "\n".join(lines + [f"  not {name}: {reason}" for name, reason in self.refused])


def plan(model: str = "pocket", hardware: Hardware | None = None, *, preset: str = "auto") -> Plan:
    """The preset for a model on this machine (or on the one given), before anything is downloaded.

    "schnell" and "dev" are counted as FLUX.1's 12 billion parameters, everything else as small.

    Raises:
        InputError: no such preset.
        RunError: the preset asked for, or every preset, needs more memory than there is.

    Example:
        >>> small = Hardware(device="cpu", name="CPU", vram_gib=0, ram_gib=8, cores=2, bf16=True)
        >>> plan("pocket", small).preset
        'cpu'
    """
    machine = hardware or detect()
    large = model in ("schnell", "dev") or model.endswith(("FLUX.1-schnell", "FLUX.1-dev"))
    needs = LARGE if large else SMALL
    if preset != "auto" and preset not in needs:
        raise one_of("preset", preset, ("auto", *needs))
    refused: list[tuple[str, str]] = []
    for name, (vram, ram) in needs.items():
        if preset not in ("auto", name):
            continue
        device = "cpu" if name == "cpu" else machine.device
        if reason := _refusal(name, vram, ram, machine):
            refused.append((name, reason))
            continue
        why = "asked for" if preset == name else f"the fastest that fits {machine.name}"
        return Plan(preset=name, device=device, vram_gib=vram, ram_gib=ram, why=why, refused=tuple(refused))
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused)
    raise RunError(
        f"{model} on {machine.name} ({machine.vram_gib:.0f} GiB free there, {machine.ram_gib:.0f} GiB of RAM)",
        f"no preset fits ({reasons})",
        'free some memory, or try fnb.load("pocket")',
    )


def _refusal(name: str, vram: float, ram: float, machine: Hardware) -> str:
    if name != "cpu" and machine.device == "cpu":
        return "there is no GPU"
    if name.endswith("-offload") and machine.device == "mps":
        return "on Apple the GPU's memory is the main memory"
    if vram > machine.vram_gib and name != "cpu":
        return f"needs {vram:g} GiB on the GPU, {machine.vram_gib:.1f} are free"
    # The very small models are let through whatever psutil says of a busy laptop.
    if ram > machine.ram_gib and ram > 4:
        return f"needs {ram:g} GiB of RAM, {machine.ram_gib:.1f} are free"
    return ""
