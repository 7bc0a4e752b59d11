from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import given, settings
from PIL import Image

from fluxnb.errors import FluxnbError, InputError, StorageError
from fluxnb.export.png import SIGNATURE, encode_png, open_recipe, write_png
from fluxnb.recipe import Recipe
from tests.unit.test_recipe import recipes

TINY = Image.new("RGB", (4, 4), (1, 2, 3))


def chunk(kind: bytes, body: bytes, length: int | None = None, check: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if check is None else check
    return struct.pack(">I", len(body) if length is None else length) + kind + body + struct.pack(">I", crc)


def png(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND", b"")


@settings(max_examples=500)
@given(recipes())
def test_a_picture_brings_its_recipe_back(recipe):
    assert open_recipe(encode_png(TINY, recipe)) == recipe


@pytest.mark.parametrize(
    "prompt",
    [
        "<script>alert(1)</script>",
        "\"quotes' </style>",
        "狐 in the снег 🦊🏽‍♀️ \u202e reversed",
        "line\nbreak\ttab \x00 null \x1b[31m",
        "%s {0} ${x} \\ \\u0000",
    ],
)
@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_any_prompt_and_seed_travel(prompt, seed):
    ask = Recipe(prompt=prompt, seed=seed)
    assert open_recipe(encode_png(TINY, ask)) == ask


def test_the_picture_itself_is_not_changed_and_opens_anywhere():
    noisy = Image.effect_noise((33, 17), 90).convert("RGB")
    with Image.open(io.BytesIO(encode_png(noisy, Recipe(prompt="a")))) as opened:
        assert opened.tobytes() == noisy.tobytes()
        assert opened.text["parameters"].startswith("a\nSteps: 4, Sampler: Euler, Seed: 0")


def test_a_recipe_is_read_from_a_path_and_an_open_file(tmp_path):
    path = write_png(TINY, tmp_path / "a.png", Recipe(prompt="a"))
    with path.open("rb") as stream:
        assert open_recipe(path) == open_recipe(str(path)) == open_recipe(stream) == Recipe(prompt="a")


GOOD = Recipe(prompt="a").to_json().encode()


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", StorageError),
        (b"GIF89a", StorageError),
        (SIGNATURE, InputError),
        (png(), InputError),
        (png(chunk(b"tEXt", b"other\0" + GOOD)), InputError),
        (png(chunk(b"tEXt", b"fluxnb\0" + GOOD, check=1)), StorageError),
        (png(chunk(b"tEXt", b"fluxnb\0{")), InputError),
        (png(chunk(b"tEXt", b"fluxnb\0" + b"[" * 200_000)), InputError),
        (png(chunk(b"tEXt", b"fluxnb\0" + b'{"fluxnb_recipe":1,"prompt":"a","seed":"3"}')), InputError),
        (png(chunk(b"tEXt", b"fluxnb\0" + b" " * 2_000_000)), InputError),
        (png(chunk(b"zTXt", b"fluxnb\0\0" + zlib.compress(b"0" * 10**8))), InputError),
        (png(chunk(b"iTXt", b"fluxnb\0\1\0\0\0" + zlib.compress(b"0" * 10**8))), InputError),
        (png(chunk(b"tEXt", b"fluxnb\0" + GOOD, length=2**31 - 1)), FluxnbError),
        (png(chunk(b"IDAT", b"", length=2**32 - 1)), StorageError),
        (SIGNATURE + b"\0\0", StorageError),
        (SIGNATURE + chunk(b"tEXt", b"fluxnb\0" + GOOD)[:-6], StorageError),
        (png(*[chunk(b"tEXt", b"x\0y")] * 100_001), StorageError),
    ],
)
def test_a_hostile_png_is_an_error_of_ours(data, kind):
    with pytest.raises(kind) as caught:
        open_recipe(data)
    assert caught.value.remedy


def test_an_uncompressed_itxt_of_ours_is_read():
    assert open_recipe(png(chunk(b"iTXt", b"fluxnb\0\0\0\0\0" + GOOD))) == Recipe(prompt="a")


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        open_recipe(tmp_path / "none.png")
