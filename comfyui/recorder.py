"""FluxnbKSampler and FluxnbFilm: every step of a FLUX.1 model that ComfyUI has loaded.

ComfyUI reports the input x and the clean estimate x0 of each step; the velocity is (x - x0) / sigma. Both stay on the
CPU, so a recording costs two tensors a step.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import folder_paths
import latent_preview
import numpy
import torch
from PIL import Image

import fluxnb as fnb
from fluxnb.html import page
from fluxnb.records.latents import pack

__all__ = ["FluxnbFilm", "FluxnbKSampler", "Recording"]

ROWS = ("clean", "x", "v", "noise")
CELL = 8  # pixels of a latent cell
# Samplers that choose their own noise levels, or report x after the step.
OTHER_LEVELS = ("dpm_fast", "dpm_adaptive", "uni_pc", "uni_pc_bh2")


@dataclasses.dataclass(frozen=True)
class Recording:
    """What FluxnbKSampler gives to FluxnbFilm.

    Arguments:
        trajectories: one for each picture of the batch.
        latent_format: of the model, ComfyUI's scale of latents and its preview.
    """

    trajectories: tuple[fnb.Trajectory, ...]
    latent_format: Any


class FluxnbKSampler:
    """KSampler, which also records each step."""

    CATEGORY = "fluxnb"
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT", "FLUXNB_TRAJECTORY")
    RETURN_NAMES = ("LATENT", "trajectory")
    DESCRIPTION = "Samples as KSampler does, bit for bit, and records each step for a film strip."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs of KSampler."""
        return {
            "required": {
                "model": ("MODEL",),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1, "control_after_generate": True}),
                "steps": ("INT", {"default": 4, "min": 1, "max": 1000}),
                "cfg": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
                "sampler_name": (comfy.samplers.KSampler.SAMPLERS, {"default": "euler"}),
                "scheduler": (comfy.samplers.KSampler.SCHEDULERS, {"default": "simple"}),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def sample(  # noqa: PLR0917 - ComfyUI passes the inputs by name
        self,
        model: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        denoise: float = 1.0,
    ) -> tuple[dict[str, Any], Recording]:
        """The latents of KSampler, and a recording of the steps.

        Raises:
            ValueError: latents that are not those of FLUX.1, 16 channels of two dimensions, or a sampler that does not
                report the noise levels of its steps.
        """
        if sampler_name in OTHER_LEVELS:
            raise ValueError(
                f"fluxnb: the sampler {sampler_name} does not report the noise levels of its steps: others do. Choose "
                "another one, such as euler."
            )
        latents = comfy.sample.fix_empty_latent_channels(model, latent_image["samples"])
        _require_flux(latents)
        noise = comfy.sample.prepare_noise(latents, seed, latent_image.get("batch_index"))
        sigmas = comfy.samplers.KSampler(
            model, steps=steps, device=model.load_device, sampler=sampler_name, scheduler=scheduler, denoise=denoise,
            model_options=model.model_options,
        ).sigmas  # fmt: skip
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        samples = comfy.sample.sample(
            model, noise, steps, cfg, sampler_name, scheduler, positive, negative, latents,
            denoise=denoise,
            noise_mask=latent_image.get("noise_mask"),
            callback=_recorder(latent_preview.prepare_callback(model, steps), seen),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )  # fmt: skip
        final = model.model.process_latent_in(samples).float().cpu()
        levels = [float(sigma) for sigma in sigmas]
        trajectories = tuple(
            _trajectory([(x[n], x0[n]) for x, x0 in seen], final[n], levels, _name(model)) for n in range(len(final))
        )
        return {**latent_image, "samples": samples}, Recording(trajectories, model.model.latent_format)


def _require_flux(latents: torch.Tensor) -> None:
    if latents.ndim != 4 or latents.shape[1] != 16 or latents.shape[2] % 2 or latents.shape[3] % 2:
        raise ValueError(
            f"fluxnb: latents of the shape {tuple(latents.shape)}: those of FLUX.1 have 16 channels and an even height "
            "and width. Load a FLUX.1 model, and choose a size that is a multiple of 16."
        )


def _recorder(display: Callable[..., Any], seen: list[tuple[torch.Tensor, torch.Tensor]]) -> Callable[..., None]:
    """A callback that copies x and x0 of each step and then calls ComfyUI's own, which draws the preview."""

    def callback(step: int, x0: torch.Tensor, x: torch.Tensor, total: int) -> None:
        # Copies, since some samplers write into x; taken before the preview, which reads it only.
        seen.append((x.detach().to("cpu", torch.float32, copy=True), x0.detach().to("cpu", torch.float32, copy=True)))
        display(step, x0, x, total)

    return callback


