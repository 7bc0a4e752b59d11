"""Untrained networks of a pocket pipeline, of the same classes as FLUX.1's, in the sizes of a `Sizes`."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from fluxnb.train.config import Sizes
from fluxnb.train.data.vocabulary import CLIP_TOKENS, clip_tokenizer, t5_tokenizer

#: positions of the tokens that a head of T5 prefers at first, relative to the token that attends.
DISTANCES = ((-1,), (1,), (-2,), (2,), range(-7, 0), range(1, 8), (-3,), (3,))
PREFERENCE = 3.0  # added to the logits


def build_autoencoder(sizes: Sizes) -> AutoencoderKL:
    """An autoencoder that downsamples by 8 to 16 channels; `whiten` is folded into its two 1x1 convolutions."""
    depth = len(sizes.vae_channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=sizes.vae_channels,
        layers_per_block=1,
        latent_channels=sizes.latent_channels,
        norm_num_groups=8,
        sample_size=sizes.default_size,
        scaling_factor=1.0,
        shift_factor=0.0,
        use_quant_conv=True,
        use_post_quant_conv=True,
    )


@torch.no_grad()
def whiten(vae: AutoencoderKL, mean: torch.Tensor, std: torch.Tensor) -> None:
    """Normalize each latent channel to mean 0 and variance 1 by changing the 1x1 convolutions; pictures stay the same.

    A rectified flow starts from unit noise and works best with data of unit variance. A single scaling factor for all
    channels would leave their variances unequal.

    Arguments:
        vae: the autoencoder, changed in place.
        mean, std: the current moments of each latent channel, (16,).
    """
    channels = len(mean)
    vae.quant_conv.weight[:channels] /= std[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / std
    vae.quant_conv.bias[channels:] -= 2 * std.log()  # log variances of the same posterior
    vae.post_quant_conv.bias += (vae.post_quant_conv.weight[:, :, 0, 0] * mean).sum(1)
    vae.post_quant_conv.weight *= std[None, :, None, None]


def build_transformer(sizes: Sizes) -> FluxTransformer2DModel:
    """FLUX's transformer with the zero initialization of adaLN-Zero (DiT, 2212.09748), absent from diffusers."""
    model = FluxTransformer2DModel(
        in_channels=4 * sizes.latent_channels,
        num_layers=sizes.double_blocks,
        num_single_layers=sizes.single_blocks,
        attention_head_dim=sizes.head_dim,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.text_width,
        pooled_projection_dim=sizes.pooled_width,
        guidance_embeds=False,
        axes_dims_rope=sizes.rope_axes,
    )
    zero: list[nn.Module] = [model.proj_out, model.norm_out.linear]
    for block in model.transformer_blocks:
        zero += [block.norm1.linear, block.norm1_context.linear]
    zero += [block.norm.linear for block in model.single_transformer_blocks]
    for linear in zero:
        for parameter in linear.parameters():
            nn.init.zeros_(parameter)
    return model


def build_text_encoder(sizes: Sizes) -> CLIPTextModel:
    """CLIP's text model; FLUX uses its pooled vector only."""
    config = CLIPTextConfig(
        vocab_size=len(clip_tokenizer()),
        hidden_size=sizes.pooled_width,
        intermediate_size=3 * sizes.pooled_width,
        projection_dim=sizes.pooled_width,
        num_hidden_layers=sizes.pooled_layers,
        num_attention_heads=sizes.pooled_width // 32,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=0,
        eos_token_id=1,  # not 2, which selects an older pooling rule in transformers
        pad_token_id=1,
    )
    return CLIPTextModel(config)


def build_text_encoder_2(sizes: Sizes) -> T5EncoderModel:
    """T5's encoder, initialized with `prefer_distances`; FLUX uses one vector per token."""
    config = T5Config(
        vocab_size=len(t5_tokenizer()),
        d_model=sizes.text_width,
        d_kv=32,
        d_ff=5 * sizes.text_width // 2,
        num_layers=sizes.text_layers,
        num_heads=sizes.text_width // 32,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    encoder = T5EncoderModel(config)
    prefer_distances(encoder)
    return encoder


@torch.no_grad()
def prefer_distances(t5: T5EncoderModel) -> None:
    """Let each head of an untrained T5 prefer one of `DISTANCES`, so that the order of words counts from the beginning.

    T5 has no positions but a learned bias per head and distance (1910.10683). It starts near zero, so that the
    products of queries and keys soon outweigh it.
    """
    bias = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    past = bias.num_embeddings // 2  # distances to the left come first, and those below 8 have a number each
    for head, distances in zip(range(bias.embedding_dim), DISTANCES, strict=False):
        for distance in distances:
            bias.weight[-distance if distance < 0 else past + distance, head] += PREFERENCE


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """FLUX.1-schnell's scheduler: Euler steps without a shift."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a network."""
    return sum(parameter.numel() for parameter in module.parameters())
