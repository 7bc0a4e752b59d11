"""Decoding of downloaded pictures, with their format and size checked before their pixels are decoded."""

from __future__ import annotations

import io
import warnings

from PIL import Image

from fluxnb.errors import shorten
from fluxnb.records.recipe import LARGEST_SIDE

__all__ = ["LARGEST_FILE", "decode", "is_one_color"]

LARGEST_FILE = 32 * 2**20  # bytes
MOST_PIXELS = 2**24
FORMATS = ("PNG", "JPEG", "WEBP")
SPREAD = 2  # levels by which the pixels of a picture of one color may differ after compression


def decode(data: bytes) -> Image.Image | str:
    """The picture of a PNG, JPEG or WebP file as RGB without its metadata, or why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
                width, height = opened.size
                if width * height > MOST_PIXELS or max(width, height) > LARGEST_SIDE:
                    return f"its picture has {width} x {height} pixels"
                image = opened.convert("RGB")
                return Image.frombytes("RGB", image.size, image.tobytes())
    except Exception as problem:  # Pillow raises OSError, SyntaxError, ValueError, struct.error, zlib.error and others
        return f"its picture is damaged or of another format ({shorten(type(problem).__name__, 40)})"


def is_one_color(image: Image.Image) -> bool:
    """Whether all pixels are of one color, as those of a picture that a filter replaced."""
    return all(most - least <= SPREAD for least, most in image.getextrema())  # type: ignore[misc]
