"""Batched rendering of layouts on the training device.

A layout gives the same picture on every device up to rounding, and a scaled one at every size.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fluxnb.train.data import emoji
from fluxnb.train.data.layouts import LETTERS, Layout
from fluxnb.train.data.places import STAMPS, Places, stamp_pictures
from fluxnb.train.data.scenes import COLORS, SIGN_LETTERS

ADVANCE, LINE = 14 / 128, 22 / 128  # of a letter's cell on a sign, in units of the picture's shorter side
SIGN_WIDTH, SIGN_HEIGHT = 112 / 128, 54 / 128
GLYPH = 28, 44  # width and height of a letter's texture in pixels
RIM = 4  # pixels of a sticker's white rim, at the atlas's resolution
#: opacity of the shadow of a thing, and its offset in shares of the side of its box, by style.
SHADOW = {"3d": 0.3, "flat": 0.0, "cartoon": 0.2, "sticker": 0.26}
SHADOW_OFFSET = {"3d": 0.06, "flat": 0.0, "cartoon": 0.04, "sticker": 0.025}


class Renderer:
    """Renders layouts as (B, 3, height, width) float32 in [-1, 1].

    Arguments:
        device: the device of the pictures and of the atlas (0.3 GB).

    >>> scene = complete(Scene((Thing("fox"),)), random.Random(0))
    >>> Renderer("cpu")(lay_out([scene], random.Random(0)), 128, 128).shape
    torch.Size([1, 3, 128, 128])
    """

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self.places = Places(self.device)
        textures, lightness = _atlas()
        self.textures, self.lightness = textures.to(self.device), lightness.to(self.device)
        self.first_stamp = len(textures) - len(STAMPS)
        self.glyphs = torch.from_numpy(_glyphs()).to(self.device)
        self.palette = torch.tensor(list(COLORS.values()), device=self.device) / 255
        self.shadow = torch.tensor([SHADOW[style] for style in emoji.STYLES], device=self.device)
        self.shadow_offset = torch.tensor([SHADOW_OFFSET[style] for style in emoji.STYLES], device=self.device)
        self.rimmed = emoji.STYLES.index("sticker")

    @torch.no_grad()
    def __call__(self, layout: Layout, height: int = 192, width: int = 192) -> Tensor:
        """Render a layout, which must be laid out for this shape."""
        layout = layout.to(self.device)
        picture = self.places(layout, height, width)
        light = self.places.light_of(layout)
        for slot in range(layout.stamps.shape[1]):
            self._stamp(picture, layout.stamps[:, slot], light)
        for slot in range(layout.sprites.shape[1]):
            self._thing(picture, layout, slot)
        self._write(picture, layout)
        return picture.mul_(2).sub_(1)

    def _stamp(self, picture: Tensor, stamp: Tensor, light: Tensor) -> None:
        rows = torch.nonzero(stamp[:, 0] >= 0).squeeze(1)
        if len(rows) == 0:
            return
        stamp = stamp[rows]
        drawn = self._sample(stamp[:, 0].long() + self.first_stamp, stamp[:, 1:], picture)
        color = drawn[:, :3] * light[rows][:, :, None, None]
        picture[rows] = picture[rows] * (1 - drawn[:, 3:4]) + color

    def _thing(self, picture: Tensor, layout: Layout, slot: int) -> None:
        rows = torch.nonzero(layout.sprites[:, slot] >= 0).squeeze(1)
        if len(rows) == 0:
            return
        index, box, style = layout.sprites[rows, slot], layout.boxes[rows, slot], layout.style[rows]
        drawn = self._sample(index, box[:, :3], picture, box[:, 3])
        offset = torch.stack(
            (
                box[:, 0] + 0.35 * self.shadow_offset[style] * box[:, 2],
                box[:, 1] + self.shadow_offset[style] * box[:, 2],
            ),
            1,
        )
        shadow = self._sample(index, torch.cat((offset, box[:, 2:3]), 1), picture, box[:, 3], channels=slice(4, 5))
        under = picture[rows] * (1 - self.shadow[style][:, None, None, None] * shadow)
        rim = drawn[:, 4:5] * (style == self.rimmed)[:, None, None, None]
        under = torch.lerp(under, torch.ones_like(under), rim)
        color = self._recolored(drawn[:, :3], drawn[:, 3:4], layout.colors[rows, slot], self.lightness[index])
        picture[rows] = under * (1 - drawn[:, 3:4]) + color

    def _recolored(self, color: Tensor, alpha: Tensor, which: Tensor, middle: Tensor) -> Tensor:
        """Premultiplied colors of a sprite in a color of the palette, which replaces the sprite's mean lightness.

        Darker and lighter parts remain so. A rotation of the hue would leave white and gray parts unchanged.
        """
        weights = color.new_tensor([0.3, 0.59, 0.11])[None, :, None, None]
        light = (color * weights).sum(1, keepdim=True) / alpha.clamp(min=1e-3)
        middle = middle.clamp(0.2, 0.92)[:, None, None, None]
        target = self.palette[which.clamp(min=0)][:, :, None, None]
        dark = (light / middle).clamp(0, 1) ** 0.8
        shine = ((light - middle) / (1 - middle)).clamp(0, 1) ** 1.5 * 0.62
        painted = torch.lerp(target * dark, torch.ones_like(color), shine) * alpha
        return torch.where((which >= 0)[:, None, None, None], painted, color)

    def _sample(
        self, index: Tensor, box: Tensor, picture: Tensor, mirror: Tensor | None = None, channels: slice = slice(0, 5)
    ) -> Tensor:
        """Textures in their boxes, (n, channels, H, W): premultiplied color, coverage, and shadow or rim."""
        height, width = picture.shape[2:]
        short, cell = min(height, width), emoji.CELL
        x = (torch.arange(width, device=self.device) + 0.5) / short
        y = (torch.arange(height, device=self.device) + 0.5) / short
        scale = box[:, 2:3] * (cell / (cell - 2 * emoji.MARGIN))
        u = (x[None] - box[:, :1]) / scale
        v = (y[None] - box[:, 1:2]) / scale + 0.5
        u = u * mirror[:, None] + 0.5 if mirror is not None else u + 0.5
        # The texture has three sizes side by side; the one nearest to the size in the picture is sampled.
        level = torch.log2(cell / (scale * short)).add(0.4).floor().clamp(0, 2)
        side = cell / 2**level
        left, top = torch.where(level > 0, float(cell), 0.0), torch.where(level > 1, cell / 2, 0.0)
        inside = ((u > 0) & (u < 1)).float()[:, None, None, :] * ((v > 0) & (v < 1)).float()[:, None, :, None]
        gx = (left + u.clamp(0, 1) * side) * (2 / (1.5 * cell)) - 1
        gy = (top + v.clamp(0, 1) * side) * (2 / cell) - 1
        grid = torch.stack(torch.broadcast_tensors(gx[:, None, :], gy[:, :, None]), 3)
        textures = self.textures[index, channels].float() / 255
        return F.grid_sample(textures, grid, align_corners=False, padding_mode="border") * inside

    def _write(self, picture: Tensor, layout: Layout) -> None:
        rows = torch.nonzero(~torch.isnan(layout.sign[:, 0])).squeeze(1)
        if len(rows) == 0:
            return
        height, width = picture.shape[2:]
        short = min(height, width)
        center, letters = layout.sign[rows], layout.letters[rows]
        x = ((torch.arange(width, device=self.device) + 0.5) / short)[None, None, :]
        y = ((torch.arange(height, device=self.device) + 0.5) / short)[None, :, None]
        dx, dy = (x - center[:, :1, None]).abs(), (y - center[:, 1:, None]).abs()
        corner = 7 / 128
        outside = torch.hypot((dx - SIGN_WIDTH / 2 + corner).clamp(min=0), (dy - SIGN_HEIGHT / 2 + corner).clamp(min=0))
        board = ((corner - outside) * short + 0.5).clamp(0, 1)[:, None]
        paper = ((corner - 3 / 128 - outside) * short + 0.5).clamp(0, 1)[:, None]

        def color(*rgb: float) -> Tensor:
            return picture.new_tensor(rgb)[None, :, None, None]

        drawn = picture[rows]
        drawn = drawn * (1 - board) + color(0.42, 0.26, 0.16) * board
        drawn = drawn * (1 - paper) + color(0.99, 0.97, 0.90) * paper
        count = (letters > 0).sum(-1)
        lines = (count > 0).sum(-1)
        ink = torch.zeros_like(paper)
        for line in range(letters.shape[1]):
            texture = self.glyphs[letters[:, line]].permute(0, 2, 1, 3).flatten(2)[:, None]
            left = center[:, :1] - count[:, line, None] * (ADVANCE / 2)
            middle = center[:, 1:] + (line - (lines[:, None] - 1) / 2) * LINE
            gx = (x[:, 0] - left) / (SIGN_LETTERS * ADVANCE) * 2 - 1
            gy = (y[:, :, 0] - middle) / LINE * 2
            grid = torch.stack(torch.broadcast_tensors(gx[:, None, :], gy[:, :, None]), 3)
            ink = ink + F.grid_sample(texture, grid, align_corners=False)
        picture[rows] = drawn * (1 - ink) + color(0.16, 0.11, 0.10) * ink


@cache
def _atlas() -> tuple[Tensor, Tensor]:
    """Textures of all styles and of the stamps, and their lightness; computed once per process."""
    parts = [_textures(emoji.load(style), style == "sticker") for style in emoji.STYLES]
    parts.append(_textures(stamp_pictures(emoji.CELL, emoji.MARGIN), False))
    textures, lightness = zip(*parts, strict=True)
    return torch.cat(textures), torch.cat(lightness)


def _textures(sprites: np.ndarray, rimmed: bool) -> tuple[Tensor, Tensor]:
    """(n, 5, CELL, 1.5 CELL) uint8 in three sizes side by side, and the mean lightness of each sprite (n,).

    The channels are premultiplied color, which prevents fringes at interpolated edges, coverage, and the rim of a
    sticker or the soft shadow of another style.
    """
    cell = emoji.CELL
    sheets, lights = [], []
    for part in torch.from_numpy(sprites).split(256):
        rgba = part.permute(0, 3, 1, 2).float() / 255
        alpha = rgba[:, 3:]
        weights = rgba.new_tensor([0.3, 0.59, 0.11])[None, :, None, None]
        light = (rgba[:, :3] * weights).sum(1, keepdim=True)
        lights.append((light * alpha).sum((1, 2, 3)) / alpha.sum((1, 2, 3)).clamp(min=1))
        if rimmed:
            grown = F.max_pool2d(alpha, 2 * RIM - 1, stride=1, padding=RIM - 1)
            last = F.avg_pool2d(F.pad(grown, (1, 1, 1, 1)), 3, stride=1)
        else:
            rows = F.avg_pool2d(F.pad(alpha, (6, 6, 6, 6)), (13, 1), stride=1)
            last = F.avg_pool2d(rows, (1, 13), stride=1)
        large = torch.cat((rgba[:, :3] * alpha, alpha, last), 1)
        sheet = large.new_zeros(len(large), 5, cell, cell * 3 // 2)
        for level in range(3):
            side = cell >> level
            small = F.interpolate(large, (side, side), mode="bilinear", antialias=True) if level else large
            left, top = (0, cell, cell)[level], (0, 0, cell // 2)[level]
            sheet[:, :, top : top + side, left : left + side] = small
        sheets.append((sheet * 255).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(sheets), torch.cat(lights)


def _glyphs() -> np.ndarray:
    """Coverage of each letter in its cell, (27, 44, 28); the first is blank.

    The font is DejaVu Sans Mono Bold, which matplotlib ships.
    """
    face = Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono-Bold.ttf"
    wide, high = GLYPH
    font = ImageFont.truetype(str(face), int(wide * 1.66))
    cells = []
    for letter in LETTERS:
        cell = Image.new("L", GLYPH)
        ImageDraw.Draw(cell).text((wide / 2, high * 0.72), letter, 255, font, anchor="ms")
        cells.append(np.asarray(cell, dtype=np.float32) / 255)
    return np.stack(cells)
