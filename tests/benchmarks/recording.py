"""What recording costs at full size, and that it changes nothing: `python tests/benchmarks/recording.py`.

FLUX.1-schnell's transformer and decoder with random weights made on the device, prompt embeddings given. Times are
ratios of calls that alternate within this run; every "same bytes" compares a watched call with one that is not.
Prints one line a case as it ends and one JSON object last. `--tiny` proves the script on a CPU in seconds;
`--seconds` is a budget: a case that would begin after it is skipped and named.
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
LOOK = fnb.Keep(attention="all")


def random_weights(module: Any, device: str) -> Any:
    """A module built without memory, filled on the device: normal with std 0.02, norms at 1."""
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
    """The pipeline without its text encoders."""
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
        tokenizer_2=AutoTokenizer.from_pretrained(POCKET / "base" / "tokenizer_2"),  # says where the words stand
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


class Bench:
    """One pipeline on one device, and what has been found of it."""

    def __init__(self, shape: dict[str, Any], device: str) -> None:
        self.shape, self.device = shape, device
        self.pipe = build(shape, device)

    def call(self, *, size: int, steps: int = STEPS, batch: int = 1, cfg: bool = False) -> torch.Tensor:
        """One picture (or several) as a diffusers user would make it."""
        draw = torch.Generator().manual_seed(1)
        sizes = self.shape["transformer"]
        embeds = torch.randn(2 * batch, self.shape["tokens"], sizes["joint_attention_dim"], generator=draw)
        pooled = torch.randn(2 * batch, sizes["pooled_projection_dim"], generator=draw)
        # Embeddings that are given are not moved by the pipeline.
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

    def watched(self, keep: fnb.Keep | None = None, **options: Any) -> tuple[torch.Tensor, Any]:
        """The same call, recorded, and its first walk."""
        with fnb.recording(self.pipe, keep=keep, _prompts=[PROMPT]) as recorder:
            images = self.call(**options)
        trajectory = recorder.trajectories[0]
        if not trajectory.finished or (keep is LOOK and len(trajectory.words) != 9):
            raise RuntimeError(f"the record is not whole: {trajectory!r}, {trajectory.words}")
        return images, trajectory

    def same(self, **options: Any) -> dict[str, bool]:
        """Whether a recorded call, and one whose attention is looked at, give the bytes of the plain one."""
        plain = self.call(**options)
        return {
            "recording": equal(plain, self.watched(**options)[0]),
            "attention": equal(plain, self.watched(LOOK, **options)[0]),
        }

    # ----------------------------------------------------------------------------------------------- the cases
    def resident(self) -> dict[str, Any]:
        """All on the device: time, memory and bytes at full size."""
        size = self.shape["size"]
        calls: dict[str, Callable[[], Any]] = {
            "off": lambda: self.call(size=size),
            "on": lambda: self.watched(size=size),
            "attention": lambda: self.watched(LOOK, size=size),
        }
        found, peaks, seconds = {}, {}, {name: [] for name in calls}
        for name, call in calls.items():  # each once to warm up, with its bytes and its peak
            with peak(self.device) as most:
                result = call()
            found[name], peaks[name] = result if name == "off" else result[0], most[0]
        for _ in range(PAIRS):
            for name in ("off", "on"):
                seconds[name].append(timed(calls[name], self.device))
        for _ in range(2):
            seconds["attention"].append(timed(calls["attention"], self.device))
        ratios = [on / off for on, off in zip(seconds["on"], seconds["off"], strict=True)]
        off = statistics.median(seconds["off"])
        return {
            "same bytes": {name: equal(found["off"], found[name]) for name in ("on", "attention")},
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
        """The linear preview of one step's clean estimate, at 1024 px on any device: bytes on the CPU at the end."""
        preview, side, found = fit_preview(self.pipe), 1024, {}
        for place in dict.fromkeys((self.device, "cpu")):
            x, v = (torch.randn(side * side // 256, 64, device=place, dtype=torch.bfloat16) for _ in "xv")

            def draw(x: torch.Tensor = x, v: torch.Tensor = v) -> torch.Tensor:
                return preview(unpack(fnb.flow.clean_estimate(x, v, 0.5), side, side)).cpu()

            draw()
            times = [timed(draw, self.device) for _ in range(30)]
            found[f"ms a step on {place}"] = round(1000 * statistics.median(times), 3)
        return {**found, "pixels": side, "threads": torch.get_num_threads()}

    def kinds(self) -> dict[str, Any]:
        """Batches and true CFG, smaller."""
        small = self.shape["small"]
        return {
            "batch of 2": self.same(size=small, steps=2, batch=2),
            "true CFG": self.same(size=small, steps=2, cfg=True),
        }

    def dtypes(self) -> dict[str, Any]:
        """The other number formats; bfloat16 is what the rest runs in, and what comes back."""
        found = {}
        for dtype in (torch.float32, torch.float16):
            self.pipe.to(dtype)
            found[str(dtype).removeprefix("torch.")] = self.same(size=self.shape["small"], steps=2)
        self.pipe.to(torch.bfloat16)
        return found

    def model_offload(self) -> dict[str, Any]:
        """Whole models come and go."""
        if self.device == "cpu":
            return {"skipped": "diffusers offers it with an accelerator only"}
        self.pipe.enable_model_cpu_offload()
        try:
            plain = self.call(size=self.shape["small"], steps=2)
            return {"attention": equal(plain, self.watched(LOOK, size=self.shape["small"], steps=2)[0])}
        finally:
            self.pipe.remove_all_hooks()

    def group_offload(self) -> dict[str, Any]:
        """Single layers come and go, the next one while this one computes."""
        self.pipe.to("cpu")
        self.pipe.enable_group_offload(
            onload_device=torch.device(self.device),
            offload_device=torch.device("cpu"),
            offload_type="leaf_level",
            use_stream=self.device == "cuda",
            low_cpu_mem_usage=self.device == "cuda",  # pinning 24 GB beforehand takes longer than the calls
        )
        plain = self.call(size=self.shape["small"], steps=2)
        return {"attention": equal(plain, self.watched(LOOK, size=self.shape["small"], steps=2)[0])}

    def cases(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """By importance; the offloading ones last, since they move the model."""
        for name in ("resident", "preview", "kinds", "dtypes", "model_offload", "group_offload"):
            yield name.replace("_", " "), getattr(self, name)


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The same bytes, also where random weights have led to numbers that are not finite."""
    return torch.equal(*(x.cpu().contiguous().view(torch.uint8) for x in (one, other)))


def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds until the device has done it."""
    wait(device)
    begun = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - begun


def wait(device: str) -> None:
    """Until the device has nothing left to do."""
    if device == "cuda":
        torch.cuda.synchronize()


class peak:
    """The most GPU memory allocated in the block, in MiB, as the one entry of a list; 0 on a CPU."""

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
    """Run the cases and print."""
    say = functools.partial(print, flush=True)
    parser = argparse.ArgumentParser(description="What recording costs, and that it changes nothing.")
    parser.add_argument("--tiny", action="store_true", help="a toy on the CPU, to prove the script")
    parser.add_argument("--seconds", type=float, default=90.0, help="begin no case after so long")
    parser.add_argument("--out", help="write the JSON to this file too")
    asked = parser.parse_args()
    begun = time.perf_counter()
    device = "cpu" if asked.tiny else "cuda"
    bench = Bench(TINY if asked.tiny else FULL, device)
    facts: dict[str, Any] = {
        "what": "toy sizes" if asked.tiny else "FLUX.1-schnell's sizes, random weights, bfloat16",
        "device": device if asked.tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "parameters": sum(p.numel() for p in bench.pipe.transformer.parameters()),
    }
    say(f"built in {time.perf_counter() - begun:.1f} s: {facts['parameters'] / 1e9:.3f} billion parameters")
    for name, case in bench.cases():
        if (spent := time.perf_counter() - begun) > asked.seconds:
            facts[name] = {"skipped": f"{spent:.0f} s were spent"}
        else:
            try:
                facts[name] = case()
            except Exception as problem:  # the cases after it are still worth having
                facts[name] = {"failed": f"{type(problem).__name__}: {problem}"}
        say(f"{time.perf_counter() - begun:6.1f} s  {name}: {json.dumps(facts[name])}")
    facts["seconds in all"] = round(time.perf_counter() - begun, 1)
    text = json.dumps(facts, indent=1)
    say(text)
    if asked.out:
        with open(asked.out, "w") as stream:
            stream.write(text + "\n")


if __name__ == "__main__":
    main()
