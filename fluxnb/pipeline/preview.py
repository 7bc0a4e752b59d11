"""The linear preview, fitted to a VAE in a moment and kept, and the ruler for whatever stands in for the VAE.

The preview is a least-squares line through a handful of pictures that are drawn in code and encoded. How far it, or
any other decoder, is from the VAE is measured on those same pictures.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.checkpoints.checksums import sampled_fingerprint
from fluxnb.io.files import atomic_write
from fluxnb.records.latents import LinearRGB, fit_linear

__all__ = ["decoded", "fit_preview", "known_preview", "measure", "preview_of", "samples"]

Pictures = Float[Tensor, "count 3 height width"]


def samples(size: int = 64) -> Pictures:
    """Thirteen pictures, 0 to 1: gradients with discs and stripes, and mosaics from coarse to as fine as letters."""
    y, x = torch.meshgrid(torch.linspace(0, 1, size), torch.linspace(0, 1, size), indexing="ij")
    draw = torch.Generator().manual_seed(0)
    pictures = []
    for index in range(8):
        one, two, three = torch.rand(3, 3, generator=draw)
        picture = one[:, None, None] * x + two[:, None, None] * (1 - x)
        picture = picture * (0.4 + 0.6 * (y if index % 2 else 1 - y))
        for radius in (0.30, 0.18):
            cx, cy = (0.2 + 0.6 * torch.rand(2, generator=draw)).tolist()
            colour = torch.rand(3, generator=draw)
            picture = torch.where((x - cx) ** 2 + (y - cy) ** 2 < radius**2, colour[:, None, None], picture)
        stripes = torch.sin(6.28 * (3 + index) * y) > 0.7
        pictures.append(torch.where(stripes, three[:, None, None], picture) if index % 3 == 0 else picture)
    for side in (32, 16, 8, 4, 2):  # without fine detail in the fit, fine detail comes out in glaring colours
        tiles = torch.rand(3, size // side + 1, size // side + 1, generator=draw)
        left = side // 3  # across the borders of the latent cells, too
        pictures.append(tiles.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, left:, left:][:, :size, :size])
    return torch.stack(pictures).clamp(0, 1)


def fit_preview(pipe: Any) -> LinearRGB:
    """The linear preview of a pipeline's VAE. Deterministic: the posterior's mean, and pictures that are fixed."""
    latents, pictures = _samples_of(pipe)
    fitted = fit_linear(list(latents), list(samples()))
    shown = fitted.pictures(latents, (pictures.shape[-1], pictures.shape[-2]))
    return dataclasses.replace(fitted, error=_apart(shown, pictures))


# Fitted once to each VAE, and gone with it.
_KNOWN: weakref.WeakKeyDictionary[Any, LinearRGB] = weakref.WeakKeyDictionary()


def known_preview(vae: Any) -> LinearRGB | None:
    """The linear preview of a VAE if it has been fitted already."""
    return _KNOWN.get(vae)


def preview_of(pipe: Any) -> LinearRGB:
    """The linear preview of a pipeline's VAE: fitted when it is first asked for, and kept on disk for the next time.

    The file lies in the Hugging Face cache, under the VAE's fingerprint; one that is damaged is made anew, and where
    nothing can be written the preview is fitted each time.
    """
    if pipe.vae not in _KNOWN:
        kept = _kept(pipe.vae)
        preview = _read(kept)
        if preview is None:
            preview = fit_preview(pipe)
            with contextlib.suppress(OSError), atomic_write(kept) as part:
                part.write_text(json.dumps(preview.to_json()))
        _KNOWN[pipe.vae] = preview
    return _KNOWN[pipe.vae]


def _kept(vae: Any) -> Path:
    from huggingface_hub.constants import HF_ASSETS_CACHE

    # The number changes with the pictures or the fit, so that an old file is not taken for a new one.
    return Path(HF_ASSETS_CACHE) / "fluxnb" / "previews" / f"2-{sampled_fingerprint(vae)}.json"


def _read(path: Path) -> LinearRGB | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return LinearRGB.from_json(json.loads(path.read_bytes()))
    return None


def measure(pipe: Any, decode: Any) -> float:
    """How far a decoder is from a pipeline's VAE: root mean square, 0 to 1, over the sample pictures."""
    latents, pictures = _samples_of(pipe)
    return _apart(decode(latents), pictures)


@torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore]
def decoded(vae: Any, processor: Any, latent: Tensor, device: torch.device, kind: str) -> Any:
    """Latents (n, channels, h/8, w/8) through an autoencoder, as a pipeline would: "pil" pictures or a "pt" tensor."""
    z = latent.to(device=device, dtype=vae.dtype)
    # As FluxPipeline writes it: in another order the last bit may be another.
    z = (z / (vae.config.get("scaling_factor") or 1.0)) + (vae.config.get("shift_factor") or 0.0)
    return processor.postprocess(vae.decode(z, return_dict=False)[0], output_type=kind)


@torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore]
def _samples_of(pipe: Any) -> tuple[Float[Tensor, "count channels _h _w"], Pictures]:
    """The sample pictures as latents, on the CPU, and what the VAE itself makes of them, 0 to 1."""
    vae, device = pipe.vae, pipe._execution_device
    latents, pictures = [], []
    for picture in samples():
        given = (picture[None] * 2 - 1).to(device=device, dtype=vae.dtype)
        mean = vae.encode(given).latent_dist.mean
        latents.append(((mean - vae.config.shift_factor) * vae.config.scaling_factor).float().cpu())
        pictures.append(decoded(vae, pipe.image_processor, latents[-1], device, "pt").float().cpu())
    pipe.maybe_free_model_hooks()
    return torch.cat(latents), torch.cat(pictures)


def _apart(shown: Sequence[Image.Image], pictures: Pictures) -> float:
    """The root mean square difference of some frames from the VAE's pictures, 0 to 1."""
    given = torch.from_numpy(np.stack([np.asarray(frame.convert("RGB")) for frame in shown])).permute(0, 3, 1, 2)
    return float((given.float() / 255 - pictures).pow(2).mean().sqrt())
