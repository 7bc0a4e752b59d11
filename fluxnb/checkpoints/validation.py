"""Checks of a model folder before any library opens it: which classes it names, how large they are, and its files.

A folder may come from anyone. A library imports what a pipeline's index names, builds what a configuration describes
and unpickles what an index of weights lists. All of these are therefore read and bounded here first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fluxnb.checkpoints.checksums import read_json
from fluxnb.errors import StorageError, shorten
from fluxnb.families.flux1 import FLUX1
from fluxnb.families.registry import family_of_class
from fluxnb.io.files import open_regular
from fluxnb.io.headers import safetensors_header

__all__ = ["CONFIGURATIONS", "check_configuration", "check_index", "check_model", "check_weight_file"]

REMEDY = "use a folder that diffusers wrote, or download it again"
MOST_FILES = 1000  # of a component
LARGEST_NUMBER = 2**24  # of a configuration; the largest of FLUX.1 is a vocabulary of 49,408
LARGEST_NESTING = 100_000  # values in a configuration
LONGEST_PROMPT = 4096  # tokens
CONFIGURATIONS = {
    "scheduler": "scheduler_config.json", "tokenizer": "tokenizer_config.json", "tokenizer_2": "tokenizer_config.json",
    "feature_extractor": "preprocessor_config.json",
}  # fmt: skip
# Lowest and highest value of numbers that decide how much is built.
BOUNDS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("num_layers", "num_single_layers", "num_hidden_layers", "num_decoder_layers"), (0, 256)),
    **dict.fromkeys(("num_attention_heads", "num_heads", "attention_head_dim", "d_kv", "patch_size"), (1, 1024)),
    **dict.fromkeys(("joint_attention_dim", "pooled_projection_dim", "hidden_size", "d_model"), (1, 2**16)),
    **dict.fromkeys(("intermediate_size", "d_ff", "max_position_embeddings", "projection_dim"), (1, 2**18)),
    **dict.fromkeys(("in_channels", "out_channels", "latent_channels", "layers_per_block"), (1, 1024)),
    **dict.fromkeys(("block_out_channels", "encoder_block_out_channels", "decoder_block_out_channels"), (1, 8192)),
    **dict.fromkeys(("relative_attention_num_buckets", "norm_num_groups"), (1, 8192)),
    **dict.fromkeys(("n_layers", "n_refiner_layers"), (0, 256)),
    **dict.fromkeys(("n_heads", "n_kv_heads", "num_key_value_heads", "head_dim"), (1, 1024)),
    **dict.fromkeys(("dim", "cap_feat_dim", "siglip_feat_dim", "timestep_guidance_channels"), (1, 2**16)),
    **dict.fromkeys(("all_patch_size", "all_f_patch_size", "mlp_ratio"), (1, 64)),
    "axes_dims": (2, 1024),
    "axes_lens": (1, 2**17),
    "vocab_size": (1, 2**20),
    "num_train_timesteps": (1, 100_000),
    "extra_ids": (0, 1000),  # of a T5 tokenizer, which makes a token of each
    "axes_dims_rope": (2, 1024),
}
LONGEST_LIST = 64  # of a list above
KEYS_OF_CODE = ("auto_map", "custom_pipelines", "custom_pipeline")  # name code that a library would download and run


def check_model(folder: Path, parts: Mapping[str, Path] | None = None, *, only: Sequence[str] = ()) -> None:
    """Check a folder in diffusers' layout, without building anything.

    Arguments:
        folder: with model_index.json.
        parts: components that are in another folder.
        only: the components whose files are checked; all of them where left out.

    Raises:
        StorageError: a class that the pipeline does not have, code, numbers out of range, a file that is not a
            regular one, damaged weights, or an index that lists files other than safetensors of the folder.
    """
    places = {name: folder / name for name in check_index(folder) if not only or name in only}
    places.update(parts or {})
    for name, place in places.items():
        files = list(_regular_files(place))
        config = place / CONFIGURATIONS.get(name, "config.json")
        settings = read_json(config) if config in files else {}
        check_configuration(settings, config)
        for file in files:
            if re.search(r"\.safetensors\.index(\.\w+)?\.json$", file.name):
                _check_weight_index(file)
            elif file.suffix == ".safetensors":
                check_weight_file(file, quantized="quantization_config" in settings)
    tokenizer = places.get("tokenizer", folder) / "tokenizer_config.json"
    longest = read_json(tokenizer).get("model_max_length", 1) if tokenizer.is_file() else 1
    # CLIP's prompts are padded to this length; other families give their tokenizer the length of each call.
    if ("text_encoder_2" in places and type(longest) is not int) or not 1 <= longest <= LONGEST_PROMPT:
        raise StorageError(
            f"model_max_length={shorten(longest)} in {tokenizer}", f"1 to {LONGEST_PROMPT} is possible", REMEDY
        )


def check_index(folder: Path) -> tuple[str, ...]:
    """The components that model_index.json names, in order, checked by library and class.

    Raises:
        StorageError: an unknown component, library or class.
    """
    path = folder / "model_index.json"
    index = read_json(path)
    _check_keys(index, path)
    # A folder without a known class is of FLUX.1, which was the only family once.
    classes = (family_of_class(index.get("_class_name")) or FLUX1).components
    names = []
    for name, made_of in index.items():
        if not isinstance(made_of, list) or made_of[:1] in ([None], []):
            continue
        library, pattern = classes.get(name, ("", ""))
        given = [str(each) for each in made_of]
        if name not in classes or len(given) != 2 or given[0] != library or not re.fullmatch(pattern, given[1]):
            known = f"{library} has {pattern}" if library else f"known are {', '.join(classes)}"
            raise StorageError(f"{shorten(name)} as {shorten('.'.join(given))} in {path}", known, REMEDY)
        names.append(name)
    return tuple(names)


def check_configuration(config: Mapping[str, Any], path: Path) -> None:
    """Check the numbers of a component's configuration, and that it names no code.

    Arguments:
        config: the contents.
        path: of the file, for messages.

    Raises:
        StorageError: a number out of range or not finite, or an entry such as "auto_map".
    """
    _check_keys(config, path)
    tokenizer = path.name == "tokenizer_config.json"
    for count, (name, value) in enumerate(_values(config)):
        low, high = BOUNDS.get(name, (-LARGEST_NUMBER, LARGEST_NUMBER))
        if name in BOUNDS and isinstance(value, str):
            raise StorageError(f"{name}={shorten(value)} in {path}", f"{low} to {high} is possible", REMEDY)
        # Tokenizers without a limit have one of 1e30.
        free = tokenizer and name not in BOUNDS
        number = isinstance(value, int | float) and not isinstance(value, bool) and not free
        if count >= LARGEST_NESTING or (number and not low <= value <= high):
            raise StorageError(f"{name}={shorten(value)} in {path}", f"{low} to {high} is possible", REMEDY)
    for name in BOUNDS.keys() & config.keys():
        if isinstance(config[name], list) and len(config[name]) > LONGEST_LIST:
            raise StorageError(
                f"{len(config[name])} values of {name} in {path}", f"at most {LONGEST_LIST} are possible", REMEDY
            )


def _values(config: object, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a nested configuration with its nearest name; a library may flatten what is nested."""
    pending = [(name, config)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, Mapping):
            pending += [(str(key), each) for key, each in value.items()]
        elif isinstance(value, list):
            pending += [(name, each) for each in value]
        else:
            yield name, value


