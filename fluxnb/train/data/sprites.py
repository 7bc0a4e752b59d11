"""The sprite atlas: one WebP file with all objects, and the function that builds it.

The sprites are Microsoft's Fluent 3D emoji (MIT) from the npm package `@lobehub/fluent-emoji-3d`; the license is in
the folder of the atlas.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from fluxnb.errors import StorageError
from fluxnb.train.data.world import NAMES, OBJECTS

CELL = 96  # pixels; objects are rendered at 46 to 92
COLUMNS = 16
ATLAS = "atlas/sprites.webp"


def make_atlas(assets: Path, out: Path) -> Path:
    """Pack the emoji of `OBJECTS` into one file at `out`; returns `out`.

    Args:
        assets: the folder `assets` of the npm package.
        out: path of the atlas.

    Raises:
        StorageError: if the file of an object is missing.
    """
    rows = -(-len(NAMES) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for index, (name, code) in enumerate(OBJECTS.items()):
        source = next((f for f in (assets / f"{code}.webp", assets / f"{code}-fe0f.webp") if f.exists()), None)
        if source is None:
            raise StorageError(
                f"no picture of {name!r} in {assets}",
                f"the folder assets of the npm package @lobehub/fluent-emoji-3d holds {code}.webp",
                "npm install @lobehub/fluent-emoji-3d, and type the path of its folder assets",
            )
        with Image.open(source) as picture:
            sprite = picture.convert("RGBA").resize((CELL, CELL), Image.Resampling.LANCZOS)
        sheet.paste(sprite, (index % COLUMNS * CELL, index // COLUMNS * CELL))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, quality=90, method=6)
    return out


def load_sprites() -> np.ndarray:
    """All sprites (objects, 96, 96, 4), float32 in [0, 1] with straight alpha, in the order of `NAMES`."""
    with (resources.files("fluxnb.train.data") / ATLAS).open("rb") as file, Image.open(file) as picture:
        sheet = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
    rows = sheet.shape[0] // CELL
    cells = sheet.reshape(rows, CELL, COLUMNS, CELL, 4).transpose(0, 2, 1, 3, 4).reshape(-1, CELL, CELL, 4)
    return cells[: len(NAMES)]
