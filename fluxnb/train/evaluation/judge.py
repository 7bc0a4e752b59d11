"""The judge: a network that names what a picture shows, trained on renders alone and never on a model's pictures.

It answers one question per factor of a scene. Its accuracy on fresh renders is the ceiling that any
model's score is read against; its averaged features are the space in which the Fréchet distance is taken.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fluxnb.train.config import Preset
from fluxnb.train.data import world
from fluxnb.train.data.batches import batches, draw_layouts
from fluxnb.train.data.render import LETTERS, Layout, Renderer
from fluxnb.train.stages.loop import Average, Log, Pace, Rank, descend
from fluxnb.train.stages.optimisers import optimiser

ARRANGEMENTS = ("one", "side by side", "stacked", "sign")
WIDTH = 128
SLOTS = world.SIGN_LINES * world.SIGN_LETTERS


@dataclasses.dataclass(frozen=True)
class Answers:
    """What a picture shows, per picture; logits (B, ..., classes) from the judge or indices (B, ...) from a layout.

    `first` is the left or upper object, or the only one; `second` has one class more, for none.
    """

    arrangement: Tensor
    first: Tensor
    second: Tensor
    background: Tensor
    letters: Tensor  # (B, 14)

    def pick(self) -> Answers:
        """The likeliest class of each question."""
        return Answers(*(getattr(self, f.name).argmax(-1) for f in dataclasses.fields(self)))


def truth(layout: Layout) -> Answers:
    """The right answers for scenes, from where their things stand."""
    here, boxes = layout.objects, layout.boxes
    two, sign = here[:, 1] >= 0, ~torch.isnan(layout.sign[:, 0])
    apart = (boxes[:, 0, :2] - boxes[:, 1, :2]).abs()
    stacked = two & (apart[:, 1] > apart[:, 0])
    arrangement = torch.where(sign, 3, torch.where(stacked, 2, two.long()))
    axis = stacked.long()[:, None]
    place = torch.stack((boxes[:, 0].gather(1, axis), boxes[:, 1].gather(1, axis)), 1).squeeze(-1)
    swapped = two & (place[:, 1] < place[:, 0])
    first = torch.where(swapped, here[:, 1], here[:, 0])
    second = torch.where(swapped, here[:, 0], here[:, 1])
    second = torch.where(two, second, len(world.NAMES))
    return Answers(arrangement, first, second, layout.background, layout.letters.flatten(1))


class Residual(nn.Module):
    """Two convolutions beside a short cut (ResNet, 1512.03385), with group norm."""

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


class Judge(nn.Module):
    """Pictures (B, 3, 128, 128) in [-1, 1] to `Answers`: a small residual network read by one query per question."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, 1),
            Residual(32, 32, 1),
            Residual(32, 64, 2),
            Residual(64, 96, 2),
            Residual(96, WIDTH, 1),
            Residual(WIDTH, WIDTH, 1),
        )
        self.place = nn.Parameter(torch.randn(16 * 16, WIDTH) * 0.02)
        self.queries = nn.Parameter(torch.randn(4 + SLOTS, WIDTH) * 0.5)
        layer = nn.TransformerDecoderLayer(WIDTH, 4, 256, dropout=0.0, batch_first=True, norm_first=True)
        self.reader = nn.TransformerDecoder(layer, 2, nn.LayerNorm(WIDTH))
        sizes = (len(ARRANGEMENTS), len(world.NAMES), len(world.NAMES) + 1, len(world.BACKGROUNDS))
        self.heads = nn.ModuleList(nn.Linear(WIDTH, size) for size in sizes)
        self.letter = nn.Linear(WIDTH, len(LETTERS))

    def forward(self, pictures: Tensor) -> tuple[Answers, Tensor]:
        """The answers, and the features (B, 128) for the Fréchet distance."""
        grid = self.body(pictures).flatten(2).transpose(1, 2)
        read = self.reader(self.queries.expand(len(grid), -1, -1), grid + self.place)
        answers = [head(read[:, index]) for index, head in enumerate(self.heads)]
        arrangement, first, second, background = answers
        return Answers(arrangement, first, second, background, self.letter(read[:, 4:])), grid.mean(1)


