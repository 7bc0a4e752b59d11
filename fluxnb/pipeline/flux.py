"""The Flux handle: a diffusers FluxPipeline under a plan, in three stages: encode, denoise, decode.

The diffusion is diffusers' own call, unmodified. The stages are apart so that a prompt is encoded once for many
seeds, a walk can go on from the evaluation that others have made already, and pictures are decoded when it suits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.families.defaults import ModelDefaults
from fluxnb.pipeline.preview import preview_of
from fluxnb.pipeline.prompts import Encoded, embed, warn_of_cut
from fluxnb.pipeline.schedule import Draws, given_sigmas, planned, sampling_as
from fluxnb.planning.detection import detect
from fluxnb.planning.hardware import GIB
from fluxnb.planning.plan import Plan, memory_told
from fluxnb.planning.presets import DECODING
from fluxnb.records.latents import LinearRGB, unpack
from fluxnb.records.recipe import Recipe, ResolvedRecipe

__all__ = ["Flux"]

DECODERS = 3  # at once on a GPU: half of a decoder's time goes into sums that fill a quarter of the card

Tokens = Float[Tensor, "batch tokens features"]
Latents = Float[Tensor, "batch channels height width"]


F = TypeVar("F", bound=Callable[..., Any])
_no_grad: Callable[[F], F] = torch.no_grad()


# One for each pipeline, whatever handles there are to it.
_TURNS: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _in_turn(method: F) -> F:
    @functools.wraps(method)
    def alone(self: Flux, *args: Any, **kwargs: Any) -> Any:
        with self.turn:
            return method(self, *args, **kwargs)

    return cast(F, alone)


class Flux:
    """A FluxPipeline with a name, a revision, its defaults and its plan. Made by `load`.

    `.pipe` is the diffusers pipeline, open to everything diffusers can do; `.plan` says how it is held in memory.
    """

    def __init__(self, pipe: Any, *, model: str, revision: str, defaults: ModelDefaults, plan: Plan) -> None:
        self.pipe = pipe
        self.model = model
        self.revision = revision
        self.defaults = defaults
        self.plan = plan
        self._device: torch.device | None = None

    def __repr__(self) -> str:
        return f"Flux({self.model!r}, {self.plan.preset}, {self.dtype})"

    def with_defaults(self, **changes: Any) -> Flux:
        """The same pipeline with other defaults, for example `flux.with_profile(size=512)`."""
        defaults = dataclasses.replace(self.defaults, **changes)
        return Flux(self.pipe, model=self.model, revision=self.revision, defaults=defaults, plan=self.plan)

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
        return self.versions_on(self.device)

    def versions_on(self, device: torch.device) -> dict[str, str]:
        """The same for whoever knows the device already: to ask a pipeline takes as long as a step of pocket."""
        return {
            **_libraries(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        }

    def resolve(self, recipe: Recipe) -> ResolvedRecipe:
        """The recipe with the defaults of the model, its name, revision and number format filled in."""
        return self.defaults.resolve(recipe, model=self.model, revision=self.revision, dtype=self.dtype)

    def numerics(self, batch: int = 1) -> str:
        """What changes the numbers against the plain diffusers call of one picture; "exact" where nothing does.

        A lossy preset changes them, and so does a batch of several pictures, whose sums are taken in another order.
        """
        causes = [] if self.plan.exact else [self.plan.preset]
        return ", ".join(causes + ["batch"] * (batch > 1)) or "exact"

    @property
    def turn(self) -> Any:
        """A lock, held while the pipeline works: its scheduler and its hooks know one call at a time, threads more."""
        return _TURNS.setdefault(self.pipe, threading.RLock())

    # ------------------------------------------------------------------------------------------------ encode
    @_in_turn
    @_no_grad
    def encode(self, recipe: ResolvedRecipe) -> Encoded:
        """Encode a resolved recipe's prompt, and its negative prompt where guidance takes one.

        Warns:
            PromptWarning: quoting what lies beyond CLIP's 77 or T5's 256 (48 for pocket) tokens.
        """
        self._device = None  # the pipeline may have been moved since the last prompt
        length = recipe.max_sequence_length
        embeds, pooled = self._encode(recipe.prompt, length)
        if not self._two_evaluations(recipe):
            return Encoded(embeds=embeds, pooled=pooled)
        negative_embeds, negative_pooled = self._encode(recipe.negative or "", length)
        return Encoded(embeds=embeds, pooled=pooled, negative_embeds=negative_embeds, negative_pooled=negative_pooled)

    def _encode(self, prompt: str, length: int) -> tuple[Tensor, Tensor]:
        warn_of_cut(self.pipe, prompt, length)
        with memory_told(self.plan, f"encoding a prompt with {self.model}"):
            return embed(self.pipe, prompt, length, self.device)

    # ----------------------------------------------------------------------------------------------- denoise
    @_in_turn
    def denoise(
        self, recipe: ResolvedRecipe, encoded: Encoded, *, draws: Draws, latents: Tokens | None = None, done: int = 0
    ) -> Tokens:
        """Walk from noise to the final tokens (batch, h/16 w/16, 64) through the pipeline's own call.

        Arguments:
            recipe: resolved; of several pictures any one, since they may differ in prompt and seed alone.
            encoded: their prompts.
            draws: generators on the CPU; they draw the noise, and the fresh noise of "renoise".
            latents: tokens to go on from, where the first `done` evaluations were made before.
        """
        options: dict[str, Any] = {}
        if recipe.sigmas is not None or done:
            options["sigmas"] = given_sigmas(recipe)[done:]
        if self._two_evaluations(recipe):
            options["true_cfg_scale"] = recipe.guidance
            options["negative_prompt_embeds"] = encoded.negative_embeds
            options["negative_pooled_prompt_embeds"] = encoded.negative_pooled
        elif self.defaults.guidance_kind == "embedded":
            options["guidance_scale"] = recipe.guidance
        with sampling_as(self.pipe.scheduler, recipe, draws):
            result = self.pipe(
                prompt_embeds=encoded.embeds,
                pooled_prompt_embeds=encoded.pooled,
                height=recipe.height,
                width=recipe.width,
                num_inference_steps=recipe.steps - done,
                generator=draws,
                latents=latents,
                max_sequence_length=recipe.max_sequence_length,
                output_type="latent",
                return_dict=False,
                **options,
            )
        tokens: Tensor = result[0]
        return tokens

    def evaluations_of(self, recipe: ResolvedRecipe, steps: int | None = None) -> int:
        """Evaluations of the transformer in so many steps, all by default; under true CFG a step takes two."""
        return (recipe.steps if steps is None else steps) * (2 if self._two_evaluations(recipe) else 1)

    def _two_evaluations(self, recipe: ResolvedRecipe) -> bool:
        # diffusers turns true CFG on above 1 only.
        return self.defaults.guidance_kind == "true_cfg" and recipe.guidance is not None and recipe.guidance > 1.0

    @_in_turn
    def schedule(self, recipe: ResolvedRecipe) -> tuple[float, ...]:
        """The noise levels that this recipe visits with this model, the final 0 included."""
        levels: list[float] = planned(self.pipe.scheduler, recipe, self.device).sigmas.tolist()
        return tuple(levels)

    @_in_turn
    @_no_grad
    def replay(self, recipe: ResolvedRecipe, x: Tokens, velocities: Sequence[Tokens], draws: Draws) -> list[Tokens]:
        """Take steps whose velocities are known: the tokens before each, and after the last.

        Exact: the same scheduler makes the same steps from the same numbers. The generators are left where runs of
        their own would have left them, if anything is still drawn from them.

        Arguments:
            x: the noise that the walks began from, as it was recorded: to draw it again takes longer than to copy it.
        """
        pipe, device = self.pipe, self.device
        x = x.to(device)
        if recipe.sampler == "renoise":
            channels = pipe.transformer.config.in_channels // 4
            pipe.prepare_latents(len(x), channels, recipe.height, recipe.width, x.dtype, device, draws)
        scheduler = planned(pipe.scheduler, recipe, device)
        scheduler.set_begin_index(0)
        path = [x]
        with sampling_as(scheduler, recipe, draws):
            for t, v in zip(scheduler.timesteps, velocities, strict=False):
                x = scheduler.step(v.to(device), t, x, return_dict=False)[0]
                path.append(x)
        return path

    # ------------------------------------------------------------------------------------------------ decode
    def decode(self, latents: Latents, *, in_turn: bool = True, together: bool = False) -> tuple[Image.Image, ...]:
        """Decode latents (n, 16, h/8, w/8), one by one, into pictures, exactly as FluxPipeline does.

        Arguments:
            in_turn: False decodes while the pipeline is at work in another thread, where `decoders_beside` allows it.
            together: True takes all of them in one call, which sums in another order. Small ones are quicker for it
                on a CPU; a GPU needs the memory for its transformer.
        """
        return self.begin_decoding(latents, in_turn=in_turn, together=together)()

    def begin_decoding(
        self, latents: Latents, *, in_turn: bool = True, together: bool = False
    ) -> Callable[[], tuple[Image.Image, ...]]:
        """Queue what `decode` does, and return what fetches the pictures: until then the host has its hands free."""
        vae, device, processor = self.pipe.vae, self.device, self.pipe.image_processor
        shown: list[Tensor] = []
        # The same numbers with less bookkeeping. Hooks that move weights would leave them marked by it, so only here.
        quietly = torch.inference_mode() if device.type == "cpu" else torch.no_grad()
        turn = self.turn if in_turn and device.type != "cpu" else contextlib.nullcontext()
        with quietly, turn, memory_told(self.plan, f"decoding with {self.model}"):
            for part in latents.split(len(latents) if together else 1):
                z = part.to(device=device, dtype=vae.dtype)
                z = (z / vae.config.scaling_factor) + vae.config.shift_factor
                decoded = vae.decode(z, return_dict=False)[0]
                # By way of the class: a recorder in front of this object may be watching a walk in another thread.
                colours = type(processor).postprocess(processor, decoded, output_type="pt")
                # The sum that diffusers does on the CPU, to the same bytes, where the picture is: fewer to fetch.
                shown.append((colours.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous())
            if getattr(self.pipe, "_all_hooks", None):
                self.pipe.maybe_free_model_hooks()
        return lambda: tuple(Image.fromarray(level.numpy()) for levels in shown for level in levels.cpu())

    @property
    def takes_turns(self) -> bool:
        """Whether decoding pushes the transformer out of the GPU, so that pictures are best decoded several at once."""
        return bool(getattr(self.pipe, "_all_hooks", None)) or self.plan.park

    def decoders_beside(self, height: int, width: int) -> int:
        """How many pictures of this size a GPU can decode while its transformer is at work on another; 0 for none.

        That takes memory for all at once, and nothing may have to move out of the decoder's way.
        """
        if self.device.type != "cuda":
            return 0
        # Each queue keeps what it has freed to itself: for 2.4 GiB at once it holds more than 4.
        needed = 2 * DECODING * height * width * self.pipe.vae.dtype.itemsize / 2
        return 0 if self.takes_turns else min(DECODERS, int(detect().vram_gib * GIB / needed))

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
