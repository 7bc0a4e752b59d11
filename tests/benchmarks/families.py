"""FLUX.2 klein and Z-Image at full size with random weights: time, bytes, peaks against plans, and a pair that swaps.

    python -m tests.benchmarks.families                       # every case, on a GPU
    python -m tests.benchmarks.families --cases run plan-15   # some of them
    python -m tests.benchmarks.families --tiny                # on a CPU in a minute, to test the script

Each case runs in a process of its own under a limit of GPU memory, and prints one line of JSON. "ratio" is the median
time of `fnb.run` over that of the plain call, both alternating; "error" is the predicted peak over the measured one,
less 1. Targets: ratio at most 1.01, error within 0.07, the pair below 24 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import fluxnb as fnb
from fluxnb.planning.hardware import GIB
from fluxnb.planning.model_size import KLEIN, QWEN3_4B, Z_IMAGE
from fluxnb.runtime.streaming import build_without_memory
from tests.benchmarks.random_checkpoint import _save, _write, _write_random
from tests.families.tiny import PIPELINES, qwen_tokenizer

PROMPT = "a red fox in the snow"
# Name of the case: model, GB of the limit (0 for none), preset, what is measured.
CASES = {
    "run": ("klein", 0, "resident", "run"),
    "run-z": ("z-image-turbo", 0, "resident", "run"),
    "plan-15": ("klein", 15, "text-by-layer", "plan"),
    "text-fp8-15": ("klein", 15, "text-fp8", "plan"),
    "plan-24": ("klein", 24, "resident", "plan"),
    "plan-40": ("z-image-turbo", 40, "resident", "plan"),
    "stream-15": ("klein", 15, "stream-mapped", "plan"),
    "pair-24": ("klein", 24, "swapped", "pair"),
    "pair-40": ("klein", 40, "both", "pair"),
}
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 1024}
BLOCKS = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def parts_of(name: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The pipeline class, the networks without memory, and further entries of the index of a full-size model."""
    import diffusers
    from transformers import Qwen3Config, Qwen3ForCausalLM

    dtype = torch.bfloat16
    text = build_without_memory(lambda: Qwen3ForCausalLM(Qwen3Config(**QWEN3_4B, max_position_embeddings=4096)), dtype)
    if name.startswith("klein"):
        transformer = build_without_memory(lambda: diffusers.Flux2Transformer2DModel(**KLEIN["transformer"]), dtype)
        vae = build_without_memory(lambda: diffusers.AutoencoderKLFlux2(sample_size=1024), dtype)
        kind, more = "Flux2KleinPipeline", {"is_distilled": name == "klein"}
    else:
        config = {**Z_IMAGE["transformer"], "n_kv_heads": 30}
        config["all_patch_size"] = tuple(config["all_patch_size"])
        transformer = build_without_memory(lambda: diffusers.ZImageTransformer2DModel(**config), dtype)
        scale = {
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }
        vae = build_without_memory(lambda: diffusers.AutoencoderKL(latent_channels=16, **VAE, **BLOCKS, **scale), dtype)
        kind, more = "ZImagePipeline", {}
    return kind, {"transformer": transformer, "vae": vae, "text_encoder": text}, more


def checkpoint(folder: Path, name: str, *, tiny: bool) -> Path:
    """A folder with random weights, written once."""
    place = folder / ("tiny" if tiny else "full") / name
    if (place / "done").is_file():
        return place
    if tiny:
        PIPELINES[name]().save_pretrained(place)
    else:
        kind, networks, more = parts_of(name)
        libraries = {part: type(each).__module__.split(".")[0] for part, each in networks.items()}
        index = {part: [libraries[part], type(each).__name__] for part, each in networks.items()}
        index |= {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
        index |= {"tokenizer": ["transformers", "Qwen2Tokenizer"]}
        place.mkdir(parents=True, exist_ok=True)
        _write(place / "model_index.json", {"_class_name": kind, "_diffusers_version": "0.42.1", **index, **more})
        shift = {"use_dynamic_shifting": True} if kind == "Flux2KleinPipeline" else {"shift": 3.0}
        _write(
            place / "scheduler" / "scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler", **shift}
        )
        qwen_tokenizer().save_pretrained(place / "tokenizer")
        with ThreadPoolExecutor(max_workers=8) as writers:
            for part, network in networks.items():
                _save(network, place / part, writers, _write_random)
    (place / "done").write_text("")
    return place


