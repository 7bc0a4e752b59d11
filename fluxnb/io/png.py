"""PNG files with a recipe in their metadata.

A PNG may come from anyone. Its size is read from its header and compared with the expected one before it is decoded.

The recipe is stored as canonical ASCII JSON in a tEXt chunk named `fluxnb`. Two more chunks are for other programs: the
`parameters` of A1111 and the graph of ComfyUI, each where that program reads the recipe unchanged. The reader iterates
over the chunks itself: it decompresses nothing, reads no chunk longer than a recipe can be, and checks each length
against the file.
"""

from __future__ import annotations

import io
import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import IO, Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, StorageError, shorten
from fluxnb.io.a1111 import parameters
from fluxnb.io.comfyui import workflow_or_none
from fluxnb.io.containers import MOST_CHUNKS
from fluxnb.io.containers import PNG as SIGNATURE
from fluxnb.io.files import atomic_write, open_regular, read_bytes, user_path
from fluxnb.records.recipe import LARGEST_SIDE, LONGEST_JSON, Recipe

__all__ = ["check_png", "decode_png", "encode_png", "largest_png", "open_recipe", "read_picture", "write_png"]

KEYWORD = b"fluxnb"


@entry_point("image", "recipe", numerics='numerics="exact"')
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
        if (text := parameters(recipe, numerics)) is not None:
            info.add_itxt("parameters", text)
        if (graph := workflow_or_none(recipe)) is not None:
            info.add_text("prompt", json.dumps(graph))
    buffer = io.BytesIO()
    # Compression level 1 takes a third of the time of level 6 for files that are a few percent larger.
    image.save(buffer, "PNG", pnginfo=info, compress_level=1)
    return buffer.getvalue()


@entry_point("image", "recipe", path='path="fox.png"', numerics='numerics="exact"')
def write_png(image: Image.Image, path: str | Path, recipe: Recipe | None = None, *, numerics: str = "exact") -> Path:
    """Write a picture as PNG with its recipe in the metadata, and return the path; see `encode_png`.

    Raises:
        StorageError: the file cannot be written.
    """
    target = user_path(path)
    with atomic_write(target) as part:
        part.write_bytes(encode_png(image, recipe, numerics=numerics))
    return target


@entry_point()  # the body checks its argument: beartype does not take a BytesIO for an IO[bytes]
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
        with open_regular(png) as stream:
            return _from_stream(stream)
    if not (hasattr(png, "read") and hasattr(png, "seek")):
        raise InputError(
            f"a PNG as {type(png).__name__}", "a path, bytes or an open file is possible", 'try open_recipe("fox.png")'
        )
    return _from_stream(png)


def _from_stream(stream: Any) -> Recipe:
    try:
        text = _recipe_text(stream)
    except (OSError, TypeError, struct.error) as problem:  # of a stream that does not seek, or that yields text
        raise StorageError(
            f"a PNG that is not readable ({shorten(str(problem), 100)})", "a file opened in binary mode is needed",
            "give the path of the file",
        ) from problem  # fmt: skip
    if text is None:
        raise StorageError("a damaged PNG", "its chunks or checksums are wrong", "give the file that fluxnb wrote")
    return Recipe.from_json(text)


def _recipe_text(stream: Any) -> bytes | None:
    """The JSON of the recipe in a PNG, None if the file is damaged.

    Raises:
        StorageError: the file is not a PNG.
        InputError: it holds no recipe.
    """
    if stream.read(8) != SIGNATURE:
        raise StorageError(
            "a file that is not a PNG", "recipes are stored in PNG files", "give the file that fluxnb wrote"
        )
    for _ in range(MOST_CHUNKS):
        head = stream.read(8)
        if not head or head[4:] == b"IEND":
            raise InputError(
                "a PNG without a recipe",
                "fluxnb writes one into its PNG files",
                "for a picture of another program type fnb.import_recipe(picture)",
            )
        if len(head) < 8:
            return None
        length, kind = struct.unpack(">I4s", head)
        if length >= 2**31:
            return None
        start = b""
        if kind in (b"tEXt", b"iTXt") and len(KEYWORD) < length <= LONGEST_JSON:
            start = stream.read(len(KEYWORD) + 1)
        if start != KEYWORD + b"\0":
            stream.seek(length - len(start) + 4, io.SEEK_CUR)  # including a `fluxnb` chunk that is too long
            continue
        body, check = start + stream.read(length - len(start)), stream.read(4)
        text = _text(kind, body)
        if text is not None:
            intact = zlib.crc32(kind + body) == int.from_bytes(check, "big") and len(check) == 4
            return text if intact else None
    return None


def _text(kind: bytes, body: bytes) -> bytes | None:
    """The text of a `fluxnb` chunk; None for a compressed one, which is never written."""
    rest = body[len(KEYWORD) + 1 :]
    if kind == b"tEXt":
        return rest
    compressed, after = rest[:2], rest[2:].split(b"\0", 2)
    return after[2] if compressed == b"\0\0" and len(after) == 3 else None


# ------------------------------------------------------------------------------------------------------------ pictures
def largest_png(size: tuple[int, int]) -> int:
    """A bound, in bytes, of a PNG of this width and height: its pixels uncompressed, and its metadata."""
    width, height = size
    return 8 * width * height + 4 * LONGEST_JSON


def check_png(data: bytes, size: tuple[int, int] | None, *, largest: int = LARGEST_SIDE) -> None:
    """Check the size that a PNG states, before it is decoded.

    Arguments:
        data: the PNG, or its first 24 bytes.
        size: the width and height it has to have; None for any up to `largest`.
        largest: longest side where `size` is None.

    Raises:
        StorageError: not a PNG, or one of another size.
    """
    if data[:8] != SIGNATURE or data[12:16] != b"IHDR" or len(data) < 24:
        raise StorageError("a picture that is not a PNG", "pictures are stored as PNG", "make the picture again")
    width, height = struct.unpack(">II", data[16:24])
    possible = (1 <= width <= largest and 1 <= height <= largest) if size is None else (width, height) == size
    if not possible:
        expected = f"at most {largest} x {largest}" if size is None else f"{size[0]} x {size[1]}"
        raise StorageError(
            f"a picture of {width} x {height} px", f"its record states {expected} px", "make the picture again"
        )


def decode_png(data: bytes, size: tuple[int, int] | None = None, *, largest: int = LARGEST_SIDE) -> Image.Image:
    """Decode a PNG of a given size as RGB; see `check_png`.

    Raises:
        StorageError: not a PNG, one of another size, or a damaged one.
    """
    check_png(data, size, largest=largest)
    try:
        # Only the PNG decoder of Pillow may open the bytes. Its warning about large pictures is for unknown sizes.
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=("PNG",)) as opened:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return opened.convert("RGB")
    except Exception as problem:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, zlib.error and others
        reason = shorten(f"{type(problem).__name__}: {problem}", 100)
        raise StorageError(f"a damaged PNG ({reason})", "its pixels cannot be read", "make the picture again") from None


def read_picture(path: str | Path, size: tuple[int, int] | None = None) -> Image.Image:
    """Read the picture of a PNG file as RGB; see `decode_png`.

    Raises:
        StorageError: a missing or damaged file, or a picture of another size.
    """
    try:
        return decode_png(read_bytes(path, at_most=largest_png(size or (LARGEST_SIDE, LARGEST_SIDE))), size)
    except StorageError as problem:
        raise StorageError(f"{path} ({problem.given})", "the picture cannot be read", problem.remedy) from problem
