"""Layouts: positions, sizes and appearance of the contents of complete scenes as tensors, which `drawing` renders.

Lengths are in units of the picture's shorter side, from its top left corner. A layout adds the randomness that no
caption describes: positions, the shape of hills, the shade of the sky.

The boxes of things begin and end at the edges of the transformer's tokens, so that a small network does not have to
learn how a thing looks at every shift by a pixel.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fluxnb.train.data import emoji
from fluxnb.train.data.scenes import (
    BACKDROPS,
    COLORS,
    NATURAL,
    PLACES,
    SIGN_LETTERS,
    SIGN_LINES,
    TIMES,
    Scene,
    Thing,
)

SLOTS, STAMP_SLOTS, NOISE = 4, 7, 32
LETTERS = " abcdefghijklmnopqrstuvwxyz"
#: side of a thing's box by size: least, most.
SIDES = {"small": (0.26, 0.36), "medium": (0.48, 0.62), "large": (0.74, 0.9)}
_NO_GROUND = frozenset({"sky", "space", "underwater"})
#: place -> its stamps: name, maximal number, range of the bottom edge, range of the size.
_DRESSING: dict[str, tuple[tuple[str, int, float, float, float, float], ...]] = {
    "snow": (("pine", 4, 0.64, 0.8, 0.16, 0.34), ("cloud", 2, 0.1, 0.34, 0.2, 0.4)),
    "meadow": (
        ("bush", 2, 0.64, 0.8, 0.14, 0.24),
        ("flower", 3, 0.74, 0.98, 0.08, 0.13),
        ("cloud", 2, 0.1, 0.36, 0.2, 0.4),
    ),
    "beach": (
        ("palm", 2, 0.66, 0.86, 0.34, 0.56),
        ("cloud", 2, 0.1, 0.32, 0.2, 0.4),
        ("rock", 2, 0.72, 0.95, 0.08, 0.16),
    ),
    "forest": (("pine", 4, 0.62, 0.84, 0.4, 0.72), ("tree", 3, 0.64, 0.86, 0.36, 0.62)),
    "desert": (("rock", 4, 0.64, 0.95, 0.08, 0.22), ("cloud", 1, 0.1, 0.3, 0.2, 0.3)),
    "mountains": (("pine", 4, 0.72, 0.86, 0.14, 0.3), ("cloud", 2, 0.1, 0.3, 0.2, 0.36)),
    "city": (("lamp", 3, 0.78, 0.92, 0.36, 0.56), ("cloud", 1, 0.08, 0.26, 0.2, 0.32)),
    "sea": (("cloud", 4, 0.1, 0.4, 0.2, 0.44),),
    "road": (("tree", 3, 0.6, 0.72, 0.2, 0.36), ("bush", 2, 0.6, 0.76, 0.1, 0.18), ("cloud", 2, 0.1, 0.32, 0.2, 0.4)),
    "garden": (("flower", 7, 0.64, 0.99, 0.1, 0.2),),
    "farm": (("barn", 1, 0.6, 0.68, 0.26, 0.38), ("fence", 3, 0.68, 0.8, 0.22, 0.3), ("cloud", 2, 0.1, 0.32, 0.2, 0.4)),
    "lake": (("pine", 3, 0.76, 0.9, 0.24, 0.4), ("cloud", 2, 0.1, 0.28, 0.2, 0.36), ("rock", 1, 0.8, 0.95, 0.1, 0.16)),
    "sky": (("cloud", 7, 0.14, 0.99, 0.24, 0.56),),
    "underwater": (("seaweed", 5, 0.9, 1.02, 0.2, 0.42), ("rock", 2, 0.9, 1.0, 0.1, 0.2)),
    "space": (("planet", 2, 0.24, 0.9, 0.1, 0.3),),
    "room": (
        ("window", 1, 0.4, 0.5, 0.24, 0.34),
        ("frame", 2, 0.3, 0.46, 0.12, 0.2),
        ("plant", 1, 0.74, 0.82, 0.24, 0.34),
    ),
}


STAMP_NAMES = (
    "pine", "tree", "cloud", "bush", "flower", "rock", "lamp", "palm",
    "barn", "fence", "seaweed", "planet", "window", "frame", "plant",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shape:
    """Height and width of a picture in pixels, multiples of 16."""

    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of image tokens of the transformer: one for 16 x 16 pixels."""
        return self.height * self.width // 256

    @property
    def cells(self) -> int:
        """Number of tokens along the shorter side."""
        return min(self.height, self.width) // 16

    @property
    def units(self) -> tuple[float, float]:
        """Width and height in units of the shorter side."""
        short = min(self.height, self.width)
        return self.width / short, self.height / short