def plain(pipe: Any, flux: Any, **size: Any) -> Any:
    guidance = {flux.family.guidance.argument: flux.family.guidance.off}
    if flux.defaults.guidance is not None:
        guidance = {flux.family.guidance.argument: flux.family.guidance.given(flux.defaults.guidance)}
    generator = torch.Generator("cpu").manual_seed(3)
    return pipe(prompt=PROMPT, generator=generator, **guidance, **size).images[0]


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    synchronize = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    synchronize()
    started = time.perf_counter()
    result = call()
    synchronize()
    return time.perf_counter() - started, result


def peak_gib(call: Callable[[], Any]) -> float:
    if not torch.cuda.is_available():
        call()
        return 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() / GIB


def measure_run(folder: Path, name: str, preset: str, *, size: int, tiny: bool) -> dict[str, Any]:
    """The time of `fnb.run` and of the plain call, alternating, and whether their bytes are equal."""
    flux = fnb.load(checkpoint(folder, name, tiny=tiny), preset=preset)
    flux.pipe.set_progress_bar_config(disable=True)
    steps, times = flux.defaults.steps, {"run": [], "plain": []}
    sides = {"height": size, "width": size}
    for repeat in range(6):
        spent, picture = seconds(lambda: plain(flux.pipe, flux, num_inference_steps=steps, **sides))
        own, made = seconds(lambda: fnb.run(flux, PROMPT, seed=3, steps=steps, **sides))
        if repeat:  # the first call warms up
            times["plain"].append(spent)
            times["run"].append(own)
    medians = {key: statistics.median(values) for key, values in times.items()}
    equal = picture.tobytes() == made.image.tobytes()
    return {**medians, "ratio": medians["run"] / medians["plain"], "same bytes": equal}


def measure_plan(folder: Path, name: str, preset: str, *, size: int, tiny: bool) -> dict[str, Any]:
    """The predicted peak of a preset and the measured one, from the prompt to the picture."""
    flux = fnb.load(checkpoint(folder, name, tiny=tiny), preset=preset)
    predicted = flux.plan.vram_gib
    measured = peak_gib(lambda: fnb.run(flux, PROMPT, seed=3, height=size, width=size))
    spent, _ = seconds(lambda: fnb.run(flux, PROMPT, seed=3, height=size, width=size))
    error = predicted / measured - 1 if measured else None
    return {"predicted": predicted, "measured": measured, "error": error, "seconds": spent}


def measure_pair(folder: Path, name: str, preset: str, *, size: int, tiny: bool) -> dict[str, Any]:
    """Peak and times of teacher and student in turns, and whether a second turn has the bytes of the first."""
    teacher, student = (checkpoint(folder, each, tiny=tiny) for each in (f"{name}-base", name))
    pair = fnb.load_pair(student, teacher, preset=preset)

    def turn() -> list[bytes]:
        sides = {"height": size, "width": size, "steps": 4}
        return [fnb.run(flux, PROMPT, seed=3, **sides).image.tobytes() for flux in pair]

    first: list[bytes] = []
    measured = peak_gib(lambda: first.extend(turn()))
    spent, second = seconds(turn)
    return {"predicted": pair.plan.vram_gib, "measured": measured, "seconds": spent, "same bytes": first == second}


MEASURES = {"run": measure_run, "plan": measure_plan, "pair": measure_pair}


def main() -> None:
    """Run the cases, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "families-random")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/families")))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        name, limit, preset, what = CASES[options.case]
        if limit and torch.cuda.is_available():
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit * 1e9 / total))
        preset = ("both" if what == "pair" else "cpu") if options.tiny else preset
        size = 64 if options.tiny else 1024
        facts = MEASURES[what](options.folder, name, preset, size=size, tiny=options.tiny)
        card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        found = {"case": options.case, "model": name, "limit": limit, "preset": preset, **facts, "card": card}
        print("FACTS" + json.dumps(found))
        return
    results = []
    for case in options.cases:
        command = [sys.executable, "-m", "tests.benchmarks.families", "--case", case, "--folder", str(options.folder)]
        done = subprocess.run(command + ["--tiny"] * options.tiny, capture_output=True, text=True)
        lines = [line for line in done.stdout.splitlines() if line.startswith("FACTS")]
        facts = json.loads(lines[-1][5:]) if lines else {"case": case, "failed": done.stderr[-600:]}
        print(json.dumps(facts), flush=True)
        results.append(facts)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "families.json").write_text(json.dumps({"note": "", "cases": results}, indent=1))


if __name__ == "__main__":
    main()
