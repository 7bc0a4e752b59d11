"""Sprites of the nouns in four art styles: reading the atlases, and packing them from npm packages.

| style | set | npm package | license |
| --- | --- | --- | --- |
| 3d | Fluent Emoji, 3D | `@lobehub/fluent-emoji-3d` | MIT |
| flat | Fluent Emoji, flat | `@iconify-json/fluent-emoji-flat` | MIT |
| cartoon | Noto Emoji | `@iconify-json/noto` | Apache-2.0 |
| sticker | Twemoji | `@twemoji/svg` | graphics CC-BY 4.0 |

`python -m fluxnb.train.data.emoji FOLDER` packs the atlases. FOLDER is where `npm install` has installed the four
packages; `resvg_py` is required.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from fluxnb.train.data.nouns import NOUNS

PACKAGES = {
    "3d": "@lobehub/fluent-emoji-3d",
    "flat": "@iconify-json/fluent-emoji-flat",
    "cartoon": "@iconify-json/noto",
    "sticker": "@twemoji/svg",
}
STYLES = tuple(PACKAGES)
COMMON_STYLES = STYLES[:2]  # of the same design, so that a network learns little more from the second
CELL = 112  # pixels of a sprite's cell; the sprite has CELL - 2 * MARGIN
MARGIN = 6  # for the white rim of a sticker and for bilinear sampling
COLUMNS = 32
TONES: dict[str, str] = {"light": "\U0001f3fb", "medium": "\U0001f3fd", "dark": "\U0001f3ff"}
GENDERS = ("woman", "man")
QUALITY = {"3d": 60, "flat": 66, "cartoon": 60, "sticker": 66}  # of WebP


@cache
def sprites() -> dict[tuple[str, int], int]:
    """(noun, look) -> row of an atlas; the looks of a person are ordered by gender, then by tone."""
    keys = [(name, look) for name, noun in NOUNS.items() for look in range(len(_emoji_of(name)))]
    return {key: row for row, key in enumerate(keys)}


def styles_of(name: str) -> tuple[str, ...]:
    """The styles in which scenes have a noun: all of them for animals and people, `COMMON_STYLES` for other nouns.

    With every noun in every style there are 3,408 sprites. A network of 11 million weights that had been trained on
    44 million pictures of all of them drew foxes and dogs, but no recognizable cats and cars.

    >>> styles_of("cat"), styles_of("car")
    (('3d', 'flat', 'cartoon', 'sticker'), ('3d', 'flat'))
    """
    noun = NOUNS[name]
    return STYLES if noun.animal or noun.person else COMMON_STYLES


def load(style: str) -> np.ndarray:
    """All sprites of a style, (sprites, CELL, CELL, 4) uint8, straight alpha, in the order of `sprites`.

    Those of nouns that scenes do not have in this style are empty.
    """
    with (
        (resources.files("fluxnb.train.data") / "atlas" / f"{style}.webp").open("rb") as file,
        Image.open(file) as picture,
    ):
        sheet = np.asarray(picture.convert("RGBA"))
    rows = sheet.shape[0] // CELL
    cells = sheet.reshape(rows, CELL, COLUMNS, CELL, 4).transpose(0, 2, 1, 3, 4).reshape(-1, CELL, CELL, 4)
    return np.ascontiguousarray(cells[: len(sprites())])


def pack(folder: Path, out: Path) -> Iterator[Path]:
    """Write one atlas per style to `out` from the packages in `folder`/node_modules."""
    packages = {style: folder / "node_modules" / package for style, package in PACKAGES.items()}
    readers = {
        "3d": _webps(packages["3d"] / "assets"),
        "flat": _icons(packages["flat"]),
        "cartoon": _icons(packages["cartoon"]),
        "sticker": _svgs(packages["sticker"]),
    }
    out.mkdir(parents=True, exist_ok=True)
    for style, pictures in readers.items():
        sheet = Image.new("RGBA", (COLUMNS * CELL, -(-len(sprites()) // COLUMNS) * CELL))
        for (name, look), row in sprites().items():
            if style not in styles_of(name):
                continue
            emoji = _emoji_of(name)[look]
            if _code(emoji) not in pictures:
                raise FileNotFoundError(
                    f"{name!r} has no picture {_code(emoji)} in style {style!r}. The picture must be in the package "
                    f"{PACKAGES[style]}. Type: npm install --prefix {folder} {PACKAGES[style]}"
                )
            sprite = _fitted(_picture(pictures[_code(emoji)]))
            sheet.paste(sprite, (row % COLUMNS * CELL + MARGIN, row // COLUMNS * CELL + MARGIN))
        sheet.save(out / f"{style}.webp", quality=QUALITY[style], alpha_quality=70, method=6)
        yield out / f"{style}.webp"


def _emoji_of(name: str) -> tuple[str, ...]:
    noun = NOUNS[name]
    if not noun.person:
        return noun.looks
    return tuple(look[0] + tone + look[1:] for look in noun.looks for tone in TONES.values())


def _code(emoji: str) -> str:
    """Code points in hexadecimal, without the variation selectors, which differ between the sets."""
    return "-".join(f"{ord(sign):x}" for sign in emoji if sign != "\ufe0f")


def _plain(code: str) -> str:
    return "-".join(part.lstrip("0") for part in code.lower().split("-") if part != "fe0f")


def _webps(folder: Path) -> dict[str, Path | str]:
    return {_plain(file.stem): file for file in sorted(folder.glob("*.webp"))}


def _svgs(folder: Path) -> dict[str, Path | str]:
    return {_plain(file.stem): file.read_text() for file in sorted(folder.glob("**/*.svg"))}


def _icons(folder: Path) -> dict[str, Path | str]:
    """The icons of an Iconify package as SVG, by code point."""
    icons = json.loads((folder / "icons.json").read_text())
    names = json.loads((folder / "chars.json").read_text())
    found: dict[str, Path | str] = {}
    for code, name in names.items():
        icon = icons["icons"].get(name) or icons["icons"][icons["aliases"][name]["parent"]]
        width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        found[_plain(code)] = f"{head}{icon['body']}</svg>"
    return found


def _picture(source: Path | str) -> Image.Image:
    if isinstance(source, Path):
        with Image.open(source) as picture:
            return picture.convert("RGBA")
    import resvg_py  # in the extra `train`: needed only to draw the atlas anew

    drawn = resvg_py.svg_to_bytes(svg_string=source, width=4 * CELL, height=4 * CELL)
    return Image.open(io.BytesIO(bytes(drawn))).convert("RGBA")


def _fitted(picture: Image.Image) -> Image.Image:
    """Crop a picture to its visible part and scale it to the cell, so that sizes are the same in every set."""
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha > 16 else 0).getbbox()
    picture = picture.crop(box)
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    # Premultiplied alpha ("RGBa"), so that the color of transparent pixels does not affect edges.
    fit = CELL - 2 * MARGIN
    return square.convert("RGBa").resize((fit, fit), Image.Resampling.LANCZOS).convert("RGBA")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pack the atlases from the npm packages in FOLDER/node_modules.")
    parser.add_argument("folder", type=Path)
    for path in pack(parser.parse_args().folder, Path(__file__).parent / "atlas"):
        print(path, path.stat().st_size)
