"""A contact sheet of the teacher's pictures: one row per prompt, one column per initial noise."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from PIL import Image

from fluxnb.train.config import Sizes
from fluxnb.train.data.layouts import Shape
from fluxnb.train.data.vocabulary import Tokenizers
from fluxnb.train.networks.denoiser import Denoiser, load_denoiser, sample, with_transformer

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
SEEDS = 8


@torch.no_grad()
def sample_sheet(
    model: Denoiser, vae: AutoencoderKL, shape: Shape, *, steps: int = 28, guidance: float = 1.0
) -> Image.Image:
    """Pictures of `PROMPTS`, `SEEDS` of each; all prompts start from the same noise."""
    device, tokenizers = next(model.parameters()).device, Tokenizers()

    def ids(prompt: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        clip_ids, t5_ids = tokenizers([prompt])
        return clip_ids.to(device).expand(count, -1), t5_ids.to(device).expand(count, -1)

    sheet = Image.new("RGB", (SEEDS * shape.width, len(PROMPTS) * shape.height))
    for row, prompt in enumerate(PROMPTS):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(SEEDS, 16, shape.height // 8, shape.width // 8, generator=generator).to(device)
        latents = sample(model, *ids(prompt, SEEDS), noise, steps, guidance=guidance, empty=ids("", 1))
        pictures = vae.decode(latents.float()).sample.clamp(-1, 1).add(1).mul(127.5).round().byte()
        for column, picture in enumerate(pictures.permute(0, 2, 3, 1).cpu().numpy()):
            sheet.paste(Image.fromarray(picture), (column * shape.width, row * shape.height))
    return sheet


def save_sheet(
    sizes: Sizes,
    out: Path,
    shape: Shape,
    device: torch.device,
    *,
    steps: int,
    guidance: float,
    transformer: str | None = None,
) -> Path:
    """Save a sheet of the teacher in `out`, or of a student's transformer, as `out`/samples.png or by its name."""
    model = load_denoiser(sizes, out / "teacher.safetensors").to(device)
    if transformer is not None:
        model = with_transformer(model, out / f"{transformer}.safetensors").to(device)
    vae = AutoencoderKL.from_pretrained(out / "vae").eval().to(device)
    path = out / ("samples.png" if transformer is None else f"samples-{transformer}.png")
    sample_sheet(model, vae, shape, steps=steps, guidance=guidance).save(path)
    return path