def _trajectory(
    steps: Sequence[tuple[torch.Tensor, torch.Tensor]], final: torch.Tensor, sigmas: Sequence[float], model: str
) -> fnb.Trajectory:
    """The record of one picture.

    Arguments:
        steps: x and x0 of each step, (16, h/8, w/8), in the scale of the model.
        final: latents after the last step, in the same scale.
        sigmas: noise levels, the final one included.
    """
    count = min(len(steps), len(sigmas) - 1)
    height, width = final.shape[-2] * CELL, final.shape[-1] * CELL
    following = [x for x, _ in steps[1:count]] + [final]
    made = []
    for index, ((x, x0), after) in enumerate(zip(steps[:count], following, strict=True)):
        sigma = sigmas[index]
        tokens = {"x": pack(x), "v": pack((x - x0) / sigma), "x_next": pack(after)}
        made.append(
            fnb.Step(
                index=index, sigma=sigma, dt=sigmas[index + 1] - sigma, height=height, width=width, tensors=tokens,
                norms={name: float(tokens[name].norm()) for name in ("x", "v")}, seconds=0.0,
            )
        )  # fmt: skip
    return fnb.Trajectory(
        image=None,
        recipe=None,
        finished=count > 0 and sigmas[count] == 0.0,
        sigmas=tuple(sigmas[: count + 1]),
        steps=tuple(made),
        height=height,
        width=width,
        seconds={},
        versions={},
        model=model,
        preset="comfyui",
        numerics="ComfyUI",
        recipe_missing="it was sampled in ComfyUI",
    )


def _name(model: Any) -> str:
    return type(model.model.model_config).__name__


class FluxnbFilm:
    """A recording as a film strip, and as a page with a slider over the steps."""

    CATEGORY = "fluxnb"
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("strip", "page")
    OUTPUT_NODE = True
    DESCRIPTION = "Draws every step of FluxnbKSampler, and writes a page with a slider into the output folder."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """A recording, and what is drawn of it."""
        return {
            "required": {
                "trajectory": ("FLUXNB_TRAJECTORY",),
                "rows": (["all", *ROWS], {"default": "all"}),
                "filename_prefix": ("STRING", {"default": "fluxnb"}),
            },
            "optional": {"vae": ("VAE",)},
        }

    def draw(self, trajectory: Recording, rows: str, filename_prefix: str, vae: Any = None) -> dict[str, Any]:
        """The strip of each picture of the batch, and the path of the page in the output folder.

        Arguments:
            vae: decodes each frame; without one, frames are ComfyUI's linear preview.
        """
        shows = ROWS if rows == "all" else (rows,)
        decode = _decoder(trajectory.latent_format, vae)
        records = [_with_image(each, decode) for each in trajectory.trajectories]
        strips = [_picture(fnb.filmstrip(each, shows=shows, decode=decode)) for each in records]
        path = _free_path(filename_prefix)
        page.write(records if len(records) > 1 else records[0], path, shows=shows, decode=decode)
        relative = path.relative_to(folder_paths.get_output_directory()).as_posix()
        return {"ui": {"text": [relative]}, "result": (torch.cat(strips), str(path))}


def _decoder(latent_format: Any, vae: Any) -> Callable[[torch.Tensor], list[Image.Image]]:
    """From latents (n, 16, h/8, w/8) in the scale of the model to pictures."""

    def by_vae(latents: torch.Tensor) -> list[Image.Image]:
        pixels = torch.cat([vae.decode(latent_format.process_out(latent[None])).cpu() for latent in latents])
        return [Image.fromarray(each) for each in _bytes(pixels)]

    def linear_preview(latents: torch.Tensor) -> list[Image.Image]:
        factors = torch.tensor(latent_format.latent_rgb_factors, dtype=torch.float32)
        bias = torch.tensor(latent_format.latent_rgb_factors_bias or [0.0, 0.0, 0.0], dtype=torch.float32)
        colors = torch.einsum("nchw,ck->nhwk", latents.float().cpu(), factors) + bias
        size = (latents.shape[-1] * CELL, latents.shape[-2] * CELL)
        return [Image.fromarray(each).resize(size, Image.Resampling.BICUBIC) for each in _bytes((colors + 1) / 2)]

    if vae is None and latent_format.latent_rgb_factors is None:
        raise ValueError("fluxnb: a model without a preview: link a VAE to the film strip.")
    return linear_preview if vae is None else by_vae


def _bytes(pixels: torch.Tensor) -> numpy.ndarray:
    return (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _with_image(trajectory: fnb.Trajectory, decode: Callable[[torch.Tensor], list[Image.Image]]) -> fnb.Trajectory:
    """The trajectory with its last latents as a picture."""
    if not trajectory.steps:
        raise ValueError("fluxnb: a recording without steps: sample at least one step with FluxnbKSampler.")
    return dataclasses.replace(trajectory, image=decode(trajectory.steps[-1].latents("x_next")[None])[0])


def _picture(figure: Any) -> torch.Tensor:
    """A figure as ComfyUI's IMAGE (1, h, w, 3)."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    with Image.open(buffer) as opened:
        return torch.from_numpy(numpy.array(opened.convert("RGB"))).float()[None] / 255


def _free_path(prefix: str) -> Path:
    """A new file in the output folder; whatever the prefix is, it stays inside."""
    name = re.sub(r"[^\w-]+", "_", prefix)[:80] or "fluxnb"
    folder = Path(folder_paths.get_output_directory())
    folder.mkdir(parents=True, exist_ok=True)
    taken = [
        int(match[1]) for each in folder.iterdir() if (match := re.fullmatch(rf"{name}_(\d{{1,9}})\.html", each.name))
    ]
    return folder / f"{name}_{max(taken, default=0) + 1:05d}.html"
