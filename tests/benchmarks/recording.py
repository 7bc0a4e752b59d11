"""Cost of recording at full size, and equality of recorded and plain calls: `python tests/benchmarks/recording.py`.

FLUX.1-schnell's transformer and decoder have random weights that are drawn on the GPU; prompt embeddings are given.
Times are ratios of calls that alternate within one run. "same bytes" compares a recorded call with a plain one. Prints
one line per case and a final JSON object. `--tiny` runs on a CPU in seconds, to test the script. A case that would
start after `--seconds` is skipped and listed.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import AutoTokenizer

import fluxnb as fnb
from fluxnb.checkpoints.sources import POCKET
from fluxnb.pipeline.identity import identity_of
from fluxnb.pipeline.preview import fit_preview
from fluxnb.records.latents import unpack

FULL = {
    "transformer": {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128,
                    "joint_attention_dim": 4096, "pooled_projection_dim": 768, "in_channels": 64,
                    "guidance_embeds": False, "axes_dims_rope": (16, 56, 56)},
    "channels": (128, 256, 512, 512), "layers": 2, "groups": 32, "size": 1024, "small": 512, "tokens": 256,
}  # fmt: skip
TINY = {
    "transformer": {**FULL["transformer"], "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2,
                    "attention_head_dim": 16, "joint_attention_dim": 32, "pooled_projection_dim": 32,
                    "axes_dims_rope": (4, 6, 6)},
    "channels": (8, 8, 8, 8), "layers": 1, "groups": 4, "size": 64, "small": 32, "tokens": 48,
}  # fmt: skip
PROMPT, STEPS, PAIRS = "a cat holding a sign that says hello world", 4, 5
ATTENTION = fnb.Keep(attention="all")


def random_weights(module: Any, device: str) -> Any:
    """Fill a module on the meta device with random weights: normal with a standard deviation of 0.02, norms 1."""
    module = module.to_empty(device=device).to(torch.bfloat16).eval()
    draw = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "norm" in name and parameter.ndim == 1:
                parameter.fill_(float(name.endswith("weight")))
            else:
                parameter.normal_(0.0, 0.02, generator=draw)
    return module


def build(shape: dict[str, Any], device: str) -> FluxPipeline:
    """A pipeline without text encoders."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(**shape["transformer"])
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=shape["channels"],
            layers_per_block=shape["layers"],
            norm_num_groups=shape["groups"],
            latent_channels=16,
            sample_size=shape["size"],
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=random_weights(transformer, device),
        vae=random_weights(vae, device),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=AutoTokenizer.from_pretrained(POCKET / "base" / "tokenizer_2"),  # for the positions of the words
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Bench:
    """A pipeline on a device, and the cases that are measured on it."""

    def __init__(self, shape: dict[str, Any], device: str) -> None:
        self.shape, self.device = shape, device
        self.pipe = build(shape, device)

    def call(self, *, size: int, steps: int = STEPS, batch: int = 1, cfg: bool = False) -> torch.Tensor:
        """One or several pictures by a plain diffusers call."""
        draw = torch.Generator().manual_seed(1)
        sizes = self.shape["transformer"]
        embeds = torch.randn(2 * batch, self.shape["tokens"], sizes["joint_attention_dim"], generator=draw)
        pooled = torch.randn(2 * batch, sizes["pooled_projection_dim"], generator=draw)
        # The pipeline does not move given embeddings.
        embeds, pooled = (x.to(self.pipe._execution_device, self.pipe.transformer.dtype) for x in (embeds, pooled))
        negative: dict[str, Any] = {}
        if cfg:
            negative = {"true_cfg_scale": 3.0, "negative_prompt_embeds": embeds[batch:],
                        "negative_pooled_prompt_embeds": pooled[batch:]}  # fmt: skip
        return self.pipe(
            prompt_embeds=embeds[:batch],
            pooled_prompt_embeds=pooled[:batch],
            height=size,
            width=size,
            num_inference_steps=steps,
            max_sequence_length=self.shape["tokens"],
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            **negative,
        ).images

    def recorded(self, keep: fnb.Keep | None = None, **options: Any) -> tuple[torch.Tensor, Any]:
        """The same call with recording, and its first trajectory."""
        with fnb.recording(self.pipe, keep=keep, prompts=[PROMPT]) as recorder:
            images = self.call(**options)
        trajectory = recorder.trajectories[0]
        if not trajectory.finished or (keep is ATTENTION and len(trajectory.words) != 9):
            raise RuntimeError(f"incomplete record: {trajectory!r}, {trajectory.words}")
        return images, trajectory

    def same(self, **options: Any) -> dict[str, bool]:
        """Whether recorded calls without and with attention give the bytes of the plain call."""
        plain = self.call(**options)
        return {
            "recording": equal(plain, self.recorded(**options)[0]),
            "attention": equal(plain, self.recorded(ATTENTION, **options)[0]),
        }

    # ----------------------------------------------------------------------------------------------- the cases
    def resident(self) -> dict[str, Any]:
        """Everything on the GPU: time, memory and bytes at full size."""
        size = self.shape["size"]
        calls: dict[str, Callable[[], Any]] = {
            "off": lambda: self.call(size=size),
            "on": lambda: self.recorded(size=size),
            "attention": lambda: self.recorded(ATTENTION, size=size),
        }
        images, peaks, seconds = {}, {}, {name: [] for name in calls}
        for name, call in calls.items():  # warm-up, bytes and peak
            with peak(self.device) as most:
                result = call()
            images[name], peaks[name] = result if name == "off" else result[0], most[0]
        for _ in range(PAIRS):
            for name in ("off", "on"):
                seconds[name].append(timed(calls[name], self.device))
        for _ in range(2):
            seconds["attention"].append(timed(calls["attention"], self.device))
        ratios = [on / off for on, off in zip(seconds["on"], seconds["off"], strict=True)]
        off = statistics.median(seconds["off"])
        return {
            "same bytes": {name: equal(images["off"], images[name]) for name in ("on", "attention")},
            "recording on/off, median of pairs": round(statistics.median(ratios), 4),
            "recording on/off, each pair": [round(ratio, 4) for ratio in ratios],
            "attention on/off": round(statistics.median(seconds["attention"]) / off, 4),
            "seconds of a plain call": round(off, 4),
            "steps": STEPS,
            "pixels": size,
            "GPU MiB that recording adds to the peak": round(peaks["on"] - peaks["off"], 1),
            "GPU MiB that attention adds to the peak": round(peaks["attention"] - peaks["off"], 1),
        }

    def preview(self) -> dict[str, Any]:
        """Time of the linear preview of a clean estimate at 1024 px, including the copy to the CPU."""
        preview, side, found = fit_preview(self.pipe), 1024, {}
        for place in dict.fromkeys((self.device, "cpu")):
            x, v = (torch.randn(side * side // 256, 64, device=place, dtype=torch.bfloat16) for _ in "xv")

            def draw(x: torch.Tensor = x, v: torch.Tensor = v) -> torch.Tensor:
                return preview(unpack(fnb.flow.clean_estimate(x, v, 0.5), side, side)).cpu()

            draw()
            times = [timed(draw, self.device) for _ in range(30)]
            found[f"ms a step on {place}"] = round(1000 * statistics.median(times), 3)
        return {**found, "pixels": side, "threads": torch.get_num_threads()}

    def identity(self) -> dict[str, Any]:
        """Time to read the identity of the pipeline, as every sweep does, and of pocket on the CPU."""
        found = {}
        for name, pipe, device in (("this model", self.pipe, self.device), ("pocket", fnb.load("pocket").pipe, "cpu")):
            identity_of(pipe)
            times = [timed(lambda pipe=pipe: identity_of(pipe), device) for _ in range(15)]
            found[f"ms for {name}"] = round(1000 * statistics.median(times), 2)
        return found

    def kinds(self) -> dict[str, Any]:
        """Batches and true CFG at the small size."""
        small = self.shape["small"]
        return {
            "batch of 2": self.same(size=small, steps=2, batch=2),
            "true CFG": self.same(size=small, steps=2, cfg=True),
        }

    def dtypes(self) -> dict[str, Any]:
        """float32 and float16; the pipeline is bfloat16 in all other cases, and again afterwards."""
        found = {}
        for dtype in (torch.float32, torch.float16):
            self.pipe.to(dtype)
            found[str(dtype).removeprefix("torch.")] = self.same(size=self.shape["small"], steps=2)
        self.pipe.to(torch.bfloat16)
        return found

    def model_offload(self) -> dict[str, Any]:
        """Model offload."""
        if self.device == "cpu":
            return {"skipped": "diffusers requires an accelerator"}
        self.pipe.enable_model_cpu_offload()
        try:
            plain = self.call(size=self.shape["small"], steps=2)
            return {"attention": equal(plain, self.recorded(ATTENTION, size=self.shape["small"], steps=2)[0])}
        finally:
            self.pipe.remove_all_hooks()

    def group_offload(self) -> dict[str, Any]:
        """Group offload of single layers with prefetching."""
        self.pipe.to("cpu")
        self.pipe.enable_group_offload(
            onload_device=torch.device(self.device),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=self.device == "cuda",
            low_cpu_mem_usage=self.device == "cuda",  # pinning 24 GB in advance takes longer than the calls
        )
        plain = self.call(size=self.shape["small"], steps=2)
        return {"attention": equal(plain, self.recorded(ATTENTION, size=self.shape["small"], steps=2)[0])}

    def cases(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """The cases by importance; offloading is last, since it moves the model."""
        for name in ("resident", "preview", "identity", "kinds", "dtypes", "model_offload", "group_offload"):
            yield name.replace("_", " "), getattr(self, name)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have the same bytes, NaN included."""
    return torch.equal(*(x.cpu().contiguous().view(torch.uint8) for x in (one, other)))


def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds of a call, until the device is idle."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


class peak:
    """Context manager that gives the peak GPU memory of its block in MiB, in a list of one item; 0 on a CPU."""

    def __init__(self, device: str) -> None:
        self.device, self.most = device, [0.0]

    def __enter__(self) -> list[float]:
        gc.collect()
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        return self.most

    def __exit__(self, *_: object) -> None:
        if self.device == "cuda":
            self.most[0] = torch.cuda.max_memory_allocated() / 2**20


def main() -> None:
    """Run the cases and print the results."""
    report = functools.partial(print, flush=True)
    parser = argparse.ArgumentParser(description="Cost of recording, and equality of recorded and plain calls.")
    parser.add_argument("--tiny", action="store_true", help="a toy model on the CPU, to test the script")
    parser.add_argument("--seconds", type=float, default=90.0, help="start no case after this time")
    parser.add_argument("--out", help="also write the JSON to this file")
    options = parser.parse_args()
    began = time.perf_counter()
    device = "cpu" if options.tiny else "cuda"
    bench = Bench(TINY if options.tiny else FULL, device)
    facts: dict[str, Any] = {
        "what": "toy sizes" if options.tiny else "FLUX.1-schnell's sizes, random weights, bfloat16",
        "device": device if options.tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in bench.pipe.transformer.parameters()),
    }
    report(f"built in {time.perf_counter() - began:.1f} s: {facts['parameters'] / 1e9:.3f} billion parameters")
    for name, case in bench.cases():
        if (spent := time.perf_counter() - began) > options.seconds:
            facts[name] = {"skipped": f"after {spent:.0f} s"}
        else:
            try:
                facts[name] = case()
            except Exception as problem:  # continue with the other cases
                facts[name] = {"failed": f"{type(problem).__name__}: {problem}"}
        report(f"{time.perf_counter() - began:6.1f} s  {name}: {json.dumps(facts[name])}")
    facts["total seconds"] = round(time.perf_counter() - began, 1)
    text = json.dumps(facts, indent=1)
    report(text)
    if options.out:
        with open(options.out, "w") as stream:
            stream.write(text + "\n")


if __name__ == "__main__":
    main()
