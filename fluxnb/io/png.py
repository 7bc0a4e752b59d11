"""PNG files with a recipe in their metadata.

The recipe is stored as canonical ASCII JSON in a tEXt chunk named `fluxnb`. Two more chunks are for other programs: the
`parameters` of A1111, and the graph of ComfyUI if there is one. The reader iterates over the chunks itself: it
decompresses nothing, reads no chunk longer than a recipe can be, and checks each length against the file.
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
        recipe: the recipe of the picture.
        numerics: as in `Trajectory.numerics`; anything but "exact" is named in the `parameters`.
    """
    info = PngInfo()
    if recipe is not None:
        info.add_text(KEYWORD.decode(), recipe.to_json())
        info.add_itxt("parameters", parameters(recipe, numerics))
        if (graph := comfy_graph(recipe)) is not None:
            info.add_text("prompt", json.dumps(graph))
    buffer = io.BytesIO()
    # Compression level 1 takes a third of the time of level 6 for files that are a few percent larger.
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
    """The recipe in the format of the A1111 `parameters`: prompt, negative prompt, and a line of settings.

    Example:
        >>> parameters(Recipe(prompt="a fox", seed=3, model="pocket")).splitlines()[1]
        'Steps: 4, Sampler: Euler, Schedule type: Simple, CFG scale: 1, Seed: 3, Model: pocket, Version: fluxnb'
    """
    embedded = recipe.guidance is not None and (recipe.model or "").endswith("dev")
    cfg = recipe.guidance if recipe.guidance and not embedded else 1
    settings = {
        "Steps": recipe.steps,
        "Sampler": "Euler" if recipe.sampler == "euler" else recipe.sampler.capitalize(),
        # "Simple" is the even schedule; own sigmas or an own shift have no name there.
        "Schedule type": "Simple" if recipe.sigmas is None and recipe.shift is None else None,
        "CFG scale": f"{cfg:g}",
        "Distilled CFG Scale": f"{recipe.guidance:g}" if embedded else None,
        "Seed": recipe.seed,
        "Size": f"{recipe.width}x{recipe.height}" if recipe.width and recipe.height else None,
        "Model": recipe.model,
        "Numerics": None if numerics == "exact" else numerics,
        "Version": "fluxnb",
    }
    line = ", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value is not None)
    negative = [f"Negative prompt: {recipe.negative}"] if recipe.negative else []
    return "\n".join([recipe.prompt, *negative, line])


def _quoted(value: str) -> str:
    """A value in quotes if it contains a separator, as readers of `parameters` expect."""
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:"\n]', value) else value


@validates_own_input
def open_recipe(png: str | Path | bytes | IO[bytes]) -> Recipe:
    """Read the recipe of a PNG.

    Arguments:
        png: a path, the bytes, or an open file.

    Raises:
        StorageError: no such file, not a PNG, or a damaged one.
        InputError: a PNG without a recipe, or with an invalid one.

    Example:
        >>> recipe = Recipe(prompt="a fox", seed=2**64 - 1)
        >>> open_recipe(encode_png(Image.new("RGB", (16, 16)), recipe)) == recipe
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
            "a file that is not a PNG", "recipes are stored in PNG files", "give the file that fluxnb wrote"
        )
    for _ in range(MOST_CHUNKS):
        head = stream.read(8)
        if not head or head[4:] == b"IEND":
            raise InputError(
                "a PNG without a recipe", "fluxnb writes one into its PNG files", "give the file that fluxnb wrote"
            )
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
            stream.seek(length + 4, io.SEEK_CUR)  # including a `fluxnb` chunk that is too long
    raise StorageError("a damaged PNG", "its chunks or checksums are wrong", "give the file that fluxnb wrote")


def _text(kind: bytes, body: bytes) -> bytes | None:
    """The text of a `fluxnb` chunk; None for other chunks and for compressed ones, which are never written."""
    keyword, separator, rest = body.partition(b"\0")
    if keyword != KEYWORD or not separator:
        return None
    if kind == b"tEXt":
        return rest
    compressed, after = rest[:2], rest[2:].split(b"\0", 2)
    return after[2] if compressed == b"\0\0" and len(after) == 3 else None
