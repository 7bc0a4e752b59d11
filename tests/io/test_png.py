from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import example, given, settings
from PIL import Image

from fluxnb.errors import FluxnbError, InputError, StorageError
from fluxnb.io.a1111 import parameters
from fluxnb.io.png import SIGNATURE, encode_png, open_recipe, write_png
from fluxnb.records.recipe import Recipe
from tests.records.test_recipe import recipes

TINY = Image.new("RGB", (4, 4), (1, 2, 3))


def chunk(kind: bytes, body: bytes, length: int | None = None, check: int | None = None) -> bytes:
    crc = zlib.crc32(kind + body) if check is None else check
    return struct.pack(">I", len(body) if length is None else length) + kind + body + struct.pack(">I", crc)


def png(*chunks: bytes) -> bytes:
    return SIGNATURE + b"".join(chunks) + chunk(b"IEND", b"")


# One prompt per script.
SCRIPTS = {
    "Arabic, right to left": "ثعلب في الثلج",
    "Hebrew with points": "שׁוּעָל בַּשֶּׁלֶג",
    "Devanagari": "बर्फ में लोमड़ी",
    "Thai, no spaces": "จิ้งจอกในหิมะ",
    "Han and kana": "雪の中の狐",
    "Hangul": "눈 속의 여우",
    "Cyrillic": "лиса в снегу",
    "Amharic": "በበረዶ ውስጥ ቀበሮ",
    "outside the basic plane": "𒀀𓃠𠀀𝔣𝔬𝔵",
    "emoji with joiners": "👩🏽‍🚀🏳️‍🌈🇺🇳👨‍👩‍👧‍👦",
    "decomposed and zalgo": "é f̵̡o̍̐x",
    "directions and no-breaks": "‮fox‬ ⁦in⁩﻿",
}


@pytest.mark.parametrize("prompt", SCRIPTS.values(), ids=SCRIPTS)
def test_prompts_in_every_script_come_back(prompt):
    recipe = Recipe(prompt=prompt, negative=prompt, model="schnell", height=16, width=16)
    assert open_recipe(encode_png(TINY, recipe)) == recipe.replace()
    with Image.open(io.BytesIO(encode_png(TINY, recipe.replace(negative=None)))) as opened:
        assert opened.text["parameters"].startswith(prompt)


@pytest.mark.moderate
@settings(max_examples=500)
@example(Recipe(prompt="a", seed=0))
@example(Recipe(prompt="a", seed=2**64 - 1))
@given(recipes())
def test_a_recipe_comes_back_from_its_png(recipe):
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
def test_hostile_prompts_and_extreme_seeds_come_back(prompt, seed):
    recipe = Recipe(prompt=prompt, seed=seed)
    assert open_recipe(encode_png(TINY, recipe)) == recipe


def test_the_metadata_does_not_change_the_pixels():
    noisy = Image.effect_noise((33, 17), 90).convert("RGB")
    with Image.open(io.BytesIO(encode_png(noisy, Recipe(prompt="a")))) as opened:
        assert opened.tobytes() == noisy.tobytes()
        assert opened.text["parameters"].startswith("a\nSteps: 4, Sampler: Euler, ")


@pytest.mark.parametrize(
    ("recipe", "line"),
    [
        (Recipe(prompt="a", steps=3, seed=7, height=32, width=48), "Steps: 3, Sampler: Euler, Schedule type: Simple, "
         "CFG scale: 1, Seed: 7, Size: 48x32, Version: fluxnb"),
        (Recipe(prompt="a", guidance=2.5, model="pocket-base"), "Steps: 4, Sampler: Euler, Schedule type: Simple, "
         "CFG scale: 2.5, Seed: 0, Model: pocket-base, Version: fluxnb"),
        (Recipe(prompt="a", guidance=3.5, model="dev", sampler="renoise"), "Steps: 4, Sampler: Renoise, Schedule type: "
         "Simple, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 0, Model: dev, Version: fluxnb"),
        (Recipe(prompt="a", shift=2.0, model='so, "quoted"'), "Steps: 4, Sampler: Euler, Shift: 2, CFG scale: 1, "
         'Seed: 0, Model: "so, \\"quoted\\"", Version: fluxnb'),
    ],
)  # fmt: skip
def test_the_settings_are_written_in_the_format_of_a1111(recipe, line):
    assert parameters(recipe).splitlines()[-1] == line


