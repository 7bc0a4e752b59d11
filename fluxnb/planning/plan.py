"""plan(): the preset for a model and a machine, what it requires, and why the others were refused.

A plan is made before anything is downloaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import html
import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxnb.arguments import entry_point
from fluxnb.checkpoints import sources as weights
from fluxnb.errors import InputError, RunError, shorten, unknown_choice
from fluxnb.families.family import Family
from fluxnb.planning.display import Row, as_html, as_text, sentence
from fluxnb.planning.hardware import Hardware, describe_hardware, detect
from fluxnb.planning.model_facts import (
    configurations_of,
    downloaded_gib,
    family_of_checkpoint,
    is_large,
    known_defaults,
    natural_dtype,
    size_of_model,
    workload_of,
)
from fluxnb.planning.model_size import ModelSize
from fluxnb.planning.presets import Preset, all_presets, presets_of
from fluxnb.planning.processes import launched
from fluxnb.planning.requirements import Requirements, Workload, requirements
from fluxnb.records.recipe import Recipe
from fluxnb.remote.endpoints import Endpoint, endpoint_of, resolve
from fluxnb.units import duration

__all__ = [
    "Option",
    "Plan",
    "check_processes",
    "convert_out_of_memory",
    "plan",
]

OFFLOAD_ABOVE = 0.8  # share of the GPU from which quantized blocks move to main memory during decoding
MOST_PROCESSES = 1024
HEAD_WIDTH = 128  # of an attention head of FLUX.1


@dataclass(frozen=True, kw_only=True)
class Option:
    """One preset on one machine: what it requires, and why it was refused ("" where it fits)."""

    preset: Preset
    requirements: Requirements
    refused: str = ""

    @property
    def cost(self) -> float:
        """Predicted seconds for a picture times the preset's penalty. The plan takes the option of the lowest cost."""
        return self.requirements.seconds * self.preset.penalty


