"""The toy pipeline: a real FluxPipeline of real classes, small enough to build in a blink, with random weights.

Everything that imports torch happens inside the fixtures, so that the shape checks of pytest are in place first.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# No deadline: how long a test takes says how busy the machine is. No database: the tree stays as it was.
settings.register_profile("fluxnb", deadline=None, database=None)
settings.load_profile("fluxnb")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test never asks the network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_ASSETS_CACHE"] = tempfile.mkdtemp(prefix="fluxnb-tests-")  # and keeps nothing in anybody's cache

WORDS = ("a", "an", "the", "fox", "cat", "dog", "snow", "red", "blue", "in", "on", "holding", "sign", "says", "hello")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'\"-"


def pytest_configure(config: pytest.Config) -> None:
    """An incomplete record fails a test that does not expect one."""
    config.addinivalue_line("filterwarnings", "error::fluxnb.sampling.recording.RecordingWarning")


def toy_tokenizers(length: int = 48) -> tuple[Any, Any]:
    """CLIP's and T5's own tokenizer classes; a word they lack falls apart into letters."""
    from transformers import CLIPTokenizer, T5Tokenizer

    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1, "<unk>": 2}
    for letter in LETTERS:
        vocabulary[letter] = len(vocabulary)
        vocabulary[f"{letter}</w>"] = len(vocabulary)
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS:
        built, *rest = [*word[:-1], f"{word[-1]}</w>"]
        for piece in rest:
            merges[built, piece] = None
            built += piece
            vocabulary.setdefault(built, len(vocabulary))
    clip = CLIPTokenizer(vocab=vocabulary, merges=list(merges), unk_token="<unk>", model_max_length=length)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -3.0) for word in WORDS] + [(letter, -6.0) for letter in LETTERS]
    return clip, T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)


def toy_pipeline(*, seed: int = 0, guidance_embeds: bool = False, size: int = 64, length: int = 48) -> Any:
    """A FluxPipeline with 1 + 1 blocks of width 32, an f8 VAE with 16 channels, and text encoders of width 32.

    Arguments:
        seed: of the random weights.
        guidance_embeds: True for dev's kind of guidance, False for schnell's none.
        size: the VAE's sample_size, from which fluxnb takes the default picture size.
        length: text tokens that both tokenizers take.
    """
    import torch
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    tokenizer, tokenizer_2 = toy_tokenizers(length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {
            "transformer": FluxTransformer2DModel(
                in_channels=64,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                guidance_embeds=guidance_embeds,
                axes_dims_rope=(4, 6, 6),
            ),
            "vae": AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(8, 8, 8, 8),
                layers_per_block=1,
                latent_channels=16,
                norm_num_groups=4,
                sample_size=size,
                scaling_factor=0.36,
                shift_factor=0.12,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
            "text_encoder": CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=32,
                    intermediate_size=64,
                    projection_dim=32,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    max_position_embeddings=length,
                    bos_token_id=0,
                    eos_token_id=1,
                    pad_token_id=1,
                )
            ),
            "text_encoder_2": T5EncoderModel(
                T5Config(
                    vocab_size=len(tokenizer_2),
                    d_model=32,
                    d_kv=16,
                    d_ff=64,
                    num_layers=1,
                    num_heads=2,
                    feed_forward_proj="gated-gelu",
                    dropout_rate=0.0,
                    is_encoder_decoder=False,
                    use_cache=False,
                )
            ),
        }
    for part in parts.values():
        part.eval()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), tokenizer=tokenizer, tokenizer_2=tokenizer_2, **parts
    )


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy pipeline saved in diffusers' layout; treat it as read-only, copy it to damage it."""
    folder = tmp_path_factory.mktemp("models") / "toy"
    toy_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_pipe() -> Any:
    """The plain diffusers pipeline, shared by the session; leave it as you found it."""
    pipe = toy_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def toy(toy_pipe: Any) -> Any:
    """The Flux handle around `toy_pipe`."""
    import fluxnb

    return fluxnb.load(toy_pipe)


@pytest.fixture(scope="session")
def toy_guided() -> Any:
    """A Flux handle guided by true CFG, as pocket-base is."""
    import fluxnb

    flux = fluxnb.load(toy_pipeline(seed=1))
    return flux.with_defaults(guidance_kind="true_cfg", guidance=2.5)


@pytest.fixture(scope="session")
def toy_trajectory(toy: Any) -> Any:
    """A finished four-step walk."""
    import fluxnb

    return fluxnb.run(toy, "a red fox in the snow", seed=3, steps=4)


@pytest.fixture
def other_noise_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Normal numbers in 16 bits differ from those in 32 bits, as in PyTorch 2.11."""
    import torch

    randn = torch.randn

    def drawn(*size: Any, **options: Any) -> Any:
        noise = randn(*size, **options)
        return noise if noise.dtype.itemsize > 2 else -noise

    with _drawing(drawn, monkeypatch):
        yield


@pytest.fixture
def same_noise_in_16_bits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Normal numbers in 16 bits are those in 32 bits, rounded: PyTorch 2.13 draws them so, and 2.11 is made to."""
    import torch

    from fluxnb.io.comfyui import draws_other_noise

    randn = torch.randn

    def drawn(*size: Any, dtype: Any = None, **options: Any) -> Any:
        in_16_bits = dtype is not None and dtype.itemsize == 2
        return randn(*size, dtype=torch.float32 if in_16_bits else dtype, **options).to(dtype)

    with _drawing(drawn, monkeypatch) if draws_other_noise() else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _drawing(randn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use this function as `torch.randn`; what fluxnb found out about the other one is forgotten."""
    from fluxnb.io.comfyui import draws_other_noise

    with monkeypatch.context() as patched:
        patched.setattr("torch.randn", randn)
        draws_other_noise.cache_clear()
        yield
    draws_other_noise.cache_clear()
