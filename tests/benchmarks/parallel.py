"""Time of one picture over several GPUs, relative to plain diffusers on one of them.

    torchrun --nproc-per-node 4 -m tests.benchmarks.parallel              # FLUX.1's sizes with random weights
    torchrun --nproc-per-node 4 -m tests.benchmarks.parallel --fp8        # with 8-bit rows
    torchrun --nproc-per-node 2 -m tests.benchmarks.parallel --tiny       # pocket on a CPU, to test the script

A picture is a plain call of the pipeline with given embeddings, 1024 px and 4 steps, decoding included. "seconds" are
medians; "recorded" is the ratio of calls inside `fnb.recording` to calls outside, alternating; "difference" is that of
the final latents from those of one GPU, relative to their norm. The first process prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed

import fluxnb as fnb
from fluxnb.planning.hardware import gpu_of_process
from fluxnb.planning.processes import launched
from fluxnb.planning.requirements import Workload
from fluxnb.runtime.compilation import compile_pipeline
from fluxnb.runtime.parallel import join, split_decoder, split_transformer
from tests.benchmarks.rows import add_row

CALLS = 7


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fp8", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, help="file of results to which the row is added")
    options = parser.parse_args()
    calls = 1 if options.tiny else CALLS
    pipe, device, size, text = _pipeline(tiny=options.tiny)
    inputs = _inputs(pipe, device, size, text)

    def picture(**options: Any) -> Any:
        generator = torch.Generator().manual_seed(1)
        return pipe(**inputs, **options, generator=generator, return_dict=False)[0]

    plain, latents = _median(picture, calls), picture(output_type="latent")
    began = time.perf_counter()
    if options.tiny:
        split_transformer(pipe.transformer)
        pipe.vae.decoder = split_decoder(pipe.vae.decoder)
        report: Any = ""
    else:
        workload = Workload(size=size, text=text)
        report = compile_pipeline(pipe, device, workload, fp8=options.fp8, low_memory=True, parallel=True)
    setup = time.perf_counter() - began
    picture(), picture()
    seconds, recorded = _alternating(picture, lambda: _recorded(pipe, picture), calls)
    together = picture(output_type="latent")
    facts = {
        "card": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "gpus": distributed.get_world_size(),
        "numbers": "8-bit rows" if options.fp8 else str(pipe.transformer.dtype).removeprefix("torch."),
        "plain": plain,
        "seconds": seconds,
        "speedup": plain / seconds,
        "recorded": recorded / seconds,
        "difference": float((together.float() - latents.float()).norm() / latents.float().norm()),
        "same in all": _same_in_all(together),
        "setup": setup,
        "steps": str(report).splitlines(),
    }
    if distributed.get_rank() == 0:
        print(json.dumps(facts), flush=True)
        if options.out is not None:
            add_row(options.out, "picture", facts)


def _pipeline(*, tiny: bool) -> tuple[Any, torch.device, int, int]:
    """A pipeline on the device of this process, that device, and the size and text tokens of its pictures."""
    if tiny:
        torch.set_num_threads(1)
        torch.accelerator.device_count = lambda: 1  # diffusers divides by it
        join(launched(), torch.device("cpu"))
        pipe = fnb.load("pocket").pipe
        pipe.set_progress_bar_config(disable=True)
        return pipe, torch.device("cpu"), 64, 48
    from tests.benchmarks.random_checkpoint import on_device

    device = gpu_of_process()
    torch.cuda.set_device(device)
    join(launched(), device)
    torch.manual_seed(0)  # the same weights in all processes
    pipe = on_device(device, text=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe, device, 1024, 256


def _inputs(pipe: Any, device: torch.device, size: int, text: int) -> dict[str, Any]:
    config, dtype = pipe.transformer.config, pipe.transformer.dtype
    draw = torch.Generator().manual_seed(0)
    return {
        "prompt_embeds": torch.randn(1, text, config.joint_attention_dim, generator=draw).to(device, dtype),
        "pooled_prompt_embeds": torch.randn(1, config.pooled_projection_dim, generator=draw).to(device, dtype),
        "height": size,
        "width": size,
        "num_inference_steps": 4,
        "guidance_scale": 0.0,
    }


def _recorded(pipe: Any, picture: Callable[[], Any]) -> None:
    with fnb.recording(pipe):
        picture()


def _alternating(one: Callable[[], Any], other: Callable[[], Any], calls: int) -> tuple[float, float]:
    pairs = [(_seconds(one), _seconds(other)) for _ in range(calls)]
    return statistics.median(first for first, _ in pairs), statistics.median(second for _, second in pairs)


def _median(call: Callable[[], Any], calls: int) -> float:
    call()
    return statistics.median(_seconds(call) for _ in range(calls))


def _seconds(call: Callable[[], Any]) -> float:
    _synchronize()
    began = time.perf_counter()
    call()
    _synchronize()
    return time.perf_counter() - began


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _same_in_all(latents: torch.Tensor) -> bool:
    everything: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everything, latents.float().cpu())
    return all(torch.equal(everything[0], other) for other in everything)


if __name__ == "__main__":
    main()
