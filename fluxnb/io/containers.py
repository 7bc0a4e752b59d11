"""The text that programs store in pictures: text chunks of PNG, EXIF of PNG, JPEG and WebP, and JSON files.

The files may come from anyone. Nothing is decoded but text. Chunks are read one by one with bounded lengths, and
compressed text is decompressed up to a bound.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

from fluxnb.errors import InputError, StorageError, shorten

__all__ = ["Contents", "contents_of", "parse_json"]

LONGEST_TEXT = 4_000_000  # bytes of one text; graphs of large workflows reach a few hundred kilobytes
MOST_CHUNKS = 100_000
MOST_SEGMENTS = 500  # of a JPEG; metadata comes before the picture
# The keywords of texts that are read, each once.
KEYWORDS = ("fluxnb", "prompt", "workflow", "parameters", "invokeai_metadata", "sui_image_params")
LONGEST_KEYWORD = 80  # bytes with its end, by the standard of PNG
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"

MAKE, MODEL, DESCRIPTION, SOFTWARE, USER_COMMENT = 0x010F, 0x0110, 0x010E, 0x0131, 0x9286
TAGS = (MAKE, MODEL, DESCRIPTION, SOFTWARE, USER_COMMENT)  # the texts that are read, each once
EXIF_FOLDER = 0x8769
MOST_TAGS = 200


@dataclass
class Contents:
    """What a file states about the picture in it.

    Arguments:
        texts: the text chunks of a PNG with a known keyword; the first of each.
        other: keywords of further text chunks, at most ten.
        exif: the texts of EXIF that are read, by their tag.
        document: the value of a JSON file.
        size: width and height of the picture, where its header states them.
    """

    texts: dict[str, str] = field(default_factory=dict)
    other: list[str] = field(default_factory=list)
    exif: dict[int, str] = field(default_factory=dict)
    document: Any = None
    size: tuple[int, int] | None = None


def contents_of(stream: Any) -> Contents:
    """The texts of an open PNG, JPEG, WebP or JSON file.

    Raises:
        StorageError: a file of another kind, or a damaged one.
        InputError: JSON that is invalid or too long.
    """
    start = stream.read(12)
    stream.seek(0)
    try:
        if start[:8] == PNG:
            return _png(stream)
        if start[:2] == JPEG:
            return _jpeg(stream)
        if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            return _webp(stream)
        if start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
            return Contents(document=parse_json(stream.read(LONGEST_TEXT + 1)))
    except (struct.error, IndexError, EOFError) as problem:
        raise StorageError(
            "a damaged picture", "its metadata ends early", "give the file as the program wrote it"
        ) from problem
    raise StorageError(
        f"a file that begins with {shorten(start[:8])}",
        "recipes are read from PNG, JPEG, WebP and JSON files",
        "give the picture as the program wrote it",
    )


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text of at most `LONGEST_TEXT` characters.

    NaN is accepted, since ComfyUI writes it into graphs.

    Raises:
        InputError: not JSON, too long, or nested too deeply.
    """
    if len(text) > LONGEST_TEXT:
        raise InputError(f"JSON of over {LONGEST_TEXT} bytes", "longer texts are not read", "give the graph alone")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:  # bad syntax, bad UTF-8, absurd nesting or digits
        raise InputError(
            f"a text that is not JSON ({shorten(str(problem), 80)})", "graphs are JSON", "give the file as it was saved"
        ) from None


# ------------------------------------------------------------------------------------------------------------ pictures
def _png(stream: Any) -> Contents:
    contents, place = Contents(), len(PNG)
    for _ in range(MOST_CHUNKS):
        stream.seek(place)
        head = stream.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        length, kind = struct.unpack(">I4s", head)
        place += length + 12
        if kind == b"IHDR":
            contents.size = struct.unpack(">II", stream.read(8))
        elif kind == b"eXIf" and length <= LONGEST_TEXT and not contents.exif:
            contents.exif = _exif(stream.read(length))
        elif kind in (b"tEXt", b"iTXt", b"zTXt"):
            _read_text(stream, kind, length, contents)
    return contents