@entry_point()
@dataclass(frozen=True, kw_only=True)
class Plan:
    """A preset for a model on a machine, what it requires, and why the others were refused.

    Arguments:
        preset: one of `fluxnb.planning.presets.presets_of(family)`, or "as given".
        device: "cuda", "mps" or "cpu".
        vram_gib: predicted peak on the accelerator, from the prompt to the picture.
        ram_gib: predicted main memory, without the page cache.
        exact: True if the results equal those of the plain model.
        why: why this preset was chosen.
        refused: the presets that do not fit, and why.
        disk_gib, download_gib: size of the files, and how much of it is not in the cache.
        seconds: predicted for a picture of an encoded prompt; a new prompt adds `prompt_seconds`.
        dtype: number format of the computation.
        offload_blocks: whether part of the transformer moves to main memory during decoding.
        cache_weights: whether weights that each new prompt reads are cached in main memory.
        model, machine, size, steps: what the plan was made for; 0 where nothing was planned.
        processes: number of processes that hold the model at the same time, each as the plan states.
        options: every preset with its requirements.
        fast: the measurements of `fast`, where it was requested.
        endpoint: of a hosted model: its host, the variable of its token, and what is sent.
    """

    preset: str
    device: str
    vram_gib: float
    ram_gib: float
    exact: bool = True
    why: str = ""
    refused: tuple[tuple[str, str], ...] = ()
    disk_gib: float = 0.0
    download_gib: float = 0.0
    seconds: float = 0.0
    prompt_seconds: float = 0.0
    dtype: str = "float32"
    offload_blocks: bool = False
    cache_weights: bool = False
    model: str = ""
    size: int = 0
    steps: int = 0
    machine: Hardware | None = None
    processes: int = 1
    options: tuple[Option, ...] = ()
    fast: Any = None
    endpoint: Endpoint | None = None

    @property
    def next_smaller(self) -> str:
        """The fastest preset that requires at most 80 % of this one's GPU memory; "" if there is none."""
        less = [
            each
            for each in self.options
            if not each.refused and not each.preset.parallel and each.requirements.vram_gib < 0.8 * self.vram_gib
        ]
        return min(less, key=lambda option: option.cost).preset.name if less else ""

    def out_of_memory(self, given: str) -> RunError:
        """The error for a computation that ran out of GPU memory; it names the preset to try next."""
        smaller = self.next_smaller
        return RunError(
            f"{given} ({self.preset}) ran out of GPU memory",
            "smaller pictures need less, and so do other presets" if smaller else "smaller pictures need less",
            f'try preset="{smaller}"' if smaller else "try height=512, width=512, and close what else uses the GPU",
        )

    def __repr__(self) -> str:
        if self.endpoint is not None:
            return self.endpoint.describe()
        if not self.options:
            lines = [f"Plan({self.preset} on {self.device}, exact={self.exact}: {self.why})"]
            return "\n".join(lines + [f"  not {name}: {reason}" for name, reason in self.refused])
        return as_text(self._headline, self.line, self._rows, [*self._notes, *([repr(self.fast)] if self.fast else [])])

    def _repr_html_(self) -> str:
        if self.endpoint is not None:
            return f"<pre>{html.escape(self.endpoint.describe())}</pre>"
        return as_html(self._headline, self.line if self.options else "", self._rows, self._notes)

    @property
    def line(self) -> str:
        """The line of Python that loads the model with this preset."""
        known = self.model in weights.NAMES or "/" in self.model  # of a folder only the name is known here
        model = f'"{self.model}"' if known else "folder"
        return f'flux = fnb.load({model}, preset="{self.preset}")'

    @property
    def _headline(self) -> str:
        on = self.machine.name if self.machine else self.device
        workload = f" for {self.size} px in {self.steps} step{'' if self.steps == 1 else 's'}" if self.steps else ""
        return f"{self.model or 'model'} on {on}{workload}: {self.preset}, {self.why}"

    @property
    def _footline(self) -> str:
        exact = "the numbers of the plain model" if self.exact else "not the numbers of the plain model"
        download = f"{self.download_gib:.1f} GiB to download" if self.download_gib else "nothing to download"
        return f"computes in {self.dtype}, {exact}; {download}; a new prompt adds about {duration(self.prompt_seconds)}"

    @property
    def sharing(self) -> str:
        """What several processes hold, in a sentence."""
        gpus = self.machine.gpus if self.machine and self.device != "cpu" else 0
        on = f"on {gpus} GPU{'' if gpus == 1 else 's'}" if gpus else "on the CPU"
        held = [f"{self.vram_gib:.1f} GiB of GPU memory"] if self.vram_gib else []
        held.append(f"{self.ram_gib:.1f} GiB of RAM")
        together = f"{self.processes * self.ram_gib:.1f} GiB of RAM together"
        return f"{self.processes} processes, {on}; each holds {' and '.join(held)}, {together}"

    @property
    def _notes(self) -> list[str]:
        return [self._footline, self.sharing] if self.processes > 1 else [self._footline]

    @property
    def _rows(self) -> list[Row]:
        """The presets: the chosen one, the others that fit from the best on, and those that were refused."""
        chosen = self.preset
        order = sorted(self.options, key=lambda each: (each.preset.name != chosen, bool(each.refused), each.cost))
        return [
            Row(
                fits=not option.refused,
                chosen=option.preset.name == chosen,
                cells=(
                    option.preset.name,
                    f"{option.requirements.vram_gib:.1f} GiB" if option.requirements.vram_gib else "-",
                    f"{option.requirements.ram_gib:.0f} GiB",
                    duration(option.requirements.seconds),
                    "exact" if option.preset.exact else "lossy",
                ),
                remark=sentence(option.refused or option.preset.description),
            )
            for option in order
        ]


@contextlib.contextmanager
def convert_out_of_memory(plan: Plan, given: str) -> Iterator[None]:
    """Convert a CUDA out-of-memory error into RunError and free cached memory.

    Arguments:
        given: what ran out of memory, the first part of the error.
    """
    import torch

    failure: RunError | None = None
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        failure = plan.out_of_memory(given)
    if failure is not None:  # outside the except block, whose traceback holds references to tensors
        gc.collect()
        torch.cuda.empty_cache()
        raise failure


