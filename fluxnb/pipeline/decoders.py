"""Decoders: film(), which decodes the steps of a trajectory, and tiny(), a small autoencoder in place of the VAE.

A tiny autoencoder decodes at a fraction of the VAE's cost; its distance from the VAE is measured when it is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.arguments import entry_point
from fluxnb.checkpoints.checksums import read_json
from fluxnb.checkpoints.validation import check_configuration, check_weight_file
from fluxnb.errors import InputError, StorageError, shorten, unknown_choice
from fluxnb.io.files import user_path
from fluxnb.pipeline.flux import Flux
from fluxnb.pipeline.preview import decode_latents, measure
from fluxnb.records import STEP_QUANTITIES, Film, Trajectory

__all__ = ["Tiny", "film", "tiny"]

Latents = Float[Tensor, "frames channels height width"]
Decoder = Callable[[Latents], Sequence[Image.Image]]


class Tiny:
    """A tiny autoencoder in place of the VAE: called with latents in space, it returns as many pictures.

    Made by `tiny`. `.error` is the root mean square difference of its pictures from the VAE's (0 to 1 scale).
    """

    def __init__(self, vae: Any, processor: Any) -> None:
        self._vae, self._processor, self.error = vae, processor, 0.0
        self.__name__ = f"tiny decoder {type(vae).__name__}"

    def __call__(self, latents: Latents) -> list[Image.Image]:
        """Decode, one by one."""
        device = next(self._vae.parameters()).device
        pictures: list[Image.Image] = []
        for latent in latents:
            pictures += decode_latents(self._vae, self._processor, latent[None], device, "pil")
        return pictures


@entry_point("flux", source='source="models/taef1"')
def tiny(flux: Flux, source: Any) -> Tiny:
    """A tiny decoder for this model, measured against its VAE.

    Arguments:
        flux: from `fnb.load`.
        source: a diffusers AutoencoderTiny that was trained for this model's latents (taef1 for FLUX.1), or the
            folder of one.

    Raises:
        InputError: neither of these, or one for other latents.
        StorageError: a folder that holds none.

    Example:
        >>> decode = tiny(flux, "models/taef1")                                     # doctest: +SKIP
        >>> scrub(trajectory, decode=decode), decode.error                                # doctest: +SKIP
        (Scrubber(1 trajectory, 17 frames), 0.02)
    """
    vae = _opened(user_path(source)) if isinstance(source, str | Path) else source
    if not hasattr(vae, "decode") or not hasattr(vae, "config"):
        raise InputError(
            f"a tiny decoder of type {type(vae).__name__}",
            "a diffusers AutoencoderTiny, or the folder of one, is possible",
            'try by="linear", which every model has',
        )
    flux.require_vae()
    given, needed = vae.config.get("latent_channels"), flux.pipe.vae.config.latent_channels
    if given != needed:
        raise InputError(
            f"a tiny decoder for {given} latent channels",
            f"this model's latents have {needed}",
            "use the one that was made for this model",
        )
    made = Tiny(vae, flux.pipe.image_processor)
    made.error = measure(flux.pipe, made)
    return made


def _opened(folder: Path) -> Any:
    from diffusers import AutoencoderTiny

    try:
        config = folder / "config.json"
        check_configuration(read_json(config), config)
        for file in folder.glob("*.safetensors"):
            check_weight_file(file)
        vae, report = AutoencoderTiny.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
        if report["missing_keys"]:  # diffusers fills them with random numbers
            raise ValueError(f"without {min(report['missing_keys'])}")
        return vae
    except Exception as problem:  # diffusers raises various classes
        raise StorageError(
            f"{folder} as a tiny decoder ({shorten(str(problem), 160)})",
            "a folder with config.json and diffusion_pytorch_model.safetensors is needed",
            "save one there with AutoencoderTiny.save_pretrained",
        ) from problem


@entry_point("flux", "trajectory", "what")
def film(flux: Flux, trajectory: Trajectory, *, what: str = "clean", by: Any = "vae") -> Film:
    """Decode one quantity of every step of a trajectory into pictures.

    Arguments:
        flux: the model of the trajectory, from `fnb.load`.
        trajectory: steps that did not keep x and v (x_next for `what="x_next"`) are left out.
        what: "clean", "x", "v", "noise" or "x_next".
        by: "vae", the model's own decoder; "linear", a map fitted to it that costs next to nothing; a diffusers
            AutoencoderTiny or the folder of one; or a function from latents (n, channels, rows, columns) to pictures.

    Returns:
        The Film; its `.error` is the decoder's distance from the VAE, where that is known.

    Raises:
        InputError: another `what` or `by`.
        StorageError: a folder without a tiny decoder.

    Example:
        >>> film(flux, trajectory, what="clean").frames[0]                                # doctest: +SKIP
        <PIL.Image.Image image mode=RGB size=128x128>
    """
    if what not in STEP_QUANTITIES:
        raise unknown_choice("what", what, STEP_QUANTITIES)
    decode, name, error = _decoder(flux, trajectory, by)
    needed = {"x_next"} if what == "x_next" else {what} if what in ("x", "v") else {"x", "v"}
    steps = [step for step in trajectory.steps if needed <= set(step.tensors)]
    started = time.perf_counter()
    frames: list[Image.Image] = []
    for step in steps:  # one by one: a batch of 1024 px pictures would take 2 GB each
        frames += decode(step.latents(what)[None])
    return Film(
        frames=tuple(frames),
        what=what,
        by=name,
        sigmas=tuple(step.sigma for step in steps),
        steps=tuple(step.index for step in steps),
        caption=trajectory.caption,
        error=error,
        seconds=time.perf_counter() - started,
    )


def _decoder(flux: Flux, trajectory: Trajectory, by: Any) -> tuple[Decoder, str, float | None]:
    """The decoder, its name, and its distance from the VAE."""
    if isinstance(by, str) and by == "vae":
        flux.require_vae()
        return flux.decode, by, 0.0
    if isinstance(by, str) and by == "linear":
        preview = flux.preview
        if preview is None:
            raise InputError(
                'by="linear"', "this pipeline has no VAE that a linear map can be fitted to", "give by a decoder"
            )
        return lambda latents: preview.pictures(latents, (trajectory.width, trajectory.height)), by, preview.error
    if isinstance(by, Path) or (isinstance(by, str) and user_path(by).is_dir()) or hasattr(by, "decode"):
        by = tiny(flux, by)
    if not callable(by):
        raise unknown_choice("by", shorten(by), ("vae", "linear"))
    return by, getattr(by, "__name__", type(by).__name__), getattr(by, "error", None)
