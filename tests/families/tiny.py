"""Pipelines of other families from their real classes, with random weights and small enough to build in a second."""

from __future__ import annotations

import functools
from typing import Any

from tests.conftest import LETTERS, WORDS

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def seeded(make: Any) -> Any:
    """A function that makes a pipeline, with the weights of one seed and in evaluation mode."""

    @functools.wraps(make)
    def made(*args: Any, seed: int = 0, **kwargs: Any) -> Any:
        import torch

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipe = make(*args, **kwargs)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval()
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return made


def qwen_tokenizer() -> Any:
    """A tokenizer of Qwen's class with a chat template; words fall apart into bytes or a few known pieces."""
    from transformers import Qwen2Tokenizer

    symbols = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {symbol: index for index, symbol in enumerate(symbols)}
    for letter in [*LETTERS, *LETTERS.upper(), "Ġ", "Ċ"]:
        vocabulary.setdefault(letter, len(vocabulary))
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        for built, *rest in ([*word], ["Ġ", *word]):
            for piece in rest:
                merges[built, piece] = None
                built += piece
                vocabulary.setdefault(built, len(vocabulary))
    made = Qwen2Tokenizer(vocab=vocabulary, merges=[*merges], model_max_length=512)
    made.chat_template = CHAT
    return made


def qwen(vocabulary: int, width: int = 16, layers: int = 28) -> Any:
    """A Qwen3 language model; klein reads its layers 9, 18 and 27."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=512,
        )
    )


def scheduler(**config: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**config)


def vae(channels: int = 16, size: int = 64, **config: Any) -> Any:
    """An f8 AutoencoderKL."""
    from diffusers import AutoencoderKL

    blocks = {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": size}
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    scale = {"scaling_factor": 0.36, "shift_factor": 0.12, "use_quant_conv": False, "use_post_quant_conv": False}
    return AutoencoderKL(latent_channels=channels, **{**blocks, **kinds, **scale, **config})


def flux2_vae() -> Any:
    """An AutoencoderKLFlux2 with statistics of its batch norm that are not the trivial ones."""
    import torch
    from diffusers import AutoencoderKLFlux2

    made = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=32, sample_size=64
    )
    made.bn.running_mean.copy_(torch.randn(128) / 4)
    made.bn.running_var.copy_(torch.rand(128) + 0.5)
    return made


@seeded
def klein(*, distilled: bool) -> Any:
    """A Flux2KleinPipeline; its schedule is shifted by size and steps as the published one's."""
    from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel

    tokenizer = qwen_tokenizer()
    transformer = Flux2Transformer2DModel(
        in_channels=128,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=48,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    )
    return Flux2KleinPipeline(
        scheduler=scheduler(use_dynamic_shifting=True, time_shift_type="exponential"),
        vae=flux2_vae(),
        text_encoder=qwen(len(tokenizer)),
        tokenizer=tokenizer,
        transformer=transformer,
        is_distilled=distilled,
    )


@seeded
def z_image(*, turbo: bool) -> Any:
    """A ZImagePipeline; Turbo differs from base by its name."""
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        dim=48,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 8, 8],
        axes_lens=[512, 64, 64],
    )
    pipe = ZImagePipeline(
        scheduler=scheduler(shift=3.0 if turbo else 6.0),
        vae=vae(),
        text_encoder=qwen(len(tokenizer), layers=2),
        tokenizer=tokenizer,
        transformer=transformer,
    )
    pipe.register_to_config(_name_or_path="Tongyi-MAI/Z-Image-Turbo" if turbo else "Tongyi-MAI/Z-Image")
    return pipe


# The four models of the two families, as their users call them.
PIPELINES: dict[str, Any] = {
    "klein": functools.partial(klein, distilled=True),
    "klein-base": functools.partial(klein, distilled=False),
    "z-image": functools.partial(z_image, turbo=False),
    "z-image-turbo": functools.partial(z_image, turbo=True),
}
