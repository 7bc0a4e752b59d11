"""Trajectories without a model: a drawn scene, and a velocity field whose clean estimate sharpens to it.

The views get a real Trajectory of real Euler steps; only the velocity comes from a formula. The clean estimate at
sigma is the scene with a blur that falls with sigma, as that of a model does.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFilter

from fluxnb import flow
from fluxnb.records import Cell, Step, Sweep, Trajectory
from fluxnb.records.latents import LinearRGB, pack
from tests.trajectories import resolved

SIZE = 128
_MAP = torch.linalg.qr(torch.randn(16, 3, generator=torch.Generator().manual_seed(5)))[0].T / 4
PREVIEW = LinearRGB(weight=tuple(tuple(row) for row in _MAP.tolist()), bias=(0.5, 0.5, 0.5), error=0.05)


def scene(seed: int, size: int = SIZE) -> Image.Image:
    """A landscape; the positions of sun, hill and house depend on the seed."""
    rng = torch.Generator().manual_seed(seed)
    a, b, c = torch.rand(3, generator=rng).tolist()
    picture = Image.new("RGB", (size * 2, size * 2), (168, 208, 236))
    draw, s = ImageDraw.Draw(picture), size * 2
    draw.ellipse((s * (0.1 + 0.6 * a), s * 0.1, s * (0.28 + 0.6 * a), s * 0.28), fill=(250, 205, 80))
    draw.ellipse((-s * 0.3, s * (0.5 + 0.1 * b), s * 1.3, s * 1.6), fill=(96, 150, 92))
    left, top = s * (0.15 + 0.45 * c), s * (0.45 + 0.1 * b)
    draw.rectangle((left, top, left + s * 0.26, top + s * 0.24), fill=(222, 120, 86))
    draw.polygon(((left - s * 0.04, top), (left + s * 0.3, top), (left + s * 0.13, top - s * 0.17)), fill=(120, 64, 70))
    return picture.resize((size, size), Image.Resampling.LANCZOS)


def encode(picture: Image.Image) -> torch.Tensor:
    """Latents (16, h/8, w/8) whose linear preview is the picture at an eighth of its size."""
    small = picture.resize((picture.width // 8, picture.height // 8), Image.Resampling.BOX)
    rgb = (
        torch.tensor(list(small.convert("RGB").tobytes()), dtype=torch.float32).view(small.height, small.width, 3) / 255
    )
    weight = torch.tensor(PREVIEW.weight)
    return torch.einsum("ck,hwk->chw", torch.linalg.pinv(weight), rgb - torch.tensor(PREVIEW.bias))


def attention_maps(seed: int, size: int, sigma: float, words: int) -> torch.Tensor:
    """Attention (tokens, words): a Gaussian for each word but the first, narrower as sigma falls."""
    rng, side = torch.Generator().manual_seed(seed), size // 16
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    spots = torch.rand(words, 2, generator=rng)
    maps = [torch.full((side, side), 0.02)]
    for row, column in spots[1:].tolist():
        maps.append(0.01 + 0.1 * torch.exp(-((y - row) ** 2 + (x - column) ** 2) / (0.05 + 0.2 * sigma) ** 2))
    return torch.stack(maps[:words], dim=-1).flatten(0, 1)


def trajectory(
    seed: int = 3,
    steps: int = 4,
    *,
    prompt: str = "a house on a hill",
    size: int = SIZE,
    model: str = "toy",
    shift: float = 1.0,
    stop_after: int | None = None,
    preview: bool = True,
    keep: bool = True,
    attention: bool = False,
) -> Trajectory:
    """A Trajectory towards the scene of `seed`; unfinished with `stop_after`, with attention maps if `attention`."""
    sigmas = flow.schedule(steps, shift=shift)
    picture = scene(seed, size)
    x = pack(torch.randn(16, size // 8, size // 8, generator=torch.Generator().manual_seed(seed)))
    sampled = []
    for index, (sigma, after) in enumerate(itertools.islice(itertools.pairwise(sigmas), stop_after)):
        blurred = picture.filter(ImageFilter.GaussianBlur(size / 5 * sigma))
        clean = pack(encode(Image.blend(picture.resize((1, 1)).resize(picture.size), blurred, 1 - 0.5 * sigma)))
        v = (x - clean) / sigma
        x_next = flow.euler_step(x, v, sigma, after)
        tensors = {"x": x, "v": v, "x_next": x_next} if keep else {}
        if attention:
            tensors["attention"] = attention_maps(seed, size, sigma, len(prompt.split()))
        norms = {"x": float(x.norm()), "v": float(v.norm())}
        sampled.append(Step(index=index, sigma=sigma, dt=after - sigma, height=size, width=size, tensors=tensors,
                         norms=norms, seconds=0.02))  # fmt: skip
        x = x_next
    return Trajectory(
        image=picture,
        recipe=resolved(prompt=prompt, seed=seed, steps=steps, height=size, width=size, model=model),
        finished=stop_after is None,
        sigmas=sigmas,
        steps=tuple(sampled),
        height=size,
        width=size,
        seconds={"encode": 0.01, "denoise": 0.02 * steps, "decode": 0.01},
        versions={"fluxnb": "0"},
        model=model,
        preview=PREVIEW if preview else None,
        words=tuple(prompt.split()) if attention else (),
    )


def grid(
    prompts: Sequence[str] = ("a house on a hill",),
    seeds: Sequence[int] = (0, 1, 2, 3),
    steps: Sequence[int] = (1, 2, 4),
    *,
    trajectories: bool = False,
    size: int = SIZE,
) -> Sweep:
    """A Sweep of such pictures, with their trajectories if `trajectories` is set."""
    cells = []
    for prompt in prompts:
        for seed in seeds:
            for count in steps:
                sampled = trajectory(seed, count, prompt=prompt, size=size)
                assert sampled.recipe is not None and sampled.image is not None
                blur = ImageFilter.GaussianBlur(6 / count - 1)
                cells.append(Cell(recipe=sampled.recipe, key=sampled.recipe.key(), picture=sampled.image.filter(blur),
                                  trajectory=sampled if trajectories else None))  # fmt: skip
    return Sweep(
        cells=tuple(cells),
        axes={"prompt": tuple(prompts), "seed": tuple(seeds), "steps": tuple(steps)},
        model="toy",
    )