def _read_text(stream: Any, kind: bytes, length: int, contents: Contents) -> None:
    """Read a text chunk if its keyword is known and new."""
    start = stream.read(min(length, LONGEST_KEYWORD))
    keyword = start.partition(b"\0")[0].decode("latin-1")
    if keyword not in KEYWORDS or length > LONGEST_TEXT:
        contents.other += [keyword] if len(contents.other) < 10 else []
    elif keyword not in contents.texts:
        text = _png_text(kind, start + stream.read(length - len(start)))
        contents.texts |= {} if text is None else {keyword: text}


def _png_text(kind: bytes, body: bytes) -> str | None:
    _, _, rest = body.partition(b"\0")
    compressed = kind == b"zTXt"
    if kind == b"zTXt":
        rest = rest[1:]
    elif kind == b"iTXt":
        parts = rest[2:].split(b"\0", 2)
        if len(parts) < 3:
            return None
        compressed, rest = rest[:1] == b"\1", parts[2]
    if compressed:
        try:
            rest = zlib.decompressobj().decompress(rest, LONGEST_TEXT)
        except zlib.error:
            return None
    # tEXt is Latin-1 by the standard, but several programs write UTF-8.
    return _decoded(rest)


def _jpeg(stream: Any) -> Contents:
    contents = Contents()
    stream.seek(2)
    for _ in range(MOST_SEGMENTS):
        marker = stream.read(2)
        if len(marker) < 2 or marker[0] != 0xFF or marker[1] in (0xD9, 0xDA):
            break
        if marker[1] == 0xFF:  # fill bytes
            stream.seek(-1, io.SEEK_CUR)
            continue
        (length,) = struct.unpack(">H", stream.read(2))
        body = stream.read(max(length - 2, 0))
        if marker[1] == 0xE1 and body[:6] == b"Exif\0\0" and not contents.exif:
            contents.exif = _exif(body[6:])
        elif marker[1] in (0xC0, 0xC1, 0xC2):
            height, width = struct.unpack(">HH", body[1:5])
            contents.size = (width, height)
    return contents


def _webp(stream: Any) -> Contents:
    contents = Contents()
    stream.seek(12)
    for _ in range(MOST_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            break
        kind, length = struct.unpack("<4sI", head)
        if kind == b"EXIF" and length <= LONGEST_TEXT and not contents.exif:
            body = stream.read(length)
            contents.exif = _exif(body.removeprefix(b"Exif\0\0"))
            stream.seek(length % 2, io.SEEK_CUR)
        else:
            stream.seek(length + length % 2, io.SEEK_CUR)
    return contents


# ---------------------------------------------------------------------------------------------------------------- EXIF
def _exif(data: bytes) -> dict[int, str]:
    """The texts of an EXIF block by their tag, those of a damaged folder left out."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return {}
    order = "<" if data[:2] == b"II" else ">"
    texts: dict[int, str] = {}
    try:
        folders = [struct.unpack(f"{order}I", data[4:8])[0]]
        for visited in range(2):
            texts |= _tags(data, order, folders[visited], folders)
            if len(folders) <= visited + 1:
                break
    except struct.error:
        pass
    return texts


def _tags(data: bytes, order: str, place: int, folders: list[int]) -> dict[int, str]:
    """The texts of one folder of tags; the place of the EXIF folder is appended to `folders`."""
    texts: dict[int, str] = {}
    (count,) = struct.unpack(f"{order}H", data[place : place + 2])
    for index in range(min(count, MOST_TAGS)):
        entry = data[place + 2 + 12 * index : place + 14 + 12 * index]
        tag, kind, length, value = struct.unpack(f"{order}HHII", entry)
        if tag == EXIF_FOLDER:
            folders.append(value)
        elif tag in TAGS and tag not in texts and kind in (1, 2, 7) and length <= LONGEST_TEXT:
            body = entry[8 : 8 + length] if length <= 4 else data[value : value + length]
            texts[tag] = _comment(body) if tag == USER_COMMENT else _decoded(body.rstrip(b"\0"))
    return texts


def _comment(body: bytes) -> str:
    """A UserComment, which begins with eight bytes about its encoding."""
    encoding, rest = body[:8], body[8:]
    if encoding == b"UNICODE\0":
        # Either byte order is in use, whatever the order of the block is.
        readings = [rest.decode(name, "replace") for name in ("utf-16-be", "utf-16-le")]
        return max(readings, key=lambda text: sum(letter.isascii() for letter in text))
    return _decoded((rest if encoding in (b"ASCII\0\0\0", bytes(8)) else body).rstrip(b"\0"))


def _decoded(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")
