"""Batched rendering of scenes on the training device.

`lay_out` chooses positions, sizes and shades on the CPU with a random generator; `Renderer` draws the layouts with
tensor operations. The same layout gives the same picture on every device, up to rounding.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fluxnb.train.data import world
from fluxnb.train.data.sprites import load_sprites
from fluxnb.train.data.world import Scene

SIZE = 128
ADVANCE, LINE = 14, 22  # pixels of a letter's cell on the sign
SIGN_WIDTH, SIGN_HEIGHT = 112, 54
GLYPH = 2  # resolution of the glyph textures relative to the sign
LETTERS = " abcdefghijklmnopqrstuvwxyz"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Geometry of a batch of scenes; every field has one row per scene.

    Attributes:
        objects: (B, 2) index into `world.NAMES`; -1 for no object.
        boxes: (B, 2, 3) center x, center y and side of each object, in pixels.
        background: (B,) index into `world.BACKGROUNDS`.
        ground: (B, 4) horizon height, hill height, hill phase, shade.
        sign: (B, 2) center of the sign in pixels; NaN for no sign.
        letters: (B, 2, 7) index into `LETTERS`, 0 for a blank. Lines are left-aligned here and centered in the picture.
    """

    objects: Tensor
    boxes: Tensor
    background: Tensor
    ground: Tensor
    sign: Tensor
    letters: Tensor

    def to(self, device: torch.device | str) -> Layout:
        """The layout on a device."""
        return Layout(*(getattr(self, f.name).to(device, non_blocking=True) for f in dataclasses.fields(self)))

    def __getitem__(self, rows: slice | Tensor) -> Layout:
        return Layout(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    def __len__(self) -> int:
        return len(self.background)

    @staticmethod
    def cat(parts: Sequence[Layout]) -> Layout:
        """Concatenate layouts along the batch."""
        return Layout(*(torch.cat([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Layout)))


def lay_out(scenes: Sequence[Scene], rng: random.Random) -> Layout:
    """Choose positions, sizes and shades of scenes at random."""
    rows = [_lay_out_one(scene, rng) for scene in scenes]
    objects, boxes, background, ground, sign, letters = zip(*rows, strict=True)
    return Layout(
        objects=torch.tensor(objects),
        boxes=torch.tensor(boxes, dtype=torch.float32),
        background=torch.tensor(background),
        ground=torch.tensor(ground, dtype=torch.float32),
        sign=torch.tensor(sign, dtype=torch.float32),
        letters=torch.tensor(letters),
    )


_INDEX = {name: index for index, name in enumerate(world.NAMES)}
_BACKGROUND = {name: index for index, name in enumerate(world.BACKGROUNDS)}


def _lay_out_one(scene: Scene, rng: random.Random) -> tuple[Any, ...]:
    uniform = rng.uniform
    indices = [_INDEX[name] for name in scene.objects]
    sign = (float("nan"), float("nan"))
    no_box = (0.0, 0.0, 1.0)
    if scene.sign is not None:
        boxes = [(64 + uniform(-8, 8), 41 + uniform(-4, 4), uniform(66, 78)), no_box]
        sign = (64 + uniform(-4, 4), 96 + uniform(-2, 2))
    elif len(indices) == 1:
        side = uniform(60, 92)
        boxes = [(64 + uniform(-18, 18), 70 + uniform(-10, 10), side), no_box]
    else:
        relation = scene.relation
        if relation in ("above", "below"):
            boxes = [(64 + uniform(-18, 18), y + uniform(-3, 3), uniform(46, 58)) for y in (33, 94)]
        else:
            boxes = [(x + uniform(-4, 4), 70 + uniform(-14, 14), uniform(46, 58)) for x in (34, 94)]
        if relation in ("right of", "below") or (relation == "and" and rng.random() < 0.5):
            boxes.reverse()
    ground = (uniform(0.6, 0.76), uniform(0.01, 0.05), uniform(0, 6.283), uniform(-1, 1))
    objects = [*indices, -1][:2]
    return objects, boxes, _BACKGROUND[scene.background], ground, sign, spell(scene.sign)


def spell(sign: str | None) -> list[list[int]]:
    """The words on a sign as (2, 7) indices into `LETTERS`, one word per line."""
    lines = [[0] * world.SIGN_LETTERS for _ in range(world.SIGN_LINES)]
    for line, word in zip(lines, (sign or "").split(), strict=False):
        line[: len(word)] = [LETTERS.index(letter) for letter in word]
    return lines


class Renderer:
    """Render layouts as pictures (B, 3, 128, 128), float32 in [-1, 1].

    >>> layout = lay_out([Scene(("fox",), "snow")], random.Random(0))
    >>> Renderer("cpu")(layout).shape
    torch.Size([1, 3, 128, 128])
    """

    def __init__(self, device: torch.device | str):
        sprites = torch.from_numpy(load_sprites()).permute(0, 3, 1, 2).contiguous()
        sprites[:, :3] *= sprites[:, 3:]  # premultiplied alpha, so that interpolation does not bleed at edges
        shadow = F.avg_pool2d(F.pad(sprites[:, 3:], (6, 6, 6, 6)), 13, stride=1)
        large = torch.cat((sprites, shadow), 1)
        small = F.interpolate(large, scale_factor=0.5, mode="bilinear", antialias=True)
        self.device = torch.device(device)
        self.large, self.small = large.to(device), small.to(device)
        self.glyphs = torch.from_numpy(_glyphs()).to(device)
        self.palette = torch.tensor(list(world.COLORS.values()), device=device) / 255
        axis = (torch.arange(SIZE, device=device) + 0.5) / SIZE
        self.y, self.x = torch.meshgrid(axis, axis, indexing="ij")

    @torch.no_grad()
    def __call__(self, layout: Layout) -> Tensor:
        """Render a batch of layouts."""
        layout = layout.to(self.device)
        picture = self._background(layout)
        for slot in range(layout.objects.shape[1]):
            picture = self._paste(picture, layout.objects[:, slot], layout.boxes[:, slot])
        return self._write(picture, layout) * 2 - 1

    def _background(self, layout: Layout) -> Tensor:
        background, ground = layout.background, layout.ground[:, :, None, None]
        horizon, hill, phase, shade = ground.unbind(1)
        x, y = self.x[None], self.y[None]
        color = self.palette[background.clamp(max=len(world.COLORS) - 1)][:, :, None, None]
        plain = color * (1 + 0.05 * shade[:, None])
        vignette = 1.04 - 0.3 * ((x - 0.5) ** 2 + (y - 0.45) ** 2)
        picture = plain * vignette[:, None]
        line = horizon + hill * torch.sin(phase + 5 * x)
        soft = torch.sigmoid((y - line) * SIZE)[:, None]  # an edge one pixel wide
        depth = ((y - line) / (1 - line)).clamp(0, 1)[:, None]
        height = (y / line).clamp(0, 1)[:, None]
        for place, (top, low, near, far) in _PLACES.items():
            here = (background == world.BACKGROUNDS.index(place))[:, None, None, None]
            if not bool(here.any()):
                continue
            top_c, low_c, near_c, far_c = (
                torch.tensor(c, device=self.device)[None, :, None, None] / 255 for c in (top, low, near, far)
            )
            sky = top_c + (low_c - top_c) * height
            if place == "beach":  # a strip of sea below the sky
                sea = torch.sigmoid((y - line + 0.16) * SIZE)[:, None]
                blue = torch.tensor((52, 150, 204), device=self.device)[None, :, None, None] / 255
                sky = sky * (1 - sea) + blue * sea
            if place == "water":  # slanted beams of light
                beams = torch.sin(phase + 14 * x + 6 * y)[:, None] * 0.05 * (1 - height)
                sky = sky + beams
            land = far_c + (near_c - far_c) * depth
            scene = (sky * (1 - soft) + land * soft) * (1 + 0.03 * shade[:, None])
            picture = torch.where(here, scene, picture)
        return picture.clamp(0, 1)

    def _paste(self, picture: Tensor, index: Tensor, box: Tensor) -> Tensor:
        def sample(texture: Tensor, shift: Tensor) -> Tensor:
            return F.grid_sample(texture, self._grid(box + shift), align_corners=False, padding_mode="zeros")

        here = (index >= 0).to(picture.dtype)[:, None, None, None]
        textures = torch.where(
            (box[:, 2] < 66)[:, None, None, None],
            F.interpolate(self.small[index.clamp(min=0)], scale_factor=2, mode="bilinear"),
            self.large[index.clamp(min=0)],
        )
        sprite = sample(textures, torch.zeros(3, device=box.device)) * here
        shadow = sample(textures[:, 4:], torch.tensor((2.0, 5.0, 0.0), device=box.device)) * here
        picture = picture * (1 - 0.28 * shadow)
        return picture * (1 - sprite[:, 3:4]) + sprite[:, :3]

    def _write(self, picture: Tensor, layout: Layout) -> Tensor:
        rows = torch.nonzero(~torch.isnan(layout.sign[:, 0])).squeeze(1)
        if len(rows) == 0:
            return picture
        center, letters = layout.sign[rows], layout.letters[rows]
        x, y = self.x[None] * SIZE, self.y[None] * SIZE
        dx, dy = (x - center[:, :1, None]).abs(), (y - center[:, 1:, None]).abs()
        corner = 7.0
        outside = torch.hypot((dx - SIGN_WIDTH / 2 + corner).clamp(min=0), (dy - SIGN_HEIGHT / 2 + corner).clamp(min=0))
        board = (corner + 0.5 - outside).clamp(0, 1)[:, None]
        paper = (corner - 2.5 - outside).clamp(0, 1)[:, None]
        wood = torch.tensor((0.42, 0.26, 0.16), device=self.device)[None, :, None, None]
        cream = torch.tensor((0.99, 0.97, 0.90), device=self.device)[None, :, None, None]
        drawn = picture[rows] * (1 - board) + wood * board
        drawn = drawn * (1 - paper) + cream * paper
        count = (letters > 0).sum(-1)  # letters per line
        lines = (count > 0).sum(-1)
        ink = torch.zeros_like(paper)
        for line in range(letters.shape[1]):
            texture = self.glyphs[letters[:, line]]  # (n, 7, LINE, ADVANCE) at GLYPH times the resolution
            texture = texture.permute(0, 2, 1, 3).flatten(2)[:, None]
            shift_x = (world.SIGN_LETTERS - count[:, line]) * ADVANCE / 2
            shift_y = (line - (lines - 1) / 2) * LINE
            box = torch.stack((center[:, 0] + shift_x, center[:, 1] + shift_y), 1)
            width, height = world.SIGN_LETTERS * ADVANCE, LINE
            theta = torch.zeros(len(rows), 2, 3, device=self.device)
            theta[:, 0, 0], theta[:, 1, 1] = SIZE / width, SIZE / height
            theta[:, 0, 2] = (SIZE / 2 - box[:, 0]) * 2 / width
            theta[:, 1, 2] = (SIZE / 2 - box[:, 1]) * 2 / height
            grid = F.affine_grid(theta, [len(rows), 1, SIZE, SIZE], align_corners=False)
            ink = ink + F.grid_sample(texture, grid, align_corners=False)
        drawn = drawn * (1 - ink) + torch.tensor((0.16, 0.11, 0.10), device=self.device)[None, :, None, None] * ink
        return picture.index_copy(0, rows, drawn)

    def _grid(self, box: Tensor) -> Tensor:
        theta = torch.zeros(len(box), 2, 3, device=box.device)
        theta[:, 0, 0] = theta[:, 1, 1] = SIZE / box[:, 2]
        theta[:, 0, 2] = (SIZE / 2 - box[:, 0]) * 2 / box[:, 2]
        theta[:, 1, 2] = (SIZE / 2 - box[:, 1]) * 2 / box[:, 2]
        return F.affine_grid(theta, [len(box), 1, SIZE, SIZE], align_corners=False)


#: sky at the top, sky at the horizon, ground near, ground far; sRGB.
_PLACES = {
    "snow": ((176, 208, 240), (226, 238, 250), (250, 252, 255), (222, 232, 246)),
    "meadow": ((104, 180, 244), (196, 230, 252), (84, 160, 62), (132, 200, 84)),
    "beach": ((120, 196, 246), (206, 236, 252), (244, 222, 168), (226, 196, 138)),
    "night": ((16, 18, 52), (48, 48, 104), (18, 40, 38), (26, 58, 50)),
    "sunset": ((92, 62, 142), (252, 146, 92), (74, 42, 88), (112, 58, 96)),
    "water": ((40, 150, 196), (14, 76, 138), (150, 146, 112), (72, 110, 122)),
}


def _glyphs() -> np.ndarray:
    """Coverage of each letter's cell, (27, GLYPH * LINE, GLYPH * ADVANCE); the first is blank.

    The font is DejaVu Sans Mono Bold, which ships with matplotlib. Its letters have equal widths.
    """
    face = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono-Bold.ttf"
    font = ImageFont.truetype(str(face), int(ADVANCE * GLYPH * 1.66))
    cells = []
    for letter in LETTERS:
        cell = Image.new("L", (ADVANCE * GLYPH, LINE * GLYPH))
        ImageDraw.Draw(cell).text((ADVANCE * GLYPH / 2, LINE * GLYPH * 0.72), letter, 255, font, anchor="ms")
        cells.append(np.asarray(cell, dtype=np.float32) / 255)
    return np.stack(cells)
