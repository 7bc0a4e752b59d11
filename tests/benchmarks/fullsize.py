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
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.bench import Bench, digest, digest_of
from tests.benchmarks.claims import ratios
from tests.benchmarks.hostmemory import limited_memory, peak_of, ram
from tests.benchmarks.kernels import spent

COLAB_RAM = 12_700_000_000  # bytes of main memory beside a free T4
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
    bench.say(**{"ms of a grid": spent(lambda: bench.sweep(flux))})


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
            "ms of an evaluation": spent(lambda: transformer(**question)),
            "ms of a picture": spent(lambda: bench.known(flux, encoded, next(seeds))),
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


def difference(one: Any, other: Any) -> float:
    """Mean absolute difference of two pictures, 0 to 255."""
    import numpy as np

    return float(np.abs(np.asarray(one, float) - np.asarray(other, float)).mean())


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
        cap, says = CASES[asked.case]
        bench = Bench(asked.case, says, cap, asked.folder, asked.tiny)
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
