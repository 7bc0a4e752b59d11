"""The judge: a network that reads the attributes of a picture, trained on renders alone.

Its accuracy on new renders is the upper bound of any model's score, and its averaged features are the space of the
Fréchet distance and of the diversity.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fluxnb.train.config import Preset
from fluxnb.train.data import emoji
from fluxnb.train.data.drawing import Renderer
from fluxnb.train.data.layouts import LETTERS, Layout, spell
from fluxnb.train.data.nouns import NOUNS
from fluxnb.train.data.scenes import (
    BACKDROPS,
    COLORS,
    OUTDOORS,
    SIDEWAYS,
    SIGN_LETTERS,
    SIGN_LINES,
    TIMES,
    Scene,
    Thing,
)
from fluxnb.train.networks.weights import load_weights

ARRANGEMENTS = ("one", "several", "side by side", "stacked", "sign")
FACINGS = ("none", "left", "right")  # "none" for a noun that looks the same from both sides
GENDERS = ("none", *emoji.GENDERS)
TONES = ("none", *emoji.TONES)
DAYTIMES = ("none", *TIMES)  # "none" indoors and on plain backdrops
NAMES = tuple(NOUNS)
NO_NOUN = len(NAMES)
NATURAL = len(COLORS)
#: classes of each attribute, in the order of `Attributes`; letters come last.
CLASSES: dict[str, int] = {
    "arrangement": len(ARRANGEMENTS),
    "count": 4,
    "first": len(NAMES),
    "second": len(NAMES) + 1,
    "first_color": len(COLORS) + 1,
    "second_color": len(COLORS) + 1,
    "style": len(emoji.STYLES),
    "backdrop": len(BACKDROPS),
    "time": len(DAYTIMES),
    "facing": len(FACINGS),
    "gender": len(GENDERS),
    "tone": len(TONES),
}
SLOTS = SIGN_LINES * SIGN_LETTERS
SIDE, GRID = 192, 24  # of the pictures in pixels, and of the features
BATCH = 256  # pictures that are read at once
#: what a caption can specify, and whether a picture has all of it.
ATTRIBUTES = ("object", "style", "color", "count", "place", "time", "relation", "sign", "look", "everything")
_RELATIONS = {  # relation -> arrangement, and whether the first thing of the caption is the second one of the picture
    "left of": ("side by side", False),
    "right of": ("side by side", True),
    "above": ("stacked", False),
    "below": ("stacked", True),
}


@dataclasses.dataclass(frozen=True)
class Attributes:
    """Attributes of each picture: logits (B, ..., classes) from the judge, or class indices (B, ...).

    Attributes:
        arrangement: index into `ARRANGEMENTS`.
        count: of the first noun, less one.
        first: the left or upper thing, or the only one; index into `NAMES`.
        second: the other thing; `NO_NOUN` without one.
        first_color, second_color: index into `COLORS`; `NATURAL` for a natural color, or without a second thing.
        style: index into `emoji.STYLES`.
        backdrop: index into `BACKDROPS`.
        time: index into `DAYTIMES`.
        facing, gender, tone: of the first thing, index into `FACINGS`, `GENDERS` and `TONES`.
        letters: (B, 14), index into `LETTERS`.
    """

    arrangement: Tensor
    count: Tensor
    first: Tensor
    second: Tensor
    first_color: Tensor
    second_color: Tensor
    style: Tensor
    backdrop: Tensor
    time: Tensor
    facing: Tensor
    gender: Tensor
    tone: Tensor
    letters: Tensor

    def argmax(self) -> Attributes:
        """The most likely class of each attribute."""
        return Attributes(*(each.argmax(-1) for each in self.columns()))

    def columns(self) -> list[Tensor]:
        """The attributes in the order of the fields."""
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    @staticmethod
    def cat(parts: list[Attributes]) -> Attributes:
        """Concatenate the attributes of several batches."""
        return Attributes(*(torch.cat(columns) for columns in zip(*(part.columns() for part in parts), strict=True)))


@functools.cache
def _looks() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Noun, gender, tone, and whether it has a direction, by row of a style's atlas."""
    places = {name: index for index, name in enumerate(NAMES)}
    rows = [
        (
            places[name],
            1 + look // len(emoji.TONES) if NOUNS[name].person else 0,
            1 + look % len(emoji.TONES) if NOUNS[name].person else 0,
            int(name in SIDEWAYS),
        )
        for name, look in emoji.sprites()
    ]
    noun, gender, tone, sideways = torch.tensor(rows).unbind(1)
    return noun, gender, tone, sideways.bool()


@functools.cache
def _outdoors() -> Tensor:
    return torch.tensor([backdrop in OUTDOORS for backdrop in BACKDROPS])