def test_a_negative_prompt_has_its_own_line():
    recipe = Recipe(prompt="a fox\nin two lines", negative="blur", guidance=2.0, model="pocket-base")
    assert parameters(recipe).splitlines()[:3] == ["a fox", "in two lines", "Negative prompt: blur"]


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
        (png(chunk(b"tEXt", b"fluxnb\0" + b'{"fluxnb_recipe":1,"prompt":"a","seed":1e400}')), InputError),
        (
            png(chunk(b"tEXt", b"fluxnb\0" + b'{"fluxnb_recipe":1,"prompt":"a","steps":' + b"9" * 5000 + b"}")),
            InputError,
        ),
        (png(chunk(b"tEXt", b"fluxnb\0" + b'{"fluxnb_recipe":1,"prompt":["a"]}')), InputError),
        (png(chunk(b"tEXt", b"fluxnb\0" + b'{"fluxnb_recipe":1,"prompt":"\\ud800"}')), InputError),
        (png(chunk(b"tEXt", b"fluxnb\0" + b'{"fluxnb_recipe":1,"prompt":"a","__class__":"os"}')), InputError),
        (png(chunk(b"tEXt", b"fluxnb\0" + b'{"fluxnb_recipe":1,"prompt":"a","prompt":"b"}')), InputError),
        (png(chunk(b"tEXt", b"fluxnb\0" + b"\xff\xfe{")), InputError),
        (png(chunk(b"zTXt", b"fluxnb\0\0" + zlib.compress(b"0" * 10**8))), InputError),
        (png(chunk(b"iTXt", b"fluxnb\0\1\0\0\0" + zlib.compress(b"0" * 10**8))), InputError),
        (png(chunk(b"tEXt", b"fluxnb\0" + GOOD, length=2**31 - 1)), FluxnbError),
        (png(chunk(b"IDAT", b"", length=2**32 - 1)), StorageError),
        (SIGNATURE + b"\0\0", StorageError),
        (SIGNATURE + chunk(b"tEXt", b"fluxnb\0" + GOOD)[:-6], StorageError),
        (png(*[chunk(b"tEXt", b"x\0y")] * 100_001), StorageError),
    ],
)
def test_a_hostile_png_is_a_fluxnb_error(data, kind):
    with pytest.raises(kind) as caught:
        open_recipe(data)
    assert caught.value.remedy


def test_an_uncompressed_itxt_chunk_is_read():
    assert open_recipe(png(chunk(b"iTXt", b"fluxnb\0\0\0\0\0" + GOOD))) == Recipe(prompt="a")


def test_a_recipe_after_the_bound_of_chunks_is_not_read(monkeypatch):
    data = SIGNATURE + chunk(b"tEXt", b"a\0b") + chunk(b"tEXt", b"fluxnb\0" + GOOD) + chunk(b"IEND", b"")
    monkeypatch.setattr("fluxnb.io.png.MOST_CHUNKS", 2)
    assert open_recipe(data)
    monkeypatch.setattr("fluxnb.io.png.MOST_CHUNKS", 1)
    with pytest.raises(StorageError):
        open_recipe(data)


def test_a_missing_file_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match="No such file"):
        open_recipe(tmp_path / "none.png")


def test_only_lossy_numerics_are_named_in_the_parameters():
    recipe = Recipe(prompt="a")
    assert "Numerics" not in parameters(recipe) and "Numerics: gguf-q8, Version" in parameters(recipe, "gguf-q8")
    with Image.open(io.BytesIO(encode_png(TINY, recipe, numerics="gguf-q8"))) as opened:
        assert "Numerics: gguf-q8" in opened.text["parameters"]


def test_a_recipe_is_read_from_an_open_file_and_from_bytes_in_memory(tmp_path):
    recipe = Recipe(prompt="a fox", seed=3)
    data = encode_png(Image.new("RGB", (16, 16)), recipe)
    (tmp_path / "fox.png").write_bytes(data)
    assert open_recipe(io.BytesIO(data)) == recipe
    with open(tmp_path / "fox.png", "rb") as stream:
        assert open_recipe(stream) == recipe