@entry_point("size", "steps", model='model="schnell"', hardware='hardware="rtx-4090"', preset='preset="auto"')
def plan(
    model: str | Path = "pocket",
    hardware: Hardware | str | Mapping[str, Any] | None = None,
    *,
    preset: str = "auto",
    size: int | None = None,
    steps: int | None = None,
    revision: str | None = None,
    processes: int = 1,
) -> Plan:
    """Choose the preset for a model on this machine or a described one, before anything is downloaded.

    The fastest preset that fits is chosen. An exact preset is preferred to a lossy one unless it takes much longer:
    1.6 times as long as 8 bits, 2.5 times as long as 4 bits.

    Arguments:
        model: a name, a folder, or a hub id, of which the configuration is downloaded; or a hosted endpoint such as
            "schnell@fal-ai", whose plan states the host, the variable of the token and what is sent. No request is
            sent. mystic.ai, which the model card of FLUX.1 [schnell] names, publishes no API now.
        hardware: a name such as "colab-t4" or "rtx-3060-12gb", "12gb/32gb", a mapping such as {"vram_gib": 12}, or a
            Hardware; None for this machine.
        preset: one of the names in `fluxnb.planning.presets`, to plan that preset or learn why it does not fit.
        size: of the pictures in pixels; the size of the model, such as 1024 for schnell, by default.
        steps: of each picture; the model's default where left out.
        revision: a branch, tag or commit of the hub; "main" by default.
        processes: number of processes that share the machine, such as those of `fluxnb sweep --processes`. Each takes
            one GPU, and an equal part of the main memory and the cores.

    Raises:
        InputError: unknown model, preset or hardware, a size or number of steps that a recipe cannot have, or a number
            of processes that is not possible.
        StorageError: a missing folder, or one without the configurations of a pipeline, or an error of the hub.
        RunError: the requested preset, or every preset, requires more than there is.

    Example:
        >>> plan("schnell", "rtx-4090").preset
        'lean'
    """
    check_processes(model, processes)
    if (endpoint := endpoint_of(model)) is not None:
        return _of_endpoint(endpoint, preset=preset, size=size, steps=steps)
    machine = (detect() if hardware is None else describe_hardware(hardware)).share(processes)
    if preset != "auto" and preset not in all_presets():
        raise unknown_choice("preset", preset, ("auto", *all_presets()))
    model = weights.expand_user(model)
    weights.check_name(model)
    weights.check_revision(model, revision)
    folder = configurations_of(model, revision)
    family = family_of_checkpoint(model, folder)
    presets = _presets(family, preset)
    model_size = size_of_model(model, folder)
    defaults = known_defaults(model, folder, family)
    workload = workload_of(model_size, size, steps, defaults)
    workload = dataclasses.replace(
        workload,
        text=workload.text if family.exclusive or not is_large(model_size) else 512,  # the length of Qwen3's prompts
        evaluations=2 if defaults.get("guidance_kind") == "true_cfg" else 1,
    )
    downloaded = downloaded_gib(model) if hardware is None else 0.0
    request = _Request(
        model=model_size,
        machine=machine,
        workload=workload,
        preset=preset,
        this_machine=hardware is None,
        free_disk=machine.disk_gib + downloaded if weights.is_on_hub(model) else math.inf,
        gpus=processes if processes > 1 or hardware is not None else launched().count,
    )
    # In one process, a preset for several is listed where it is requested.
    listed = [each for each in presets.values() if not each.parallel or request.gpus > 1 or preset == each.name]
    options = tuple(request.option(each) for each in listed)
    fits = [
        option
        for option in options
        if not option.refused
        and preset in ("auto", option.preset.name)
        and (preset != "auto" or not option.preset.parallel)
    ]
    refused = tuple((option.preset.name, option.refused) for option in options if option.refused)
    if not fits:
        raise _nothing_fits(f"{model}", request, options)
    best = min(fits, key=lambda option: option.cost)
    return Plan(
        preset=best.preset.name,
        device="cpu" if best.preset.name == "cpu" else machine.device,
        vram_gib=best.requirements.vram_gib,
        ram_gib=best.requirements.ram_gib,
        exact=best.preset.exact,
        why=_why(best, fits, options, preset),
        refused=refused,
        disk_gib=best.requirements.disk_gib,
        download_gib=max(0.0, best.requirements.disk_gib - downloaded) if weights.is_on_hub(model) else 0.0,
        seconds=best.requirements.seconds,
        prompt_seconds=best.requirements.prompt_seconds,
        dtype=natural_dtype(
            machine.without_accelerator if best.preset.name == "cpu" else machine, is_large(model_size)
        ),
        offload_blocks=best.requirements.offload_blocks,
        cache_weights=best.requirements.cache_weights,
        model=str(model) if not Path(str(model)).is_absolute() else Path(str(model)).name,
        size=workload.size,
        steps=workload.steps,
        machine=machine,
        processes=processes,
        options=options,
    )


