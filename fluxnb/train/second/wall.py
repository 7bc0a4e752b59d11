"""A wall of pictures that a teacher draws for a list of prompts, a row each, as one PNG."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image

from fluxnb.train.data.vocabulary import Tokens
from fluxnb.train.second.config import Sizes
from fluxnb.train.second.networks import Denoiser
from fluxnb.train.second.teacher import sample

PROMPTS = (
    "a cat",
    "a woman",
    "a fox",
    "a doctor",
    "two dogs",
    "a red fox in the snow",
    "a sticker of three owls in the forest at night",
    "a blue car left of a castle",
    "a 3d render of a large guitar on a purple background",
    "a robot holding a sign that says hello world",
)


@torch.no_grad()
def wall(
    model: Denoiser, vae: AutoencoderKL, sizes: Sizes, prompts: tuple[str, ...] = PROMPTS, *, seeds: int = 8,
    size: tuple[int, int] = (192, 192), steps: int = 28, guidance: float = 1.5,
) -> Image.Image:  # fmt: skip
    """Pictures of every prompt with seeds 0, 1, ...; `size` is height and width in pixels."""
    device = next(model.parameters()).device
    tokens, (height, width) = Tokens.of(sizes), size
    nothing = tuple(ids.to(device) for ids in tokens([""]))
    sheet = Image.new("RGB", (seeds * width, len(prompts) * height))
    for row, prompt in enumerate(prompts):
        clip, t5 = (ids.to(device).expand(seeds, -1) for ids in tokens([prompt]))
        noise = torch.randn(seeds, 16, height // 8, width // 8, generator=torch.Generator().manual_seed(0)).to(device)
        latents = sample(model, clip, t5, noise, steps, guidance=guidance, nothing=nothing)  # type: ignore[arg-type]
        pictures = vae.decode(latents.float()).sample.clamp(-1, 1).add(1).mul(127.5).round().byte()
        for column, picture in enumerate(pictures.permute(0, 2, 3, 1).cpu().numpy()):
            sheet.paste(Image.fromarray(picture), (column * width, row * height))
    return sheet


def draw_wall(sizes: Sizes, out: Path, device: torch.device, **options: object) -> Path:
    """The wall of a run's teacher, as `out`/wall.png."""
    from fluxnb.train.second.networks import load_denoiser

    model = load_denoiser(sizes, out / "teacher.safetensors").to(device)
    vae = AutoencoderKL.from_pretrained(out / "vae").eval().to(device)
    wall(model, vae, sizes, **options).save(out / "wall.png")  # type: ignore[arg-type]
    return out / "wall.png"