@dataclasses.dataclass(frozen=True)
class Layout:
    """Layout of a batch of scenes; every field has one row per scene.

    Attributes:
        sprites: (B, 4) row in the atlas of all styles, or -1.
        boxes: (B, 4, 4) center x, center y, side, and 1 or -1 for mirrored.
        colors: (B, 4) index into `COLORS`, -1 for the natural color.
        style: (B,) index into `STYLES`.
        backdrop: (B,) index into `BACKDROPS`.
        time: (B,) index into `TIMES`; 0 (day) in places without a time of day.
        noise: (B, 32) uniform random numbers for the shape and shade of the backdrop.
        stamps: (B, 7, 4) index into `STAMP_NAMES` or -1, center x, center y, side.
        sign: (B, 2) center of the sign; NaN without a sign.
        letters: (B, 2, 7) index into `LETTERS`, 0 for a blank.
    """

    sprites: Tensor
    boxes: Tensor
    colors: Tensor
    style: Tensor
    backdrop: Tensor
    time: Tensor
    noise: Tensor
    stamps: Tensor
    sign: Tensor
    letters: Tensor

    def to(self, device: torch.device | str) -> Layout:
        """The layout on a device."""
        return Layout(*(getattr(self, f.name).to(device, non_blocking=True) for f in dataclasses.fields(self)))

    def __getitem__(self, rows: slice | Tensor) -> Layout:
        return Layout(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def __len__(self) -> int:
        return len(self.backdrop)

    def arrays(self) -> list[np.ndarray]:
        """The fields as arrays, which are cheaper to send between processes than tensors."""
        return [getattr(self, f.name).numpy() for f in dataclasses.fields(self)]

    @staticmethod
    def cat(parts: Sequence[Layout]) -> Layout:
        """Concatenate layouts."""
        return Layout(*(torch.cat([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Layout)))


_INTEGERS = frozenset({"sprites", "colors", "style", "backdrop", "time", "letters"})
_COLOR = {name: index for index, name in enumerate(COLORS)} | {NATURAL: -1}
_STAMP = {name: index for index, name in enumerate(STAMP_NAMES)}


def lay_out(scenes: Sequence[Scene], rng: random.Random, shape: Shape = Shape(192, 192)) -> Layout:
    """Lay out complete scenes in pictures of a shape.

    Raises:
        ValueError: if a scene has a style that one of its nouns does not have.
    """
    rows = [_row(scene, rng, shape) for scene in scenes]
    fields = (field.name for field in dataclasses.fields(Layout))
    columns = zip(*rows, strict=True)
    types = {True: np.int64, False: np.float32}
    return Layout(*(torch.from_numpy(np.array(c, types[f in _INTEGERS])) for f, c in zip(fields, columns, strict=True)))


def _row(scene: Scene, rng: random.Random, shape: Shape) -> tuple[object, ...]:
    width, height = shape.units
    style = emoji.STYLES.index(str(scene.style))
    for thing in scene.things:
        if scene.style not in (styles := emoji.styles_of(thing.noun)):
            raise ValueError(
                f"style={scene.style!r} for {thing.noun!r}: scenes have it in {', '.join(styles)}. "
                f"Use style={styles[0]!r}, or None in a partial scene."
            )
    placed, sign = _place(scene, rng, width, height)
    sprites, boxes, colors = [-1] * SLOTS, [(0.0, 0.0, 1.0, 1.0)] * SLOTS, [-1] * SLOTS
    for slot, (thing, x, y, side) in enumerate(placed):
        sprites[slot] = style * len(emoji.sprites()) + emoji.sprites()[thing.noun, thing.look or 0]
        boxes[slot] = (*_snapped(x, y, side, shape), -1.0 if thing.facing == "right" else 1.0)
        colors[slot] = _COLOR[thing.color or NATURAL]
    return (
        sprites,
        boxes,
        colors,
        style,
        BACKDROPS.index(str(scene.backdrop)),
        TIMES.index(scene.time) if scene.time else 0,
        [rng.random() for _ in range(NOISE)],
        _dress(str(scene.backdrop), rng, width, height),
        sign,
        spell(scene.sign),
    )


def _snapped(x: float, y: float, side: float, shape: Shape) -> tuple[float, float, float]:
    """A box with edges at the edges of tokens: the largest side that is not larger, at the nearest place inside."""
    cells = shape.cells
    tokens = max(2, int(side * cells + 1e-6))
    left, top = (
        min(max(round(center * cells - tokens / 2), 0), pixels // 16 - tokens)
        for center, pixels in ((x, shape.width), (y, shape.height))
    )
    return (left + tokens / 2) / cells, (top + tokens / 2) / cells, tokens / cells


_Placed = list[tuple[Thing, float, float, float]]


def _place(scene: Scene, rng: random.Random, width: float, height: float) -> tuple[_Placed, tuple[float, float]]:
    """Boxes of all things, and the center of the sign (NaN without a sign)."""
    around, nowhere = rng.uniform, (float("nan"), float("nan"))
    first = scene.things[0]
    middle_x, middle_y = width / 2, height / 2
    if scene.sign is not None:
        thing = (first, middle_x + around(-0.08, 0.08), middle_y + around(-0.21, -0.15), around(0.5, 0.62))
        return [thing], (middle_x + around(-0.03, 0.03), middle_y + around(0.24, 0.27))
    if len(scene.things) == 2:
        return _two(scene, rng, width, height), nowhere
    if first.count == 1:
        side = around(*SIDES[first.size or "medium"])
        reach = max(0.0, (width - side) / 2) * 0.8
        return [(first, middle_x + around(-reach, reach), _stand(scene, side, rng, height), side)], nowhere
    return _several(scene, rng, width, height), nowhere


def _two(scene: Scene, rng: random.Random, width: float, height: float) -> _Placed:
    around = rng.uniform
    sides = [around(0.36, 0.45) for _ in range(2)]
    if scene.relation in ("above", "below"):
        x = [width / 2 + around(-0.13, 0.13) * width for _ in range(2)]
        y = [height * share + around(-0.02, 0.02) for share in (0.26, 0.74)]
    else:
        x = [width * share + around(-0.03, 0.03) for share in (0.27, 0.73)]
        level = _stand(scene, max(sides), rng, height)
        y = [level + around(-0.05, 0.05) for _ in range(2)]
    order = [0, 1]
    if scene.relation in ("right of", "below") or (scene.relation == "and" and rng.random() < 0.5):
        order.reverse()
    return [(scene.things[i], x[place], y[place], sides[place]) for place, i in enumerate(order)]


def _several(scene: Scene, rng: random.Random, width: float, height: float) -> _Placed:
    thing, around = scene.things[0], rng.uniform
    count = thing.count or 2
    tall = height > width
    if count == 4 and width < 1.4:
        grid = [(x, y) for y in ((0.27, 0.74) if not tall else (0.33, 0.68)) for x in (0.27, 0.73)]
        side = around(0.34, 0.42)
    elif count == 3 and width < 1.4 and rng.random() < 0.6:
        grid = [
            (0.5, 0.27 if not tall else 0.34),
            (0.26, 0.73 if not tall else 0.66),
            (0.74, 0.73 if not tall else 0.66),
        ]
        if rng.random() < 0.5:
            grid = [(x, 1 - y) for x, y in grid]
        side = around(0.34, 0.42)
    else:
        level = _stand(scene, 0.36, rng, height) / height
        grid = [((i + 0.5) / count, level) for i in range(count)]
        side = min(around(0.36, 0.45), 0.92 * width / count)
    side *= {"small": 0.8, "large": 1.08}.get(str(thing.size), 1.0)
    return [(thing, x * width + around(-0.02, 0.02), y * height + around(-0.03, 0.03), side) for x, y in grid]


def _stand(scene: Scene, side: float, rng: random.Random, height: float) -> float:
    """The y of the center of a thing: on the ground, or near the middle in a backdrop without ground."""
    if scene.backdrop in PLACES and scene.backdrop not in _NO_GROUND:
        bottom = rng.uniform(0.82, 0.95) * height
        return max(bottom - side / 2, side / 2)
    reach = max(0.0, (height - side) / 2) * 0.6
    return height / 2 + rng.uniform(-reach, reach)


def _dress(backdrop: str, rng: random.Random, width: float, height: float) -> list[tuple[float, float, float, float]]:
    stamps = []
    for name, most, low, high, least, largest in _DRESSING.get(backdrop, ()):
        for _ in range(rng.randint(most // 2, most)):
            bottom, side = rng.uniform(low, high) * height, rng.uniform(least, largest)
            stamps.append((_STAMP[name], rng.uniform(-0.05, 1.05) * width, bottom - side / 2, side, bottom))
    stamps.sort(key=lambda stamp: stamp[4])  # nearer stamps are drawn later
    rows: list[tuple[float, float, float, float]] = [
        (float(i), x, y, side) for i, x, y, side, _ in stamps[-STAMP_SLOTS:]
    ]
    return rows + [(-1.0, 0.0, 0.0, 1.0)] * (STAMP_SLOTS - len(rows))


def spell(sign: str | None) -> list[list[int]]:
    """The words on a sign as (2, 7) indices into `LETTERS`, one word per line; longer words are truncated."""
    lines = [[0] * SIGN_LETTERS for _ in range(SIGN_LINES)]
    for line, word in zip(lines, (sign or "").split(), strict=False):
        for place, letter in enumerate(word[:SIGN_LETTERS]):
            line[place] = max(0, LETTERS.find(letter))
    return lines
