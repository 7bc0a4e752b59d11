"""How the calls of any flow pipeline are read: the levels and velocities of its scheduler, the geometry of its x.

Families that fluxnb samples state their geometry. For other pipelines it is read from the pipeline: latents in space
show their arrangement by their shape, tokens by the pipeline's own unpacking. Where that is not possible, or the
scheduler does not follow a rectified flow, the reason is one sentence, and the call is not recorded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxnb.families.registry import family_of
from fluxnb.records import Geometry
from fluxnb.records.geometry import FLUX1, ORDERS

__all__ = ["NotRecorded", "Reading", "TrigFlow", "geometry_of_call", "levels_of", "prediction_of", "trigflow_of"]

# Tokens of pipelines that unpack them within their call. A modular pipeline has those of the plain one.
KNOWN: Mapping[str, Geometry] = {
    "FluxPipeline": FLUX1,
    "Flux2Pipeline": Geometry(channels=32),
    "Flux2KleinKVPipeline": Geometry(channels=32),
    "Flux2KleinInpaintPipeline": Geometry(channels=32),
    "Flux2KleinPipeline": Geometry(channels=32),
    "Flux3Pipeline": Geometry(channels=32),
    "Flux3DistilledPipeline": Geometry(channels=32),
    "Ideogram4Pipeline": Geometry(channels=32, order="ph pw c"),
    "Krea2Pipeline": Geometry(channels=16),
    "QwenImagePipeline": Geometry(channels=16),
}
CELLS_OF_TOKEN = 2  # per side, in every pipeline of diffusers that packs its latents


class NotRecorded(Exception):
    """A call that cannot be recorded, and why in one sentence."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The geometry of a call's x, and the size of the picture that it holds, in pixels."""

    geometry: Geometry
    height: int
    width: int


@dataclass(frozen=True)
class TrigFlow:
    """A TrigFlow scheduler (sCM, Lu and Song, 2410.11081) read as the rectified flow with the same ends.

    With t the angle and d the deviation of the data, x = cos(t) clean + sin(t) noise and F = cos(t) noise - sin(t)
    clean, both times d. The rectified flow has sigma = sin(t) / (sin(t) + cos(t)) and the same clean and noise.

    Arguments:
        angles: t of each step and the final 0.
        deviation: d.
    """

    angles: tuple[float, ...]
    deviation: float

    @property
    def levels(self) -> list[float]:
        """The noise level of each angle."""
        return [math.sin(t) / (math.sin(t) + math.cos(t)) for t in self.angles]

    def x(self, sample: Tensor, position: int) -> Tensor:
        """The x of the rectified flow, float32."""
        t = self.angles[position]
        return sample.float() / (self.deviation * (math.sin(t) + math.cos(t)))

    def v(self, sample: Tensor, output: Tensor, position: int) -> Tensor:
        """The velocity noise - clean, float32."""
        sin, cos = math.sin(self.angles[position]), math.cos(self.angles[position])
        x, f = sample.float() / self.deviation, output.float() / self.deviation
        return (sin * x + cos * f) - (cos * x - sin * f)


def trigflow_of(scheduler: Any) -> TrigFlow | None:
    """The reading of a TrigFlow scheduler whose timesteps are set; None for others."""
    config = getattr(scheduler, "config", {})
    if config.get("prediction_type") != "trigflow":
        return None
    angles = tuple(float(t) for t in scheduler.timesteps.tolist())
    return TrigFlow(angles, float(config.get("sigma_data", 1.0)))


def levels_of(scheduler: Any) -> list[float]:
    """The noise levels of a scheduler whose timesteps are set, the final 0 included.

    Raises:
        NotRecorded: it does not follow a rectified flow.
    """
    if (trigflow := trigflow_of(scheduler)) is not None:
        return trigflow.levels
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    is_flow = (
        "FlowMatch" in name
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas", False))
    )
    sigmas = getattr(scheduler, "sigmas", None)
    if not is_flow or sigmas is None:
        predicts = config.get("prediction_type", "something else")
        raise NotRecorded(f"{name} (prediction type {predicts}) does not follow a rectified flow")
    # One transfer of the levels here, before any work is queued, saves a wait for the GPU in every step.
    levels = [float(level) for level in sigmas.tolist()]
    if not levels or max(levels) > 1 + 1e-4 or min(levels) < 0:
        raise NotRecorded(
            f"the noise levels of {name} reach {max(levels, default=0.0):.3g}; those of a flow are 0 to 1"
        )
    return levels


