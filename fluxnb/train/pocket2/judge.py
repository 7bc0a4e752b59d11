"""The judge of the second pocket: a network that reads the attributes of a picture, trained on renders alone.

Its accuracy on new renders is the upper bound of any model's score, and its averaged features are the space of the
Fréchet distance and of the diversity.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fluxnb.train.data import emoji
from fluxnb.train.data.drawing import Renderer
from fluxnb.train.data.layouts import LETTERS, Layout, Shape
from fluxnb.train.data.nouns import NOUNS
from fluxnb.train.data.scenes import BACKDROPS, COLORS, OUTDOORS, SIDEWAYS, SIGN_LETTERS, SIGN_LINES, TIMES
from fluxnb.train.data.stream import draw_chunks
from fluxnb.train.networks.judge import Residual, save_judge
from fluxnb.train.pocket2.config import Preset
from fluxnb.train.stages.judge import augment
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, backward_and_step
from fluxnb.train.stages.optimizers import make_optimizer

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
CHECK_SEED = 991_000  # of the renders on which the accuracy is measured


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
        if pictures.shape[2:] != (SIDE, SIDE):
            pictures = F.interpolate(pictures, (SIDE, SIDE), mode="bilinear", antialias=True)
        grid = self.body(pictures).flatten(2).transpose(1, 2)
        return self.read(grid + self.place), grid.mean(1)


def build_judge(preset: Preset) -> Judge:
    """An untrained judge of the preset's size."""
    return Judge(preset.judge_width)


def train_judge(preset: Preset, out: Path, rank: Rank, start: Path | None = None) -> Judge:
    """Train on renders of all combinations, the held-out ones included; saves `out`/judge.safetensors.

    Arguments:
        start: file of a judge whose training continues; None starts from random weights.
    """
    schedule, shape = preset.judge, Shape(SIDE, SIDE)
    torch.manual_seed(100 + rank.index)
    log, renderer = Log(out / "judge.jsonl", rank), Renderer(rank.device)
    judge = (build_judge(preset) if start is None else load_judge(start, preset)).train().to(rank.device)
    rank.broadcast_weights(judge)
    chunks = list(draw_chunks([(shape, schedule.scenes)], 2000 + rank.index, held_out=None))
    layouts = Layout.cat([chunk.layout for chunk in chunks]).to(rank.device)
    log(scenes=len(layouts), start=None if start is None else start.name)
    adam, pace = make_optimizer(judge, schedule), Pace(schedule, rank)
    average = Average(judge, schedule.ema, pretrained=start is not None)
    generator = torch.Generator(rank.device).manual_seed(rank.index)
    for iteration in pace:
        rows = torch.randint(len(layouts), (schedule.batch,), generator=generator, device=rank.device)
        part = layouts[rows]
        pictures = augment(renderer(part, SIDE, SIDE))
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=rank.device.type == "cuda"):
            logits, _ = judge(pictures)
        loss = attribute_loss(logits, layout_attributes(part))
        backward_and_step(loss, judge, adam, pace.rate(iteration), rank)
        average.update()
        if iteration % 250 == 0:
            log(iteration=iteration, total=pace.total, loss=loss.item(), seconds=pace.seconds())
    average.swap()
    judge.eval()
    if rank.first:
        accuracy = accuracy_on_renders(judge, renderer, min(4096, schedule.scenes))
        log(iterations=pace.total, seconds=pace.seconds(), **accuracy)
        save_judge(judge, out / "judge.safetensors")
    rank.broadcast(0.0)  # the other ranks wait for the file
    return judge


def attribute_loss(logits: Attributes, target: Attributes) -> Tensor:
    """Cross entropy, summed over the attributes; each of the letters is one, since a sign is read if all are right."""
    losses = [
        F.cross_entropy(predicted.flatten(0, -2).float(), right.flatten(), label_smoothing=0.02)
        * (predicted.shape[1] if predicted.ndim == 3 else 1)
        for predicted, right in zip(logits.columns(), target.columns(), strict=True)
    ]
    return torch.stack(losses).sum()


def accuracy_on_renders(judge: Judge, renderer: Renderer, count: int) -> dict[str, float]:
    """The accuracy of each attribute on new renders; `sign` is the share of signs that are read without an error."""
    (chunk,) = draw_chunks([(Shape(SIDE, SIDE), min(count, 2048))], CHECK_SEED, held_out=None, workers=1)
    predicted = read_layouts(judge, renderer, chunk.layout)[0]
    target = layout_attributes(chunk.layout)
    names = [field.name for field in dataclasses.fields(Attributes)]
    hits = dict(
        zip(names, (p.cpu() == t for p, t in zip(predicted.columns(), target.columns(), strict=True)), strict=True)
    )
    signs = target.arrangement == ARRANGEMENTS.index("sign")
    letters = hits.pop("letters")
    facts = {name: float(flags.float().mean()) for name, flags in hits.items()}
    return facts | ({"sign": float(letters[signs].all(1).float().mean())} if bool(signs.any()) else {})


@torch.no_grad()
def read_layouts(judge: Judge, renderer: Renderer, layout: Layout, batch: int = 256) -> tuple[Attributes, Tensor]:
    """Render layouts and read them: class indices, and features (N, width)."""
    rows = torch.arange(len(layout)).split(batch)
    return _joined([classify(judge, renderer(layout[part], SIDE, SIDE)) for part in rows])


@torch.no_grad()
def classify(judge: Judge, pictures: Tensor, batch: int = 256) -> tuple[Attributes, Tensor]:
    """Class indices and features (N, width) of pictures (N, 3, height, width) in [-1, 1]."""
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.is_cuda):
        read = [judge(part) for part in pictures.split(batch)]
    return _joined([(logits.argmax(), features.float()) for logits, features in read])


def _joined(parts: list[tuple[Attributes, Tensor]]) -> tuple[Attributes, Tensor]:
    read, features = zip(*parts, strict=True)
    return Attributes.cat(list(read)), torch.cat(features)


def load_judge(path: Path, preset: Preset, device: torch.device | str = "cpu") -> Judge:
    """Load the judge that `train_judge` saved, in float32 and in evaluation mode."""
    judge = build_judge(preset)
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return judge.eval().to(device)
