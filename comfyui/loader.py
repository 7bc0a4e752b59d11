"""FluxnbLoader: pocket as MODEL, CLIP and VAE.

The loaders of ComfyUI fix the sizes of FLUX.1. Here ComfyUI's own network class is built with pocket's sizes, and the
text encoders and the VAE are fluxnb's, with the methods that ComfyUI's nodes call.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import comfy.latent_formats
import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import torch

import fluxnb as fnb
from fluxnb.io.packaged import packaged_defaults

__all__ = ["FluxnbLoader", "PocketText", "PocketVAE"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# SaveImage rounds down where fluxnb rounds to nearest; a quarter of a level makes both write the same byte.
ABOVE_LEVEL = 0.25 / 255


class FluxnbLoader:
    """Load pocket or pocket-base, which are part of the package fluxnb."""

    CATEGORY = "fluxnb"
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    DESCRIPTION = "Loads pocket, a small FLUX model that is part of the package fluxnb."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The widgets of the node."""
        return {
            "required": {
                "model_name": (["pocket", "pocket-base"], {}),
                "max_sequence_length": ("INT", {"default": _default_tokens(), "min": 1, "max": 512}),
                "dtype": (list(DTYPES), {"default": "float32"}),
            },
            "optional": {"revision": ("STRING", {"default": ""})},
        }

    def load(
        self, model_name: str, max_sequence_length: int, dtype: str, revision: str = ""
    ) -> tuple[Any, PocketText, PocketVAE]:
        """MODEL, CLIP and VAE.

        Arguments:
            model_name: "pocket", distilled for 1 to 4 steps at cfg 1, or "pocket-base", for 28 steps and a cfg
                above 1.
            max_sequence_length: tokens to which prompts are padded or cut; that of the model by default.
            dtype: number format of the weights.
            revision: of the weights that a picture was made with; a warning is logged for another one.
        """
        flux = fnb.load(model_name, dtype=dtype)
        if revision and revision != flux.revision:
            logging.warning(
                "fluxnb: the graph was made with revision %s of %s, and %s is installed; pictures may differ.",
                revision[:40],
                model_name,
                flux.revision,
            )
        return _model(flux, DTYPES[dtype]), PocketText(flux, max_sequence_length), PocketVAE(flux)


def _default_tokens() -> int:
    """The text length of pocket, as on its card."""
    return int(packaged_defaults("pocket").get("max_sequence_length", 256))


def _model(flux: fnb.Flux, dtype: torch.dtype) -> Any:
    """ComfyUI's network with the weights of a pipeline's transformer."""
    transformer = flux.pipe.transformer
    weights = {name: tensor.detach().to("cpu", dtype) for name, tensor in transformer.state_dict().items()}
    config = comfy.supported_models.FluxSchnell(_sizes(transformer.config))
    config.latent_format = _latent_format(flux)
    config.set_inference_dtype(dtype, None)
    converted = comfy.model_detection.convert_diffusers_mmdit(weights, "")
    model = config.get_model(converted, "")
    if unknown := set(converted) ^ set(model.diffusion_model.state_dict()):
        raise RuntimeError(
            f"fluxnb: {sorted(unknown)[0]} is a weight of pocket or of ComfyUI's network, and not of both: the two "
            "versions do not fit. Update ComfyUI and fluxnb."
        )
    model.load_model_weights(converted, "")
    return comfy.model_patcher.ModelPatcher(
        model,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )


def _sizes(config: Any) -> dict[str, Any]:
    """The configuration of diffusers in the names of ComfyUI."""
    channels = config["in_channels"] // 4  # a token holds 2 x 2 latent cells
    return {
        "image_model": "flux",
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": 2,
        "vec_in_dim": config["pooled_projection_dim"],
        "context_in_dim": config["joint_attention_dim"],
        "hidden_size": config["attention_head_dim"] * config["num_attention_heads"],
        "mlp_ratio": 4.0,
        "num_heads": config["num_attention_heads"],
        "depth": config["num_layers"],
        "depth_single_blocks": config["num_single_layers"],
        "axes_dim": list(config["axes_dims_rope"]),
        "theta": 10000,
        "qkv_bias": True,
        "guidance_embed": bool(config["guidance_embeds"]),
    }


