"""fast: compile what repeats, take the attention that is quickest on this card, decode in channels-last.

What each of them gave is measured here, on this machine, and reported. Compiled kernels sum in another order: the
pictures are those of the plain model up to rounding, and so the recipe says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fluxnb.errors import InputError
from fluxnb.planning.model_size import ModelSize
from fluxnb.runtime.cuda_graphs import Replay
from fluxnb.runtime.quantisation import block_layers, quantise_now
from fluxnb.units import duration

__all__ = ["Gain", "Report", "quicken"]

# Of the time before: a recording holds as much memory as an evaluation does beside the weights. With 8-bit rows on an
# H100 it saves 2.6 of 95.5 ms.
WORTH = 0.99
# As diffusers calls them; those that quantise (sage) are not among them, and those not installed drop out.
BACKENDS = ("native", "_native_cudnn", "_native_flash", "flash", "_flash_3")


@dataclass(frozen=True)
class Gain:
    """One ingredient: seconds before it and with it, and what it cost once; None where it was not measured."""

    what: str
    before: float | None
    after: float
    setup: float = 0.0

    @property
    def factor(self) -> float | None:
        """How many times quicker."""
        return None if self.before is None else self.before / self.after

    def __repr__(self) -> str:
        went = f"{self.after * 1e3:.1f} ms"
        if self.before is not None:
            went = f"{self.before * 1e3:.1f} -> {went}, {self.before / self.after:.2f} times"
        return f"{self.what}: {went}" + (f" (once {duration(self.setup)})" if self.setup >= 1 else "")


@dataclass(frozen=True)
class Report:
    """What `fast` did.

    Arguments:
        gains: each ingredient.
        attention: the seconds of one attention call with each backend that runs here.
    """

    gains: tuple[Gain, ...]
    attention: dict[str, float] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [repr(gain) for gain in self.gains]
        if self.attention:
            lines.append("attention: " + ", ".join(f"{name} {s * 1e3:.2f} ms" for name, s in self.attention.items()))
        return "\n".join(lines)


def quicken(
    pipe: Any, *, size: int = 1024, text: int = 256, fp8: bool = False, autotune: bool = False, fuse: bool = True,
    graphs: bool = True, tight: bool = False, rounds: int = 5,
) -> Report:  # fmt: skip
    """Make a resident pipeline quicker, in place, and measure every ingredient.

    Arguments:
        size, text: pixels and T5 tokens to be quick at; other sizes compile again when they come.
        fp8: also compute the blocks' linear layers in 8-bit floats, a scale to each row (lossy).
        autotune: let the compiler try many kernels, which takes minutes.
        fuse: compute queries, keys and values in one matrix product; their own layers are gone afterwards.
        graphs: replay evaluations as CUDA graphs where that is quicker; not for weights that move, as parked ones do.
        tight: never decode with the plain decoder, which takes more memory than all else; what compiling it gave is
            then not known.

    Raises:
        InputError: the pipeline moves its weights about while it runs, which compiled code cannot follow.
    """
    transformer, device = pipe.transformer, pipe._execution_device
    if any(weight.device.type != device.type for weight in transformer.parameters()):
        raise InputError(
            "fast with an offloading preset", "compiled blocks need their weights in one place",
            'load with preset="resident" or preset="lean"',
        )  # fmt: skip
    with torch.no_grad():
        return _quicken(pipe, device, size, text, fp8, autotune, fuse, graphs, tight, rounds)


def _quicken(
    pipe: Any, device: torch.device, size: int, text: int, fp8: bool, autotune: bool, fuse: bool, graphs: bool,
    tight: bool, rounds: int,
) -> Report:  # fmt: skip
    transformer = pipe.transformer
    question = _question(transformer, device, size, text)
    forward = lambda: transformer(**question)  # noqa: E731
    latents = torch.zeros(1, pipe.vae.config.latent_channels, size // 8, size // 8, device=device, dtype=pipe.vae.dtype)

    def decode() -> Any:
        # As a picture is decoded on a CPU: what is compiled for other tensors would be compiled once more.
        with torch.inference_mode() if device.type == "cpu" else torch.no_grad():
            return pipe.vae.decode(latents.clone(), return_dict=False)

    gains: list[Gain] = []
    plain = seconds(forward, rounds)
    attention = _attention(transformer, forward, device)
    if len(attention) > 1:
        best = min(attention, key=attention.__getitem__)
        transformer.set_attention_backend(best)
        gains.append(Gain(f"attention {best}", plain, seconds(forward, rounds)))
    before = gains[-1].after if gains else plain
    fuse = fuse and _fuse(transformer)
    if fp8:
        quantise_now(transformer, "fp8-rows")
    begun = time.perf_counter()
    with _compiler(autotune):
        transformer.compile_repeated_blocks(fullgraph=True, **({"dynamic": False} if fp8 else {}))
        forward()
        _wait(device)
        setup = time.perf_counter() - begun
        what = "compiled blocks" + (", one product for q, k and v" if fuse else "") + (", 8-bit rows" if fp8 else "")
        gains.append(Gain(what, before, seconds(forward, rounds), setup))
        if graphs and device.type == "cuda":
            gains.append(_replayed(transformer, forward, gains[-1].after, rounds))
        gains.append(_decoder(pipe, decode, device, rounds, tight))
    return Report(tuple(gains), attention)


def _fuse(transformer: Any) -> bool:
    """One product for three: a larger matrix fills the card better. The three are let go, their memory with them.

    Weights that are held smaller than they are computed with stay as they are.
    """
    plain = all(
        type(layer) is nn.Linear and type(layer.weight.data) is Tensor and layer.weight.dtype.itemsize >= 2
        for layer in block_layers(transformer).values()
    )
    if plain:
        transformer.fuse_qkv_projections()
        for module in transformer.modules():
            for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
                if getattr(module, "fused_projections", False) and hasattr(module, name):
                    delattr(module, name)
    return plain


def _replayed(transformer: Any, forward: Callable[[], Any], before: float, rounds: int) -> Gain:
    """Evaluations replayed whole, where that is quicker."""
    begun = time.perf_counter()
    replay = Replay(transformer)
    for _ in range(3):  # as ever, recorded, replayed
        forward()
    _wait(next(transformer.parameters()).device)
    setup, after = time.perf_counter() - begun, seconds(forward, rounds)
    kept = after < WORTH * before
    if not kept:
        replay.remove()
    return Gain("one CUDA graph an evaluation" + ("" if kept else ", not kept"), before, after, setup)


def _decoder(pipe: Any, decode: Callable[[], Any], device: torch.device, rounds: int, tight: bool = False) -> Gain:
    plain = None if tight else seconds(decode, rounds)
    begun = time.perf_counter()
    pipe.vae.to(memory_format=torch.channels_last)
    pipe.vae.decoder.compile()
    decode()
    _wait(device)
    setup, after = time.perf_counter() - begun, seconds(decode, rounds)
    kept = plain is None or after < plain
    if not kept:  # as on a CPU without instructions for 16 bits
        pipe.vae.to(memory_format=torch.contiguous_format)
        pipe.vae.decoder._compiled_call_impl = None
    return Gain("decoder compiled in channels-last" + ("" if kept else ", not kept"), plain, after, setup)


@contextlib.contextmanager
def _compiler(autotune: bool) -> Iterator[None]:
    import torch._dynamo.config
    import torch._inductor.config as inductor

    # Both kinds of block, with and without rows of their own: more versions of one code than the usual limit.
    with torch._dynamo.config.patch(cache_size_limit=128):
        if not autotune:
            yield
            return
        with inductor.patch(max_autotune=True, coordinate_descent_tuning=True):
            yield


def _attention(transformer: Any, forward: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Seconds of one evaluation with each attention that runs here."""
    taken: dict[str, float] = {}
    if device.type != "cuda" or not hasattr(transformer, "set_attention_backend"):
        return taken
    for name in BACKENDS:
        try:
            transformer.set_attention_backend(name)
            taken[name] = seconds(forward, 3)
        except Exception:  # not installed, or not for this card; diffusers and the kernels raise what they like
            continue
    transformer.set_attention_backend("native")
    return taken


