"""Places, drawn in code: sky, sun and moon, hills, skylines, water and ground, and the stamps that stand in them.

Everything is computed for a batch of pictures at once from one row of numbers per place, so that no branch depends on
which places a batch holds.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fluxnb.train.data.layouts import STAMP_NAMES, Layout
from fluxnb.train.data.scenes import PLACES, PLAIN

Rgb = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Place:
    """What one place looks like; heights in shares of the picture's height, colours in sRGB.

    Attributes:
        horizon: where the ground begins.
        far, near: of the ground, at the horizon and at the lower edge.
        back: of the silhouettes behind the ground.
        hill, mountain, city, trees: how high each kind of silhouette rises.
        water, water_colour: depth of the strip of water below the horizon.
        ripple: strength of horizontal waves on the ground: dunes, furrows, planks or the sea.
        sky: top and low of a sky of its own, instead of the time of day's.
        stars: 1 for stars whatever the time.
        road: 1 for a road towards the horizon.
    """

    horizon: float
    far: Rgb
    near: Rgb
    back: Rgb = (128, 160, 150)
    hill: float = 0.0
    mountain: float = 0.0
    city: float = 0.0
    trees: float = 0.0
    water: float = 0.0
    water_colour: Rgb = (58, 150, 206)
    ripple: float = 0.0
    sky: tuple[Rgb, Rgb] | None = None
    stars: float = 0.0
    road: float = 0.0


TABLE: dict[str, Place] = {
    "snow": Place(0.66, (222, 232, 246), (250, 252, 255), back=(196, 212, 234), hill=0.14),
    "meadow": Place(0.62, (148, 208, 96), (84, 160, 62), back=(118, 176, 116), hill=0.16),
    "beach": Place(0.5, (232, 206, 148), (248, 226, 174), water=0.15, water_colour=(44, 150, 206)),
    "forest": Place(0.62, (72, 118, 60), (88, 138, 66), back=(38, 88, 58), trees=0.3, hill=0.1),
    "desert": Place(0.58, (232, 188, 118), (246, 210, 142), back=(222, 172, 104), hill=0.18, ripple=0.05),
    "mountains": Place(0.7, (112, 164, 96), (84, 140, 74), back=(116, 130, 162), mountain=0.5),
    "city": Place(0.78, (104, 106, 112), (124, 126, 132), back=(108, 120, 150), city=0.6),
    "sea": Place(0.46, (70, 158, 208), (24, 98, 170), ripple=0.09),
    "road": Place(0.56, (136, 192, 98), (96, 160, 76), back=(120, 170, 130), hill=0.13, road=1.0),
    "garden": Place(0.56, (130, 196, 100), (96, 172, 78), back=(62, 130, 76), trees=0.14),
    "farm": Place(0.58, (214, 182, 96), (192, 152, 72), back=(126, 176, 104), hill=0.1, ripple=0.1),
    "lake": Place(0.48, (126, 180, 100), (96, 156, 80), back=(112, 142, 162), mountain=0.26, water=0.24),
    "sky": Place(1.3, (255, 255, 255), (255, 255, 255), sky=((92, 164, 238), (190, 224, 250))),
    "underwater": Place(0.88, (150, 150, 116), (186, 178, 130), sky=((44, 158, 202), (12, 66, 128)), ripple=0.03),
    "space": Place(1.3, (0, 0, 0), (0, 0, 0), sky=((10, 8, 30), (38, 20, 70)), stars=1.0),
    "room": Place(0.72, (150, 104, 66), (184, 132, 86), sky=((238, 224, 204), (226, 208, 184)), ripple=0.07),
}
_SKY: dict[str, tuple[Rgb, Rgb]] = {
    "day": ((92, 166, 238), (206, 233, 252)),
    "sunset": ((88, 66, 150), (254, 160, 98)),
    "night": ((12, 14, 46), (46, 52, 110)),
}
#: what light there is on the ground, by time.
_LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (0.82, 0.62, 0.62), "night": (0.28, 0.32, 0.48)}
_NUMBERS = ("horizon", "hill", "mountain", "city", "trees", "water", "ripple", "stars", "road")


class Places:
    """Draws the backdrops of a layout, plain ones and places, without the stamps."""

    def __init__(self, device: torch.device):
        table = [TABLE[name] for name in PLACES]
        colour = lambda rows: torch.tensor(rows, device=device, dtype=torch.float32) / 255  # noqa: E731
        self.plain = colour(list(PLAIN.values()))
        self.numbers = torch.tensor([[getattr(p, n) for n in _NUMBERS] for p in table], device=device)
        self.colours = colour([[p.far, p.near, p.back, p.water_colour] for p in table])
        self.sky = colour(list(_SKY.values()))
        self.own_sky = colour([p.sky or ((0, 0, 0), (0, 0, 0)) for p in table])
        self.owns = torch.tensor([p.sky is not None for p in table], device=device)
        self.light = torch.tensor(list(_LIGHT.values()), device=device)
        self.room = PLACES.index("room")
        self.under = PLACES.index("underwater")

    def __call__(self, layout: Layout, height: int, width: int) -> Tensor:
        """(B, 3, height, width) in [0, 1]."""
        place = (layout.backdrop - len(PLAIN)).clamp(min=0)
        plain = layout.backdrop < len(PLAIN)
        picture = self._plain(layout, height, width)
        rows = torch.nonzero(~plain).squeeze(1)
        if len(rows):
            drawn = self._place(place[rows], layout.time[rows], layout.noise[rows], height, width)
            picture = picture.index_copy(0, rows, drawn)
        return picture

    def light_of(self, layout: Layout) -> Tensor:
        """(B, 3): what a stamp's colours are multiplied with."""
        return self.light[layout.time]

    def _axes(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Y in shares of the height and x in units of the shorter side, (1, H, 1) and (1, 1, W)."""
        device, short = self.plain.device, min(height, width)
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / short
        return y[None, :, None], x[None, None, :]

    def _plain(self, layout: Layout, height: int, width: int) -> Tensor:
        y, x = self._axes(height, width)
        colour = self.plain[layout.backdrop.clamp(max=len(PLAIN) - 1)]
        shade = 1 + 0.06 * (layout.noise[:, :1] - 0.5)
        middle = width / min(height, width) / 2
        vignette = 1.03 - 0.22 * ((x - middle) ** 2 + (y - 0.45) ** 2)
        return ((colour * shade)[:, :, None, None] * vignette[:, None]).clamp(0, 1)

    def _place(self, place: Tensor, time: Tensor, noise: Tensor, height: int, width: int) -> Tensor:
        y, x = self._axes(height, width)
        pixel = 1.0 / height
        horizon, hill, mountain, city, trees, water, ripple, stars, road = self.numbers[place, :, None, None].unbind(1)
        n = noise[:, :, None, None]
        horizon = horizon + 0.08 * (n[:, 0] - 0.5)
        far, near, back, sea = self.colours[place].unbind(1)
        light = self.light[time]
        night, dusk = (time == 2).float()[:, None, None], (time == 1).float()[:, None, None]
        outside = (~self.owns[place]).float()[:, None, None]

        edge = lambda line: ((y - line) / pixel + 0.5).clamp(0, 1)  # noqa: E731  anti-aliased: 1 below the line
        over = lambda under, colour, mask: torch.lerp(under, colour, mask[:, None])  # noqa: E731
        flat = lambda colour: colour[:, :, None, None]  # noqa: E731

        top, low = torch.where(self.owns[place][:, None, None], self.own_sky[place], self.sky[time]).unbind(1)
        tint = 0.12 * (noise[:, 1:4] - 0.5)
        wall = 0.22 * (noise[:, 4:7] - 0.7) * (place == self.room)[:, None].float()
        rise = (y / horizon.clamp(max=1.0)).clamp(0, 1)[:, None]
        picture = torch.lerp(flat(top + tint + wall), flat(low + tint + wall), rise)
        picture = self._lights(picture, x, y, height / min(height, width), n, night, dusk, outside, stars)
        beams = (
            torch.sin(6.283 * (n[:, 7] + 2.2 * x + y)) * 0.05 * (1 - y) * (place == self.under).float()[:, None, None]
        )
        picture = picture + beams[:, None]

        haze = 0.75 + 0.25 * n[:, 8]
        behind = flat(back * light)
        ridge, peak = self._ridges(x, n), self._peaks(x, n)
        picture = over(
            picture, torch.lerp(flat(low), behind, 0.7 * haze[:, None]), edge(horizon - hill * (0.5 + 0.9 * ridge))
        )
        slope = edge(horizon - mountain * peak)
        picture = over(picture, behind, slope)
        cap = edge(horizon - mountain * 0.62 + 0.02 * torch.sin(40 * x)) * -1 + 1
        picture = over(picture, flat(light * 0.95), slope * cap * (mountain > 0.3).float())
        picture = self._city(picture, x, y, n, horizon, city, behind, night, edge)
        crowns = 0.6 + 0.25 * torch.sin(6.283 * (n[:, 9] + 5 * x)) * torch.sin(6.283 * (n[:, 10] + 3.1 * x))
        crowns = crowns + 0.12 * torch.sin(6.283 * 17 * x + 9 * n[:, 11])
        picture = over(picture, behind, edge(horizon - trees * crowns))

        ground_line = horizon + 0.02 * (ridge - 0.5) * (hill > 0).float()
        depth = ((y - horizon) / (1 - horizon).clamp(min=0.1)).clamp(0, 1)
        ground = torch.lerp(flat(far * light), flat(near * light), depth[:, None])
        waves = torch.sin(6.283 * (n[:, 12] + (4 + 14 * (1 - depth)) * depth + 0.16 * torch.sin(9 * x + 6 * n[:, 13])))
        ground = ground * (1 + ripple * waves)[:, None] + 0.03 * (noise[:, 14:17, None, None] - 0.5)
        picture = over(picture, ground, edge(ground_line))
        wet = edge(horizon) * (1 - edge(horizon + water + 0.012 * torch.sin(7 * x + 6.283 * n[:, 17])))
        sparkle = 1 + 0.07 * torch.sin(6.283 * (40 * (y - horizon) + torch.sin(8 * x + 6 * n[:, 18])))
        picture = over(picture, flat(sea * light) * sparkle[:, None], wet * (water > 0).float())
        picture = self._road(picture, x, n, depth, light, road * edge(horizon), width / min(height, width))
        shade = 1 + 0.06 * (n[:, 19] - 0.5)
        return (picture * shade[:, None]).clamp(0, 1)

    def _lights(
        self,
        picture: Tensor,
        x: Tensor,
        y: Tensor,
        tall: float,
        n: Tensor,
        night: Tensor,
        dusk: Tensor,
        outside: Tensor,
        stars: Tensor,
    ) -> Tensor:
        """Stars, and the sun or the moon with its glow."""
        cells = 14.0
        column, line = torch.floor(x * cells), torch.floor(y * tall * cells)
        scatter = lambda a, b: torch.frac(torch.sin(column * a + line * b + 50 * n[:, 20]) * 43758.5453).abs()  # noqa: E731
        dx = torch.frac(x * cells) - 0.15 - 0.7 * scatter(12.9898, 78.233)
        dy = torch.frac(y * tall * cells) - 0.15 - 0.7 * scatter(39.3468, 11.135)
        bright = (scatter(73.156, 52.235) - 0.45).clamp(0, 1) * 1.8
        spot = torch.exp(-(dx * dx + dy * dy) * 90) * bright * torch.maximum(night * outside, stars)
        picture = picture + spot[:, None]
        sun_x, sun_y = n[:, 21] * x.max(), torch.where(dusk > 0, 0.36 + 0.1 * n[:, 22], 0.1 + 0.2 * n[:, 22])
        far = ((x - sun_x) ** 2 + ((y - sun_y) * tall) ** 2).sqrt()
        disc = ((0.055 + 0.02 * n[:, 23] - far) * 120).clamp(0, 1) * outside * (n[:, 24] < 0.75).float()
        glow = torch.exp(-far * far * 14) * outside * (0.2 + 0.3 * dusk - 0.12 * night)
        gold = picture.new_tensor([[1.0, 0.86, 0.42]])
        silver = picture.new_tensor([[0.96, 0.96, 0.88]])
        colour = torch.lerp(gold, silver, night[:, 0])[:, :, None, None]
        picture = picture + (1 - picture).clamp(min=0) * glow[:, None] * colour
        return torch.lerp(picture, colour.expand_as(picture), disc[:, None])

    def _ridges(self, x: Tensor, n: Tensor) -> Tensor:
        """A smooth line of hills in [0, 1], (B, 1, W)."""
        waves = [torch.sin(6.283 * (n[:, 25 + k] + f * x)) / (k + 1) for k, f in enumerate((0.6, 1.3, 2.4))]
        return 0.5 + 0.27 * sum(waves)  # type: ignore[operator]

    def _peaks(self, x: Tensor, n: Tensor) -> Tensor:
        """A jagged line of mountains in [0, 1], (B, 1, W)."""
        line = torch.zeros_like(x)
        for k in range(4):
            centre, tall = (k + 0.2 + 0.6 * n[:, 25 + k]) * 0.42 - 0.1, 0.5 + 0.5 * n[:, 29 - k]
            line = torch.maximum(line, tall - (1.5 + n[:, 9 + k]) * (x - centre).abs())
        return line

    def _city(self, picture, x, y, n, horizon, city, behind, night, edge) -> Tensor:
        """Two rows of houses with windows, which are lit at night."""
        for row, (count, dim) in enumerate(((5.0, 1.25), (7.0, 0.85))):
            lot = torch.floor(x * count + n[:, 25 + row])
            tall = torch.frac(torch.sin(lot * 91.7 + 40 * n[:, 27 + row]) * 4375.85).abs()
            top = horizon - city * (0.3 + 0.7 * tall) * (1.0 if row == 0 else 0.72)
            body = edge(top) * (city > 0).float() * (1 - edge(horizon + 0.01))
            picture = torch.lerp(picture, behind * dim, body[:, None])
            u, v = torch.frac((x * count + n[:, 25 + row]) * 3), torch.frac((y - top) * 16)
            pane = ((u - 0.5).abs() < 0.26).float() * ((v - 0.5).abs() < 0.28).float() * body
            which = torch.frac(
                torch.sin(torch.floor(x * count * 3) * 12.9 + torch.floor((y - top) * 16) * 78.2) * 437.5
            )
            lit = (which.abs() < 0.5).float()
            yellow, glass = picture.new_tensor([1.0, 0.86, 0.5]), picture.new_tensor([0.78, 0.87, 0.95])
            shown = torch.where(night[:, None] > 0, yellow[None, :, None, None], glass[None, :, None, None])
            picture = torch.lerp(picture, shown.expand_as(picture), (pane * (0.25 + 0.6 * lit))[:, None])
        return picture

    def _road(self, picture, x, n, depth, light, road, width) -> Tensor:
        """A road that widens towards the viewer, with a dashed line."""
        middle = width * (0.5 + 0.16 * (n[:, 29] - 0.5)) + 0.1 * (1 - depth) * (n[:, 30] - 0.5)
        half = 0.03 + 0.4 * depth
        off = (x - middle).abs()
        asphalt = ((half - off) * 90).clamp(0, 1) * road
        grey = light * picture.new_tensor([0.42, 0.43, 0.46])
        picture = torch.lerp(picture, grey[:, :, None, None].expand_as(picture), asphalt[:, None])
        dash = (torch.sin(6.283 * 5 * depth.clamp(min=0) ** 0.6) > 0).float()
        line = ((0.004 + 0.03 * depth - off) * 120).clamp(0, 1) * dash * road
        cream = light * picture.new_tensor([0.98, 0.95, 0.82])
        return torch.lerp(picture, cream[:, :, None, None].expand_as(picture), line[:, None])


# -------------------------------------------------------------------------------------------------------------- stamps


def _shape(side: int) -> tuple[Image.Image, ImageDraw.ImageDraw, float]:
    picture = Image.new("RGBA", (4 * side, 4 * side))
    return picture, ImageDraw.Draw(picture), 4.0 * side


def _pine(d: ImageDraw.ImageDraw, s: float) -> None:
    d.rectangle((0.45 * s, 0.82 * s, 0.55 * s, s), "#6b4a30")
    for top, bottom, half, colour in (
        (0.42, 0.9, 0.36, "#25623f"),
        (0.2, 0.66, 0.29, "#2d7049"),
        (0.0, 0.42, 0.21, "#378055"),
    ):
        d.polygon([(0.5 * s, top * s), ((0.5 - half) * s, bottom * s), ((0.5 + half) * s, bottom * s)], colour)


def _tree(d: ImageDraw.ImageDraw, s: float) -> None:
    d.rectangle((0.45 * s, 0.6 * s, 0.56 * s, s), "#70502f")
    for x, y, r, colour in ((0.34, 0.42, 0.24, "#3c7a3c"), (0.66, 0.42, 0.24, "#3c7a3c"), (0.5, 0.28, 0.28, "#4b8f46")):
        d.ellipse(((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s), colour)


def _cloud(d: ImageDraw.ImageDraw, s: float) -> None:
    for x, y, r in ((0.22, 0.58, 0.16), (0.42, 0.48, 0.22), (0.64, 0.5, 0.19), (0.8, 0.6, 0.14)):
        d.ellipse(((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s), "#ffffffe6")
    d.rounded_rectangle((0.08 * s, 0.56 * s, 0.94 * s, 0.74 * s), 0.09 * s, "#ffffffe6")


def _bush(d: ImageDraw.ImageDraw, s: float) -> None:
    for x, y, r, colour in ((0.26, 0.78, 0.24, "#4f8f45"), (0.74, 0.78, 0.24, "#4f8f45"), (0.5, 0.68, 0.3, "#5da04f")):
        d.ellipse(((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s), colour)


def _flower(d: ImageDraw.ImageDraw, s: float) -> None:
    d.rectangle((0.47 * s, 0.4 * s, 0.53 * s, s), "#4c8a3e")
    for k in range(5):
        x, y = 0.5 + 0.17 * math.sin(k * 1.2566), 0.27 - 0.17 * math.cos(k * 1.2566)
        d.ellipse(((x - 0.13) * s, (y - 0.13) * s, (x + 0.13) * s, (y + 0.13) * s), "#e86a92")
    d.ellipse((0.4 * s, 0.17 * s, 0.6 * s, 0.37 * s), "#f7cf58")


def _rock(d: ImageDraw.ImageDraw, s: float) -> None:
    d.polygon([(x * s, y * s) for x, y in ((0.02, 1), (0.14, 0.6), (0.42, 0.42), (0.74, 0.5), (0.98, 1))], "#8b8378")
    d.polygon([(x * s, y * s) for x, y in ((0.14, 0.6), (0.42, 0.42), (0.5, 0.66), (0.26, 0.76))], "#a39b8e")


def _lamp(d: ImageDraw.ImageDraw, s: float) -> None:
    d.rectangle((0.47 * s, 0.16 * s, 0.53 * s, s), "#3b4048")
    d.rectangle((0.4 * s, 0.95 * s, 0.6 * s, s), "#3b4048")
    d.polygon([(x * s, y * s) for x, y in ((0.38, 0.04), (0.62, 0.04), (0.57, 0.2), (0.43, 0.2))], "#ffe9a0")
    d.rectangle((0.36 * s, 0.0, 0.64 * s, 0.05 * s), "#3b4048")


def _palm(d: ImageDraw.ImageDraw, s: float) -> None:
    d.polygon([(x * s, y * s) for x, y in ((0.44, 1), (0.56, 1), (0.56, 0.3), (0.5, 0.3))], "#94703f")
    for angle in (-2.7, -2.1, -1.57, -1.0, -0.4):
        x, y = 0.53 + 0.42 * math.cos(angle), 0.36 + 0.3 * math.sin(angle)
        d.polygon([(0.5 * s, 0.3 * s), (x * s, y * s), (0.56 * s, 0.36 * s)], "#3f8f4f")


def _barn(d: ImageDraw.ImageDraw, s: float) -> None:
    d.rectangle((0.12 * s, 0.46 * s, 0.88 * s, s), "#a8443c")
    d.polygon(
        [(x * s, y * s) for x, y in ((0.04, 0.48), (0.22, 0.22), (0.5, 0.1), (0.78, 0.22), (0.96, 0.48))], "#6f6a68"
    )
    d.rectangle((0.38 * s, 0.64 * s, 0.62 * s, s), "#f0e6d6")


def _fence(d: ImageDraw.ImageDraw, s: float) -> None:
    for y in (0.68, 0.84):
        d.rectangle((0, y * s, s, (y + 0.05) * s), "#d9c9a8")
    for x in (0.04, 0.34, 0.64, 0.92):
        d.rectangle((x * s, 0.58 * s, (x + 0.06) * s, s), "#c8b48c")


def _seaweed(d: ImageDraw.ImageDraw, s: float) -> None:
    for k, x in enumerate((0.3, 0.5, 0.7)):
        top = 0.1 + 0.2 * (k % 2)
        for step in range(40):
            y = top + (1 - top) * step / 40
            wave = 0.06 * math.sin(9 * y + 2 * k)
            d.ellipse(((x + wave - 0.045) * s, (y - 0.02) * s, (x + wave + 0.045) * s, (y + 0.05) * s), "#2f8a5c")


def _planet(d: ImageDraw.ImageDraw, s: float) -> None:
    d.ellipse((0.05 * s, 0.05 * s, 0.95 * s, 0.95 * s), "#7a6fb4")
    for x, y, r in ((0.34, 0.36, 0.12), (0.64, 0.58, 0.15), (0.42, 0.74, 0.08)):
        d.ellipse(((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s), "#675c9e")


def _window(d: ImageDraw.ImageDraw, s: float) -> None:
    d.rectangle((0.05 * s, 0.05 * s, 0.95 * s, 0.95 * s), "#fbf7ef")
    for x in (0.12, 0.54):
        for y in (0.12, 0.54):
            d.rectangle((x * s, y * s, (x + 0.34) * s, (y + 0.34) * s), "#a8d4f2")


def _frame(d: ImageDraw.ImageDraw, s: float) -> None:
    d.rectangle((0.08 * s, 0.16 * s, 0.92 * s, 0.84 * s), "#8a5f3b")
    d.rectangle((0.16 * s, 0.24 * s, 0.84 * s, 0.76 * s), "#dfe8d8")
    d.polygon(
        [(x * s, y * s) for x, y in ((0.16, 0.76), (0.4, 0.44), (0.6, 0.66), (0.7, 0.54), (0.84, 0.76))], "#7fa07a"
    )


def _plant(d: ImageDraw.ImageDraw, s: float) -> None:
    for angle in (-2.5, -2.0, -1.57, -1.1, -0.6):
        x, y = 0.5 + 0.42 * math.cos(angle), 0.66 + 0.6 * math.sin(angle)
        d.polygon([(0.42 * s, 0.68 * s), (x * s, y * s), (0.58 * s, 0.68 * s)], "#4f9358")
    d.polygon([(x * s, y * s) for x, y in ((0.32, 0.66), (0.68, 0.66), (0.62, 1), (0.38, 1))], "#c07a4e")


STAMPS = dict(zip(STAMP_NAMES, (
    _pine, _tree, _cloud, _bush, _flower, _rock, _lamp, _palm,
    _barn, _fence, _seaweed, _planet, _window, _frame, _plant,
), strict=True))  # fmt: skip


def stamp_pictures(cell: int, margin: int) -> np.ndarray:
    """Every stamp, (stamps, cell, cell, 4) uint8, straight alpha, with a clear margin as the sprites have."""
    cells = []
    for draw in STAMPS.values():
        picture, canvas, side = _shape(cell - 2 * margin)
        draw(canvas, side)
        small = picture.convert("RGBa").resize((cell - 2 * margin,) * 2, Image.Resampling.BOX).convert("RGBA")
        framed = Image.new("RGBA", (cell, cell))
        framed.paste(small, (margin, margin))
        cells.append(np.asarray(framed))
    return np.stack(cells)
