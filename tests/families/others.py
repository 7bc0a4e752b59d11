"""Other text-to-image pipelines of diffusers from their real classes, tiny, with random weights and embeddings.

They have no text encoders: each entry gives the embeddings that its pipeline takes instead of a prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.families.tiny import flux2_vae, scheduler, seeded, vae

WIDTH_OF_TEXT = 32
LENGTH = 8  # text tokens


def text(*shape: int, seed: int = 7) -> Any:
    import torch

    return torch.randn(*(shape or (1, LENGTH, WIDTH_OF_TEXT)), generator=torch.Generator().manual_seed(seed))


def ones(*shape: int) -> Any:
    import torch

    return torch.ones(shape or (1, LENGTH), dtype=torch.bool)


def dc_ae() -> Any:
    """An f32 AutoencoderDC with 32 channels."""
    from diffusers import AutoencoderDC

    blocks = ("ResBlock",) * 6
    return AutoencoderDC(
        latent_channels=32,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(4, 4, 8, 8, 8, 32),
        decoder_block_out_channels=(4, 4, 8, 8, 8, 32),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        upsample_block_type="interpolate",
        downsample_block_type="stride_conv",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41,
    )


def qwen_vae() -> Any:
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def sana_transformer(**config: Any) -> Any:
    from diffusers import SanaTransformer2DModel

    return SanaTransformer2DModel(
        in_channels=32,
        out_channels=32,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH_OF_TEXT,
        sample_size=4,
        **config,
    )


@seeded
def sd3() -> Any:
    from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline

    transformer = SD3Transformer2DModel(
        sample_size=8,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH_OF_TEXT,
        caption_projection_dim=16,
        pooled_projection_dim=32,
    )
    encoders = {f"{kind}{n}": None for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")}
    return StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler(shift=3.0), vae=vae(), **encoders)


@seeded
def sana(kind: str = "euler") -> Any:
    from diffusers import DPMSolverMultistepScheduler, SanaPipeline

    steps = scheduler(shift=3.0)
    if kind == "multistep":
        steps = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, algorithm_type="dpmsolver++"
        )
    return SanaPipeline(tokenizer=None, text_encoder=None, vae=dc_ae(), transformer=sana_transformer(), scheduler=steps)


@seeded
def sana_sprint() -> Any:
    from diffusers import SanaSprintPipeline, SCMScheduler

    transformer = sana_transformer(guidance_embeds=True, qk_norm="rms_norm_across_heads", timestep_scale=1000.0)
    return SanaSprintPipeline(
        tokenizer=None, text_encoder=None, vae=dc_ae(), transformer=transformer, scheduler=SCMScheduler()
    )


@seeded
def lumina2() -> Any:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    transformer = Lumina2Transformer2DModel(
        sample_size=8,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=1,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(8, 8, 8),
        axes_lens=(64, 16, 16),
        cap_feat_dim=WIDTH_OF_TEXT,
    )
    return Lumina2Pipeline(
        transformer=transformer, scheduler=scheduler(shift=6.0), vae=vae(), text_encoder=None, tokenizer=None
    )


@seeded
def qwen_image() -> Any:
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH_OF_TEXT,
        axes_dims_rope=(4, 6, 6),
    )
    steps = scheduler(use_dynamic_shifting=True, shift_terminal=0.02)
    return QwenImagePipeline(
        scheduler=steps, vae=qwen_vae(), text_encoder=None, tokenizer=None, transformer=transformer
    )


@seeded
def prx() -> Any:
    from diffusers import PRXPipeline, PRXTransformer2DModel

    transformer = PRXTransformer2DModel(
        context_in_dim=WIDTH_OF_TEXT, hidden_size=32, num_heads=2, depth=1, axes_dim=[8, 8]
    )
    return PRXPipeline(
        transformer=transformer, scheduler=scheduler(shift=3.0), text_encoder=None, tokenizer=None, vae=vae()
    )


@seeded
def krea2() -> Any:
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel

    transformer = Krea2Transformer2DModel(
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=WIDTH_OF_TEXT,
        num_text_layers=2,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    return Krea2Pipeline(
        scheduler=scheduler(use_dynamic_shifting=True),
        vae=qwen_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        text_encoder_select_layers=(1, 2),
    )


@seeded
def ernie_image() -> Any:
    from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel

    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=128,
        out_channels=128,
        text_in_dim=WIDTH_OF_TEXT,
        rope_axes_dim=(4, 6, 6),
    )
    return ErnieImagePipeline(
        transformer=transformer, vae=flux2_vae(), text_encoder=None, tokenizer=None, scheduler=scheduler(shift=3.0)
    )


@seeded
def aura_flow() -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

    transformer = AuraFlowTransformer2DModel(
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH_OF_TEXT,
        caption_projection_dim=32,
        pos_embed_max_size=256,
    )
    return AuraFlowPipeline(
        tokenizer=None, text_encoder=None, vae=vae(4), transformer=transformer, scheduler=scheduler(shift=1.73)
    )


@seeded
def cog_view4() -> Any:
    from diffusers import CogView4Pipeline, CogView4Transformer2DModel

    transformer = CogView4Transformer2DModel(
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=4,
        text_embed_dim=WIDTH_OF_TEXT,
        time_embed_dim=16,
        condition_dim=8,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    steps = scheduler(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear")
    return CogView4Pipeline(tokenizer=None, text_encoder=None, vae=vae(), transformer=transformer, scheduler=steps)


@seeded
def chroma() -> Any:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    transformer = ChromaTransformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH_OF_TEXT,
        axes_dims_rope=(4, 6, 6),
        approximator_hidden_dim=32,
        approximator_layers=1,
    )
    return ChromaPipeline(scheduler=scheduler(), vae=vae(), text_encoder=None, tokenizer=None, transformer=transformer)


@seeded
def flux2() -> Any:
    from diffusers import Flux2Pipeline, Flux2Transformer2DModel

    transformer = Flux2Transformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH_OF_TEXT,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
    )
    steps = scheduler(use_dynamic_shifting=True)
    return Flux2Pipeline(scheduler=steps, vae=flux2_vae(), text_encoder=None, tokenizer=None, transformer=transformer)


def _unet_pipeline(**config: Any) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH_OF_TEXT,
        attention_head_dim=4,
        norm_num_groups=4,
        **config,
    )
    return {"unet": unet, "vae": vae(4)}


@seeded
def stable_diffusion() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline

    return StableDiffusionPipeline(
        **_unet_pipeline(),
        scheduler=EulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@seeded
def wan() -> Any:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=WIDTH_OF_TEXT,
        freq_dim=16,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    steps = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    autoencoder = AutoencoderKLWan(
        base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return WanPipeline(tokenizer=None, text_encoder=None, vae=autoencoder, transformer=transformer, scheduler=steps)


@seeded
def flux3(*, distilled: bool) -> Any:
    """A modular FLUX 3 pipeline without its prompt upsampler and its text encoder."""
    from diffusers import Flux3Transformer2DModel
    from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3AutoBlocks
    from diffusers.modular_pipelines.flux3.modular_blocks_flux3_distilled import Flux3DistilledAutoBlocks

    blocks = Flux3DistilledAutoBlocks() if distilled else Flux3AutoBlocks()
    for block in ("prompt_upsampler", "text_encoder"):
        blocks.sub_blocks.pop(block)
    transformer = Flux3Transformer2DModel(
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH_OF_TEXT,
        timestep_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        flow_map=distilled,
    )
    pipe = blocks.init_pipeline()
    pipe.update_components(transformer=transformer, vae=flux2_vae(), scheduler=scheduler(shift=6.93))
    return pipe


# Name in the table, class of the pipeline, what builds it, and the arguments of a call beside size and steps.
Call = Callable[[], dict[str, Any]]
OTHERS: dict[str, tuple[str, Callable[[], Any], Call]] = {
    "SD 3, SD 3.5": (
        "StableDiffusion3Pipeline",
        sd3,
        lambda: {
            "prompt_embeds": text(),
            "pooled_prompt_embeds": text(1, 32),
            "negative_prompt_embeds": text(seed=8),
            "negative_pooled_prompt_embeds": text(1, 32, seed=8),
        },
    ),
    "Sana (Euler)": ("SanaPipeline", sana, lambda: _masked(use_resolution_binning=False, negative_prompt=None)),
    "Sana (multistep)": (
        "SanaPipeline",
        lambda: sana("multistep"),
        lambda: _masked(use_resolution_binning=False, negative_prompt=None),
    ),
    "Sana-Sprint": (
        "SanaSprintPipeline",
        sana_sprint,
        lambda: {
            "prompt_embeds": text(),
            "prompt_attention_mask": ones(),
            "use_resolution_binning": False,
            "num_inference_steps": 2,
        },
    ),
    "Lumina 2": ("Lumina2Pipeline", lumina2, lambda: _masked()),
    "Qwen-Image": (
        "QwenImagePipeline",
        qwen_image,
        lambda: {
            "prompt_embeds": text(),
            "prompt_embeds_mask": ones(),
            "negative_prompt_embeds": text(seed=8),
            "negative_prompt_embeds_mask": ones(),
        },
    ),
    "PRX": ("PRXPipeline", prx, lambda: _masked(use_resolution_binning=False)),
    "Krea 2": (
        "Krea2Pipeline",
        krea2,
        lambda: {
            "prompt_embeds": text(1, LENGTH, 2, WIDTH_OF_TEXT),
            "prompt_embeds_mask": ones(),
            "negative_prompt_embeds": text(1, LENGTH, 2, WIDTH_OF_TEXT, seed=8),
            "negative_prompt_embeds_mask": ones(),
        },
    ),
    "ERNIE-Image": (
        "ErnieImagePipeline",
        ernie_image,
        lambda: {
            "prompt_embeds": [text(LENGTH, WIDTH_OF_TEXT)],
            "negative_prompt_embeds": [text(LENGTH, WIDTH_OF_TEXT, seed=8)],
            "use_pe": False,
        },
    ),
    "AuraFlow": ("AuraFlowPipeline", aura_flow, lambda: _masked()),
    "CogView 4": (
        "CogView4Pipeline",
        cog_view4,
        lambda: {"prompt_embeds": text(1, 16, 32), "negative_prompt_embeds": text(1, 16, 32, seed=8)},
    ),
    "Chroma": ("ChromaPipeline", chroma, lambda: _masked()),
    "FLUX.2 dev": ("Flux2Pipeline", flux2, lambda: {"prompt_embeds": text()}),
    "FLUX 3 (modular)": (
        "Flux3ModularPipeline",
        lambda: flux3(distilled=False),
        lambda: {"prompt_embeds": text(), "negative_prompt_embeds": text(seed=8), "output": "images"},
    ),
    "FLUX 3, distilled (modular)": (
        "Flux3DistilledModularPipeline",
        lambda: flux3(distilled=True),
        lambda: {"prompt_embeds": text(), "output": "images"},
    ),
    "Stable Diffusion 1.5": (
        "StableDiffusionPipeline",
        stable_diffusion,
        lambda: {"prompt_embeds": text(), "negative_prompt_embeds": text(seed=8)},
    ),
    "Wan (video)": (
        "WanPipeline",
        wan,
        lambda: {"prompt_embeds": text(), "negative_prompt_embeds": text(seed=8), "num_frames": 5},
    ),
}


def _masked(**more: Any) -> dict[str, Any]:
    return {
        "prompt_embeds": text(),
        "prompt_attention_mask": ones(),
        "negative_prompt_embeds": text(seed=8),
        "negative_prompt_attention_mask": ones(),
        **more,
    }
