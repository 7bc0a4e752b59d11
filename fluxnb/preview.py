"""From latents to pictures: the linear preview, fitted to a VAE in a moment, and film(), which decodes a whole walk.

The preview is a least-squares line through a handful of pictures that are drawn in code and encoded.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.errors import checks_itself, cut, one_of
from fluxnb.latents import LinearRGB, fit_linear
from fluxnb.records import SHOWN, Film, Trajectory

__all__ = ["film", "fit_preview", "known_preview", "preview_of", "samples"]

Decoder = Callable[[Float[Tensor, "frames channels height width"]], Sequence[Image.Image]]


def samples(size: int = 64) -> Float[Tensor, "count 3 height width"]:
    """Eight pictures, 0 to 1, that cover colour and brightness: plain grounds, gradients, discs and stripes."""
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
    return torch.stack(pictures).clamp(0, 1)


def fit_preview(pipe: Any) -> LinearRGB:
    """The linear preview of a pipeline's VAE. Deterministic: the posterior's mean, and pictures that are fixed."""
    vae, device = pipe.vae, pipe._execution_device
    pictures, latents = samples(), []
    with torch.no_grad():
        for picture in pictures:
            given = (picture[None] * 2 - 1).to(device=device, dtype=vae.dtype)
            mean = vae.encode(given).latent_dist.mean
            latents.append(((mean - vae.config.shift_factor) * vae.config.scaling_factor)[0].float().cpu())
    pipe.maybe_free_model_hooks()
    return fit_linear(latents, list(pictures))


# Fitted once to each VAE, and gone with it.
_KNOWN: weakref.WeakKeyDictionary[Any, LinearRGB] = weakref.WeakKeyDictionary()


def known_preview(vae: Any) -> LinearRGB | None:
    """The linear preview of a VAE if it has been fitted already."""
    return _KNOWN.get(vae)


def preview_of(pipe: Any) -> LinearRGB:
    """The linear preview of a pipeline's VAE, fitted when it is first asked for."""
    if pipe.vae not in _KNOWN:
        _KNOWN[pipe.vae] = fit_preview(pipe)
    return _KNOWN[pipe.vae]


@checks_itself
def film(flux: Any, walk: Trajectory, *, what: str = "clean", by: str | Decoder = "vae") -> Film:
    """Decode what each step of a walk holds into a picture.

    Arguments:
        flux: the model the walk was made with, from `fnb.load`.
        walk: its steps must have kept x and v (x_next for `what="x_next"`); steps that did not are left out.
        what: "clean", "x", "v", "noise" or "x_next".
        by: "vae", the model's own decoder; "linear", a map fitted to it that costs next to nothing; or a function
            from latents (n, 16, h/8, w/8) to pictures, a tiny decoder for example.

    Raises:
        InputError: another `what` or `by`.

    Example:
        >>> film(flux, walk, what="clean").frames[0]                                # doctest: +SKIP
        <PIL.Image.Image image mode=RGB size=128x128>
    """
    if what not in SHOWN:
        raise one_of("what", what, SHOWN)
    if not callable(by) and by not in ("vae", "linear"):
        raise one_of("by", cut(by), ("vae", "linear"))
    needed = {"x_next"} if what == "x_next" else {what} if what in ("x", "v") else {"x", "v"}
    steps = [step for step in walk.steps if needed <= set(step.tensors)]
    started = time.perf_counter()
    frames: list[Image.Image] = []
    linear = flux.preview if by == "linear" else None
    for step in steps:  # one by one: a batch of 1024 px pictures would take 2 GB each
        latents = step.latents(what)[None]
        if linear is not None:
            small = Image.fromarray(linear(latents)[0].numpy())
            frames.append(small.resize((walk.width, walk.height), Image.Resampling.BICUBIC))
        else:
            frames += (by if callable(by) else flux.decode)(latents)
    return Film(
        frames=tuple(frames),
        what=what,
        by=by if isinstance(by, str) else getattr(by, "__name__", type(by).__name__),
        sigmas=tuple(step.sigma for step in steps),
        steps=tuple(step.index for step in steps),
        caption=walk.caption,
        error=0.0 if by == "vae" else None if linear is None else linear.error,
        seconds=time.perf_counter() - started,
    )