def _check_keys(config: Mapping[str, Any], path: Path) -> None:
    for key in KEYS_OF_CODE:
        if config.get(key) is not None:
            raise StorageError(f"{key} in {path}", "code of a model is never run", "remove the entry, or " + REMEDY)


def _regular_files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise StorageError(f"{folder} is missing", "model_index.json names it", REMEDY)
    for count, path in enumerate(sorted(folder.iterdir())):
        if count >= MOST_FILES:
            raise StorageError(f"{folder}", f"a component has at most {MOST_FILES} files", REMEDY)
        if not path.is_dir():
            open_regular(path).close()
            yield path


def check_weight_file(path: Path, *, quantized: bool = False) -> None:
    """Check the header of a safetensors file, and that its weights are floats unless they are quantized.

    Raises:
        StorageError: a damaged file, or weights of integers.
    """
    for name, tensor in safetensors_header(path).tensors.items():
        # A library casts integers to the model's number format without an error. Buffers may be integers.
        if name.endswith((".weight", ".bias")) and not tensor.is_float and not quantized:
            raise StorageError(
                f"{shorten(name)} in {path} holds {tensor.dtype}",
                "weights are floats where the configuration names no quantization",
                REMEDY,
            )


def _check_weight_index(path: Path) -> None:
    files = read_json(path).get("weight_map")
    if not isinstance(files, Mapping) or not files:
        raise StorageError(f"{path}", "an index of weights maps names to files", REMEDY)
    for name in set(map(str, files.values())):
        # A listed file may be absent: those of other variants, and of a transformer in GGUF, are not downloaded.
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise StorageError(
                f"{shorten(name)} in {path}", "an index of weights lists safetensors files of its own folder", REMEDY
            )
