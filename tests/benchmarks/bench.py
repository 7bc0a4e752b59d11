"""One case of a measurement on a GPU: its sizes, its clock and its memory, plain diffusers' calls and ours."""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.hostmemory import GIB, ram

PROMPT, OTHER = "a red fox in the snow holding a sign that says hello", "a cat on a blue dog"


class Bench:
    """One case: the sizes, the clock, the memory, the plain calls and ours.

    Arguments:
        name, says: the case, and what is measured in it.
        cap: GiB of GPU memory that it may have, 0 for all.
        folder: where the model lies.
        tiny: pocket instead of the full size, and no cap.
    """

    def __init__(self, name: str, says: str, cap: float, folder: Path, tiny: bool) -> None:
        import torch

        self.torch, self.name, self.folder, self.tiny = torch, name, folder, tiny
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.size, self.text = (128, 48) if tiny else (1024, 256)
        # A CPU without instructions for 16 bits takes minutes for one convolution.
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.facts: dict[str, Any] = {"case": name, "says": says}
        if self.cuda:
            torch.cuda.init()
            self.facts["card"] = torch.cuda.get_device_name()  # results of several cards may come to lie in one file
            total = torch.cuda.get_device_properties(0).total_memory
            if cap and not tiny:
                torch.cuda.set_per_process_memory_fraction(min(1.0, cap * GIB / total))
                self.facts["cap GiB"] = cap

    def wait(self) -> None:
        if self.cuda:
            self.torch.cuda.synchronize()

    def clock(self, call: Callable[[], Any], rounds: int = 1, warm: int = 0) -> tuple[float, Any]:
        """Median seconds, and what the last call gave."""
        for _ in range(warm):
            call()
        taken, value = [], None
        for _ in range(rounds):
            self.wait()
            begun = time.perf_counter()
            value = call()
            self.wait()
            taken.append(time.perf_counter() - begun)
        return statistics.median(taken), value

    def reset_peak(self) -> None:
        if self.cuda:
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()

    def peaks(self) -> dict[str, float]:
        if not self.cuda:
            return {"peak allocated GiB": 0.0, "peak reserved GiB": 0.0}
        cuda = self.torch.cuda
        return {
            "peak allocated GiB": cuda.max_memory_allocated() / GIB,
            "peak reserved GiB": cuda.max_memory_reserved() / GIB,
        }

    def say(self, **facts: Any) -> None:
        """Note facts and print them at once: a run that is cut off has still said them."""
        self.facts.update(facts)
        shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()}
        print(f"  {self.name}: {json.dumps(shown)}", file=sys.stderr, flush=True)

    # ------------------------------------------------------------------------------------------- plain diffusers
    def plain(self, **options: Any) -> Any:
        """The pipeline as its documentation loads it."""
        from diffusers import FluxPipeline

        from fluxnb.pipeline.compat import dtype_keyword

        pipe = FluxPipeline.from_pretrained(self.folder, **{dtype_keyword(): self.dtype}, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def draw(self, pipe: Any, prompt: str = PROMPT, seed: int = 0, steps: int = 4, **given: Any) -> Any:
        """The plain call."""
        generator = self.torch.Generator("cpu").manual_seed(seed)
        asked = {} if given else {"prompt": prompt}
        return pipe(
            **asked, **given, height=self.size, width=self.size, num_inference_steps=steps, generator=generator,
            max_sequence_length=self.text,
        ).images[0]  # fmt: skip

    def embedded(self, pipe: Any) -> dict[str, Any]:
        embeds, pooled, _ = pipe.encode_prompt(
            prompt=PROMPT, prompt_2=None, max_sequence_length=self.text, device=pipe._execution_device
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    # --------------------------------------------------------------------------------------------------- ours
    def load(self, preset: str) -> Any:
        """Our own door, plan and all."""
        import fluxnb as fnb
        from fluxnb.planning import plan as planning

        automatic = planning.plan(self.folder, size=self.size).preset
        took, flux = self.clock(
            lambda: fnb.load(str(self.folder), preset=preset, dtype=str(self.dtype).removeprefix("torch."))
        )
        flux.pipe.set_progress_bar_config(disable=True)
        plan = flux.plan
        self.say(**{
            "load seconds": took, "plan would take": automatic, "preset": plan.preset, "parked": plan.offload_blocks,
            "predicted GiB": plan.vram_gib, "predicted RAM GiB": plan.ram_gib, "predicted seconds": plan.seconds,
            "predicted new prompt seconds": plan.prompt_seconds, "loading peak GiB": self.peaks()["peak allocated GiB"],
        })  # fmt: skip
        return flux

    def predicted(self, preset: str) -> dict[str, float]:
        """What a plan says of a recipe that is not loaded through our door."""
        from fluxnb.planning.hardware import describe_hardware
        from fluxnb.planning.plan import _model_size
        from fluxnb.planning.presets import PRESETS, Workload, requirements

        workload = Workload(size=self.size, text=self.text)
        need = requirements(PRESETS[preset], _model_size(self.folder), describe_hardware("h200"), workload)
        return {"predicted GiB": need.vram_gib, "predicted RAM GiB": need.ram_gib, "predicted seconds": need.seconds}

    def picture(self, flux: Any, prompt: str = PROMPT, seed: int = 0, steps: int = 4) -> Any:
        import fluxnb as fnb

        return fnb.run(flux, prompt, seed=seed, steps=steps, height=self.size, width=self.size).image

    def pictures(self, flux: Any, rounds: int = 4) -> None:
        """From a prompt to its picture: the first, later ones of that prompt, and one of a new prompt."""
        self.reset_peak()
        with self.watched() as timeline:
            first, image = self.clock(lambda: self.picture(flux))
        self.say(**{"first picture seconds": first, "sha": digest(image), **self.peaks()})
        self.facts["timeline"] = thinned(timeline)
        encoded = flux.encode(self.recipe(flux))
        seeds = iter(range(1, 99))
        later, _ = self.clock(lambda: self.known(flux, encoded, next(seeds)), rounds, warm=1)
        new, _ = self.clock(lambda: self.picture(flux, OTHER))
        self.say(**{"picture seconds": later, "new prompt picture seconds": new, **self.peaks(), **ram()})

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[tuple[float, float]]]:
        """(seconds, GiB allocated) a hundred times a second, while the block runs."""
        seen: list[tuple[float, float]] = []
        over, begun = threading.Event(), time.perf_counter()

        def look() -> None:
            while not over.wait(0.01):
                seen.append((time.perf_counter() - begun, self.torch.cuda.memory_allocated() / GIB))

        watcher = threading.Thread(target=look, daemon=True)
        if self.cuda:
            watcher.start()
        try:
            yield seen
        finally:
            over.set()
            if self.cuda:
                watcher.join()

    def recipe(self, flux: Any, seed: int = 0) -> Any:
        from fluxnb.sampling.run import resolve

        return resolve(flux, PROMPT, seed=seed, steps=4, height=self.size, width=self.size)

    def known(self, flux: Any, encoded: Any, seed: int) -> Any:
        """A picture of a prompt that is encoded: what each further seed costs."""
        from fluxnb.records import Keep
        from fluxnb.sampling.sampler import take

        return take(flux, self.recipe(flux, seed), encoded, keep=Keep()).image

    def grid(self, flux: Any) -> None:
        took, made = self.clock(lambda: self.sweep(flux))
        shas = {f"{cell.recipe.seed}/{cell.recipe.steps}": digest(cell.image) for cell in made}
        self.say(**{"grid seconds": took, "grid evaluations": made.evaluations, "grid sha": digest_of(shas)})

    def sweep(self, flux: Any) -> Any:
        import fluxnb as fnb

        return fnb.sweep(
            flux, prompts=[PROMPT], seeds=range(4), steps=[1, 2, 3, 4],
            recipe=fnb.Recipe(prompt=PROMPT, height=self.size, width=self.size),
        )  # fmt: skip


def thinned(timeline: list[tuple[float, float]], most: int = 160) -> list[list[float]]:
    """At most so many points, each the highest of those it stands for."""
    width = max(1, -(-len(timeline) // most))
    parts = [timeline[i : i + width] for i in range(0, len(timeline), width)]
    return [[round(part[0][0], 3), round(max(level for _, level in part), 3)] for part in parts]


def digest(image: Any) -> str:
    """Of a picture's pixels."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


def digest_of(shas: dict[str, str]) -> str:
    """Of a whole grid."""
    return hashlib.sha256(json.dumps(sorted(shas.items())).encode()).hexdigest()[:16]
