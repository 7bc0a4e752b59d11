"""The linear preview of a VAE, and the distance of any other decoder from the VAE.

The preview is a least-squares map, fitted to thirteen pictures that are drawn in code and encoded. The same pictures
measure how far the preview, or another decoder, is from the VAE.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.checkpoints.checksums import sampled_fingerprint
from fluxnb.families.flux1 import scaled_from_vae, scaled_to_vae
from fluxnb.families.registry import family_of
from fluxnb.io.files import atomic_write, read_bytes
from fluxnb.pipeline.compat import compute_dtype
from fluxnb.pipeline.state import state_of
from fluxnb.records.latents import LinearRGB, fit_linear
from fluxnb.runtime.compat import execution_device
from fluxnb.runtime.exclusive import ending_interrupted_calls
from fluxnb.runtime.parallel import is_split, local_decoder

__all__ = ["decode_latents", "encode_picture", "fit_preview", "measure", "preview_of", "samples"]

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
    for side in (32, 16, 8, 4, 2):  # a fit without fine detail shows fine detail in glaring colors
        tiles = torch.rand(3, size // side + 1, size // side + 1, generator=draw)
        left = side // 3  # not aligned with the latent cells
        pictures.append(tiles.repeat_interleave(side, 1).repeat_interleave(side, 2)[:, left:, left:][:, :size, :size])
    return torch.stack(pictures).clamp(0, 1)


def fit_preview(pipe: Any) -> LinearRGB:
    """Fit the linear preview of a pipeline's VAE; deterministic, since it uses the posterior's mean."""
    latents, pictures = _samples_of(pipe)
    fitted = fit_linear(list(latents), list(samples()))
    frames = fitted.pictures(latents, (pictures.shape[-1], pictures.shape[-2]))
    return dataclasses.replace(fitted, error=_rms_difference(frames, pictures))


def preview_of(pipe: Any) -> LinearRGB | None:
    """The linear preview of a pipeline's VAE: fitted when first needed, then cached in memory and on disk.

    The file lies in the Hugging Face assets cache under the VAE's fingerprint. A damaged file is replaced; where the
    cache cannot be written, the preview is fitted once per process.

    Returns:
        None for a pipeline without a VAE, and for a VAE that encodes in another way or to numbers that are not finite.
    """
    vae, state = getattr(pipe, "vae", None), state_of(pipe)
    if vae is None:
        return None
    if not state.has_preview(vae):
        preview = None
        with contextlib.suppress(Exception):  # a preview is an extra: without one, pictures are decoded by the VAE
            preview = _cached_or_fitted(pipe, vae)
        state.keep_preview(vae, preview)
    return state.preview(vae)


def _cached_or_fitted(pipe: Any, vae: Any) -> LinearRGB | None:
    file = _cache_file(vae)
    preview = _read(file)
    if preview is None:
        preview = fit_preview(pipe)
        if not math.isfinite(preview.error or 0.0):
            return None
        with contextlib.suppress(OSError), atomic_write(file) as part:
            part.write_text(json.dumps(preview.to_json()))
    return preview


def _cache_file(vae: Any) -> Path:
    from huggingface_hub.constants import HF_ASSETS_CACHE

    # The leading number is raised when the pictures or the fit change, which makes older files stale.
    return Path(HF_ASSETS_CACHE) / "fluxnb" / "previews" / f"2-{sampled_fingerprint(vae)}.json"


def _read(path: Path) -> LinearRGB | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return LinearRGB.from_json(json.loads(read_bytes(path, at_most=100_000)))
    return None


def measure(pipe: Any, decode: Any) -> float:
    """How far a decoder is from a pipeline's VAE: root mean square difference, 0 to 1, over the sample pictures."""
    latents, pictures = _samples_of(pipe)
    return _rms_difference(decode(latents), pictures)


@torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore]
def decode_latents(
    vae: Any,
    processor: Any,
    latents: Tensor,
    device: torch.device,
    output_type: str,
    *,
    to_vae: Callable[[Any, Tensor], Tensor] = scaled_to_vae,
    together: bool = False,
) -> Any:
    """Decode latents (n, channels, rows, columns) as a pipeline does: into images ("pil") or a tensor 0 to 1 ("pt").

    Arguments:
        to_vae: of the pipeline's family; by default the scale that the autoencoder's configuration states.
        together: under a parallel preset, all processes decode this picture together; otherwise this one does alone.
    """
    if not together and is_split(vae):
        vae = copy.copy(vae)
        vae._modules = {**vae._modules, "decoder": local_decoder(vae.decoder)}
    z = to_vae(vae, latents.to(device=device, dtype=compute_dtype(vae)))
    return processor.postprocess(vae.decode(z, return_dict=False)[0], output_type=output_type)


def encode_picture(
    vae: Any, pictures: Tensor, device: torch.device, *, from_vae: Callable[[Any, Tensor], Tensor]
) -> Tensor:
    """Encode pictures (n, 3, height, width), 0 to 1, to latents on the CPU in float32: the means of the posterior."""
    encoded = vae.encode((pictures * 2 - 1).to(device=device, dtype=compute_dtype(vae)))
    # An AutoencoderTiny has no posterior.
    mean = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mean
    return from_vae(vae, mean).float().cpu()


@torch.no_grad()  # type: ignore[untyped-decorator,unused-ignore]
def _samples_of(pipe: Any) -> tuple[Float[Tensor, "count channels _h _w"], Pictures]:
    """The sample pictures as latents on the CPU, and the VAE's reconstructions of them, 0 to 1."""
    vae, device, family = pipe.vae, execution_device(pipe), family_of(pipe)
    from_vae, to_vae = (scaled_from_vae, scaled_to_vae) if family is None else (family.from_vae, family.to_vae)
    latents, pictures = [], []
    try:
        with ending_interrupted_calls(pipe):
            for picture in samples():
                latents.append(encode_picture(vae, picture[None], device, from_vae=from_vae))
                decoded = decode_latents(vae, pipe.image_processor, latents[-1], device, "pt", to_vae=to_vae)
                pictures.append(decoded.float().cpu())
    finally:
        pipe.maybe_free_model_hooks()
    return torch.cat(latents), torch.cat(pictures)


def _rms_difference(frames: Sequence[Image.Image], pictures: Pictures) -> float:
    """The root mean square difference of some frames from the VAE's pictures, 0 to 1."""
    given = torch.from_numpy(np.stack([np.asarray(frame.convert("RGB")) for frame in frames])).permute(0, 3, 1, 2)
    return float((given.float() / 255 - pictures).pow(2).mean().sqrt())
