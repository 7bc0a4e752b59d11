"""The cases of `fullsize`: what each measures, and its limit of GPU memory."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tests.benchmarks.case import Bench, digest, digest_of
from tests.benchmarks.host_memory import limited_memory, peak_of, ram
from tests.benchmarks.kernels import profile

COLAB_RAM = 12_700_000_000  # bytes of main memory of a free Colab T4
# By importance, since the time may not suffice for all. Name: limit in GiB, description.
IN_MEMORY = ("grid", "fast", "fast-apart", "fast-fp8", "fast-autotune")  # these read no file
CASES: dict[str, tuple[float, str]] = {
    "resident": (0, "plain diffusers, everything resident"),
    "grid": (0, "loop of plain diffusers over seeds and steps, then the same as a sweep, everything resident"),
    "lean-24": (24, "lean"),
    "nf4-8": (8, "lean-nf4"),
    "fp8-16": (16, "lean-fp8"),
    "fast": (0, "adaLN tables, compiled"),
    "fast-apart": (0, "adaLN tables, compiled, separate projections for q, k and v"),
    "model-offload-24": (24, "diffusers' enable_model_cpu_offload"),
    "stream": (5, "streaming of single layers over PCIe"),
    "mapped": (5, "streaming of single layers from the page cache"),
    "fast-fp8": (0, "adaLN tables, compiled, 8-bit rows"),
    "nf4-12": (12, "lean-nf4 without parking"),
    "t4": (14.7, "the automatic preset of a Colab T4, with limited main memory"),
    "fast-autotune": (0, "adaLN tables, compiled with autotuning"),
    "sequential-offload": (24, "diffusers' enable_sequential_cpu_offload"),
    "gguf-16": (16, "gguf-q8 from a Q8_0 file"),
    "int8-16": (16, "lean-int8, compiled"),
    "fp8-rows-16": (16, "lean-fp8-rows, compiled"),
}


def resident(bench: Bench) -> None:
    """Plain diffusers with everything on the GPU, the reference of the comparisons."""
    from fluxnb.planning.model_size import model_size_of
    from fluxnb.runtime.compilation import matmul_ceiling, seconds, share_of_ceiling

    load_seconds, pipe = bench.clock(lambda: bench.plain(**({"device_map": "cuda"} if bench.cuda else {})))
    bench.report(**{"load seconds": load_seconds, **bench.predicted("resident")})
    bench.reset_peak()
    first, image = bench.clock(lambda: bench.sample_plain(pipe))
    bench.report(**{"first picture seconds": first, "sha": digest(image), **bench.peaks()})
    from_prompt, _ = bench.clock(lambda: bench.sample_plain(pipe), 5)
    given = bench.encode_plain(pipe)
    from_embeddings, _ = bench.clock(lambda: bench.sample_plain(pipe, **given), 5)
    bench.report(**{"picture seconds": from_prompt, "picture from embeddings seconds": from_embeddings})
    tokens = (bench.size // 16) ** 2 + bench.text
    forward = evaluation(bench, pipe)
    ceiling = matmul_ceiling(bench.device, side=512 if bench.tiny else 8192)
    bench.report(**{
        "evaluation seconds": forward, "matmul TFLOP/s": ceiling,
        "share of ceiling": share_of_ceiling(model_size_of(bench.folder), tokens, forward, ceiling),
        "decode seconds": seconds(decoding(bench, pipe)),
    })  # fmt: skip


def gridded(bench: Bench) -> None:
    """4 seeds and 4 step counts: a loop of plain calls, and a sweep over the same pipeline."""
    import fluxnb as fnb

    pipe = in_memory(bench)
    bench.sample_plain(pipe)
    loop_seconds, shas = bench.clock(
        lambda: {
            f"{seed}/{steps}": digest(bench.sample_plain(pipe, seed=seed, steps=steps))
            for seed in range(4) for steps in (1, 2, 3, 4)
        }
    )  # fmt: skip
    bench.report(**{"naive grid seconds": loop_seconds, "naive grid sha": digest_of(shas)})
    flux = bench.configure(fnb.load(pipe))
    bench.grid(flux)
    bench.report(**{"grid again seconds": bench.clock(lambda: bench.sweep(flux), 2)[0]})
    bench.report(**{"ms of a sweep": profile(lambda: bench.sweep(flux))})


def in_memory(bench: Bench, text: bool = True) -> Any:
    """A plain pipeline whose weights are drawn on the device."""
    from tests.benchmarks.random_checkpoint import on_device

    return bench.plain() if bench.tiny else on_device(bench.device, text=text)


def with_preset(preset: str, grid: bool = False, rounds: int = 4) -> Callable[[Bench], None]:
    """A preset through `fnb.load`."""

    def measure(bench: Bench) -> None:
        flux = bench.load(preset)
        bench.pictures(flux, rounds)
        bench.report(**{"evaluation seconds": evaluation(bench, flux.pipe)})
        if grid:
            bench.grid(flux)

    return measure


def colab_t4(bench: Bench) -> None:
    """The automatic preset of a Colab T4, in a process with its main memory."""
    import fluxnb as fnb

    preset = fnb.plan(bench.folder, "colab-t4").preset if not bench.tiny else "lean"
    with limited_memory(COLAB_RAM) as group:
        flux = bench.load(preset)
        bench.pictures(flux, rounds=2)
        bench.report(
            **{"RAM limit GB": COLAB_RAM / 1e9 if group else None, "RAM peak of the limit GiB": peak_of(group)}
        )


def offloaded(how: str) -> Callable[[Bench], None]:
    """An offload of diffusers as documented; the time of the loop is estimated from pictures of one and four steps."""

    def measure(bench: Bench) -> None:
        load_seconds, pipe = bench.clock(bench.plain)
        bench.report(**{"load seconds": load_seconds, **bench.predicted(f"{how}-offload")})
        if bench.cuda:
            getattr(pipe, f"enable_{how}_cpu_offload")()
        bench.reset_peak()
        first, image = bench.clock(lambda: bench.sample_plain(pipe))
        bench.report(**{"first picture seconds": first, "sha": digest(image), **bench.peaks()})
        four, _ = bench.clock(lambda: bench.sample_plain(pipe, seed=1))
        bench.report(**{"picture seconds": four})
        one, _ = bench.clock(lambda: bench.sample_plain(pipe, seed=1, steps=1))
        # 16 pictures, 4 of each step count; each step adds the same time.
        loop = 4 * sum(one + (four - one) * (steps - 1) / 3 for steps in (1, 2, 3, 4))
        bench.report(**{"one step seconds": one, "naive grid seconds, estimated": loop, **ram()})

    return measure


def fast(fp8: bool = False, autotune: bool = False, fuse: bool = True) -> Callable[[Bench], None]:
    """From embeddings to a picture, before and after `fast`."""

    def measure(bench: Bench) -> None:
        import fluxnb as fnb
        from fluxnb.pipeline.prompts import Encoded
        from fluxnb.planning.model_size import flux1_size, model_size_of
        from fluxnb.planning.requirements import Workload
        from fluxnb.runtime.adaln_cache import AdaLNCache, expected_timesteps, modulation_layers
        from fluxnb.runtime.compilation import compile_pipeline, evaluation_inputs, matmul_ceiling, share_of_ceiling

        pipe = in_memory(bench, text=False)
        given = embeddings(bench, pipe)
        reference, image = bench.clock(lambda: bench.sample_plain(pipe, **given), 5, warm=2)
        bench.report(**{"plain diffusers from embeddings seconds": reference})
        transformer = pipe.transformer
        weights = {
            f"{name}.{part}": getattr(transformer.get_submodule(name), part).data
            for name in modulation_layers(transformer) for part in ("weight", "bias")
        }  # fmt: skip
        AdaLNCache(transformer, weights, expected_timesteps(pipe))
        before, _ = bench.clock(lambda: bench.sample_plain(pipe, **given), 5, warm=1)
        bench.report(**{"picture from embeddings before seconds": before})
        workload = Workload(size=bench.size, text=bench.text)
        setup_seconds, report = bench.clock(
            lambda: compile_pipeline(pipe, bench.device, workload, fp8=fp8, autotune=autotune, fuse=fuse)
        )
        print(report, file=sys.stderr)
        bench.report(**{
            "setup seconds": setup_seconds,
            "gains": [[speedup.name, speedup.before, speedup.after, speedup.setup] for speedup in report.speedups],
            "attention": report.attention,
        })  # fmt: skip
        after, quick = bench.clock(lambda: bench.sample_plain(pipe, **given), 5, warm=2)
        flux, seeds = bench.configure(fnb.load(pipe)), iter(range(1, 99))
        encoded = Encoded(embeds=given["prompt_embeds"], pooled=given["pooled_prompt_embeds"])
        ours, _ = bench.clock(lambda: bench.sample_encoded(flux, encoded, next(seeds)), 5, warm=2)
        forward = evaluation(bench, pipe)
        ceiling = matmul_ceiling(bench.device, side=512 if bench.tiny else 8192)
        tokens = (bench.size // 16) ** 2 + bench.text
        shapes = model_size_of(bench.folder) if bench.tiny else flux1_size()
        bench.report(**{
            "picture from embeddings seconds": after, "fluxnb picture from embeddings seconds": ours,
            "times plain diffusers": reference / after, "fluxnb times plain diffusers": reference / ours,
            "evaluation seconds": forward, "matmul TFLOP/s": ceiling,
            "share of ceiling": share_of_ceiling(shapes, tokens, forward, ceiling),
            "mean difference of pixels": difference(image, quick),
        })  # fmt: skip
        question = evaluation_inputs(transformer, bench.device, workload)
        bench.report(**{
            "ms of an evaluation": profile(lambda: transformer(**question)),
            "ms of a picture": profile(lambda: bench.sample_encoded(flux, encoded, next(seeds))),
        })  # fmt: skip

    return measure


def embeddings(bench: Bench, pipe: Any) -> dict[str, Any]:
    """Random prompt embeddings of the right shapes."""
    config, draw = pipe.transformer.config, bench.torch.Generator().manual_seed(1)
    shapes = {"prompt_embeds": (1, bench.text, config.joint_attention_dim)}
    shapes["pooled_prompt_embeds"] = (1, config.pooled_projection_dim)
    return {
        name: bench.torch.randn(shape, generator=draw).to(bench.device, bench.dtype) for name, shape in shapes.items()
    }


MEASURES: dict[str, Callable[[Bench], None]] = {
    "resident": resident,
    "lean-24": with_preset("lean", grid=True),
    "nf4-8": with_preset("lean-nf4"),
    "nf4-12": with_preset("lean-nf4"),
    "fp8-16": with_preset("lean-fp8"),
    "t4": colab_t4,
    "stream": with_preset("stream", rounds=2),
    "mapped": with_preset("stream-mapped", rounds=1),
    "model-offload-24": offloaded("model"),
    "sequential-offload": offloaded("sequential"),
    "gguf-16": with_preset("gguf-q8"),
    "int8-16": with_preset("lean-int8"),
    "fp8-rows-16": with_preset("lean-fp8-rows"),
    "grid": gridded,
    "fast": fast(),
    "fast-apart": fast(fuse=False),
    "fast-fp8": fast(fp8=True),
    "fast-autotune": fast(autotune=True),
}


def evaluation(bench: Bench, pipe: Any) -> float:
    """Seconds of one call of the transformer."""
    from fluxnb.planning.requirements import Workload
    from fluxnb.runtime.compilation import evaluation_inputs, seconds

    question = evaluation_inputs(pipe.transformer, bench.device, Workload(size=bench.size, text=bench.text))
    with bench.torch.no_grad():
        return seconds(lambda: pipe.transformer(**question))


def decoding(bench: Bench, pipe: Any) -> Callable[[], Any]:
    """A function that decodes latents of the full size."""
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