def layout_attributes(layout: Layout) -> Attributes:
    """The attributes of scenes, computed from their layout."""
    device = layout.sprites.device
    noun_of, gender_of, tone_of, sideways = (table.to(device) for table in _looks())
    rows = layout.sprites.clamp(min=0) % len(noun_of)
    present, nouns = layout.sprites >= 0, noun_of[rows]
    several, sign = present[:, 1], ~torch.isnan(layout.sign[:, 0])
    two = several & (nouns[:, 0] != nouns[:, 1])
    apart = (layout.boxes[:, 0, :2] - layout.boxes[:, 1, :2]).abs()
    stacked = two & (apart[:, 1] > apart[:, 0])
    arrangement = torch.where(two, 2 + stacked.long(), several.long())
    axis = stacked.long()
    row = torch.arange(len(axis), device=device)
    swapped = two & (layout.boxes[row, 1, axis] < layout.boxes[row, 0, axis])
    first, second = swapped.long(), 1 - swapped.long()
    color = torch.where(layout.colors < 0, NATURAL, layout.colors)
    look = rows[row, first]
    mirrored = layout.boxes[row, first, 3] < 0
    return Attributes(
        arrangement=torch.where(sign, ARRANGEMENTS.index("sign"), arrangement),
        count=torch.where(two, 0, present.sum(1) - 1),
        first=nouns[row, first],
        second=torch.where(two, nouns[row, second], NO_NOUN),
        first_color=color[row, first],
        second_color=torch.where(two, color[row, second], NATURAL),
        style=layout.style,
        backdrop=layout.backdrop,
        time=torch.where(_outdoors().to(device)[layout.backdrop], 1 + layout.time, 0),
        facing=torch.where(sideways[look], 1 + mirrored.long(), 0),
        gender=gender_of[look],
        tone=tone_of[look],
        letters=layout.letters.flatten(1),
    )


def correctness(scenes: Iterable[Scene], read: Attributes) -> dict[str, np.ndarray]:
    """Whether each picture has what its caption specifies: 1, 0, or NaN where the caption does not specify it.

    Returns:
        The names of `ATTRIBUTES`, with an array (N,) each; `look` is gender, skin tone and direction together.
    """
    columns = {field.name: getattr(read, field.name).cpu() for field in dataclasses.fields(Attributes)}
    rows = []
    for index, scene in enumerate(scenes):
        found = _correct_attributes(scene, {name: column[index] for name, column in columns.items()})
        rows.append([*found.values(), float(all(value != 0.0 for value in found.values()))])
    table = np.array(rows, dtype=np.float64).reshape(-1, len(ATTRIBUTES))
    return dict(zip(ATTRIBUTES, table.T, strict=True))


def _correct_attributes(scene: Scene, read: Mapping[str, Tensor]) -> dict[str, float]:
    """The flags for one picture, in the order of `ATTRIBUTES` without `everything`."""
    things, arrangement = scene.things, ARRANGEMENTS[int(read["arrangement"])]
    nouns = [int(read["first"]), int(read["second"])]
    colors = [int(read["first_color"]), int(read["second_color"])]
    requested = [NAMES.index(thing.noun) for thing in things]
    places = [nouns.index(noun) if noun in nouns else -1 for noun in requested]
    if len(things) == 1:  # a second noun, or a first one elsewhere, is a mistake
        places = [0 if nouns == [requested[0], NO_NOUN] else -1]
    found = dict.fromkeys(ATTRIBUTES[:-1], math.nan)
    found["object"] = float(min(places) >= 0)
    painted = [(place, thing.color) for place, thing in zip(places, things, strict=True) if thing.color in COLORS]
    if painted:
        palette = list(COLORS)
        found["color"] = float(all(p >= 0 and colors[p] == palette.index(str(c)) for p, c in painted))
    if scene.style is not None:
        found["style"] = float(int(read["style"]) == emoji.STYLES.index(scene.style))
    if scene.backdrop is not None:
        found["place"] = float(int(read["backdrop"]) == BACKDROPS.index(scene.backdrop))
    if scene.time:
        found["time"] = float(DAYTIMES[int(read["time"])] == scene.time)
    if len(things) == 2:
        kind, swapped = _RELATIONS.get(str(scene.relation), ("", False))
        right = arrangement in ("side by side", "stacked") if not kind else arrangement == kind
        found["relation"] = float(right and (not kind or places == ([1, 0] if swapped else [0, 1])))
    elif scene.sign is None:
        count = int(read["count"]) + 1
        found["count"] = float(count > 1 if things[0].count is None else count == things[0].count)
    if scene.sign is not None:
        letters = torch.tensor(spell(scene.sign)).flatten()
        found["sign"] = float(arrangement == "sign" and torch.equal(read["letters"], letters))
    if len(things) == 1 and (looks := _requested_look(things[0])):
        found["look"] = float(all(int(read[name]) == value for name, value in looks.items()))
    return found


