"""FLUX.2 [klein]: a small model whose teacher, "base", is public beside the distilled student.

The VAE encodes 8 x 8 pixels as a cell of 32 channels; 2 x 2 cells are one token of 128 numbers, which a batch norm
without learned weights standardizes. Prompts are read by Qwen3 from inside a chat template; three of its hidden layers
are the embedding. The schedule's shift depends on the size and on the number of steps, so that schedules of different
step counts share sigma 1 and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from fluxnb.families.family import Family, Guidance, Limit, Model
from fluxnb.families.flux1 import even, tokens_of_noise
from fluxnb.records import Geometry, Pair

__all__ = ["KLEIN", "qwen_limit"]

# Default arguments of Flux2KleinPipeline and the model cards of FLUX.2-klein-base-4B and FLUX.2-klein-4B.
BASE = {"steps": 50, "guidance_kind": "true_cfg", "guidance": 4.0, "max_sequence_length": 512}
DISTILLED = {"steps": 4, "max_sequence_length": 512}


def encode(pipe: Any, prompt: str, length: int, device: torch.device) -> tuple[Tensor, None]:
    """The hidden layers of Qwen3 side by side (1, length, 3 D) for one prompt."""
    embeds, _ = pipe.encode_prompt(prompt=prompt, max_sequence_length=length, device=device)
    return embeds, None


def qwen_limit(pipe: Any, prompt: str, length: int, *, thinking: bool) -> tuple[Limit, ...]:
    """The limit of a Qwen3 encoder, whose tokens hold the chat template as well."""
    template = getattr(pipe.tokenizer, "apply_chat_template", None)
    text = prompt
    if template is not None and getattr(pipe.tokenizer, "chat_template", None):
        messages = [{"role": "user", "content": prompt}]
        text = template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
    return (Limit(encoder="Qwen3", tokenizer=pipe.tokenizer, tokens=length, text=text),)


def limits(pipe: Any, prompt: str, length: int) -> tuple[Limit, ...]:
    """Qwen3 reads `length` tokens, of which about fifteen are the template's."""
    return qwen_limit(pipe, prompt, length, thinking=False)


def given_latents(x: Tensor, height: int, width: int) -> Tensor:
    """Tokens as the pipeline takes them: (batch, 128, h/16, w/16)."""
    pixels = KLEIN.geometry.pixels
    return rearrange(x, "b (h w) c -> b c h w", h=height // pixels, w=width // pixels)


def to_vae(vae: Any, latents: Tensor) -> Tensor:
    """Latents as the VAE decodes them, with the mean and the deviation of its batch norm."""
    z = _packed(latents)
    mean, deviation = _statistics(vae, z)
    return _unpacked(z * deviation + mean)


def from_vae(vae: Any, encoded: Tensor) -> Tensor:
    """What the VAE encoded, standardized by its batch norm."""
    z = _packed(encoded)
    mean, deviation = _statistics(vae, z)
    return _unpacked((z - mean) / deviation)


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    # In the order of Flux2KleinPipeline; another order may change the last bit.
    mean = vae.bn.running_mean.view(1, -1, 1, 1).to(like.device, like.dtype)
    deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    return mean, deviation.to(like.device, like.dtype)


def _packed(latents: Tensor) -> Tensor:
    return rearrange(latents, "... c (h ph) (w pw) -> ... (c ph pw) h w", ph=2, pw=2)


def _unpacked(packed: Tensor) -> Tensor:
    return rearrange(packed, "... (c ph pw) h w -> ... c (h ph) (w pw)", ph=2, pw=2)


def distilled(pipe: Any) -> bool:
    """Whether the network takes no guidance according to the pipeline's configuration."""
    return bool(getattr(pipe.config, "is_distilled", False))


def configured(pipe: Any) -> dict[str, Any]:
    """Defaults by configuration: those of the student where the pipeline is distilled."""
    return dict(DISTILLED if distilled(pipe) else BASE)


KLEIN = Family(
    name="FLUX.2 klein",
    pipelines=("Flux2KleinPipeline",),
    since="0.39",
    geometry=Geometry(channels=32, cell=8, patch=2, layout="tokens"),
    even=even,
    shift="by size and steps",
    guidance=Guidance(argument="guidance_scale", off=1.0, negative=""),
    encoders=("text_encoder", "tokenizer"),
    components={
        "transformer": ("diffusers", "Flux2Transformer2DModel"),
        "vae": ("diffusers", "AutoencoderKLFlux2"),
        "scheduler": ("diffusers", r"\w+Scheduler"),
        "text_encoder": ("transformers", "Qwen3ForCausalLM"),
        "tokenizer": ("transformers", "Qwen2Tokenizer(Fast)?"),
    },
    models={
        "klein": Model(repo="black-forest-labs/FLUX.2-klein-4B", defaults=DISTILLED),
        "klein-base": Model(repo="black-forest-labs/FLUX.2-klein-base-4B", defaults=BASE),
    },
    # How the student was distilled is not published: nothing is promised about its map.
    pairs=(Pair(teacher="klein-base", student="klein", kind="distribution"),),
    encode=encode,
    limits=limits,
    noise=tokens_of_noise,
    given_latents=given_latents,
    to_vae=to_vae,
    from_vae=from_vae,
    configured=configured,
)
