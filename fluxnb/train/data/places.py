"""Backdrops as pictures: sky, sun and moon, hills, skylines, water and ground, and the stamps that decorate them.

A batch of places is computed at once from one row of numbers per place, without a branch that depends on the place.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fluxnb.train.data.layouts import STAMP_NAMES, Layout
from fluxnb.train.data.scenes import PLACES, PLAIN, TIMES

Rgb = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Place:
    """The appearance of one place; heights in shares of the picture's height, colors in sRGB.

    Attributes:
        horizon: the height at which the ground starts, from the top.
        far, near: color of the ground at the horizon and at the lower edge.
        back: color of the silhouettes behind the ground.
        hill, mountain, city, trees: height of each kind of silhouette.
        water, water_color: height and color of the strip of water below the horizon.
        ripple: strength of horizontal waves on the ground: dunes, furrows, planks or the sea.
        sky: upper and lower color of the sky; None for the sky of the time of day.
        stars: 1 for stars at any time of day.
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
    water_color: Rgb = (58, 150, 206)
    ripple: float = 0.0
    sky: tuple[Rgb, Rgb] | None = None
    stars: float = 0.0
    road: float = 0.0


TABLE: dict[str, Place] = {
    "snow": Place(0.66, (222, 232, 246), (250, 252, 255), back=(196, 212, 234), hill=0.14),
    "meadow": Place(0.62, (148, 208, 96), (84, 160, 62), back=(118, 176, 116), hill=0.16),
    "beach": Place(0.5, (232, 206, 148), (248, 226, 174), water=0.15, water_color=(44, 150, 206)),
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
#: factors of the colors on the ground, by time of day.
_LIGHT = {"day": (1.0, 1.0, 1.0), "sunset": (0.82, 0.62, 0.62), "night": (0.28, 0.32, 0.48)}
_FIELDS = ("horizon", "hill", "mountain", "city", "trees", "water", "ripple", "stars", "road")


@dataclasses.dataclass(frozen=True)
class View:
    """A batch of places as the drawing functions take it: coordinates, random numbers, and the fields of `Place`.

    Attributes:
        x: (1, 1, W), in units of the shorter side.
        y: (1, H, 1), in shares of the height.
        width, height: of the picture, in units of the shorter side.
        n: (B, 32, 1, 1) uniform numbers of the layout.
        horizon, hill, mountain, city, trees, water, ripple, stars, road: (B, 1, 1), fields of `Place`.
        far, near, back, water_color, light: (B, 3) colors; `light` multiplies the others.
        sky_top, sky_low: (B, 3) colors.
        night, sunset, outside, indoors, underwater: (B, 1, 1), 1 or 0; `outside` is 0 for a place with its own sky.
    """

    x: Tensor
    y: Tensor
    width: float
    height: float
    n: Tensor
    horizon: Tensor
    hill: Tensor
    mountain: Tensor
    city: Tensor
    trees: Tensor
    water: Tensor
    ripple: Tensor
    stars: Tensor
    road: Tensor
    far: Tensor
    near: Tensor
    back: Tensor
    water_color: Tensor
    light: Tensor
    sky_top: Tensor
    sky_low: Tensor
    night: Tensor
    sunset: Tensor
    outside: Tensor
    indoors: Tensor
    underwater: Tensor

    def below(self, line: Tensor) -> Tensor:
        """Anti-aliased mask (B, H, W) of what is below a line (B, 1, W): 1 below, 0 above."""
        return ((self.y - line) * self.y.shape[1] + 0.5).clamp(0, 1)

    @property
    def depth(self) -> Tensor:
        """(B, H, 1): 0 at the horizon and above, 1 at the lower edge."""
        return ((self.y - self.horizon) / (1 - self.horizon).clamp(min=0.1)).clamp(0, 1)


class Places:
    """Draws the backdrops of a layout, plain ones and places, without the stamps."""

    def __init__(self, device: torch.device):
        def colors(rows: Sequence[object]) -> Tensor:
            return torch.tensor(rows, device=device, dtype=torch.float32) / 255

        table = [TABLE[name] for name in PLACES]
        self.plain = colors(list(PLAIN.values()))
        self.numbers = torch.tensor([[getattr(p, field) for field in _FIELDS] for p in table], device=device)
        self.colors = colors([[p.far, p.near, p.back, p.water_color] for p in table])
        self.sky = colors(list(_SKY.values()))
        self.own_sky = colors([p.sky or ((0, 0, 0), (0, 0, 0)) for p in table])
        self.has_own_sky = torch.tensor([p.sky is not None for p in table], device=device)
        self.light = torch.tensor(list(_LIGHT.values()), device=device)

    def __call__(self, layout: Layout, height: int, width: int) -> Tensor:
        """(B, 3, height, width) in [0, 1]."""
        picture = self._plain(layout, height, width)
        rows = torch.nonzero(layout.backdrop >= len(PLAIN)).squeeze(1)
        if len(rows):
            picture = picture.index_copy(0, rows, _draw_place(self.view(layout[rows], height, width)))
        return picture

    def light_of(self, layout: Layout) -> Tensor:
        """(B, 3): factors of a stamp's colors."""
        return self.light[layout.time]

    def view(self, layout: Layout, height: int, width: int) -> View:
        """The view of a layout all of whose backdrops are places."""
        place = layout.backdrop - len(PLAIN)
        y, x = self._axes(height, width)
        own = self.has_own_sky[place]
        fields = dict(zip(_FIELDS, self.numbers[place, :, None, None].unbind(1), strict=True))
        n = layout.noise[:, :, None, None]
        fields["horizon"] = fields["horizon"] + 0.08 * (n[:, 0] - 0.5)
        far, near, back, water_color = self.colors[place].unbind(1)
        sky_top, sky_low = torch.where(own[:, None, None], self.own_sky[place], self.sky[layout.time]).unbind(1)
        short = min(height, width)

        def flag(rows: Tensor) -> Tensor:
            return rows.float()[:, None, None]

        return View(
            x=x,
            y=y,
            width=width / short,
            height=height / short,
            n=n,
            far=far,
            near=near,
            back=back,
            water_color=water_color,
            light=self.light_of(layout),
            sky_top=sky_top,
            sky_low=sky_low,
            night=flag(layout.time == TIMES.index("night")),
            sunset=flag(layout.time == TIMES.index("sunset")),
            outside=flag(~own),
            indoors=flag(place == PLACES.index("room")),
            underwater=flag(place == PLACES.index("underwater")),
            **fields,
        )

    def _axes(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Y in shares of the height and x in units of the shorter side, (1, H, 1) and (1, 1, W)."""
        device, short = self.plain.device, min(height, width)
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / short
        return y[None, :, None], x[None, None, :]

    def _plain(self, layout: Layout, height: int, width: int) -> Tensor:
        """A color that darkens towards the corners."""
        y, x = self._axes(height, width)
        color = self.plain[layout.backdrop.clamp(max=len(PLAIN) - 1)]
        shade = 1 + 0.06 * (layout.noise[:, :1] - 0.5)
        middle = width / min(height, width) / 2
        vignette = 1.03 - 0.22 * ((x - middle) ** 2 + (y - 0.45) ** 2)
        return (_flat(color * shade) * vignette[:, None]).clamp(0, 1)


def _draw_place(view: View) -> Tensor:
    """A place from back to front, (B, 3, H, W) in [0, 1]."""
    picture = _draw_lights(_draw_sky(view), view)
    picture = _draw_silhouettes(_draw_beams(picture, view), view)
    picture = _draw_road(_draw_water(_draw_ground(picture, view), view), view)
    shade = 1 + 0.06 * (view.n[:, 19] - 0.5)
    return (picture * shade[:, None]).clamp(0, 1)


def _flat(color: Tensor) -> Tensor:
    """(B, 3) as (B, 3, 1, 1)."""
    return color[:, :, None, None]


def _over(picture: Tensor, color: Tensor, mask: Tensor) -> Tensor:
    """A color over a picture where the mask (B, H, W) is 1."""
    return torch.lerp(picture, color.expand_as(picture), mask[:, None])


def _draw_sky(view: View) -> Tensor:
    n = view.n[:, :, 0, 0]
    tint = 0.12 * (n[:, 1:4] - 0.5)
    wallpaper = 0.22 * (n[:, 4:7] - 0.7) * view.indoors[:, 0]
    rise = (view.y / view.horizon.clamp(max=1.0)).clamp(0, 1)[:, None]
    return torch.lerp(_flat(view.sky_top + tint + wallpaper), _flat(view.sky_low + tint + wallpaper), rise)


def _draw_lights(picture: Tensor, view: View) -> Tensor:
    """Stars, and the sun or the moon with its glow."""
    x, y, n, height = view.x, view.y, view.n, view.height
    cells = 14.0
    column, line = torch.floor(x * cells), torch.floor(y * height * cells)

    def scatter(a: float, b: float) -> Tensor:
        """A pseudorandom number in [0, 1) for each cell."""
        return torch.frac(torch.sin(column * a + line * b + 50 * n[:, 20]) * 43758.5453).abs()

    dx = torch.frac(x * cells) - 0.15 - 0.7 * scatter(12.9898, 78.233)
    dy = torch.frac(y * height * cells) - 0.15 - 0.7 * scatter(39.3468, 11.135)
    bright = (scatter(73.156, 52.235) - 0.45).clamp(0, 1) * 1.8
    spot = torch.exp(-(dx * dx + dy * dy) * 90) * bright * torch.maximum(view.night * view.outside, view.stars)
    picture = picture + spot[:, None]
    sun_x = n[:, 21] * x.max()
    sun_y = torch.where(view.sunset > 0, 0.36 + 0.1 * n[:, 22], 0.1 + 0.2 * n[:, 22])
    distance = ((x - sun_x) ** 2 + ((y - sun_y) * height) ** 2).sqrt()
    disc = ((0.055 + 0.02 * n[:, 23] - distance) * 120).clamp(0, 1) * view.outside * (n[:, 24] < 0.75).float()
    glow = torch.exp(-distance * distance * 14) * view.outside * (0.2 + 0.3 * view.sunset - 0.12 * view.night)
    gold = picture.new_tensor([[1.0, 0.86, 0.42]])
    silver = picture.new_tensor([[0.96, 0.96, 0.88]])
    color = _flat(torch.lerp(gold, silver, view.night[:, 0]))
    picture = picture + (1 - picture).clamp(min=0) * glow[:, None] * color
    return _over(picture, color, disc)


def _draw_beams(picture: Tensor, view: View) -> Tensor:
    """Beams of light under water."""
    waves = torch.sin(6.283 * (view.n[:, 7] + 2.2 * view.x + view.y))
    return picture + (waves * 0.05 * (1 - view.y) * view.underwater)[:, None]


def _draw_silhouettes(picture: Tensor, view: View) -> Tensor:
    """Hills, mountains with snow, a city and trees in front of the sky."""
    x, n, horizon = view.x, view.n, view.horizon
    haze = 0.75 + 0.25 * n[:, 8]
    behind = _flat(view.back * view.light)
    hills = view.below(horizon - view.hill * (0.5 + 0.9 * _ridges(view)))
    picture = _over(picture, torch.lerp(_flat(view.sky_low), behind, 0.7 * haze[:, None]), hills)
    slope = view.below(horizon - view.mountain * _peaks(view))
    picture = _over(picture, behind, slope)
    cap = 1 - view.below(horizon - view.mountain * 0.62 + 0.02 * torch.sin(40 * x))
    picture = _over(picture, _flat(view.light * 0.95), slope * cap * (view.mountain > 0.3).float())
    picture = _draw_city(picture, behind, view)
    crowns = 0.6 + 0.25 * torch.sin(6.283 * (n[:, 9] + 5 * x)) * torch.sin(6.283 * (n[:, 10] + 3.1 * x))
    crowns = crowns + 0.12 * torch.sin(6.283 * 17 * x + 9 * n[:, 11])
    return _over(picture, behind, view.below(horizon - view.trees * crowns))


def _ridges(view: View) -> Tensor:
    """A smooth line of hills in [0, 1], (B, 1, W)."""
    waves = [torch.sin(6.283 * (view.n[:, 25 + k] + f * view.x)) / (k + 1) for k, f in enumerate((0.6, 1.3, 2.4))]
    return 0.5 + 0.27 * sum(waves)


def _peaks(view: View) -> Tensor:
    """A jagged line of mountains in [0, 1], (B, 1, W)."""
    line = torch.zeros_like(view.x)
    for k in range(4):
        center, tall = (k + 0.2 + 0.6 * view.n[:, 25 + k]) * 0.42 - 0.1, 0.5 + 0.5 * view.n[:, 29 - k]
        line = torch.maximum(line, tall - (1.5 + view.n[:, 9 + k]) * (view.x - center).abs())
    return line


def _draw_city(picture: Tensor, color: Tensor, view: View) -> Tensor:
    """Two rows of houses; half of their windows are lit at night."""
    x, y, n = view.x, view.y, view.n
    for row, (count, dim) in enumerate(((5.0, 1.25), (7.0, 0.85))):
        lot = torch.floor(x * count + n[:, 25 + row])
        tall = torch.frac(torch.sin(lot * 91.7 + 40 * n[:, 27 + row]) * 4375.85).abs()
        top = view.horizon - view.city * (0.3 + 0.7 * tall) * (1.0 if row == 0 else 0.72)
        body = view.below(top) * (view.city > 0).float() * (1 - view.below(view.horizon + 0.01))
        picture = _over(picture, color * dim, body)
        u, v = torch.frac((x * count + n[:, 25 + row]) * 3), torch.frac((y - top) * 16)
        pane = ((u - 0.5).abs() < 0.26).float() * ((v - 0.5).abs() < 0.28).float() * body
        which = torch.frac(torch.sin(torch.floor(x * count * 3) * 12.9 + torch.floor((y - top) * 16) * 78.2) * 437.5)
        lit = (which.abs() < 0.5).float()
        yellow, glass = picture.new_tensor([[1.0, 0.86, 0.5]]), picture.new_tensor([[0.78, 0.87, 0.95]])
        window = torch.where(view.night[:, None] > 0, _flat(yellow), _flat(glass))
        picture = _over(picture, window, pane * (0.25 + 0.6 * lit))
    return picture


def _draw_ground(picture: Tensor, view: View) -> Tensor:
    x, n, depth = view.x, view.n, view.depth
    line = view.horizon + 0.02 * (_ridges(view) - 0.5) * (view.hill > 0).float()
    ground = torch.lerp(_flat(view.far * view.light), _flat(view.near * view.light), depth[:, None])
    waves = torch.sin(6.283 * (n[:, 12] + (4 + 14 * (1 - depth)) * depth + 0.16 * torch.sin(9 * x + 6 * n[:, 13])))
    ground = ground * (1 + view.ripple * waves)[:, None] + 0.03 * (n[:, 14:17] - 0.5)
    return _over(picture, ground, view.below(line))


def _draw_water(picture: Tensor, view: View) -> Tensor:
    """A strip of water below the horizon."""
    x, n = view.x, view.n
    shore = view.horizon + view.water + 0.012 * torch.sin(7 * x + 6.283 * n[:, 17])
    wet = view.below(view.horizon) * (1 - view.below(shore))
    sparkle = 1 + 0.07 * torch.sin(6.283 * (40 * (view.y - view.horizon) + torch.sin(8 * x + 6 * n[:, 18])))
    water = _flat(view.water_color * view.light) * sparkle[:, None]
    return _over(picture, water, wet * (view.water > 0).float())


def _draw_road(picture: Tensor, view: View) -> Tensor:
    """A road that widens towards the viewer, with a dashed line."""
    n, depth = view.n, view.depth
    road = view.road * view.below(view.horizon)
    middle = view.width * (0.5 + 0.16 * (n[:, 29] - 0.5)) + 0.1 * (1 - depth) * (n[:, 30] - 0.5)
    half = 0.03 + 0.4 * depth
    distance = (view.x - middle).abs()
    asphalt = ((half - distance) * 90).clamp(0, 1) * road
    picture = _over(picture, _flat(view.light * picture.new_tensor([0.42, 0.43, 0.46])), asphalt)
    dash = (torch.sin(6.283 * 5 * depth.clamp(min=0) ** 0.6) > 0).float()
    line = ((0.004 + 0.03 * depth - distance) * 120).clamp(0, 1) * dash * road
    return _over(picture, _flat(view.light * picture.new_tensor([0.98, 0.95, 0.82])), line)


# -------------------------------------------------------------------------------------------------------------- stamps


def _shape(side: int) -> tuple[Image.Image, ImageDraw.ImageDraw, float]:
    """An empty picture of four times the side, which is reduced after drawing, its canvas and its side."""
    picture = Image.new("RGBA", (4 * side, 4 * side))
    return picture, ImageDraw.Draw(picture), 4.0 * side


def _pine(d: ImageDraw.ImageDraw, s: float) -> None:
    d.rectangle((0.45 * s, 0.82 * s, 0.55 * s, s), "#6b4a30")
    for top, bottom, half, color in (
        (0.42, 0.9, 0.36, "#25623f"),
        (0.2, 0.66, 0.29, "#2d7049"),
        (0.0, 0.42, 0.21, "#378055"),
    ):
        d.polygon([(0.5 * s, top * s), ((0.5 - half) * s, bottom * s), ((0.5 + half) * s, bottom * s)], color)


def _tree(d: ImageDraw.ImageDraw, s: float) -> None:
    d.rectangle((0.45 * s, 0.6 * s, 0.56 * s, s), "#70502f")
    for x, y, r, color in ((0.34, 0.42, 0.24, "#3c7a3c"), (0.66, 0.42, 0.24, "#3c7a3c"), (0.5, 0.28, 0.28, "#4b8f46")):
        d.ellipse(((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s), color)


def _cloud(d: ImageDraw.ImageDraw, s: float) -> None:
    for x, y, r in ((0.22, 0.58, 0.16), (0.42, 0.48, 0.22), (0.64, 0.5, 0.19), (0.8, 0.6, 0.14)):
        d.ellipse(((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s), "#ffffffe6")
    d.rounded_rectangle((0.08 * s, 0.56 * s, 0.94 * s, 0.74 * s), 0.09 * s, "#ffffffe6")


def _bush(d: ImageDraw.ImageDraw, s: float) -> None:
    for x, y, r, color in ((0.26, 0.78, 0.24, "#4f8f45"), (0.74, 0.78, 0.24, "#4f8f45"), (0.5, 0.68, 0.3, "#5da04f")):
        d.ellipse(((x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s), color)


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
    """All stamps, (stamps, cell, cell, 4) uint8, straight alpha, with a transparent margin like that of the sprites."""
    cells = []
    for draw in STAMPS.values():
        picture, canvas, side = _shape(cell - 2 * margin)
        draw(canvas, side)
        small = picture.convert("RGBa").resize((cell - 2 * margin,) * 2, Image.Resampling.BOX).convert("RGBA")
        framed = Image.new("RGBA", (cell, cell))
        framed.paste(small, (margin, margin))
        cells.append(np.asarray(framed))
    return np.stack(cells)
