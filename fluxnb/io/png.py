"""PNG files that carry their recipe, and a reader that trusts nothing in them.

The recipe travels as canonical JSON, pure ASCII, in a tEXt chunk named `fluxnb`; beside it stand the `parameters` that
A1111 and its kin show and read, and the graph that ComfyUI opens where there is one. Reading walks the chunks itself:
nothing is decompressed, nothing larger than a recipe can be is held, and every length is checked against the file
before it is believed.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from pathlib import Path
from typing import IO, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fluxnb.errors import InputError, StorageError, validates_own_input
from fluxnb.io.comfyui import comfy_graph
from fluxnb.io.files import atomic_write, user_path
from fluxnb.records.recipe import LONGEST_JSON, Recipe

__all__ = ["encode_png", "open_recipe", "write_png"]

KEYWORD = b"fluxnb"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
MOST_CHUNKS = 100_000


def encode_png(image: Image.Image, recipe: Recipe | None = None, *, numerics: str = "exact") -> bytes:
    """Encode a picture as PNG, with its recipe in the metadata if there is one.

    Arguments:
        image: the picture.
        recipe: what it is the answer to.
        numerics: as in `Trajectory.numerics`; anything but "exact" is named in the `parameters`.
    """
    info = PngInfo()
    if recipe is not None:
        info.add_text(KEYWORD.decode(), recipe.to_json())
        info.add_itxt("parameters", parameters(recipe, numerics))
        if (graph := comfy_graph(recipe)) is not None:
            info.add_text("prompt", json.dumps(graph))
    buffer = io.BytesIO()
    # Level 1 costs a third of the time of 6 and some percent of size; sweeps write many.
    image.save(buffer, "PNG", pnginfo=info, compress_level=1)
    return buffer.getvalue()


def write_png(image: Image.Image, path: str | Path, recipe: Recipe | None = None, *, numerics: str = "exact") -> Path:
    """Write a picture as PNG with its recipe in the metadata, and return the path; see `encode_png`.

    Raises:
        StorageError: the file cannot be written.
    """
    target = user_path(path)
    with atomic_write(target) as part:
        part.write_bytes(encode_png(image, recipe, numerics=numerics))
    return target


def parameters(recipe: Recipe, numerics: str = "exact") -> str:
    """The recipe as A1111's `parameters`: the prompt, the negative prompt, and a line of facts.

    Example:
        >>> parameters(Recipe(prompt="a fox", seed=3, model="pocket")).splitlines()[1]
        'Steps: 4, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 3, Model: pocket, Version: fluxnb'
    """
    embedded = recipe.guidance is not None and (recipe.model or "").endswith("dev")
    cfg = recipe.guidance if recipe.guidance and not embedded else 1
    facts = {
        "Steps": recipe.steps,
        "Sampler": "Euler" if recipe.sampler == "euler" else recipe.sampler.capitalize(),
        # What its readers know by name is the even schedule; own levels or an own shift are told by our chunk alone.
        "Schedule type": "Simple" if recipe.sigmas is None and recipe.shift is None else None,
        "CFG scale": f"{cfg:g}",
        "Distilled CFG Scale": f"{recipe.guidance:g}" if embedded else None,
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}" if recipe.width and recipe.height else None,
        "Model": recipe.model,
        "Numerics": None if numerics == "exact" else numerics,
        "Version": "fluxnb",
    }
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in facts.items() if value is not None)
    negative = [f"Negative prompt: {recipe.negative}"] if recipe.negative else []
    return "\n".join([recipe.prompt, *negative, line])


def _quoted(value: str) -> str:
    """As its readers expect a value that holds what stands between values."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value


@validates_own_input
def open_recipe(png: str | Path | bytes | IO[bytes]) -> Recipe:
    """The recipe that a PNG carries: a path, the bytes, or an open file.

    Raises:
        StorageError: no such file, no PNG, or a broken one.
        InputError: a PNG without a recipe, or with one that is not valid.

    Example:
        >>> asked = Recipe(prompt="a fox", seed=2**64 - 1)
        >>> open_recipe(encode_png(Image.new("RGB", (16, 16)), asked)) == asked
        True
    """
    if isinstance(png, bytes | bytearray):
        return _from_stream(io.BytesIO(png))
    if isinstance(png, str | Path):
        try:
            with user_path(png).open("rb") as stream:
                return _from_stream(stream)
        except StorageError:
            raise
        except OSError as problem:
            raise StorageError(f"{png} ({problem.strerror})", "a PNG file is needed", "check the path") from problem
    return _from_stream(png)


def _from_stream(stream: Any) -> Recipe:
    if stream.read(8) != SIGNATURE:
        raise StorageError(
            "a file that is no PNG", "recipes travel in PNG files", "give the picture as fluxnb saved it"
        )
    for _ in range(MOST_CHUNKS):
        head = stream.read(8)
        if not head or head[4:] == b"IEND":
            raise InputError("a PNG without a recipe", "fluxnb writes one into its own pictures", "give one of those")
        if len(head) < 8:
            break
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"tEXt", b"iTXt") and length <= LONGEST_JSON:
            body, check = stream.read(length), stream.read(4)
            if len(body) < length or len(check) < 4:
                break
            text = _text(kind, body)
            if text is not None:
                if zlib.crc32(kind + body) != int.from_bytes(check, "big"):
                    break
                return Recipe.from_json(text)
        elif length >= 2**31:
            break
        else:
            stream.seek(length + 4, io.SEEK_CUR)  # also a chunk of our name that is too large to be a recipe
    raise StorageError("a damaged PNG", "its chunks do not add up", "give the picture as fluxnb saved it")


def _text(kind: bytes, body: bytes) -> bytes | None:
    """The text of our own chunk, None for anybody else's and for compressed ones, which we never write."""
    keyword, separator, rest = body.partition(b"\0")
    if keyword != KEYWORD or not separator:
        return None
    if kind == b"tEXt":
        return rest
    compressed, after = rest[:2], rest[2:].split(b"\0", 2)
    return after[2] if compressed == b"\0\0" and len(after) == 3 else None
