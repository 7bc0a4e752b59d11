"""Model size: number of weights by part, and arithmetic per evaluation, computed from the configuration files.

No weights are loaded and no model library is imported, so that a plan is made before 34 GB are downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxnb.checkpoints.checksums import read_json
from fluxnb.checkpoints.validation import check_configuration
from fluxnb.errors import StorageError

__all__ = ["FLUX1", "ModelSize", "flux1_size", "model_size_of"]

# The configurations of FLUX.1-schnell; dev differs in `guidance_embeds` alone.
FLUX1: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_layers": 19,
        "num_single_layers": 38,
        "attention_head_dim": 128,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "in_channels": 64,
        "guidance_embeds": False,
    },
    "text_encoder_2": {
        "num_layers": 24, "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "vocab_size": 32128,
        "relative_attention_num_buckets": 32,
    },
    "text_encoder": {
        "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "vocab_size": 49408,
        "max_position_embeddings": 77,
    },
}  # fmt: skip
VAE_WEIGHTS = 83_819_683


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Numbers of weights by part, and the shape of the transformer.

    Arguments:
        modulation: weights of the transformer's adaLN layers, which the adaLN cache replaces.
        blocks: weights of the linear layers in the blocks, which quantization makes smaller.
        rest: the transformer's other weights.
        t5, clip, vae: weights of the other components.
        layer: weights of the transformer's largest layer outside modulation.
        text_layer: weights of the largest layer of the text encoders.
        width: features of a token in the transformer.
        depth: number of blocks.
    """

    modulation: int
    blocks: int
    rest: int
    t5: int
    clip: int
    vae: int
    layer: int
    text_layer: int
    width: int
    depth: int

    @property
    def transformer(self) -> int:
        """All of the transformer's weights."""
        return self.modulation + self.blocks + self.rest

    @property
    def total(self) -> int:
        """All weights of the pipeline."""
        return self.transformer + self.t5 + self.clip + self.vae

    def flop(self, tokens: int) -> float:
        """Floating-point operations of one evaluation over this many tokens, image and text together."""
        linear = 24 * self.depth * self.width**2 * tokens
        return float(linear + 4 * self.depth * self.width * tokens**2)


def flux1_size(configs: Mapping[str, Mapping[str, Any]] = FLUX1, *, vae: int = VAE_WEIGHTS) -> ModelSize:
    """The size of a model with FLUX.1's architecture; that of FLUX.1-schnell by default.

    Arguments:
        configs: the configurations of "transformer", "text_encoder" and "text_encoder_2".
        vae: weights of the VAE.


    Example:
        >>> flux1_size().transformer, flux1_size().modulation
        (11891178560, 3247448064)
    """
    t = configs["transformer"]
    width = int(t["num_attention_heads"]) * int(t["attention_head_dim"])
    head, double, single = int(t["attention_head_dim"]), int(t["num_layers"]), int(t["num_single_layers"])
    modulation = double * 2 * _linear(width, 6 * width) + single * _linear(width, 3 * width) + _linear(width, 2 * width)
    stream = 4 * _linear(width, width) + _linear(width, 4 * width) + _linear(4 * width, width)
    alone = 3 * _linear(width, width) + _linear(width, 4 * width) + _linear(5 * width, width)
    embedder = _linear(256, width) + _linear(width, width)
    rest = (
        double * 4 * head
        + single * 2 * head
        + embedder * (2 if t.get("guidance_embeds") else 1)
        + _linear(int(t["pooled_projection_dim"]), width)
        + _linear(width, width)
        + _linear(int(t["joint_attention_dim"]), width)
        + _linear(int(t.get("in_channels", 64)), width)
        + _linear(width, int(t.get("out_channels") or t.get("in_channels", 64)))
    )
    t5, clip = configs["text_encoder_2"], configs["text_encoder"]
    deep, inner, heads = int(t5["d_model"]), int(t5["d_kv"]) * int(t5["num_heads"]), int(t5["num_heads"])
    t5_block = 4 * deep * inner + 3 * deep * int(t5["d_ff"]) + 2 * deep
    embedding = int(t5["vocab_size"]) * deep
    t5_all = embedding + int(t5["num_layers"]) * t5_block + deep
    t5_all += int(t5.get("relative_attention_num_buckets", 32)) * heads
    hidden, middle = int(clip["hidden_size"]), int(clip["intermediate_size"])
    clip_block = 4 * _linear(hidden, hidden) + _linear(hidden, middle) + _linear(middle, hidden) + 4 * hidden
    words = int(clip["vocab_size"]) + int(clip["max_position_embeddings"])
    return ModelSize(
        modulation=modulation,
        blocks=double * 2 * stream + single * alone,
        rest=rest,
        t5=t5_all,
        clip=words * hidden + int(clip["num_hidden_layers"]) * clip_block + 2 * hidden,
        vae=vae,
        layer=_linear(5 * width, width) if single else _linear(4 * width, width),
        text_layer=max(embedding, deep * int(t5["d_ff"])),
        width=width,
        depth=double + single,
    )


def model_size_of(folder: Path, parts: Mapping[str, Path] | None = None) -> ModelSize:
    """The size of a model in diffusers' layout; that of the VAE is estimated from its file.

    Arguments:
        parts: components that are in another folder.


    Raises:
        StorageError: a configuration is missing or incomplete.
    """
    places = {name: (parts or {}).get(name, folder / name) for name in (*FLUX1, "vae")}
    try:
        configs = {name: _configuration(places[name] / "config.json") for name in FLUX1}
        stored = sum(path.stat().st_size for path in places["vae"].glob("*.safetensors"))
        # Stored in 4 or 2 bytes per weight; the VAE is small enough for a plan not to depend on it.
        return flux1_size(configs, vae=stored // 2 or VAE_WEIGHTS)
    except StorageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise StorageError(
            f"the configurations in {folder} ({type(problem).__name__}: {problem})",
            "a transformer, two text encoders and a VAE are needed, each with its config.json",
            "download the folder again",
        ) from None


def _configuration(path: Path) -> dict[str, Any]:
    config = read_json(path)
    check_configuration(config, path)
    return config


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
