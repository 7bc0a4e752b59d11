"""FLUX.1-schnell's full size under a cap of GPU memory, beside the recipes people copy: memory, seconds, bytes.

    python -m tests.benchmarks.fullsize --out results                             # on a GPU, the first nine cases
    python -m tests.benchmarks.fullsize --cases lean-24 nf4-8 --seconds 300
    python -m tests.benchmarks.fullsize --tiny                                    # the same ways with pocket, any CPU

Each case is a process of its own and prints one line of JSON when it ends; all of them go to `fullsize.json`. A cap
is `torch.cuda.set_per_process_memory_fraction`, which makes a large card refuse what a small one could not give. Times
are medians, the device awaited before and after; peaks are what PyTorch's allocator counted from a prompt to its
picture, loading counted apart.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

GIB = 2**30
COLAB_RAM = 12_700_000_000  # bytes of main memory beside a free T4
PROMPT, OTHER = "a red fox in the snow holding a sign that says hello", "a cat on a blue dog"
# In order of importance: what matters most is measured if the time runs out. Name: cap in GiB, what is measured.
IN_MEMORY = ("grid", "fast", "fast-apart", "fast-fp8", "fast-autotune")  # these need no file
CASES: dict[str, tuple[float, str]] = {
    "resident": (0, "plain diffusers, everything resident"),
    "grid": (0, "plain diffusers' loop over seeds and steps, then our sweep of them, everything resident"),
    "lean-24": (24, "lean"),
    "nf4-8": (8, "lean-nf4"),
    "fp8-16": (16, "lean-fp8"),
    "fast": (0, "adaLN tables, compiled"),
    "fast-apart": (0, "adaLN tables, compiled, three products for q, k and v"),
    "model-offload-24": (24, "diffusers' enable_model_cpu_offload"),
    "stream": (5, "leaf by leaf over PCIe"),
    "mapped": (5, "leaf by leaf from the disk's cache"),
    "fast-fp8": (0, "adaLN tables, compiled, 8-bit rows"),
    "nf4-12": (12, "lean-nf4 where nothing has to be parked"),
    "t4": (14.7, "what a plan takes on a Colab T4, its main memory limited too"),
    "fast-autotune": (0, "adaLN tables, compiled with every kernel tried"),
    "sequential-offload": (24, "diffusers' enable_sequential_cpu_offload"),
    "gguf-16": (16, "gguf-q8, a file of Q8_0"),
    "int8-16": (16, "lean-int8, compiled"),
    "fp8-rows-16": (16, "lean-fp8-rows, compiled"),
}


class Bench:
    """One case: the sizes, the clock, the memory."""

    def __init__(self, name: str, folder: Path, tiny: bool) -> None:
        import torch

        self.torch, self.name, self.folder, self.tiny = torch, name, folder, tiny
        self.cuda = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.size, self.text = (128, 48) if tiny else (1024, 256)
        # A CPU without instructions for 16 bits takes minutes for one convolution.
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.facts: dict[str, Any] = {"case": name, "says": CASES[name][1]}
        cap = CASES[name][0]
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

        from fluxnb.weights import _dtype_word

        pipe = FluxPipeline.from_pretrained(self.folder, **{_dtype_word(): self.dtype}, **options)
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
        from fluxnb import planning

        automatic = planning.plan(self.folder, size=self.size).preset
        took, flux = self.clock(
            lambda: fnb.load(str(self.folder), preset=preset, dtype=str(self.dtype).removeprefix("torch."))
        )
        flux.pipe.set_progress_bar_config(disable=True)
        plan = flux.plan
        self.say(**{
            "load seconds": took, "plan would take": automatic, "preset": plan.preset, "parked": plan.park,
            "predicted GiB": plan.vram_gib, "predicted RAM GiB": plan.ram_gib, "predicted seconds": plan.seconds,
            "predicted new prompt seconds": plan.prompt_seconds, "loading peak GiB": self.peaks()["peak allocated GiB"],
        })  # fmt: skip
        return flux

    def predicted(self, preset: str) -> dict[str, float]:
        """What a plan says of a recipe that is not loaded through our door."""
        from fluxnb.hardware import described
        from fluxnb.planning import _anatomy
        from fluxnb.presets import PRESETS, needs

        need = needs(PRESETS[preset], _anatomy(self.folder), described("h200"), size=self.size, text=self.text)
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
        from fluxnb.sampling import resolve

        return resolve(flux, PROMPT, seed=seed, steps=4, height=self.size, width=self.size)

    def known(self, flux: Any, encoded: Any, seed: int) -> Any:
        """A picture of a prompt that is encoded: what each further seed costs."""
        from fluxnb.records import Keep
        from fluxnb.sampling import take

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


def resident(bench: Bench) -> None:
    """What everybody compares with."""
    from fluxnb.fast import matmul_ceiling, seconds, share_of_ceiling
    from fluxnb.planning import _anatomy

    took, pipe = bench.clock(lambda: bench.plain(**({"device_map": "cuda"} if bench.cuda else {})))
    bench.say(**{"load seconds": took, **bench.predicted("resident")})
    bench.reset_peak()
    first, image = bench.clock(lambda: bench.draw(pipe))
    bench.say(**{"first picture seconds": first, "sha": digest(image), **bench.peaks()})
    whole, _ = bench.clock(lambda: bench.draw(pipe), 5)
    given = bench.embedded(pipe)
    from_embeddings, _ = bench.clock(lambda: bench.draw(pipe, **given), 5)
    bench.say(**{"picture seconds": whole, "picture from embeddings seconds": from_embeddings})
    tokens = (bench.size // 16) ** 2 + bench.text
    forward = evaluation(bench, pipe)
    ceiling = matmul_ceiling(bench.device, side=512 if bench.tiny else 8192)
    bench.say(**{
        "evaluation seconds": forward, "matmul TFLOP/s": ceiling,
        "share of ceiling": share_of_ceiling(_anatomy(bench.folder), tokens, forward, ceiling),
        "decode seconds": seconds(decoding(bench, pipe)),
    })  # fmt: skip


def gridded(bench: Bench) -> None:
    """4 seeds and 4 step counts: the loop that one would write, and our sweep over the same pipeline."""
    import fluxnb as fnb

    pipe = in_memory(bench)
    bench.draw(pipe)
    took, shas = bench.clock(
        lambda: {
            f"{seed}/{steps}": digest(bench.draw(pipe, seed=seed, steps=steps))
            for seed in range(4) for steps in (1, 2, 3, 4)
        }
    )  # fmt: skip
    bench.say(**{"naive grid seconds": took, "naive grid sha": digest_of(shas)})
    flux = fnb.load(pipe)
    bench.grid(flux)
    bench.say(**{"grid again seconds": bench.clock(lambda: bench.sweep(flux), 2)[0]})
    bench.say(**{"ms of a grid": spent(bench, lambda: bench.sweep(flux))})


def in_memory(bench: Bench, text: bool = True) -> Any:
    """Plain diffusers with weights drawn where they stay."""
    from tests.benchmarks.madeup import on_device

    return bench.plain() if bench.tiny else on_device(bench.device, text=text)


def held(preset: str, grid: bool = False, rounds: int = 4) -> Callable[[Bench], None]:
    """One of our presets, through the public door."""

    def measure(bench: Bench) -> None:
        flux = bench.load(preset)
        bench.pictures(flux, rounds)
        bench.say(**{"evaluation seconds": evaluation(bench, flux.pipe)})
        if grid:
            bench.grid(flux)

    return measure


def colab_t4(bench: Bench) -> None:
    """The preset that a plan takes there, in a process that may have no more main memory than there is."""
    import fluxnb as fnb

    preset = fnb.plan(bench.folder, "colab-t4").preset if not bench.tiny else "lean"
    with limited_memory(COLAB_RAM) as group:
        flux = bench.load(preset)
        bench.pictures(flux, rounds=2)
        bench.say(**{"RAM limit GB": COLAB_RAM / 1e9 if group else None, "RAM peak of the limit GiB": peak_of(group)})


@contextlib.contextmanager
def limited_memory(most: int) -> Iterator[Path | None]:
    """A memory group of this many bytes with this process in it, the disk's cache counted; None without the right."""
    root = Path("/sys/fs/cgroup")
    first = (root / "cgroup.controllers").is_file()
    group = (root if first else root / "memory") / f"fluxnb-{os.getpid()}"
    try:
        if first:
            with contextlib.suppress(OSError):  # given to groups below already
                (root / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
        (group / ("memory.max" if first else "memory.limit_in_bytes")).write_text(str(most))
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError as problem:
        print(f"no limit: {problem}", file=sys.stderr)
        yield None
        return
    try:
        yield group
    finally:
        (group.parent / "cgroup.procs").write_text(str(os.getpid()))
        group.rmdir()


def peak_of(group: Path | None) -> float | None:
    """The most that a memory group held, GiB, the disk's cache in it."""
    for name in ("memory.peak", "memory.max_usage_in_bytes"):
        if group is not None and (group / name).is_file():
            return int((group / name).read_text()) / GIB
    return None


def offloaded(how: str) -> Callable[[Bench], None]:
    """diffusers' recipe, as its documentation gives it; the grid's naive loop is reckoned from one and four steps."""

    def measure(bench: Bench) -> None:
        took, pipe = bench.clock(bench.plain)
        bench.say(**{"load seconds": took, **bench.predicted(f"{how}-offload")})
        if bench.cuda:
            getattr(pipe, f"enable_{how}_cpu_offload")()
        bench.reset_peak()
        first, image = bench.clock(lambda: bench.draw(pipe))
        bench.say(**{"first picture seconds": first, "sha": digest(image), **bench.peaks()})
        four, _ = bench.clock(lambda: bench.draw(pipe, seed=1))
        bench.say(**{"picture seconds": four})
        one, _ = bench.clock(lambda: bench.draw(pipe, seed=1, steps=1))
        # 16 pictures, 4 of each step count; what a step adds is the same each time.
        loop = 4 * sum(one + (four - one) * (steps - 1) / 3 for steps in (1, 2, 3, 4))
        bench.say(**{"one step seconds": one, "naive grid seconds, reckoned": loop, **ram()})

    return measure


def fast(fp8: bool = False, autotune: bool = False, fuse: bool = True) -> Callable[[Bench], None]:
    """From embeddings to picture, before and after."""

    def measure(bench: Bench) -> None:
        import fluxnb as fnb
        from fluxnb.anatomy import counted
        from fluxnb.fast import _question, matmul_ceiling, quicken, share_of_ceiling
        from fluxnb.modulation import Tables, expected_of, modulation_layers
        from fluxnb.planning import _anatomy
        from fluxnb.prompts import Encoded

        pipe = in_memory(bench, text=False)
        given = embeddings(bench, pipe)
        reference, image = bench.clock(lambda: bench.draw(pipe, **given), 5, warm=2)
        bench.say(**{"plain diffusers from embeddings seconds": reference})
        transformer = pipe.transformer
        weights = {
            f"{name}.{part}": getattr(transformer.get_submodule(name), part).data
            for name in modulation_layers(transformer) for part in ("weight", "bias")
        }  # fmt: skip
        Tables(transformer, weights, expected_of(pipe))
        before, _ = bench.clock(lambda: bench.draw(pipe, **given), 5, warm=1)
        bench.say(**{"picture from embeddings before seconds": before})
        took, report = bench.clock(
            lambda: quicken(pipe, size=bench.size, text=bench.text, fp8=fp8, autotune=autotune, fuse=fuse)
        )
        print(report, file=sys.stderr)
        bench.say(**{
            "setup seconds": took,
            "gains": [[gain.what, gain.before, gain.after, gain.setup] for gain in report.gains],
            "attention": report.attention,
        })  # fmt: skip
        after, quick = bench.clock(lambda: bench.draw(pipe, **given), 5, warm=2)
        flux, seeds = fnb.load(pipe), iter(range(1, 99))
        encoded = Encoded(embeds=given["prompt_embeds"], pooled=given["pooled_prompt_embeds"])
        ours, _ = bench.clock(lambda: bench.known(flux, encoded, next(seeds)), 5, warm=2)
        forward = evaluation(bench, pipe)
        ceiling = matmul_ceiling(bench.device, side=512 if bench.tiny else 8192)
        tokens = (bench.size // 16) ** 2 + bench.text
        shapes = _anatomy(bench.folder) if bench.tiny else counted()
        bench.say(**{
            "picture from embeddings seconds": after, "our picture from embeddings seconds": ours,
            "times plain diffusers": reference / after, "our times plain diffusers": reference / ours,
            "evaluation seconds": forward, "matmul TFLOP/s": ceiling,
            "share of ceiling": share_of_ceiling(shapes, tokens, forward, ceiling),
            "mean difference of pixels": difference(image, quick),
        })  # fmt: skip
        question = _question(transformer, bench.device, bench.size, bench.text)
        bench.say(**{
            "ms of an evaluation": spent(bench, lambda: transformer(**question)),
            "ms of a picture": spent(bench, lambda: bench.known(flux, encoded, next(seeds))),
        })  # fmt: skip

    return measure


def embeddings(bench: Bench, pipe: Any) -> dict[str, Any]:
    """Random ones, of the right shapes."""
    config, draw = pipe.transformer.config, bench.torch.Generator().manual_seed(1)
    shapes = {"prompt_embeds": (1, bench.text, config.joint_attention_dim)}
    shapes["pooled_prompt_embeds"] = (1, config.pooled_projection_dim)
    return {
        name: bench.torch.randn(shape, generator=draw).to(bench.device, bench.dtype) for name, shape in shapes.items()
    }


def spent(bench: Bench, call: Callable[[], Any], dearest: int = 12) -> dict[str, Any]:
    """What the time of a call goes into on the device, ms: by kind, the dearest kernels by name, and standing idle.

    "idle" is what lies between the first kernel and the last with none at work: the device waits for the host. The
    longest waits are told with the kernels before and after them.
    """
    if not bench.cuda:
        return {}
    profiler = bench.torch.profiler
    with bench.torch.no_grad():
        call()  # as warm, and as short of power, as the card is among calls of this kind
        with profiler.profile(activities=[profiler.ProfilerActivity.CUDA]) as seen:
            call()
            bench.wait()
    events = [
        (event.time_range.start / 1e3, event.time_range.end / 1e3, event.name)
        for event in seen.events()
        if event.device_type == bench.torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]
    return account(events, dearest)


KINDS = {
    "attention": ("flash", "fmha", "sdpa"),
    "matmul": ("gemm", "nvjet", "cutlass", "_mm"),
    "convolution": ("conv", "fprop", "implicit"),
    "copies": ("memcpy", "memset"),
    "fused": ("triton",),
}  # fmt: skip


def account(events: list[tuple[float, float, str]], dearest: int) -> dict[str, Any]:
    """What kernels' (start, end, name) in ms add up to; two queues may be at work at once."""
    by_kind: dict[str, float] = {}
    by_name: dict[str, list[float]] = {}
    waits: list[tuple[float, str, str]] = []
    free, last = math.inf, ""
    for start, end, name in sorted(events):
        kind = next((kind for kind, words in KINDS.items() if any(word in name.lower() for word in words)), "other")
        by_kind[kind] = by_kind.get(kind, 0.0) + end - start
        by_name.setdefault(name, []).append(end - start)
        if start > free:
            waits.append((round(start - free, 2), last[:40], name[:40]))
        if end > free or not last:
            free, last = end, name
    whole = free - min((start for start, _, _ in events), default=free)
    names = sorted(by_name, key=lambda kernel: -sum(by_name[kernel]))[:dearest]
    dear = {f"{len(by_name[name])} x {name[:60]}": sum(by_name[name]) for name in names}
    spent = {"from first to last": whole, "idle": sum(wait for wait, _, _ in waits), **by_kind, **dear}
    longest = sorted(waits, reverse=True)[:8]
    return {**{name: round(ms, 2) for name, ms in spent.items() if ms > 0}, "longest waits": longest}


MEASURES: dict[str, Callable[[Bench], None]] = {
    "resident": resident,
    "lean-24": held("lean", grid=True),
    "nf4-8": held("lean-nf4"),
    "nf4-12": held("lean-nf4"),
    "fp8-16": held("lean-fp8"),
    "t4": colab_t4,
    "stream": held("stream", rounds=2),
    "mapped": held("stream-mapped", rounds=1),
    "model-offload-24": offloaded("model"),
    "sequential-offload": offloaded("sequential"),
    "gguf-16": held("gguf-q8"),
    "int8-16": held("lean-int8"),
    "fp8-rows-16": held("lean-fp8-rows"),
    "grid": gridded,
    "fast": fast(),
    "fast-apart": fast(fuse=False),
    "fast-fp8": fast(fp8=True),
    "fast-autotune": fast(autotune=True),
}


def evaluation(bench: Bench, pipe: Any) -> float:
    """Seconds of one call of the transformer."""
    from fluxnb.fast import _question, seconds

    question = _question(pipe.transformer, bench.device, bench.size, bench.text)
    with bench.torch.no_grad():
        return seconds(lambda: pipe.transformer(**question))


def decoding(bench: Bench, pipe: Any) -> Callable[[], Any]:
    torch = bench.torch
    latents = torch.zeros(1, 16, bench.size // 8, bench.size // 8, device=bench.device, dtype=pipe.vae.dtype)

    def decode() -> None:
        with torch.no_grad():
            pipe.vae.decode(latents)

    return decode


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


def difference(one: Any, other: Any) -> float:
    """Mean absolute difference of two pictures, 0 to 255."""
    import numpy as np

    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


def ram() -> dict[str, float]:
    """Main memory of this process that cannot be given back, GiB; files in the disk's cache are not in it."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return {"RAM GiB": sum(int(lines[name].split()[0]) for name in ("RssAnon", "RssShmem")) * 1024 / GIB}
    except (OSError, KeyError, ValueError):
        return {}


# ------------------------------------------------------------------------------------------------------- the ratios
def most(case: dict[str, Any]) -> float | None:
    """The highest peak of a case, GiB: what is compiled is also tried before it is, and that takes more memory."""
    peaks = [case[fact] for fact in ("peak allocated GiB", "loading peak GiB") if case.get(fact)]
    return max(peaks, default=None)


def ratios(cases: dict[str, dict[str, Any]]) -> list[tuple[str, float, str, bool | None]]:
    """What the cases show together: the claim, the number, what was promised, whether it holds."""

    def get(case: str, fact: str) -> float | None:
        return cases.get(case, {}).get(fact)

    rows: list[tuple[str, float, str, bool | None]] = []

    def ratio(says: str, above: float | None, below: float | None, limit: float, at_least: bool) -> None:
        if above and below:
            value = above / below
            holds = value >= limit if at_least else value <= limit
            rows.append((says, value, f"{'at least' if at_least else 'at most'} {limit:g}", holds))

    def bound(says: str, value: float | None, limit: float) -> None:
        if value:
            rows.append((says, value, f"at most {limit:g} GiB", value <= limit))

    def same(says: str, one: Any, other: Any) -> None:
        if one and other:
            rows.append((says, float(one == other), "equal", one == other))

    peak = "peak allocated GiB"
    # Ours are seconds of a prompt that is known already; plain diffusers reads it anew unless it is given embeddings.
    plain = get("resident", "picture from embeddings seconds") or get("resident", "picture seconds")
    loop = get("model-offload-24", "naive grid seconds, reckoned")
    bound("lean under 24 GiB: peak", get("lean-24", peak), 19)
    same("lean: bytes of plain bf16", get("lean-24", "sha"), get("resident", "sha"))
    ratio("lean: a further picture beside resident", get("lean-24", "picture seconds"), plain, 1.05, False)
    ratio(
        "model offload beside lean, a new prompt each", get("model-offload-24", "picture seconds"),
        get("lean-24", "new prompt picture seconds"), 15, True,
    )  # fmt: skip
    bound("8-bit storage under 16 GiB: peak", get("fp8-16", peak), 11)
    ratio("8-bit storage beside resident", get("fp8-16", "picture seconds"), plain, 1.3, False)
    bound("NF4 under 8 GiB: peak", get("nf4-8", peak), 6.5)
    ratio("NF4 beside resident", get("nf4-8", "picture seconds"), plain, 1.2, False)
    bound("stream: peak", get("stream", peak), 4)
    same("stream: bytes of plain bf16", get("stream", "sha"), get("resident", "sha"))
    ratio("stream beside resident", get("stream", "picture seconds"), plain, 99, False)
    bound("mapped stream: peak", get("mapped", peak), 4)
    same("mapped stream: bytes of plain bf16", get("mapped", "sha"), get("resident", "sha"))
    ratio("mapped stream beside resident", get("mapped", "picture seconds"), plain, 99, False)
    ratio(
        "grid: naive loop beside sweep, resident", get("grid", "naive grid seconds"),
        get("grid", "grid seconds"), 1.5, True,
    )  # fmt: skip
    ratio(
        "grid: the same, our second sweep", get("grid", "naive grid seconds"), get("grid", "grid again seconds"),
        1.5, True,
    )  # fmt: skip
    same("grid: bytes, resident", get("grid", "grid sha"), get("grid", "naive grid sha"))
    ratio("grid: naive loop beside sweep, 24 GiB", loop, get("lean-24", "grid seconds"), 15, True)
    same("grid: bytes, lean", get("lean-24", "grid sha"), get("resident", "naive grid sha"))
    reference, after = "plain diffusers from embeddings seconds", "picture from embeddings seconds"
    for case, times in (("fast", 1.45), ("fast-apart", 1.45), ("fast-autotune", 1.45), ("fast-fp8", 1.9)):
        ratio(f"{case} beside plain diffusers, by its call", get(case, reference), get(case, after), times, True)
        ratio(f"{case} beside plain diffusers, by run", get(case, reference), get(case, f"our {after}"), times, True)
    for case in cases:
        ratio(f"{case}: predicted peak beside measured", get(case, "predicted GiB"), most(cases[case]), 1.07, False)
        if rows and rows[-1][0].startswith(f"{case}: predicted"):
            says, value, _, _ = rows[-1]
            rows[-1] = (says, value, "0.93 to 1.07", 0.93 <= value <= 1.07)
    return rows


def main() -> None:
    """Run the cases and write what they gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "flux-made-up", help="where the made-up model lies"
    )
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/fullsize")))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES)[:9])
    parser.add_argument("--seconds", type=float, default=560, help="start no case after this")
    parser.add_argument("--tiny", action="store_true", help="pocket and no caps: proves the ways, measures nothing")
    parser.add_argument("--expandable", action="store_true", help="PyTorch's expandable segments")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        bench = Bench(asked.case, asked.folder, asked.tiny)
        try:
            MEASURES[asked.case](bench)
        except Exception as problem:
            bench.facts["failed"] = f"{type(problem).__name__}: {str(problem)[:400]}"
            raise
        finally:
            print("FACTS" + json.dumps(bench.facts), flush=True)
        return
    drive(asked)


def drive(asked: argparse.Namespace) -> None:
    """Make the model, run each case in its process, keep the results as they come."""
    import torch

    begun = time.perf_counter()
    make_files(asked)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / ("fullsize-tiny.json" if asked.tiny else "fullsize.json")
    cases: dict[str, dict[str, Any]] = json.loads(file.read_text())["cases"] if file.is_file() else {}
    for name in asked.cases:
        if time.perf_counter() - begun > asked.seconds:
            print(f"{name}: no time left", flush=True)
            continue
        cases[name] = run(name, asked)
        write(file, cases, asked.tiny)
    print()
    for says, value, promised, holds in ratios(cases):
        print(f"{'ok  ' if holds else 'MISS'} {says}: {value:.3f} ({promised})")
    print(f"{time.perf_counter() - begun:.0f} s in all; {file}", flush=True)


def make_files(asked: argparse.Namespace) -> None:
    """What the cases load: the made-up model, or a copy of pocket, and a GGUF file beside it for the case of one."""
    import torch
    from diffusers import FluxTransformer2DModel

    from fluxnb.memory import without_memory
    from fluxnb.weights import POCKET
    from tests.benchmarks.madeup import make
    from tests.benchmarks.madeup_gguf import make_gguf

    if asked.tiny:
        asked.folder = asked.folder.with_name(f"{asked.folder.name}-tiny")
        shutil.copytree(POCKET / "base", asked.folder, dirs_exist_ok=True)
    elif set(asked.cases) - set(IN_MEMORY):
        print(f"made-up model: {make(asked.folder):.0f} s", flush=True)
    if "gguf-16" in asked.cases:
        config = FluxTransformer2DModel.load_config(asked.folder, subfolder="transformer")
        hollow = without_memory(lambda: FluxTransformer2DModel.from_config(config), torch.bfloat16)
        print(f"made-up GGUF: {make_gguf(asked.folder / 'made-up-Q8_0.gguf', hollow):.0f} s", flush=True)


def run(name: str, asked: argparse.Namespace) -> dict[str, Any]:
    """One case in a process of its own, so that nothing of another lies in its memory."""
    command = [sys.executable, "-m", "tests.benchmarks.fullsize", "--case", name, "--folder", str(asked.folder)]
    environment = {**os.environ, "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
    if asked.expandable:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
    begun = time.perf_counter()
    done = subprocess.run(
        command + (["--tiny"] if asked.tiny else []), stdout=subprocess.PIPE, text=True, env=environment, check=False
    )
    line = next((line for line in done.stdout.splitlines() if line.startswith("FACTS")), "")
    facts = json.loads(line.removeprefix("FACTS")) if line else {"case": name, "failed": "the process died"}
    facts["case seconds"] = time.perf_counter() - begun
    shown = {key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()}
    print(json.dumps({key: value for key, value in shown.items() if key != "timeline"}), flush=True)
    return facts


def write(file: Path, cases: dict[str, Any], tiny: bool) -> None:
    """The results with card, versions and date."""
    import accelerate
    import diffusers
    import torch
    import transformers

    head = {
        "what": "pocket: proves the ways, measures nothing" if tiny else "FLUX.1-schnell's shapes, random weights",
        "card": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {each.__name__: each.__version__ for each in (torch, diffusers, transformers, accelerate)},
        "pixels": 128 if tiny else 1024, "steps": 4, "tokens": 48 if tiny else 256,
    }  # fmt: skip
    rows = [
        {"says": says, "value": value, "promised": promised, "holds": holds}
        for says, value, promised, holds in ratios(cases)
    ]
    file.write_text(json.dumps({**head, "ratios": rows, "cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
