"""Z-Image and Z-Image-Turbo, a teacher and its student in the latent space of FLUX.1.

The transformer takes latents in space (16, h/8, w/8), in float32, and divides them into tokens of 2 x 2 cells by
itself. It is given 1 - sigma as the time and predicts the negative velocity, which the pipeline negates before the
scheduler sees it. Prompts are read by Qwen3 from inside a chat template; their embeddings have different lengths, so a
batch is a list.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fluxnb.families.family import Family, Guidance, Limit, Model
from fluxnb.families.flux1 import scaled_from_vae, scaled_to_vae
from fluxnb.families.klein import qwen_limit
from fluxnb.records import Geometry, Pair

__all__ = ["Z_IMAGE"]

# The model cards of Z-Image (28 to 50 steps, guidance_scale 3 to 5, which is a scale of 4 to 6) and Z-Image-Turbo.
BASE = {"steps": 50, "guidance_kind": "true_cfg", "guidance": 5.0, "max_sequence_length": 512}
TURBO = {"steps": 8, "max_sequence_length": 512}


def encode(pipe: Any, prompt: str, length: int, device: torch.device) -> tuple[list[Tensor], None]:
    """The second last hidden layer of Qwen3 for the tokens of one prompt, as a list of one (tokens, D)."""
    embeds, _ = pipe.encode_prompt(
        prompt=prompt, device=device, do_classifier_free_guidance=False, max_sequence_length=length
    )
    return embeds, None


def limits(pipe: Any, prompt: str, length: int) -> tuple[Limit, ...]:
    """Qwen3 reads `length` tokens, of which about ten are the template's."""
    return qwen_limit(pipe, prompt, length, thinking=True)


def noise(pipe: Any, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device, generators: Any) -> Tensor:
    """The noise of a call, drawn by the pipeline, which always takes float32."""
    channels = pipe.transformer.in_channels
    drawn: Tensor = pipe.prepare_latents(shape[0], channels, *shape[1:], torch.float32, device, generators)
    return drawn


def distilled(pipe: Any) -> bool:
    """Whether a pipeline is Turbo. The name that it was loaded from shows it; its configuration does not."""
    return "turbo" in str(getattr(pipe.config, "_name_or_path", "") or "").lower()


def configured(pipe: Any) -> dict[str, Any]:
    """Defaults by the name that a pipeline was loaded from."""
    return dict(TURBO if distilled(pipe) else BASE)


Z_IMAGE = Family(
    name="Z-Image",
    pipelines=("ZImagePipeline",),
    since="0.39",
    geometry=Geometry(channels=16, cell=8, patch=2, layout="spatial"),
    state_dtype="float32",
    # In float32, unlike those of FLUX.1: the levels differ in the last bit.
    even=lambda steps: torch.linspace(1.0, 1 / steps, steps).tolist(),
    guidance=Guidance(argument="guidance_scale", less=1.0, off=0.0),
    encoders=("text_encoder", "tokenizer"),
    components={
        "transformer": ("diffusers", "ZImageTransformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL|AutoencoderTiny"),
        "scheduler": ("diffusers", r"\w+Scheduler"),
        "text_encoder": ("transformers", "Qwen3(ForCausalLM|Model)"),
        "tokenizer": ("transformers", "Qwen2Tokenizer(Fast)?"),
    },
    # Both at their default only: a recipe has no field for them.
    expressed=frozenset({"cfg_normalization", "cfg_truncation"}),
    models={
        "z-image": Model(repo="Tongyi-MAI/Z-Image", defaults=BASE),
        "z-image-turbo": Model(repo="Tongyi-MAI/Z-Image-Turbo", defaults=TURBO),
    },
    pairs=(
        Pair(
            teacher="z-image", student="z-image-turbo", kind="distribution", method="Decoupled-DMD, then DMDR (reward)"
        ),
    ),
    encode=encode,
    limits=limits,
    noise=noise,
    given_latents=lambda x, height, width: x,
    to_vae=scaled_to_vae,
    from_vae=scaled_from_vae,
    configured=configured,
)