def _requested_look(thing: Thing) -> dict[str, int]:
    looks = {}
    if thing.gender:
        looks["gender"] = GENDERS.index(thing.gender)
    if thing.tone:
        looks["tone"] = TONES.index(thing.tone)
    if thing.facing:
        looks["facing"] = FACINGS.index(thing.facing)
    return looks


class Residual(nn.Module):
    """A residual block with two convolutions (ResNet, 1512.03385) and group norm."""

    def __init__(self, width_in: int, width: int, stride: int):
        super().__init__()
        self.one = nn.Conv2d(width_in, width, 3, stride, 1)
        self.two = nn.Conv2d(width, width, 3, 1, 1)
        self.norm_one, self.norm_two = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.skip = nn.Conv2d(width_in, width, 1, stride) if (width_in, stride) != (width, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, h, w) to (B, width, h / stride, w / stride)."""
        y = F.silu(self.norm_one(self.one(x)))
        return F.silu(self.skip(x) + self.norm_two(self.two(y)))


class Reader(nn.Module):
    """Reads `Attributes` from tokens (B, n, width) whose order it does not see: a query per attribute attends to them.

    Arguments:
        width: of the tokens.
        layers: of the queries' attention.
    """

    def __init__(self, width: int, layers: int = 3) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(CLASSES) + SLOTS, width) * 0.5)
        layer = nn.TransformerDecoderLayer(width, 8, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.reader = nn.TransformerDecoder(layer, layers, nn.LayerNorm(width))
        self.heads = nn.ModuleList(nn.Linear(width, classes) for classes in CLASSES.values())
        self.letter = nn.Linear(width, len(LETTERS))

    def read(self, tokens: Tensor) -> Attributes:
        """Logits of the attributes."""
        found = self.reader(self.queries.expand(len(tokens), -1, -1), tokens)
        logits = [head(found[:, index]) for index, head in enumerate(self.heads)]
        logits.append(self.letter(found[:, len(CLASSES) :]))
        return Attributes(*logits)


class Judge(Reader):
    """Pictures (B, 3, height, width) in [-1, 1] to `Attributes`: a residual network whose grid a `Reader` reads.

    Arguments:
        width: of the features.
    """

    def __init__(self, width: int = 256) -> None:
        super().__init__(width)
        stages = [width // 8, width // 4, width // 2, width]
        self.body = nn.Sequential(
            nn.Conv2d(3, stages[0], 3, 2, 1),
            Residual(stages[0], stages[0], 1),
            Residual(stages[0], stages[1], 2),
            Residual(stages[1], stages[2], 2),
            Residual(stages[2], stages[3], 1),
            Residual(stages[3], stages[3], 1),
        )
        self.place = nn.Parameter(torch.randn(GRID * GRID, width) * 0.02)

    def forward(self, pictures: Tensor) -> tuple[Attributes, Tensor]:
        """Logits of the attributes, and the features (B, width); pictures of other sizes are scaled to `SIDE`."""
        grid = self.body(self.scaled(pictures)).flatten(2).transpose(1, 2)
        return self.read(grid + self.place), grid.mean(1)

    @staticmethod
    def scaled(pictures: Tensor) -> Tensor:
        """Pictures (B, 3, height, width) of any size at the size that the judge was trained on."""
        if pictures.shape[2:] == (SIDE, SIDE):
            return pictures
        return F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)


def build_judge(preset: Preset) -> Judge:
    """An untrained judge of the preset's size."""
    return Judge(preset.judge_width)


@torch.no_grad()
def read_layouts(judge: Judge, renderer: Renderer, layout: Layout) -> tuple[Attributes, Tensor]:
    """Render layouts and read them: class indices, and features (N, width)."""
    rows = torch.arange(len(layout)).split(BATCH)
    return _joined([classify(judge, renderer(layout[part], SIDE, SIDE)) for part in rows])


@torch.no_grad()
def classify(judge: Judge, pictures: Tensor) -> tuple[Attributes, Tensor]:
    """Class indices and features (N, width) of pictures (N, 3, height, width) in [-1, 1]."""
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.is_cuda):
        read = [judge(part) for part in pictures.split(BATCH)]
    return _joined([(logits.argmax(), features.float()) for logits, features in read])


def _joined(parts: list[tuple[Attributes, Tensor]]) -> tuple[Attributes, Tensor]:
    read, features = zip(*parts, strict=True)
    return Attributes.cat(list(read)), torch.cat(features)


def load_judge(path: Path, preset: Preset, device: torch.device | str = "cpu") -> Judge:
    """Load a judge that `save_weights` saved, in evaluation mode."""
    judge = build_judge(preset)
    judge.load_state_dict(load_weights(path))
    return judge.eval().to(device)
