"""The judge: a network that reads the attributes of a picture, trained on renders and never on a model's pictures.

It classifies each attribute of a scene. Its accuracy on new renders is the upper bound for the score of any model, and
its averaged features are the space of the Fréchet distance.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fluxnb.train.data import world
from fluxnb.train.data.render import LETTERS, Layout

ARRANGEMENTS = ("one", "side by side", "stacked", "sign")
WIDTH = 128
SLOTS = world.SIGN_LINES * world.SIGN_LETTERS


@dataclasses.dataclass(frozen=True)
class Attributes:
    """The attributes of each picture: logits (B, ..., classes) from the judge, or class indices (B, ...).

    Attributes:
        arrangement: index into `ARRANGEMENTS`.
        first: the left or upper object, or the only one; index into `world.NAMES`.
        second: the other object; `len(world.NAMES)` means none.
        background: index into `world.BACKGROUNDS`.
        letters: (B, 14) index into `LETTERS`.
    """

    arrangement: Tensor
    first: Tensor
    second: Tensor
    background: Tensor
    letters: Tensor

    def argmax(self) -> Attributes:
        """The most likely class of each attribute."""
        return Attributes(*(getattr(self, f.name).argmax(-1) for f in dataclasses.fields(self)))


def layout_attributes(layout: Layout) -> Attributes:
    """The correct class indices of scenes, computed from their layout."""
    objects, boxes = layout.objects, layout.boxes
    two, sign = objects[:, 1] >= 0, ~torch.isnan(layout.sign[:, 0])
    apart = (boxes[:, 0, :2] - boxes[:, 1, :2]).abs()
    stacked = two & (apart[:, 1] > apart[:, 0])
    arrangement = torch.where(sign, 3, torch.where(stacked, 2, two.long()))
    axis = stacked.long()[:, None]
    position = torch.stack((boxes[:, 0].gather(1, axis), boxes[:, 1].gather(1, axis)), 1).squeeze(-1)
    swapped = two & (position[:, 1] < position[:, 0])
    first = torch.where(swapped, objects[:, 1], objects[:, 0])
    second = torch.where(swapped, objects[:, 0], objects[:, 1])
    second = torch.where(two, second, len(world.NAMES))
    return Attributes(arrangement, first, second, layout.background, layout.letters.flatten(1))


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


class Judge(nn.Module):
    """Pictures (B, 3, 128, 128) in [-1, 1] to `Attributes`: a small residual network with one query per attribute."""

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

    def forward(self, pictures: Tensor) -> tuple[Attributes, Tensor]:
        """Logits of the attributes, and the features (B, 128) of the Fréchet distance."""
        grid = self.body(pictures).flatten(2).transpose(1, 2)
        read = self.reader(self.queries.expand(len(grid), -1, -1), grid + self.place)
        logits = [head(read[:, index]) for index, head in enumerate(self.heads)]
        arrangement, first, second, background = logits
        return Attributes(arrangement, first, second, background, self.letter(read[:, 4:])), grid.mean(1)


@torch.no_grad()
def classify(judge: Judge, pictures: Tensor, batch: int = 256) -> tuple[Attributes, Tensor]:
    """Predicted class indices and features (N, 128) of pictures (N, 3, 128, 128) in [-1, 1]."""
    parts = [judge(pictures[start : start + batch]) for start in range(0, len(pictures), batch)]
    predicted = [logits.argmax() for logits, _ in parts]
    merged = Attributes(*(torch.cat([getattr(p, f.name) for p in predicted]) for f in dataclasses.fields(Attributes)))
    return merged, torch.cat([features for _, features in parts])


def save_judge(judge: nn.Module, path: Path) -> None:
    """Save the weights in half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().half().cpu().contiguous() for name, tensor in judge.state_dict().items()}, path)


def load_judge(path: Path, device: torch.device | str = "cpu") -> Judge:
    """Load what `save_judge` saved, in float32 and in evaluation mode."""
    judge = Judge()
    judge.load_state_dict({name: tensor.float() for name, tensor in load_file(path).items()})
    return judge.eval().to(device)
