"""The sprite atlas: one WebP with every object of the world, and the command that makes it again.

The pictures are Microsoft's Fluent 3D emoji, MIT, from the npm package `@lobehub/fluent-emoji-3d`;
their licence notice lies beside the atlas.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from fluxnb.train.data.world import NAMES, OBJECTS

CELL = 96  # pixels: objects are drawn at 40 to 92
COLUMNS = 16
ATLAS = "atlas/sprites.webp"


def make_atlas(assets: Path, out: Path) -> Path:
    """Pack the emoji of `OBJECTS` from the folder `assets` of the npm package into one file at `out`."""
    rows = -(-len(NAMES) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * CELL, rows * CELL))
    for index, (name, code) in enumerate(OBJECTS.items()):
        source = next((f for f in (assets / f"{code}.webp", assets / f"{code}-fe0f.webp") if f.exists()), None)
        if source is None:
            raise FileNotFoundError(f"no picture for {name!r}: looked for {code}.webp in {assets}")
        with Image.open(source) as picture:
            sprite = picture.convert("RGBA").resize((CELL, CELL), Image.Resampling.LANCZOS)
        sheet.paste(sprite, (index % COLUMNS * CELL, index // COLUMNS * CELL))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out, quality=90, method=6)
    return out


def load_sprites() -> np.ndarray:
    """Every sprite as (objects, 96, 96, 4) float32 in [0, 1], straight alpha, in the order of `NAMES`."""
    with (resources.files("fluxnb.train.data") / ATLAS).open("rb") as file, Image.open(file) as picture:
        sheet = np.asarray(picture.convert("RGBA"), dtype=np.float32) / 255
    rows = sheet.shape[0] // CELL
    cells = sheet.reshape(rows, CELL, COLUMNS, CELL, 4).transpose(0, 2, 1, 3, 4).reshape(-1, CELL, CELL, 4)
    return cells[: len(NAMES)]