def check_processes(model: str | Path, processes: int) -> None:
    """Raise InputError for a number of processes that is not possible with a model or an endpoint."""
    if isinstance(processes, bool) or not isinstance(processes, int) or not 1 <= processes <= MOST_PROCESSES:
        given = f"processes={shorten(processes)}"
        raise InputError(given, f"1 to {MOST_PROCESSES} are possible", "try processes=2, or one for each GPU")
    if processes > 1 and endpoint_of(model) is not None:
        raise InputError(
            f"processes={processes} of {model}",
            "one process requests several pictures of an endpoint at the same time",
            "leave processes out",
        )


def _presets(family: Family, requested: str) -> dict[str, Preset]:
    """The presets of a family; raises for a requested one that it does not have."""
    known = presets_of(family)
    if requested not in ("auto", *known):
        example = "lean" if family.exclusive else "text-by-layer"
        raise InputError(
            f"preset={requested!r} for a model of {family.name}",
            f"it has {', '.join(known)}",
            f'try preset="{example}"',
        )
    return known


def _of_endpoint(endpoint: Endpoint, *, preset: str, size: int | None, steps: int | None) -> Plan:
    if preset != "auto":
        raise InputError(
            f"preset={preset!r} of {endpoint.name}", f"{endpoint.provider} holds the model", "leave preset out"
        )
    steps = endpoint.defaults.steps if steps is None else steps
    recipe = resolve(endpoint, Recipe(prompt="-", height=size, width=size, steps=steps))
    return Plan(
        preset="endpoint",
        device=endpoint.provider,
        vram_gib=0.0,
        ram_gib=0.0,
        exact=False,
        why=f"{endpoint.provider} draws the pictures",
        model=endpoint.name,
        size=recipe.width,
        steps=recipe.steps,
        endpoint=endpoint,
    )


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What a plan is made for.

    Arguments:
        preset: the one that was requested, or "auto".
        this_machine: False for a described machine, on which any library may be installed.
        free_disk: GiB for the files of the model, those that are downloaded already included.
        gpus: the number of processes, each on a GPU of its own, that a parallel preset can use.
    """

    model: ModelSize
    machine: Hardware
    workload: Workload
    preset: str
    this_machine: bool
    free_disk: float
    gpus: int = 1

    def option(self, preset: Preset) -> Option:
        """A preset with its requirements and the reason to refuse it."""
        machine = self.machine.without_accelerator if preset.name == "cpu" else self.machine
        required = requirements(preset, self.model, machine, self.workload, gpus=self.gpus)
        # Compiled code cannot follow weights that move.
        may_offload = preset.storage != "plain" and not preset.compiled and machine.device == "cuda"
        if may_offload and required.vram_gib > OFFLOAD_ABOVE * machine.vram_gib:
            required = requirements(preset, self.model, machine, self.workload, offload_blocks=True)
        return Option(preset=preset, requirements=required, refused=self.refusal(preset, required, machine))

    def refusal(self, preset: Preset, required: Requirements, machine: Hardware) -> str:
        """Why a preset cannot be chosen; "" where it can."""
        if required.disk_gib > self.free_disk:
            return f"needs {required.disk_gib:.0f} GiB of disk, {self.free_disk:.0f} are free"
        if preset.name == "cpu":
            # pocket is small enough to be started whatever the free memory.
            return _too_little_memory(preset, required, machine) if is_large(self.model) else ""
        if machine.device == "cpu":
            # Most presets also work on a CPU, where they save nothing; they are available on request.
            works = self.preset == preset.name and preset.offload in ("", "leaf") and not preset.compiled
            if not works:
                return "there is no GPU"
            return _too_little_memory(preset, required, machine) or self._missing_library(preset)
        return (
            self._unsupported(preset, machine)
            or _too_little_memory(preset, required, machine)
            or self._missing_library(preset)
        )

    def _unsupported(self, preset: Preset, machine: Hardware) -> str:
        if machine.device not in preset.devices:
            return "on Apple the GPU's memory is the main memory" if preset.offload else "needs a CUDA card"
        if machine.device == "cuda" and machine.capability < (7, 0):
            version = ".".join(map(str, machine.capability))
            return f"PyTorch's builds have no kernels for capability {version} now"
        if not is_large(self.model) and preset.name not in (self.preset, "resident"):
            return "the model is small"
        if preset.parallel and (problem := self._not_parallel(machine)):
            return problem
        if preset.storage == "fp8-rows" and not machine.float8:
            return "needs 8-bit matrix units (capability 8.9)"
        if preset.storage == "int8" and machine.capability < (8, 0):
            return "needs 8-bit matrix units and a compiler for them (capability 8.0)"
        return ""

    def _not_parallel(self, machine: Hardware) -> str:
        """Why no picture can be computed by several GPUs; "" where it can."""
        if self.gpus < 2:
            example = "torchrun --nproc-per-node 2 script.py" if self.this_machine else "processes=2"
            return f"needs two or more processes, each on a GPU of its own: {example}"
        if machine.gpus < (launched().local_count if self.this_machine else self.gpus):
            return f"needs a GPU for each process, and there {'is' if machine.gpus == 1 else 'are'} {machine.gpus}"
        if is_large(self.model) and self.model.width // HEAD_WIDTH % self.gpus:
            return f"{self.model.width // HEAD_WIDTH} attention heads cannot be divided by {self.gpus}"
        return ""

    def _missing_library(self, preset: Preset) -> str:
        if self.this_machine and preset.library and importlib.util.find_spec(preset.library) is None:
            return f"needs pip install {preset.library}"
        return ""


def _too_little_memory(preset: Preset, required: Requirements, machine: Hardware) -> str:
    if preset.name != "cpu" and required.vram_gib > machine.vram_gib:
        return f"needs {required.vram_gib:.1f} GiB on the GPU, {machine.vram_gib:.1f} are free"
    if required.ram_gib > machine.ram_gib and required.ram_gib > 4:
        return f"needs {required.ram_gib:.0f} GiB of RAM, {machine.ram_gib:.1f} are free"
    return ""


def _why(best: Option, fits: list[Option], options: tuple[Option, ...], requested: str) -> str:
    if requested != "auto":
        return "requested"
    if len(fits) == 1:
        return "the only one that fits"
    faster = [
        each for each in fits if each.requirements.seconds < best.requirements.seconds and not each.preset.compiled
    ]
    if best.preset.exact and faster:
        return "exact, and nearly as fast as the lossy ones that fit"
    if best.preset.exact:
        return "exact, and the fastest that fits"
    exact = [option for option in fits if option.preset.exact]
    if exact:
        slower = min(option.requirements.seconds for option in exact) / best.requirements.seconds
        return f"the exact ones that fit take {slower:.0f} times as long"
    return "no exact one fits"


def _nothing_fits(name: str, request: _Request, options: tuple[Option, ...]) -> RunError:
    machine, preset = request.machine, request.preset
    free = f"{machine.ram_gib:.1f} GiB of RAM"
    has_gpu = machine.device != "cpu"
    given = f"{name} on {machine.name} ({f'{machine.vram_gib:.1f} GiB free there, ' if has_gpu else ''}{free})"
    least = min(option.requirements.disk_gib for option in options)
    if least > request.free_disk:
        return RunError(
            given,
            f"at least {least:.0f} GiB have to be downloaded and {request.free_disk:.0f} GiB of disk are free",
            'set HF_HOME to a larger disk, or try fnb.load("pocket")',
        )
    reasons = {option.preset.name: option.refused for option in options if option.refused}
    if preset != "auto":
        return RunError(given, f"{preset}: {reasons[preset]}", 'leave preset out, or try fnb.load("pocket")')
    if not has_gpu:
        return RunError(
            given,
            f"no preset fits: there is no GPU, and on the CPU it {reasons['cpu']}",
            'free some memory, or try fnb.load("pocket")',
        )
    # The preset that is nearest to fitting comes first.
    ordered = sorted(
        options,
        key=lambda each: ("GiB" not in each.refused, each.requirements.vram_gib or math.inf, each.requirements.ram_gib),
    )
    listed = "; ".join(f"{option.preset.name} {option.refused}" for option in ordered)
    return RunError(given, f"no preset fits ({listed})", 'free some memory, or try fnb.load("pocket")')