def prediction_of(pipe: Any) -> str:
    """What the network of a pipeline computes, see `fluxnb.records.geometry.PREDICTIONS`."""
    if getattr(pipe.scheduler, "config", {}).get("prediction_type") == "trigflow":
        return "trigflow"
    transformer = getattr(getattr(pipe, "transformer", None), "config", None)
    return "mean velocity" if getattr(transformer, "flow_map", False) else "velocity"


def geometry_of_call(pipe: Any, shape: tuple[int, ...], height: int, width: int) -> Reading:
    """The geometry of x of this shape, without the batch, and the size of the picture.

    Arguments:
        height, width: that the call was given; 0 where it was not.

    Raises:
        NotRecorded: the arrangement of x cannot be read.
    """
    family = family_of(pipe)
    if len(shape) == 3:
        return _spatial(pipe, shape, height, width)
    if len(shape) == 4:
        raise NotRecorded(f"x has {shape[1]} frames, and fluxnb shows single pictures")
    if len(shape) != 2:
        raise NotRecorded(f"x of the shape {shape} is neither tokens nor latents in space")
    name = type(pipe).__name__.replace("Modular", "")
    known = family.geometry if family is not None else KNOWN.get(name)
    candidates = _candidates(pipe, shape) if known is None else [known]
    for geometry in candidates:
        geometry = dataclasses.replace(geometry, channels=max(shape[1] // geometry.patch**2, 1))
        size = _size_of_tokens(geometry, shape, height, width)
        if size is not None and (known is not None or _unpacks_alike(pipe, geometry, shape, size)):
            return Reading(geometry=geometry, height=size[0], width=size[1])
    raise NotRecorded(f"the order of the numbers in a token of {type(pipe).__name__} is not known")


def _spatial(pipe: Any, shape: tuple[int, ...], height: int, width: int) -> Reading:
    channels, rows, columns = shape
    factor = _scale_factor(pipe)
    exact = height % rows == 0 and width % columns == 0 and height // rows == width // columns > 0
    if factor is None and not exact:
        raise NotRecorded(f"how many pixels a latent of {type(pipe).__name__} covers is not known")
    cell = height // rows if exact else factor or 1
    family = family_of(pipe)
    patch = 1 if family is None else family.geometry.patch
    geometry = Geometry(channels=channels, cell=cell, patch=patch, layout="spatial")
    return Reading(geometry=geometry, height=rows * cell, width=columns * cell)


def _scale_factor(pipe: Any) -> int | None:
    """Pixels per side of a latent, as the pipeline states it."""
    for name in ("vae_scale_factor", "vae_spatial_compression_ratio", "vae_scale_factor_spatial"):
        value = getattr(pipe, name, None)
        if isinstance(value, int | float) and not isinstance(value, bool) and 1 <= value <= 128:
            return int(value)
    return None


def _candidates(pipe: Any, shape: tuple[int, ...]) -> list[Geometry]:
    factor = _scale_factor(pipe)
    if factor is None or factor * CELLS_OF_TOKEN > 128 or shape[1] % CELLS_OF_TOKEN**2:
        return []
    channels = shape[1] // CELLS_OF_TOKEN**2
    return [Geometry(channels=channels, cell=factor, patch=CELLS_OF_TOKEN, order=order) for order in ORDERS]


def _size_of_tokens(geometry: Geometry, shape: tuple[int, ...], height: int, width: int) -> tuple[int, int] | None:
    """The size of the picture in whole tokens: the given one, or a square where none was given."""
    pixels = geometry.pixels
    if not height or not width:
        side = math.isqrt(shape[0])
        return (side * pixels, side * pixels) if side**2 == shape[0] else None
    size = height // pixels * pixels, width // pixels * pixels
    return size if geometry.shape(*size) == tuple(shape) else None


def _unpacks_alike(pipe: Any, geometry: Geometry, shape: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether the pipeline's own unpacking arranges numbered tokens as the geometry does."""
    numbered = torch.arange(math.prod(shape), dtype=torch.float64).reshape(1, *shape)
    known = {
        "latents": numbered,
        "height": size[0],
        "width": size[1],
        "vae_scale_factor": geometry.cell,
        "patch_size": geometry.patch,
    }
    with contextlib.suppress(Exception):  # none, or one with other parameters
        unpack = pipe._unpack_latents
        unpacked = unpack(**{name: known[name] for name in inspect.signature(unpack).parameters})
        if unpacked.ndim == 5 and unpacked.shape[2] == 1:
            unpacked = unpacked[:, :, 0]  # a frame axis
        return torch.equal(unpacked, geometry.latents(numbered, *size))
    return False
