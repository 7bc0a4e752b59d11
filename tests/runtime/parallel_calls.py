"""What every process of `test_parallel.py` runs; the first one writes what it found to a file."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as distributed

import fluxnb as fnb
from fluxnb.errors import InputError
from fluxnb.planning.presets import PRESETS
from fluxnb.planning.processes import launched
from fluxnb.planning.requirements import Workload
from fluxnb.runtime.assembly import assemble
from fluxnb.runtime.compat import discard_compiled_call
from fluxnb.runtime.compilation import evaluation_inputs
from fluxnb.runtime.parallel import agreed, join, split_decoder, split_transformer

CPU = torch.device("cpu")
REQUEST = {"seed": 3, "steps": 3, "height": 64, "width": 64}


def main(folder: str, result: str) -> None:
    torch.set_num_threads(1)
    torch.accelerator.device_count = lambda: 1  # diffusers divides by it, and there may be no accelerator
    warnings.simplefilter("ignore", FutureWarning)
    join(launched(), CPU)
    pipe = assemble(Path(folder), PRESETS["parallel"], device=CPU, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    alone = fnb.run(fnb.load(pipe), "a fox", **REQUEST)
    latents = torch.randn(1, pipe.vae.config.latent_channels, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = pipe.vae.decoder(latents)
        split_transformer(pipe.transformer)
        pipe.vae.decoder = split_decoder(pipe.vae.decoder)
        parts = pipe.vae.decoder(latents)
    traced, ours, theirs = evaluations(pipe.transformer)
    flux = fnb.load(pipe)
    together = fnb.run(flux, "a fox", **REQUEST)
    with fnb.recording(pipe) as recorded:
        plain = pipe(
            "a fox", height=64, width=64, num_inference_steps=3, generator=torch.Generator().manual_seed(3),
            guidance_scale=0.0, max_sequence_length=flux.defaults.max_sequence_length,
        ).images[0]  # fmt: skip
    found = {
        "rank": distributed.get_rank(),
        "decoder": float((parts - whole).abs().max() / whole.abs().max()),
        "steps": float((together.final - alone.final).norm() / alone.final.norm()),
        "picture": together.image.tobytes().hex(),
        "plain": plain.tobytes().hex(),
        "recorded": len(recorded.trajectories[0]),
        "attention": torch.equal(ours, theirs.detach()),
        "traced": float((traced - ours).abs().max() / ours.abs().max()),
        "names": sorted(pipe.vae.decoder.state_dict()) == sorted(assembled_names(folder)),
        "agreed": agreed(distributed.get_rank()),
        "refused": [
            refusal(lambda: fnb.run(flux, "a fox", seed=1, steps=1, height=48, width=48)),
            refusal(lambda: fnb.sweep(flux, prompts=["a fox"], seeds=[1])),
        ],
    }
    if distributed.get_rank() == 0:
        # One process alone: a call that needs the other would not return.
        found["frames"] = len(fnb.film(flux, together).frames)
    everything: list[object] = [None] * distributed.get_world_size()
    distributed.all_gather_object(everything, found)
    if distributed.get_rank() == 0:
        Path(result).write_text(json.dumps(everything))


def evaluations(transformer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One evaluation with blocks that are traced as a whole, without tracing, and with the attention of diffusers."""
    inputs = evaluation_inputs(transformer, CPU, Workload(size=64, text=16))
    with torch.no_grad():
        (ours,) = transformer(**inputs)
    with torch.enable_grad():  # training uses the attention of diffusers
        (theirs,) = transformer(**inputs)
    transformer.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        (traced,) = transformer(**inputs)
    for part in transformer.modules():
        discard_compiled_call(part)
    return traced, ours, theirs


def assembled_names(folder: str) -> list[str]:
    return list(assemble(Path(folder), PRESETS["lean"], device=CPU, dtype=torch.float32).vae.decoder.state_dict())


def refusal(call) -> str:
    try:
        call()
    except InputError as problem:
        return str(problem)
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