def _latent_format(flux: fnb.Flux) -> Any:
    """The scale of pocket's latents, and the linear preview that ComfyUI displays while it samples."""
    vae, preview, made = flux.pipe.vae.config, flux.preview, comfy.latent_formats.Flux()
    made.scale_factor = vae.get("scaling_factor") or 1.0
    made.shift_factor = vae.get("shift_factor") or 0.0
    made.taesd_decoder_name = None
    made.latent_rgb_factors = made.latent_rgb_factors_bias = None
    if preview is not None:  # ComfyUI's colors are -1 to 1
        columns = zip(*preview.weight, strict=True)
        made.latent_rgb_factors = [[2 * weight for weight in column] for column in columns]
        made.latent_rgb_factors_bias = [2 * bias - 1 for bias in preview.bias]
    return made


class PocketText:
    """The text encoders of pocket, as far as ComfyUI's text nodes call them.

    A prompt is text: weights in brackets have no effect, and escaped brackets are brackets.
    """

    def __init__(self, flux: fnb.Flux, tokens: int) -> None:
        self.flux, self.tokens = flux, tokens

    def clone(self) -> PocketText:
        """An equal encoder."""
        return PocketText(self.flux, self.tokens)

    def set_tokenizer_option(self, name: str, value: int) -> None:
        """Accept the option "t5xxl_min_length" of T5TokenizerOptions."""
        if name == "t5xxl_min_length" and value:
            self.tokens = value

    def tokenize(self, text: str, **_: Any) -> str:
        """The text without ComfyUI's escapes; it is tokenized when it is encoded."""
        return text.replace("\\(", "(").replace("\\)", ")")

    @torch.no_grad()
    def encode_from_tokens_scheduled(self, tokens: str, **_: Any) -> list[list[Any]]:
        """The conditioning of a text: T5's sequence and CLIP's pooled vector."""
        with self.flux.lock:
            embeds, pooled, _ = self.flux.pipe.encode_prompt(
                prompt=tokens, prompt_2=None, max_sequence_length=self.tokens, device=self.flux.device
            )
        return [[embeds.float().cpu(), {"pooled_output": pooled.float().cpu()}]]


class PocketVAE:
    """The VAE of pocket, as far as ComfyUI's nodes for latents call it."""

    def __init__(self, flux: fnb.Flux) -> None:
        self.flux = flux
        config = flux.pipe.vae.config
        self._scale, self._shift = config.get("scaling_factor") or 1.0, config.get("shift_factor") or 0.0

    def decode(self, latents: torch.Tensor, **_: Any) -> torch.Tensor:
        """Pictures (n, h, w, 3), 0 to 1, whose bytes are those of fluxnb."""
        import numpy

        pictures = self.flux.decode((latents - self._shift) * self._scale)
        stacked = torch.from_numpy(numpy.stack([numpy.asarray(picture) for picture in pictures]))
        return (stacked.float() / 255 + ABOVE_LEVEL).clamp(max=1.0)

    decode_tiled = decode  # its pictures are small

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents (n, 16, h/8, w/8) of pictures (n, h, w, 3), 0 to 1."""
        vae = self.flux.pipe.vae
        pictures = pixels[..., :3].movedim(-1, 1).to(device=self.flux.device, dtype=vae.dtype) * 2 - 1
        return vae.encode(pictures).latent_dist.mean.float().cpu()

    @functools.cached_property
    def first_stage_model(self) -> Any:
        """The module, for nodes that read its attributes."""
        return self.flux.pipe.vae