def _question(transformer: Any, device: torch.device, size: int, text: int) -> dict[str, Any]:
    """Inputs of one evaluation, of the right shapes."""
    config, dtype, side = transformer.config, transformer.dtype, size // 16

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device=device, dtype=dtype)

    rows = torch.arange(side, device=device, dtype=dtype)
    places = torch.zeros(side, side, 3, device=device, dtype=dtype)
    places[..., 1], places[..., 2] = rows[:, None], rows[None, :]
    return {
        "hidden_states": normal(1, side * side, config.in_channels),
        "encoder_hidden_states": normal(1, text, config.joint_attention_dim),
        "pooled_projections": normal(1, config.pooled_projection_dim),
        "timestep": torch.ones(1, device=device, dtype=dtype),
        "guidance": torch.full((1,), 3.5, device=device) if config.guidance_embeds else None,
        "img_ids": places.reshape(-1, 3),
        "txt_ids": torch.zeros(text, 3, device=device, dtype=dtype),
        "joint_attention_kwargs": {},  # what the pipeline hands over; for None everything would compile once more
        "return_dict": False,
    }


def seconds(call: Callable[[], Any], rounds: int = 5) -> float:
    """The median time of a call after two that warm up."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for _ in range(2):
        call()
    taken = []
    for _ in range(rounds):
        _wait(device)
        begun = time.perf_counter()
        call()
        _wait(device)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def matmul_ceiling(device: torch.device, dtype: torch.dtype = torch.bfloat16, side: int = 8192) -> float:
    """TFLOP/s of one large matrix product: what no evaluation can beat."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, 10) / 1e12


def share_of_ceiling(model: ModelSize, tokens: int, evaluation: float, ceiling: float) -> float:
    """How much of the matmul ceiling one evaluation reaches, 0 to 1."""
    return model.flop(tokens) / evaluation / 1e12 / ceiling


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