def judge_loss(answers: Answers, right: Answers) -> Tensor:
    """Cross entropy summed over the questions."""
    loss = torch.zeros((), device=answers.first.device)
    for field in dataclasses.fields(Answers):
        logits, target = getattr(answers, field.name), getattr(right, field.name)
        loss = loss + F.cross_entropy(logits.flatten(0, -2).float(), target.flatten(), label_smoothing=0.02)
    return loss


def disturb(pictures: Tensor) -> Tensor:
    """Noise and blur of random strength, so that the judge does not lean on what only a render has."""
    strength = torch.rand(len(pictures), 1, 1, 1, device=pictures.device)
    blurred = F.avg_pool2d(pictures, 3, 1, 1)
    coin = torch.rand_like(strength)
    pictures = torch.where(coin < 0.3, pictures + (blurred - pictures) * strength, pictures)
    return torch.where(coin > 0.6, pictures + 0.12 * strength * torch.randn_like(pictures), pictures)


def train_judge(preset: Preset, out: Path, rank: Rank) -> Judge:
    """Returns the averaged judge and saves it under `out`; renders only, every combination allowed."""
    schedule = preset.judge
    torch.manual_seed(100 + rank.index)
    log = Log(out / "judge.jsonl", rank)
    layouts, _ = draw_layouts(schedule.scenes, seed=2000 + rank.index, held_out=None)
    layouts = layouts.to(rank.device)
    renderer, judge = Renderer(rank.device), Judge().to(rank.device)
    rank.same_weights(judge)
    adam, average, pace = optimiser(judge, schedule), Average(judge, schedule.ema), Pace(schedule, rank)

    def loss_of(pictures: Tensor, right: Answers) -> Tensor:
        with torch.autocast(rank.device.type, torch.bfloat16, enabled=rank.device.type == "cuda"):
            answers, _ = judge(pictures)
        return judge_loss(answers, right)

    rows = batches(len(layouts), schedule.batch, torch.Generator(rank.device).manual_seed(rank.index), rank.device)
    for iteration in pace:
        part = layouts[next(rows)]
        loss = loss_of(disturb(renderer(part)), truth(part))
        descend(loss, judge, adam, pace.rate(iteration), rank)
        average.update()
        if iteration % 250 == 0:
            log(iteration=iteration, total=pace.total, loss=loss.item(), seconds=pace.seconds())
    average.swap()
    judge.eval()
    if rank.first:
        fresh, _ = draw_layouts(min(4096, schedule.scenes), seed=991_000, held_out=None)
        answers, _ = read(judge, renderer(fresh))
        log(iterations=pace.total, seconds=pace.seconds(), **agreement(answers, truth(fresh.to(rank.device))))
        save_judge(judge, out / "judge.safetensors")
    return judge


@torch.no_grad()
def read(judge: Judge, pictures: Tensor, batch: int = 256) -> tuple[Answers, Tensor]:
    """The judge's choices (indices) and features for any number of pictures."""
    parts = [judge(pictures[start : start + batch]) for start in range(0, len(pictures), batch)]
    picked = [answers.pick() for answers, _ in parts]
    merged = Answers(*(torch.cat([getattr(p, f.name) for p in picked]) for f in dataclasses.fields(Answers)))
    return merged, torch.cat([features for _, features in parts])


def agreement(given: Answers, right: Answers) -> dict[str, float]:
    """Share of pictures in which each factor is right; letters over the letters that are there."""
    facts = {f.name: getattr(given, f.name) == getattr(right, f.name) for f in dataclasses.fields(Answers)}
    there = right.letters > 0
    out = {name: float(hits.float().mean()) for name, hits in facts.items() if name != "letters"}
    if bool(there.any()):
        out["letters"] = float(facts["letters"][there].float().mean())
        signs = there.any(1)
        out["sign"] = float(facts["letters"][signs].all(1).float().mean())
    return out


def save_judge(judge: Judge, path: Path) -> None:
    """Save the weights in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().half().cpu().contiguous() for name, tensor in judge.state_dict().items()}, path)


def load_judge(path: Path, device: torch.device | str = "cpu") -> Judge:
    """The judge as `save_judge` saved it, in float32, ready to read."""
    judge = Judge()
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return judge.eval().to(device)
