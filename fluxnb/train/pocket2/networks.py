"""The networks of the second pocket, of the same classes as FLUX.1, and their files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5EncoderModel

from fluxnb.train.data.vocabulary import CLIP_TOKENS, clip_tokenizer, t5_tokenizer
from fluxnb.train.networks import build
from fluxnb.train.networks.denoiser import Denoiser
from fluxnb.train.pocket2.config import Sizes

#: positions of the tokens that a head of T5 prefers at first, relative to the token that attends.
DISTANCES = ((-1,), (1,), (-2,), (2,), range(-7, 0), range(1, 8), (-3,), (3,))
PREFERENCE = 3.0  # added to the logits


def build_autoencoder(sizes: Sizes) -> AutoencoderKL:
    """An untrained autoencoder with 16 latent channels and a downsampling by 8."""
    vae = build.build_autoencoder(sizes)
    vae.register_to_config(sample_size=sizes.default_size)
    return vae


def build_denoiser(sizes: Sizes) -> Denoiser:
    """An untrained teacher, initialized with adaLN-Zero as in DiT (2212.09748) and with `prefer_distances`."""
    clip = dataclasses.replace(sizes, text_tokens=CLIP_TOKENS)
    t5 = build.build_text_encoder_2(sizes, len(t5_tokenizer()))
    prefer_distances(t5)
    return Denoiser(
        build.build_text_encoder(clip, len(clip_tokenizer())),
        t5,
        build.build_transformer(sizes),
    )


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


@torch.no_grad()
def difference_by_order(t5: T5EncoderModel) -> float:
    """How much the token "fox" differs between a fox left of an owl and an owl left of a fox: one minus the cosine."""
    tokenizer, encodings = t5_tokenizer(), []
    for caption in ("a fox left of an owl", "an owl left of a fox"):
        ids = tokenizer(caption, return_tensors="pt").input_ids
        place = tokenizer.convert_ids_to_tokens(ids[0].tolist()).index("▁fox")
        encodings.append(t5(ids.to(t5.device))[0][0, place].double())
    return 1 - float(torch.cosine_similarity(*encodings, 0))


def save_denoiser(model: Denoiser, out: Path, name: str = "teacher") -> None:
    """Save transformer and text encoders in float16 as `out`/`name`.safetensors, atomically."""
    half = {key: tensor.detach().half().cpu().contiguous() for key, tensor in model.state_dict().items()}
    half.pop("text_encoder_2.encoder.embed_tokens.weight", None)  # the same tensor as `shared`
    save_file(half, out / f"{name}.part")
    (out / f"{name}.part").rename(out / f"{name}.safetensors")


def with_more_blocks(weights: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """Weights of a network with `count` single blocks that computes what one with fewer blocks computes.

    Each added block follows the one that it is a copy of. Its last layer is zero, so that at first it passes its input
    on, and it has gradients because its gate is not (block expansion, 2401.02415). A network with `count` blocks or
    more is returned as it is.
    """
    start = "transformer.single_transformer_blocks."
    inside = {name: tensor for name, tensor in weights.items() if name.startswith(start)}
    has = 1 + max(int(name.removeprefix(start).split(".")[0]) for name in inside)
    if has >= count:
        return weights
    grown = {name: tensor for name, tensor in weights.items() if name not in inside}
    origins = [index * has // count for index in range(count)]
    for index, origin in enumerate(origins):
        added = origin in origins[:index]
        for name, tensor in inside.items():
            number, rest = name.removeprefix(start).split(".", 1)
            if int(number) == origin:
                zero = added and rest.startswith("proj_out.")
                grown[f"{start}{index}.{rest}"] = torch.zeros_like(tensor) if zero else tensor.clone()
    return grown


def load_denoiser(sizes: Sizes, file: Path) -> Denoiser:
    """Load a file of `save_denoiser` in float32, in evaluation mode.

    A file with fewer single blocks is extended by blocks that change nothing until they are trained.
    """
    model = build_denoiser(sizes)
    weights = with_more_blocks({k: t.float() for k, t in load_file(file).items()}, sizes.single_blocks)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"text_encoder_2.encoder.embed_tokens.weight"}:
        raise ValueError(
            f"{file} has weights of another network: missing {missing}, unexpected {unexpected}. "
            "Use the preset with which it was trained (--preset)."
        )
    return model.eval()
