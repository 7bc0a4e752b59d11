"""Model size: number of weights by part, and arithmetic per evaluation, computed from the configuration files.

No weights are loaded and no model library is imported, so that a plan is made before 34 GB are downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fluxnb.checkpoints.checksums import read_json
from fluxnb.checkpoints.validation import check_configuration
from fluxnb.errors import StorageError
from fluxnb.families.flux1 import FLUX1 as FAMILY_OF_FLUX1
from fluxnb.families.registry import family_of_class

__all__ = ["FLUX1", "ModelSize", "flux1_size", "klein_size", "model_size_of", "named_size", "z_image_size"]

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
# The configurations of FLUX.2-klein-4B and of Z-Image; those of their teachers and students are the same.
QWEN3_4B: dict[str, Any] = {
    "vocab_size": 151936, "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
}  # fmt: skip
KLEIN: dict[str, dict[str, Any]] = {
    "transformer": {
        "in_channels": 128, "num_layers": 5, "num_single_layers": 20, "attention_head_dim": 128,
        "num_attention_heads": 24, "joint_attention_dim": 7680, "mlp_ratio": 3.0, "guidance_embeds": False,
    },
    "text_encoder": QWEN3_4B,
}  # fmt: skip
KLEIN_VAE_WEIGHTS = 84_046_115
Z_IMAGE: dict[str, dict[str, Any]] = {
    "transformer": {
        "in_channels": 16, "dim": 3840, "n_layers": 30, "n_refiner_layers": 2, "n_heads": 30, "cap_feat_dim": 2560,
        "all_patch_size": [2],
    },
    "text_encoder": QWEN3_4B,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelSize:
    """Numbers of weights by part, and the shape of the transformer.

    Arguments:
        modulation: weights of the transformer's adaLN layers, which the adaLN cache replaces.
        blocks: weights of the linear layers in the blocks, which quantization makes smaller.
        rest: the transformer's other weights.
        t5, clip, vae: weights of the other components; for families with one text encoder, `t5` is that encoder.
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


def klein_size(configs: Mapping[str, Mapping[str, Any]] = KLEIN, *, vae: int = KLEIN_VAE_WEIGHTS) -> ModelSize:
    """The size of a model with the architecture of FLUX.2 klein; that of klein 4B by default.

    Arguments:
        configs: the configurations of "transformer" and "text_encoder".
        vae: weights of the VAE.

    Example:
        >>> klein_size().transformer, klein_size().t5
        (3875544576, 4022468096)
    """
    t = configs["transformer"]
    head, double, single = int(t["attention_head_dim"]), int(t["num_layers"]), int(t["num_single_layers"])
    width, channels = int(t["num_attention_heads"]) * head, int(t.get("in_channels", 128))
    inner = int(width * float(t.get("mlp_ratio", 3.0)))
    # No layer has a bias; all blocks of a kind share their modulation.
    stream = 4 * width**2 + 3 * width * inner
    alone = width * (3 * width + 2 * inner) + (width + inner) * width
    time = int(t.get("timestep_guidance_channels", 256)) * width + width**2
    rest = time * (2 if t.get("guidance_embeds", True) else 1) + (6 + 6 + 3 + 2) * width**2 + 2 * channels * width
    rest += int(t["joint_attention_dim"]) * width + double * 4 * head + single * 2 * head
    text, text_layer = _qwen3(configs["text_encoder"])
    return ModelSize(
        modulation=0,
        blocks=double * 2 * stream + single * alone,
        rest=rest,
        t5=text,
        clip=0,
        vae=vae,
        layer=width * (3 * width + 2 * inner),
        text_layer=text_layer,
        width=width,
        depth=double + single,
    )


def z_image_size(configs: Mapping[str, Mapping[str, Any]] = Z_IMAGE, *, vae: int = VAE_WEIGHTS) -> ModelSize:
    """The size of a model with the architecture of Z-Image; that of Z-Image by default.

    Arguments:
        configs: the configurations of "transformer" and "text_encoder".
        vae: weights of the VAE.

    Example:
        >>> z_image_size().transformer
        6154908736
    """
    t = configs["transformer"]
    width, refiners, text_width = int(t["dim"]), int(t["n_refiner_layers"]), int(t["cap_feat_dim"])
    modulated, head = min(width, 256), width // int(t["n_heads"])
    inner = int(width / 3 * 8)
    block = 4 * width**2 + 3 * width * inner
    norms = 2 * head + 4 * width
    patch = int(t["all_patch_size"][0]) ** 2 * int(t.get("in_channels", 16))
    blocks = int(t["n_layers"]) + refiners  # those with modulation
    rest = (blocks + refiners) * norms + blocks * _linear(modulated, 4 * width) + 2 * width
    rest += _linear(patch, width) + _linear(width, patch) + _linear(modulated, width)
    rest += _linear(256, 1024) + _linear(1024, modulated) + text_width + _linear(text_width, width)
    text, text_layer = _qwen3(configs["text_encoder"])
    return ModelSize(
        modulation=0,
        blocks=(blocks + refiners) * block,
        rest=rest,
        t5=text,
        clip=0,
        vae=vae,
        layer=width * inner,
        text_layer=text_layer,
        width=width,
        depth=blocks + refiners,
    )


def _qwen3(config: Mapping[str, Any]) -> tuple[int, int]:
    """The weights of a Qwen3 language model, and of its largest layer."""
    hidden, head = int(config["hidden_size"]), int(config.get("head_dim") or 128)
    queries, keys = int(config["num_attention_heads"]) * head, int(config["num_key_value_heads"]) * head
    layer = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * int(config["intermediate_size"])
    layer += 2 * head + 2 * hidden
    embedding = int(config["vocab_size"]) * hidden
    tables = 1 if config.get("tie_word_embeddings", False) else 2
    return tables * embedding + int(config["num_hidden_layers"]) * layer + hidden, embedding


SIZES: Mapping[str, Callable[..., ModelSize]] = {
    "FLUX.1": flux1_size, "FLUX.2 klein": klein_size, "Z-Image": z_image_size,
}  # fmt: skip


def named_size(family: str) -> ModelSize:
    """The size of the models of a family that have a name, such as "klein"."""
    return SIZES[family]()


def model_size_of(folder: Path, parts: Mapping[str, Path] | None = None) -> ModelSize:
    """The size of a model in diffusers' layout; that of the VAE is estimated from its file.

    Arguments:
        parts: components that are in another folder.


    Raises:
        StorageError: a configuration is missing or incomplete.
    """
    try:
        index = read_json(folder / "model_index.json") if (folder / "model_index.json").is_file() else {}
        family = family_of_class(index.get("_class_name")) or FAMILY_OF_FLUX1
        models = ("transformer", *(name for name in family.encoders if name.startswith("text_encoder")))
        places = {name: (parts or {}).get(name, folder / name) for name in (*models, "vae")}
        configs = {name: _configuration(places[name] / "config.json") for name in models}
        stored = sum(path.stat().st_size for path in places["vae"].glob("*.safetensors"))
        # Stored in 4 or 2 bytes per weight; the VAE is small enough for a plan not to depend on it.
        return SIZES[family.name](configs, vae=stored // 2 or VAE_WEIGHTS)
    except StorageError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as problem:
        raise StorageError(
            f"the configurations in {folder} ({type(problem).__name__}: {problem})",
            "a transformer, its text encoders and a VAE are needed, each with its config.json",
            "download the folder again",
        ) from None


def _configuration(path: Path) -> dict[str, Any]:
    config = read_json(path)
    check_configuration(config, path)
    return config


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
