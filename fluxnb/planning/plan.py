"""The Plan: a preset with its numbers, how it shows itself, and what it says when the GPU is too small after all."""

from __future__ import annotations

import contextlib
import gc
import html
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fluxnb.errors import RunError, validates_own_input
from fluxnb.planning.hardware import Hardware
from fluxnb.planning.presets import Needs, Preset
from fluxnb.units import duration

__all__ = ["Option", "Plan", "memory_told"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """One preset on one machine: what it needs, and why not it ("" where it fits)."""

    preset: Preset
    needs: Needs
    refused: str = ""

    @property
    def cost(self) -> float:
        """Seconds of a picture as a person feels them."""
        return self.needs.seconds * self.preset.patience


@validates_own_input
@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which preset, what it needs, why it was chosen, and why the others were not.

    Arguments:
        preset: one of `fluxnb.planning.presets.PRESETS`, or "as given".
        device: "cuda", "mps" or "cpu".
        vram_gib: predicted peak on the accelerator, from the prompt to the picture.
        ram_gib: predicted main memory, the disk's cache not counted.
        exact: True if the numbers are those of the plain model.
        why: one sentence.
        refused: the presets that do not fit, and why.
        disk_gib, download_gib: room for the files, and what of them has to be fetched.
        seconds: predicted for a picture of a known prompt; `prompt_seconds` come on top for a new one.
        dtype: what is computed in.
        park: whether part of the transformer waits in main memory during decoding.
        keep: whether what is read again for each new prompt is kept in main memory.
        model, machine: what was planned for what.
        options: every preset with its numbers.
        fast: what `fast` gave, where it was asked for.
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
    park: bool = False
    keep: bool = False
    model: str = ""
    machine: Hardware | None = None
    options: tuple[Option, ...] = ()
    fast: Any = None

    @property
    def next_smaller(self) -> str:
        """The preset to try when this one runs out of memory: the quickest that needs a fifth less; "" if none does."""
        less = [each for each in self.options if not each.refused and each.needs.vram_gib < 0.8 * self.vram_gib]
        return min(less, key=lambda option: option.cost).preset.name if less else ""

    def out_of_memory(self, given: str) -> RunError:
        """The error for a GPU that was too small after all; names the preset to try next."""
        smaller = self.next_smaller
        return RunError(
            f"{given} ({self.preset}) ran out of GPU memory",
            "smaller pictures need less, and so do other presets" if smaller else "smaller pictures need less",
            f'try preset="{smaller}"' if smaller else "try height=512, width=512, and close what else uses the GPU",
        )

    def __repr__(self) -> str:
        if not self.options:
            lines = [f"Plan({self.preset} on {self.device}, exact={self.exact}: {self.why})"]
            return "\n".join(lines + [f"  not {name}: {reason}" for name, reason in self.refused])
        rows = [("", "preset", "GPU", "RAM", "a picture", "numbers", ""), *map(self._row, self.options)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
        lines = ["  ".join([cell.ljust(w) for cell, w in zip(row, widths, strict=False)] + [row[-1]]) for row in rows]
        report = [repr(self.fast)] if self.fast is not None else []
        return "\n".join([self._headline, *(line.rstrip() for line in lines), self._footline, *report])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{each}</th>" for each in ("", "preset", "GPU", "RAM", "a picture", "numbers", ""))
        body = "".join(
            f"<tr{' style=font-weight:600' if row[0] else ''}>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in row)
            + "</tr>"
            for row in map(self._row, self.options)
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if self.options else ""
        return f"<p>{html.escape(self._headline)}</p>{table}<p>{html.escape(self._footline)}</p>"

    @property
    def _headline(self) -> str:
        on = self.machine.name if self.machine else self.device
        return f"{self.model or 'model'} on {on}: {self.preset}, {self.why}"

    @property
    def _footline(self) -> str:
        exact = "the numbers of the plain model" if self.exact else "not the numbers of the plain model"
        fetch = f"{self.download_gib:.1f} GiB to download" if self.download_gib else "nothing to download"
        return f"computes in {self.dtype}, {exact}; {fetch}; a new prompt adds about {duration(self.prompt_seconds)}"

    def _row(self, option: Option) -> tuple[str, ...]:
        need, mark = option.needs, "→" if option.preset.name == self.preset else ""
        return (
            mark,
            option.preset.name,
            f"{need.vram_gib:.1f} GiB" if need.vram_gib else "-",
            f"{need.ram_gib:.0f} GiB",
            duration(need.seconds),
            "exact" if option.preset.exact else "lossy",
            f"no: {option.refused}" if option.refused else option.preset.says,
        )


@contextlib.contextmanager
def memory_told(plan: Plan, given: str) -> Iterator[None]:
    """Tell of a GPU that is too small in our words, and give its memory back."""
    import torch

    failure: RunError | None = None
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        failure = plan.out_of_memory(given)
    if failure is not None:  # outside the except: a traceback would hold on to the tensors
        gc.collect()
        torch.cuda.empty_cache()
        raise failure
