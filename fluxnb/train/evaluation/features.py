"""Readers of pictures beside the judge: features of random filters, and the position and size of an object.

A distance in the judge's features alone could reflect a bias of the judge. `RandomFeatures` are independent of
objects, of the latents and of the teacher on which a student's critic is built.
"""

from __future__ import annotations

import itertools
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxnb.train.data.render import SIZE, Renderer, lay_out
from fluxnb.train.data.world import BACKGROUNDS, NAMES, Scene
from fluxnb.train.networks.judge import Judge


class RandomFeatures:
    """Features (B, 128) of pictures: mean and standard deviation of 64 responses of a random convolutional network.

    The filters of the four strided layers respond to color, edges and texture at four scales. Their weights are
    float32 from a CPU generator with a fixed seed, and so equal on every device.
    """

    def __init__(self, device: torch.device | str):
        generator = torch.Generator().manual_seed(20_240)
        widths = (3, 32, 48, 64, 64)
        self.filters = [
            (torch.randn(out, into, 3, 3, generator=generator) * (2 / (9 * into)) ** 0.5).to(device)
            for into, out in itertools.pairwise(widths)
        ]

    @torch.no_grad()
    def __call__(self, pictures: Tensor, batch: int = 512) -> Tensor:
        """(B, 3, 128, 128) to (B, 128)."""
        rows = []
        for x in pictures.split(batch):
            for weights in self.filters:
                x = F.relu(F.conv2d(x, weights, stride=2, padding=1))
            rows.append(torch.cat((x.mean((2, 3)), x.std((2, 3))), 1))
        return torch.cat(rows)


class BoxReader:
    """Position and size of the only object of a picture: center x, center y and side in pixels, (B, 3).

    Two linear maps, fitted in closed form to renders: from the judge's 16 x 16 feature grid to the coverage of each
    cell, and from center and extent of the covered cells to the box. A sprite need not fill its box, so each object
    has a constant offset. `fit` holds the squared correlation of each coordinate with its true value on new renders of
    the same object.
    """

    def __init__(self, judge: Judge, renderer: Renderer, count: int = 512, ridge: float = 1e-2):
        self.judge = judge
        grid, boxes = _grids_of_renders(judge, renderer, _single_objects(count, random.Random("places")))
        axis = (torch.arange(16, device=grid.device) + 0.5) * SIZE / 16
        near_x = ((axis[None] - boxes[:, :1]).abs() < boxes[:, 2:] / 2)[:, None, :]
        near_y = ((axis[None] - boxes[:, 1:2]).abs() < boxes[:, 2:] / 2)[:, :, None]
        inside = (near_x & near_y).flatten().float()
        cells = _with_bias(grid.flatten(0, 2))
        self.cover = _ridge_regression(cells, inside[:, None], ridge)
        self.box = _ridge_regression(_with_bias(self._extent(grid)), boxes, 1e-6)
        many = max(2, count // 32)
        few = _single_objects(8, random.Random("places, checked"))
        grid, boxes = _grids_of_renders(judge, renderer, [scene for scene in few for _ in range(many)])
        read, true = (rows.view(8, many, 3) for rows in (self._boxes(grid), boxes))
        read, true = read - read.mean(1, keepdim=True), true - true.mean(1, keepdim=True)
        correlation = (read * true).sum((0, 1)).square() / (read.square().sum((0, 1)) * true.square().sum((0, 1)))
        self.fit = dict(zip(("x", "y", "size"), correlation.tolist(), strict=True))

    def __call__(self, pictures: Tensor, batch: int = 512) -> Tensor:
        """(B, 3, 128, 128) to (B, 3)."""
        return torch.cat([self._boxes(_grid(self.judge, part)) for part in pictures.split(batch)])

    def _extent(self, grid: Tensor) -> Tensor:
        covered = (_with_bias(grid) @ self.cover).squeeze(-1).clamp(0, 1)
        axis = (torch.arange(16, device=grid.device) + 0.5) * SIZE / 16
        mass = covered.sum((1, 2)).clamp(min=1e-3)
        x, y = (covered.sum(1) * axis).sum(1) / mass, (covered.sum(2) * axis).sum(1) / mass
        spread = ((covered.sum(1) * (axis - x[:, None]).square()).sum(1) / mass).sqrt()
        return torch.stack((x, y, mass.sqrt(), spread), 1)

    def _boxes(self, grid: Tensor) -> Tensor:
        return _with_bias(self._extent(grid)) @ self.box


@torch.no_grad()
def _grid(judge: Judge, pictures: Tensor) -> Tensor:
    return judge.body(pictures).permute(0, 2, 3, 1)


def _single_objects(count: int, rng: random.Random) -> list[Scene]:
    return [Scene((rng.choice(NAMES),), rng.choice(BACKGROUNDS)) for _ in range(count)]


def _grids_of_renders(judge: Judge, renderer: Renderer, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
    layout = lay_out(scenes, random.Random(len(scenes)))
    grids = [_grid(judge, renderer(layout[start : start + 256])) for start in range(0, len(scenes), 256)]
    return torch.cat(grids), layout.boxes[:, 0].to(renderer.device)


def _with_bias(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, 1), value=1.0)


def _ridge_regression(rows: Tensor, target: Tensor, ridge: float) -> Tensor:
    rows, target = rows.double(), target.double()
    square = rows.T @ rows
    square += ridge * len(rows) / len(square) * torch.eye(len(square), device=rows.device, dtype=rows.dtype)
    return torch.linalg.solve(square, rows.T @ target).float()
