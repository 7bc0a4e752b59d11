"""One case of a GPU benchmark: sizes, timing, memory, and calls of plain diffusers and of fluxnb."""

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

from tests.benchmarks.host_memory import GIB, ram

PROMPT, OTHER = "a red fox in the snow holding a sign that says hello", "a cat on a blue dog"


class Bench:
    """One case of the benchmark, in one process.

    Args:
        name: of the case.
        description: what the case measures.
        cap: limit of GPU memory in GiB; 0 for none.
        folder: folder of the model.
        tiny: use pocket instead of the full size, without a limit.
    """

    def __init__(self, name: str, description: str, cap: float, folder: Path, tiny: bool) -> None:
        import torch

        self.torch, self.name, self.folder, self.tiny = torch, name, folder, tiny
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.size, self.text = (128, 48) if tiny else (1024, 256)
        # A CPU without 16-bit instructions takes minutes for one convolution.
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.facts: dict[str, Any] = {"case": name, "description": description}
        if self.cuda:
            torch.cuda.init()
            self.facts["card"] = torch.cuda.get_device_name()  # one file may hold results of several GPUs
            total = torch.cuda.get_device_properties(0).total_memory
            if cap and not tiny:
                torch.cuda.set_per_process_memory_fraction(min(1.0, cap * GIB / total))
                self.facts["cap GiB"] = cap

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.cuda:
            self.torch.cuda.synchronize()

    def clock(self, call: Callable[[], Any], rounds: int = 1, warm: int = 0) -> tuple[float, Any]:
        """Median seconds of the calls, and the result of the last one."""
        for _ in range(warm):
            call()
        times, value = [], None
        for _ in range(rounds):
            self.synchronize()
            began = time.perf_counter()
            value = call()
            self.synchronize()
            times.append(time.perf_counter() - began)
        return statistics.median(times), value

    def reset_peak(self) -> None:
        """Start a new measurement of the peak GPU memory."""
        if self.cuda:
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()

    def peaks(self) -> dict[str, float]:
        """Peak GPU memory since the last `reset_peak`."""
        if not self.cuda:
            return {"peak allocated GiB": 0.0, "peak reserved GiB": 0.0}
        cuda = self.torch.cuda
        return {
            "peak allocated GiB": cuda.max_memory_allocated() / GIB,
            "peak reserved GiB": cuda.max_memory_reserved() / GIB,
        }

    def report(self, **facts: Any) -> None:
        """Store facts and print them immediately, so that an interrupted run has printed them."""
        self.facts.update(facts)
        rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()}
        print(f"  {self.name}: {json.dumps(rounded)}", file=sys.stderr, flush=True)

    # ------------------------------------------------------------------------------------------- plain diffusers
    def plain(self, **options: Any) -> Any:
        """Load the pipeline as in the documentation of diffusers."""
        from diffusers import FluxPipeline

        from fluxnb.pipeline.compat import dtype_keyword

        pipe = FluxPipeline.from_pretrained(self.folder, **{dtype_keyword(): self.dtype}, **options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def sample_plain(self, pipe: Any, prompt: str = PROMPT, seed: int = 0, steps: int = 4, **given: Any) -> Any:
        """One picture by a plain diffusers call."""
        generator = self.torch.Generator("cpu").manual_seed(seed)
        prompts = {} if given else {"prompt": prompt}
        return pipe(
            **prompts, **given, height=self.size, width=self.size, num_inference_steps=steps, generator=generator,
            max_sequence_length=self.text,
        ).images[0]  # fmt: skip

    def encode_plain(self, pipe: Any) -> dict[str, Any]:
        """Prompt encodings by diffusers, as arguments of its call."""
        embeds, pooled, _ = pipe.encode_prompt(
            prompt=PROMPT, prompt_2=None, max_sequence_length=self.text, device=pipe._execution_device
        )
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    # ------------------------------------------------------------------------------------------------- fluxnb
    def configure(self, flux: Any) -> Any:
        """The handle without progress bars, with the size and text length of the plain calls as its defaults."""
        flux.pipe.set_progress_bar_config(disable=True)
        return flux.with_defaults(size=self.size, max_sequence_length=self.text)

    def load(self, preset: str) -> Any:
        """Load with a preset through `fnb.load`, and report its plan."""
        import fluxnb as fnb
        from fluxnb.planning import plan as planning

        automatic = planning.plan(self.folder, size=self.size).preset
        load_seconds, flux = self.clock(
            lambda: fnb.load(str(self.folder), preset=preset, dtype=str(self.dtype).removeprefix("torch."))
        )
        flux = self.configure(flux)
        plan = flux.plan
        self.report(**{
            "load seconds": load_seconds, "automatic preset": automatic, "preset": plan.preset,
            "parked": plan.offload_blocks,
            "predicted GiB": plan.vram_gib, "predicted RAM GiB": plan.ram_gib, "predicted seconds": plan.seconds,
            "predicted new prompt seconds": plan.prompt_seconds, "loading peak GiB": self.peaks()["peak allocated GiB"],
        })  # fmt: skip
        return flux

    def predicted(self, preset: str) -> dict[str, float]:
        """The predictions of a preset that is not loaded through `fnb.load`."""
        from fluxnb.planning.hardware import describe_hardware
        from fluxnb.planning.model_size import model_size_of
        from fluxnb.planning.presets import PRESETS
        from fluxnb.planning.requirements import Workload, requirements

        workload = Workload(size=self.size, text=self.text)
        need = requirements(PRESETS[preset], model_size_of(self.folder), describe_hardware("h200"), workload)
        return {"predicted GiB": need.vram_gib, "predicted RAM GiB": need.ram_gib, "predicted seconds": need.seconds}

    def sample(self, flux: Any, prompt: str = PROMPT, seed: int = 0, steps: int = 4) -> Any:
        """One picture by `fnb.run`."""
        import fluxnb as fnb

        return fnb.run(flux, prompt, seed=seed, steps=steps, height=self.size, width=self.size).image

    def pictures(self, flux: Any, rounds: int = 4) -> None:
        """Time the first picture of a prompt, later pictures of the same prompt, and one of a new prompt."""
        self.reset_peak()
        with self.memory_timeline() as timeline:
            first, image = self.clock(lambda: self.sample(flux))
        self.report(**{"first picture seconds": first, "sha": digest(image), **self.peaks()})
        self.facts["timeline"] = thinned(timeline)
        encoded = flux.encode(self.recipe(flux))
        seeds = iter(range(1, 99))
        later, _ = self.clock(lambda: self.sample_encoded(flux, encoded, next(seeds)), rounds, warm=1)
        new, _ = self.clock(lambda: self.sample(flux, OTHER))
        self.report(**{"picture seconds": later, "new prompt picture seconds": new, **self.peaks(), **ram()})

    @contextlib.contextmanager
    def memory_timeline(self) -> Iterator[list[tuple[float, float]]]:
        """Record (seconds, GiB allocated) a hundred times a second while the block runs."""
        timeline: list[tuple[float, float]] = []
        stopped, began = threading.Event(), time.perf_counter()

        def record() -> None:
            while not stopped.wait(0.01):
                timeline.append((time.perf_counter() - began, self.torch.cuda.memory_allocated() / GIB))

        thread = threading.Thread(target=record, daemon=True)
        if self.cuda:
            thread.start()
        try:
            yield timeline
        finally:
            stopped.set()
            if self.cuda:
                thread.join()

    def recipe(self, flux: Any, seed: int = 0) -> Any:
        """The resolved recipe of the standard prompt."""
        from fluxnb.records.recipe import Recipe

        recipe = Recipe(prompt=PROMPT, seed=seed, steps=4, height=self.size, width=self.size)
        # `flux.resolve` refuses a pipeline without text encoders, which a picture of given embeddings does not need.
        return flux.defaults.resolve(recipe, model=flux.model, revision=flux.revision, dtype=flux.dtype)

    def sample_encoded(self, flux: Any, encoded: Any, seed: int) -> Any:
        """One picture of an encoded prompt: the cost of each further seed."""
        from fluxnb.records import Keep
        from fluxnb.sampling.sampler import sample

        return sample(flux, self.recipe(flux, seed), encoded, keep=Keep()).image

    def grid(self, flux: Any) -> None:
        """Time a sweep of 4 seeds and 4 step counts."""
        grid_seconds, cells = self.clock(lambda: self.sweep(flux))
        shas = {f"{cell.recipe.seed}/{cell.recipe.steps}": digest(cell.image) for cell in cells}
        self.report(
            **{"grid seconds": grid_seconds, "grid evaluations": cells.evaluations, "grid sha": digest_of(shas)}
        )

    def sweep(self, flux: Any) -> Any:
        """A sweep of 4 seeds and 4 step counts."""
        import fluxnb as fnb

        return fnb.sweep(
            flux, prompts=[PROMPT], seeds=range(4), steps=[1, 2, 3, 4],
            recipe=fnb.Recipe(prompt=PROMPT, height=self.size, width=self.size),
        )  # fmt: skip


def thinned(timeline: list[tuple[float, float]], most: int = 160) -> list[list[float]]:
    """Reduce a timeline to at most `most` points; each is the maximum of its interval."""
    width = max(1, -(-len(timeline) // most))
    parts = [timeline[i : i + width] for i in range(0, len(timeline), width)]
    return [[round(part[0][0], 3), round(max(level for _, level in part), 3)] for part in parts]


def digest(image: Any) -> str:
    """Digest of the pixels of a picture."""
    return hashlib.sha256(image.tobytes()).hexdigest()[:16]


def digest_of(shas: dict[str, str]) -> str:
    """Digest of all pictures of a grid."""
    return hashlib.sha256(json.dumps(sorted(shas.items())).encode()).hexdigest()[:16]
