"""The Flux handle: a diffusers FluxPipeline under a plan, in three stages: encode, denoise, decode.

The diffusion is diffusers' own call, unmodified. The stages are apart so that a prompt is encoded once for many
seeds, a walk can go on from the evaluation that others have made already, and pictures are decoded when it suits.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import importlib.metadata
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.errors import cut
from fluxnb.latents import LinearRGB, tokens_in, unpack
from fluxnb.presets import Plan
from fluxnb.preview import preview_of
from fluxnb.profile import Profile
from fluxnb.recipe import Recipe

__all__ = ["Encoded", "Flux", "PromptWarning"]

Tokens = Float[Tensor, "1 tokens features"]
Latents = Float[Tensor, "batch channels height width"]


F = TypeVar("F", bound=Callable[..., Any])
_no_grad: Callable[[F], F] = torch.no_grad()


class PromptWarning(UserWarning):
    """Part of a prompt is beyond what an encoder reads; the message quotes it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Encoded:
    """A prompt as the transformer takes it: T5's sequence (1, L, D) and CLIP's pooled vector (1, P)."""

    embeds: Tensor
    pooled: Tensor
    negative_embeds: Tensor | None = None
    negative_pooled: Tensor | None = None


class Flux:
    """A FluxPipeline with a name, a revision, its defaults and its plan. Made by `load`.

    `.pipe` is the diffusers pipeline, open to everything diffusers can do; `.plan` says how it is held in memory.
    """

    def __init__(self, pipe: Any, *, model: str, revision: str, profile: Profile, plan: Plan) -> None:
        self.pipe = pipe
        self.model = model
        self.revision = revision
        self.profile = profile
        self.plan = plan
        self._device: torch.device | None = None

    def __repr__(self) -> str:
        return f"Flux({self.model!r}, {self.plan.preset}, {self.dtype})"

    def with_profile(self, **changes: Any) -> Flux:
        """The same pipeline with other defaults, for example `flux.with_profile(size=512)`."""
        profile = dataclasses.replace(self.profile, **changes)
        return Flux(self.pipe, model=self.model, revision=self.revision, profile=profile, plan=self.plan)

    @property
    def dtype(self) -> str:
        """The number format of the transformer: "float32", "bfloat16" or "float16"."""
        first = next(iter(self.pipe.transformer.parameters())).dtype
        # Asking the first weight is quick; weights held smaller than they are computed with say so by their size.
        plain = first.is_floating_point and first.itemsize >= 2
        return str(first if plain else self.pipe.transformer.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """Where the model computes. diffusers searches every module for the answer, so it is asked once per prompt."""
        if self._device is None:
            self._device = self.pipe._execution_device
        return self._device

    @property
    def versions(self) -> dict[str, str]:
        """What, besides the recipe, decides the bits of a picture: the libraries and the device."""
        kind = self.device.type
        return {**_libraries(), "device": torch.cuda.get_device_name(self.device) if kind == "cuda" else kind}

    def resolve(self, recipe: Recipe) -> Recipe:
        """The recipe with nothing left open: the model's defaults filled in, and who draws it."""
        full = self.profile.resolve(recipe, self.model)
        numerics = "exact" if self.plan.exact else self.plan.preset
        return full.replace(model=self.model, revision=self.revision, dtype=self.dtype, numerics=numerics)

    # ------------------------------------------------------------------------------------------------ encode
    @_no_grad
    def encode(self, recipe: Recipe) -> Encoded:
        """Encode a resolved recipe's prompt, and its negative prompt where guidance takes one.

        Warns:
            PromptWarning: quoting what lies beyond CLIP's 77 or T5's 256 (48 for pocket) tokens.
        """
        self._device = None  # the pipeline may have been moved since the last prompt
        length = recipe.max_sequence_length or self.profile.max_sequence_length
        embeds, pooled = self._encode(recipe.prompt, length)
        if not self._two_evaluations(recipe):
            return Encoded(embeds=embeds, pooled=pooled)
        negative_embeds, negative_pooled = self._encode(recipe.negative or "", length)
        return Encoded(embeds=embeds, pooled=pooled, negative_embeds=negative_embeds, negative_pooled=negative_pooled)

    def _encode(self, prompt: str, length: int) -> tuple[Tensor, Tensor]:
        self._warn_of_cut(prompt, length)
        # diffusers tells of the cut too, but quotes the wrong words for T5 (it slices by CLIP's limit).
        with _silent("diffusers.pipelines.flux.pipeline_flux"):
            embeds, pooled, _ = self.pipe.encode_prompt(
                prompt=prompt, prompt_2=None, max_sequence_length=length, device=self.device
            )
        return embeds, pooled

    def _warn_of_cut(self, prompt: str, length: int) -> None:
        limits = {
            "CLIP": (self.pipe.tokenizer, self.pipe.tokenizer_max_length),
            "T5": (self.pipe.tokenizer_2, length),
        }
        for name, (tokenizer, limit) in limits.items():
            # A token is at least one character, but for the two that mark beginning and end.
            if tokenizer is None or len(prompt) + 2 <= limit:
                continue
            with _silent("transformers.tokenization_utils_base"):
                ids = tokenizer(prompt).input_ids
            if len(ids) > limit:
                lost = tokenizer.decode(ids[limit - 1 : -1], skip_special_tokens=True)
                warnings.warn(
                    f"{name} reads {limit} tokens of this prompt's {len(ids)} and never sees {cut(lost, 200)}. "
                    "Put what matters first, or shorten it.",
                    PromptWarning,
                    stacklevel=_outside(sys._getframe()),
                )

    # ----------------------------------------------------------------------------------------------- denoise
    def denoise(
        self,
        recipe: Recipe,
        encoded: Encoded,
        *,
        generator: torch.Generator,
        latents: Tokens | None = None,
        done: int = 0,
    ) -> Tokens:
        """Walk from noise to the final tokens (1, h/16 w/16, 64) through the pipeline's own call.

        Arguments:
            recipe: resolved.
            encoded: its prompt.
            generator: on the CPU; it draws the noise, and the fresh noise of "renoise".
            latents: tokens to go on from, where the first `done` evaluations were made before.
        """
        options: dict[str, Any] = {}
        if recipe.sigmas is not None or done:
            options["sigmas"] = self._given_sigmas(recipe)[done:]
        if self._two_evaluations(recipe):
            options["true_cfg_scale"] = recipe.guidance
            options["negative_prompt_embeds"] = encoded.negative_embeds
            options["negative_pooled_prompt_embeds"] = encoded.negative_pooled
        elif self.profile.guidance_kind == "embedded":
            options["guidance_scale"] = recipe.guidance
        with self._sampling_as(self.pipe.scheduler, recipe, generator):
            result = self.pipe(
                prompt_embeds=encoded.embeds,
                pooled_prompt_embeds=encoded.pooled,
                height=recipe.height,
                width=recipe.width,
                num_inference_steps=recipe.steps - done,
                generator=generator,
                latents=latents,
                max_sequence_length=recipe.max_sequence_length,
                output_type="latent",
                return_dict=False,
                **options,
            )
        tokens: Tensor = result[0]
        return tokens

    def _two_evaluations(self, recipe: Recipe) -> bool:
        # diffusers turns true CFG on above 1 only.
        return self.profile.guidance_kind == "true_cfg" and (recipe.guidance or 0.0) > 1.0

    def _given_sigmas(self, recipe: Recipe) -> list[float]:
        """What is handed to the scheduler, before it shifts; the even ones exactly as FluxPipeline makes them."""
        if recipe.sigmas is not None:
            return list(recipe.sigmas)
        even: list[float] = np.linspace(1.0, 1 / recipe.steps, recipe.steps).tolist()
        return even

    @contextlib.contextmanager
    def _sampling_as(self, scheduler: Any, recipe: Recipe, generator: torch.Generator) -> Iterator[None]:
        """Set the scheduler to the recipe's sampler and shift for the length of one call.

        The scheduler object stays the same, so that whoever watches it goes on seeing every step.
        """
        before, shift = scheduler.config, scheduler.shift
        stepping = vars(scheduler).get("step")
        try:
            if recipe.sampler == "renoise":
                scheduler.register_to_config(stochastic_sampling=True)
                # FluxPipeline hands no generator on, and the noise would come from the global one.
                scheduler.step = functools.partial(scheduler.step, generator=generator)
            if recipe.shift is not None:
                scheduler.register_to_config(use_dynamic_shifting=False)
                scheduler.set_shift(recipe.shift)
            yield
        finally:
            scheduler._internal_dict = before
            scheduler.set_shift(shift)
            if recipe.sampler == "renoise":
                vars(scheduler).pop("step", None)
                if stepping is not None:
                    scheduler.step = stepping

    def _planned(self, recipe: Recipe, generator: torch.Generator) -> Any:
        """A copy of the scheduler, set up for this recipe and ready to step; the pipeline's own is not touched."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        scheduler = copy.copy(self.pipe.scheduler)
        for watched in ("step", "set_timesteps"):
            vars(scheduler).pop(watched, None)
        config, tokens = scheduler.config, tokens_in(recipe.height or 0, recipe.width or 0)
        mu = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", 1.15),
        )
        # On the pipeline's device: a dt that lies on the CPU would be rounded differently in bfloat16.
        device = self.device
        with self._sampling_as(scheduler, recipe, generator):
            scheduler.set_timesteps(sigmas=self._given_sigmas(recipe), mu=mu, device=device)
        return scheduler

    def schedule(self, recipe: Recipe) -> tuple[float, ...]:
        """The noise levels that this recipe visits with this model, the final 0 included."""
        levels: list[float] = self._planned(recipe, torch.Generator()).sigmas.tolist()
        return tuple(levels)

    @_no_grad
    def replay(
        self,
        recipe: Recipe,
        encoded: Encoded,
        velocities: Sequence[Float[Tensor, "tokens features"]],
        generator: torch.Generator,
    ) -> list[Tokens]:
        """Take steps whose velocities are known: the tokens before each, and after the last.

        Exact: the same scheduler makes the same steps from the same numbers. The generator is left where a run of
        its own would have left it.
        """
        pipe, device = self.pipe, self.device
        channels, dtype = pipe.transformer.config.in_channels // 4, encoded.embeds.dtype
        x, _ = pipe.prepare_latents(1, channels, recipe.height, recipe.width, dtype, device, generator)
        scheduler = self._planned(recipe, generator)
        scheduler.set_begin_index(0)
        path = [x]
        with self._sampling_as(scheduler, recipe, generator):
            for t, v in zip(scheduler.timesteps, velocities, strict=False):
                x = scheduler.step(v[None].to(device), t, x, return_dict=False)[0]
                path.append(x)
        return path

    # ------------------------------------------------------------------------------------------------ decode
    @_no_grad
    def decode(self, latents: Latents) -> tuple[Image.Image, ...]:
        """Decode latents (n, 16, h/8, w/8), one by one, into pictures, exactly as FluxPipeline does."""
        vae, device = self.pipe.vae, self.device
        pictures: list[Image.Image] = []
        for latent in latents:
            z = latent[None].to(device=device, dtype=vae.dtype)
            z = (z / vae.config.scaling_factor) + vae.config.shift_factor
            pictures += self.pipe.image_processor.postprocess(vae.decode(z, return_dict=False)[0], output_type="pil")
        if getattr(self.pipe, "_all_hooks", None):
            self.pipe.maybe_free_model_hooks()
        return tuple(pictures)

    def decode_tokens(self, tokens: Float[Tensor, "tokens features"], height: int, width: int) -> Image.Image:
        """Decode the tokens of one picture of height x width pixels."""
        return self.decode(unpack(tokens[None], height, width))[0]

    @property
    def preview(self) -> LinearRGB:
        """A linear map from this model's latents to colours, fitted once to its VAE on pictures drawn in code."""
        return preview_of(self.pipe)


@functools.cache
def _libraries() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "transformers")}


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _outside(frame: types.FrameType) -> int:
    """The stacklevel, seen from `frame`, of the first caller outside this package: the reader's own line."""
    ours = ("fluxnb", "torch", "jaxtyping", "beartype")  # and what wraps us: no_grad, and the checks of the tests
    level = 1
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] in ours:
        frame, level = frame.f_back, level + 1
    return level
