"""The Flux handle: a diffusers pipeline under a plan, in three stages: encode, denoise, decode.

The diffusion is diffusers' own call, unmodified. Separate stages let a prompt be encoded once for many seeds, let
trajectories share their first evaluations, and let pictures be decoded while the next ones are sampled. Each call works
on a view of the pipeline with its own scheduler, so that nothing is set and restored on the pipeline itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, Unpack, cast

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from fluxnb.arguments import entry_point
from fluxnb.errors import ArgumentError, InputError, RunError, UnavailableError, shorten
from fluxnb.families.defaults import DefaultChanges, ModelDefaults
from fluxnb.families.family import Family
from fluxnb.families.flux1 import FLUX1
from fluxnb.families.registry import family_of, pair_of
from fluxnb.pipeline.compat import compute_dtype, has_model_hooks, is_caching
from fluxnb.pipeline.identity import Identity, describe_device, identity_of, versions_of_libraries
from fluxnb.pipeline.markers import change_markers, deep_markers, encoding_markers
from fluxnb.pipeline.preview import decode_latents, encode_picture, preview_of
from fluxnb.pipeline.prompts import Encoded, encode_prompt, warn_of_truncation
from fluxnb.pipeline.schedule import Generators, pipeline_view, prepared_scheduler, unshifted_sigmas
from fluxnb.pipeline.state import state_of
from fluxnb.pipeline.vocabulary import Vocabulary, vocabulary_of, warn_of_unknown_words
from fluxnb.planning.hardware import GIB, detect
from fluxnb.planning.plan import Plan, convert_out_of_memory
from fluxnb.planning.requirements import DECODING
from fluxnb.records import Geometry, Pair
from fluxnb.records.latents import LinearRGB, to_pixels
from fluxnb.records.recipe import Recipe, ResolvedRecipe
from fluxnb.runtime.adaln_cache import expecting
from fluxnb.runtime.compat import execution_device, placement_markers
from fluxnb.runtime.exclusive import ending_interrupted_calls

if TYPE_CHECKING:
    from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
    from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput

    class Pipeline(FluxPipeline):  # type: ignore[misc]
        """FluxPipeline for type checkers, to which diffusers declares a tuple as a possible result of every call."""

        def __call__(
            self,
            prompt: str | list[str] | None = None,
            *,
            height: int | None = None,
            width: int | None = None,
            num_inference_steps: int = 28,
            guidance_scale: float = 3.5,
            true_cfg_scale: float = 1.0,
            negative_prompt: str | list[str] | None = None,
            sigmas: list[float] | None = None,
            generator: torch.Generator | list[torch.Generator] | None = None,
            num_images_per_prompt: int = 1,
            max_sequence_length: int = 512,
            callback_on_step_end: Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]] | None = None,
            **further: Any,
        ) -> FluxPipelineOutput:
            """Draw a picture."""


# Attributes that a pipeline, a module or a result has: what is possible with a Flux, and what to type.
RESOLVED = 'recipe=flux.resolve(fnb.Recipe(prompt="a fox"))'
_PRESET = ("a preset decides where the weights are", 'type fnb.load("schnell", preset="stream"), or use flux.pipe')
ELSEWHERE: Mapping[str, tuple[str, str]] = {
    **dict.fromkeys(("to", "cuda", "cpu", "enable_model_cpu_offload", "enable_sequential_cpu_offload"), _PRESET),
    **dict.fromkeys(
        ("half", "float", "bfloat16"), ("load chooses the number format", 'type fnb.load(..., dtype="bfloat16")')
    ),
    **dict.fromkeys(("image", "images"), ("a model holds no pictures", 'type fnb.run(flux, "a fox").image')),
    **dict.fromkeys(("steps", "trajectory"), ("a model holds no steps", 'type fnb.run(flux, "a fox").steps')),
    **dict.fromkeys(("generate", "sample", "run"), ("a model is sampled by fnb.run", 'type fnb.run(flux, "a fox")')),
    "sweep": ("a model is sampled by fnb.sweep", 'type fnb.sweep(flux, prompts=["a fox"], seeds=range(4))'),
    "lab": ("fnb.lab makes the widget", "type fnb.lab(flux)"),
    "recording": ("fnb.recording records calls", "type with fnb.recording(flux.pipe) as recorder: ..."),
}
CONCURRENT_DECODERS = 3  # on a GPU; half of a decoder's time goes into reductions that fill a quarter of the card

State = Float[Tensor, "batch *shape"]  # x, as the transformer of the family has it
Latents = Float[Tensor, "batch channels height width"]

Markers = tuple[tuple[Any, ...], int]  # signs of a change, see `change_markers` and `deep_markers`

F = TypeVar("F", bound=Callable[..., Any])
_no_grad: Callable[[F], F] = torch.no_grad()


def _locked(method: F) -> F:
    """Hold the lock during a method, and end the calls of modules that are interrupted in it."""

    @functools.wraps(method)
    def under_lock(self: Flux, *args: Any, **kwargs: Any) -> Any:
        with self.lock, ending_interrupted_calls(self.pipe):
            return method(self, *args, **kwargs)

    return cast(F, under_lock)


class Flux:
    """A pipeline with a name, a revision, its defaults and its plan. Made by `load`.

    `.pipe` is the diffusers pipeline, open to everything diffusers can do; `.plan` is how it is held in memory;
    `.family` is what the pipeline's kind of model has in common.
    """

    def __init__(
        self,
        pipe: Any,
        *,
        model: str,
        revision: str,
        defaults: ModelDefaults,
        plan: Plan,
        identity: Identity | None = None,
        markers: Markers | None = None,
    ) -> None:
        self.pipe: Pipeline = pipe
        self.model = model
        self.revision = revision
        self.defaults = defaults
        self.plan = plan
        self.family: Family = family_of(pipe) or FLUX1
        identity = identity or identity_of(pipe)
        self.unidentified = identity.unknown
        self._loaded_as = (revision, identity, markers or _markers_of(pipe))
        self._markers = self._loaded_as[2]
        self._device: torch.device | None = None
        self._placement: tuple[Any, ...] = ()

    def __repr__(self) -> str:
        return f"Flux({self.model!r}, {self.plan.preset}, {self.dtype})"

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise an ArgumentError with the calls to type: a model is sampled by `fnb.run`."""
        prompt = shorten(args[0]) if args else '"a fox in the snow"'
        raise ArgumentError(
            f"flux({', '.join([prompt] if args else list(kwargs))})",
            "a Flux is not callable; fnb.run records each step, and flux.pipe is the pipeline of diffusers",
            f"type fnb.run(flux, {prompt})",
        )

    if not TYPE_CHECKING:  # it would make a type checker accept every attribute

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            possible, remedy = ELSEWHERE.get(name, ("", ""))
            if not possible and hasattr(vars(self).get("pipe"), name):
                possible, remedy = f"{name} belongs to the pipeline", f"type flux.pipe.{name}"
            if not possible:
                known = [each for each in dir(self) if not each.startswith("_")]
                near = difflib.get_close_matches(name, known, n=1)
                possible = f"it has {', '.join(known)}"
                remedy = f"type flux.{near[0]}" if near else "type help(fnb.Flux)"
            raise UnavailableError(f"flux.{name}", possible, remedy)

    @entry_point(accepts=DefaultChanges)
    def with_defaults(self, **changes: Unpack[DefaultChanges]) -> Flux:
        """The same pipeline with other defaults, for example `flux.with_defaults(size=512)`."""
        return Flux(self.pipe, **{**self.facts, "defaults": dataclasses.replace(self.defaults, **changes)})

    @property
    def facts(self) -> dict[str, Any]:
        """What another handle of this pipeline is made from; nothing in it refers to the pipeline."""
        revision, identity, markers = self._loaded_as
        return {
            "model": self.model,
            "revision": revision,
            "defaults": self.defaults,
            "plan": self.plan,
            "identity": identity,
            "markers": markers,
        }

    def refresh(self) -> tuple[str, ...]:
        """Read the identity of the pipeline, which may have changed since it was loaded, and set `.revision` by it.

        Returns:
            What decides the pictures and cannot be identified, in words; empty where everything can.
        """
        revision, loaded, _ = self._loaded_as
        self._markers, now = _markers_of(self.pipe), identity_of(self.pipe)
        self.revision = revision if now.digest == loaded.digest else f"{revision}+{now.digest}"
        self.unidentified = now.unknown
        return now.unknown

    def refresh_if_changed(self) -> Markers:
        """`refresh` where markers of the pipeline have changed; reading them takes a few milliseconds.

        Returns the markers, of the pipeline's objects and of their content.
        """
        objects, content = self._markers
        if change_markers(self.pipe) != objects or deep_markers(self.pipe) != content:
            self.refresh()
        return self._markers

    @property
    def geometry(self) -> Geometry:
        """How the numbers of x are arranged in a picture."""
        return self.family.geometry_of(self.pipe)

    @property
    def pair(self) -> Pair | None:
        """The teacher and the student that this model is one of; None where its partner is not public."""
        return pair_of(self.model)

    @property
    def dtype(self) -> str:
        """The number format of the transformer: "float32", "bfloat16" or "float16"."""
        return str(compute_dtype(self.pipe.transformer)).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        """The device that computes. diffusers searches every module for it, so it is read once per prompt."""
        if self._device is None:
            self._placement, self._device = placement_markers(self.pipe), execution_device(self.pipe)
        return self._device

    def _notice_moves(self) -> None:
        """Search for the device again if the pipeline may have been moved or offloaded since the last prompt."""
        if self._device is not None and placement_markers(self.pipe) != self._placement:
            self._device = None

    @property
    def versions(self) -> dict[str, str]:
        """What decides the bits of a picture besides the recipe: the versions of the libraries, and the device."""
        return self.versions_on(self.device)

    def versions_on(self, device: torch.device) -> dict[str, str]:
        """`versions` for a device that is already known; reading it takes as long as a step of pocket."""
        return {**versions_of_libraries(), "device": describe_device(device)}

    @entry_point("recipe")
    def resolve(self, recipe: Recipe) -> ResolvedRecipe:
        """The recipe with the defaults of the model, its name, revision and number format filled in.

        Raises:
            InputError: a recipe that this model does not take, or a pipeline that cannot encode a prompt.
        """
        encoders = self.family.encoders
        if missing := [name for name in encoders if getattr(self.pipe, name, None) is None]:
            raise InputError(
                f"a prompt for a pipeline without {missing[0]}",
                f"{', '.join(encoders)} encode a prompt",
                "give a pipeline with text encoders and tokenizers, or call pipe(prompt_embeds=...) inside "
                "fnb.recording(pipe)",
            )
        return self.defaults.resolve(recipe, model=self.model, revision=self.revision, dtype=self.dtype)

    def numerics(self, batch: int = 1) -> str:
        """What changes the numbers against the plain diffusers call of one picture; "exact" where nothing does.

        A lossy preset changes them, and so does a batch of several pictures, whose sums are taken in another order.
        """
        causes = [] if self.plan.exact else [self.plan.preset]
        return ", ".join(causes + ["batch"] * (batch > 1)) or "exact"

    @property
    def lock(self) -> Any:
        """A re-entrant lock of the pipeline, held by our calls, so that those of several threads follow each other."""
        return state_of(self.pipe).lock

    @functools.cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The words that pocket was trained on, with example prompts; None for models without such a limit.

        Example:
            >>> fnb.load("pocket").vocabulary.unknown("a pirate in the snow")         # doctest: +SKIP
            ('pirate',)
        """
        return vocabulary_of(self.model, self.pipe)

    # ------------------------------------------------------------------------------------------------ encode
    @entry_point(recipe=RESOLVED)
    @_locked
    @_no_grad
    def encode(self, recipe: ResolvedRecipe) -> Encoded:
        """Encode a resolved recipe's prompt, and its negative prompt where guidance takes one.

        The last prompts are remembered, so that further seeds of a prompt do not encode it again. They are encoded
        again after a change of an encoder or a tokenizer.

        Warns:
            PromptWarning: quotes what lies beyond CLIP's 77 tokens or `max_sequence_length` tokens of T5, or names
                words that pocket was not trained on.
        """
        self._notice_moves()
        length = recipe.max_sequence_length
        embeds, pooled = self._encode(recipe.prompt, length)
        if not self._two_evaluations(recipe):
            return Encoded(embeds=embeds, pooled=pooled)
        negative_embeds, negative_pooled = self._encode(recipe.negative or "", length)
        return Encoded(embeds=embeds, pooled=pooled, negative_embeds=negative_embeds, negative_pooled=negative_pooled)

    def _encode(self, prompt: str, length: int) -> tuple[Tensor | list[Tensor], Tensor | None]:
        warn_of_truncation(self.pipe, self.family, prompt, length)
        if (vocabulary := self.vocabulary) is not None:
            warn_of_unknown_words(self.model, vocabulary, prompt)

        def encode() -> tuple[Tensor | list[Tensor], Tensor | None]:
            with convert_out_of_memory(self.plan, f"encoding a prompt with {self.model}"):
                return encode_prompt(self.pipe, self.family, prompt, length, self.device)

        markers = encoding_markers(self.pipe)
        if markers is None:
            return encode()
        return state_of(self.pipe).encoded((prompt, length, str(self.device), markers), encode)

    # ----------------------------------------------------------------------------------------------- denoise
    def view(self, recipe: ResolvedRecipe, generators: Generators) -> Any:
        """The pipeline for one call of `denoise`, with its own scheduler set to this recipe."""
        return pipeline_view(self.pipe, recipe, generators, device=self.device)

    @_locked
    def denoise(
        self,
        view: Any,
        recipe: ResolvedRecipe,
        encoded: Encoded,
        *,
        generators: Generators,
        latents: State | None = None,
        done: int = 0,
    ) -> Any:
        """Sample from noise through the pipeline's own call, up to the decoder.

        Arguments:
            view: from `view`, made for this recipe.
            recipe: resolved; for a batch any of its recipes, since they differ in prompt and seed alone.
            encoded: the prompts of the batch.
            generators: on the CPU; they draw the noise, and the fresh noise of "renoise".
            latents: the x to continue from, where the first `done` evaluations are known already: those of whole steps.

        Returns:
            What the pipeline returns for `output_type="latent"`, which for some families is no longer x.
        """
        options: dict[str, Any] = encoded.arguments()
        guidance = self.family.guidance
        if recipe.sigmas is not None or done:
            options["sigmas"] = unshifted_sigmas(recipe, self.family)[done // recipe.stages :]
        if self._two_evaluations(recipe):
            options[guidance.argument] = guidance.given(recipe.guidance or 1.0)
        elif self.defaults.guidance_kind == "embedded":
            options["guidance_scale"] = recipe.guidance
        elif guidance.off is not None:
            options[guidance.argument] = guidance.off
        if latents is not None:
            options["latents"] = self.family.given_latents(latents, recipe.height, recipe.width)
        with expecting(view.scheduler):
            result = view(
                height=recipe.height,
                width=recipe.width,
                # A schedule may depend on the number of all steps; those that are done are left out by the sigmas.
                num_inference_steps=recipe.steps,
                generator=generators,
                max_sequence_length=recipe.max_sequence_length,
                output_type="latent",
                return_dict=False,
                **options,
            )
        return result[0]

    @entry_point(recipe=RESOLVED, count="count=4")
    def evaluations_of(self, recipe: ResolvedRecipe, count: int | None = None) -> int:
        """Evaluations of the transformer (NFE) for `count` velocities, by default all of the recipe.

        A velocity takes one, and under true CFG two.
        """
        return (recipe.evaluations if count is None else count) * (2 if self._two_evaluations(recipe) else 1)

    def _two_evaluations(self, recipe: ResolvedRecipe) -> bool:
        # diffusers turns true CFG on above 1 only.
        return self.defaults.guidance_kind == "true_cfg" and recipe.guidance is not None and recipe.guidance > 1.0

    @entry_point(recipe=RESOLVED)
    def schedule(self, recipe: ResolvedRecipe) -> tuple[float, ...]:
        """The noise levels of each evaluation of this recipe with this model, the final 0 included."""
        scheduler = prepared_scheduler(self.pipe, self.family, recipe, torch.Generator(), device=self.device)
        levels: list[float] = scheduler.sigmas.tolist()
        return tuple(levels)

    def can_continue(self, recipe: ResolvedRecipe, done: int) -> bool:
        """Whether a run that starts after `done` known evaluations has the bytes of one from the start.

        The scheduler is then given the remaining levels alone. Karras, exponential and beta schedules bend them by the
        first and the last level, so they would differ; a network that caches between evaluations has no cache yet; and
        a step of two evaluations is not divided.
        """
        if is_caching(self.pipe.transformer):
            return done == 0
        if done in (0, recipe.evaluations):
            return True
        first, within = divmod(done, recipe.stages)
        if within:
            return False
        rest = prepared_scheduler(self.pipe, self.family, recipe, torch.Generator(), device=self.device, first=first)
        return tuple(rest.sigmas.tolist()) == self.schedule(recipe)[done:]

    @_no_grad
    def replay(
        self, recipe: ResolvedRecipe, x: State, velocities: Sequence[State], generators: Generators
    ) -> list[State]:
        """Take steps whose velocities are known: x before each, and after the last.

        Exact: the same scheduler computes the same steps from the same numbers. Where a recipe draws fresh noise, the
        generators end in the state that a run from the start would leave them in.

        Arguments:
            x: the initial noise as it was recorded; copying it is faster than drawing it again.
        """
        pipe, device = self.pipe, self.device
        x = x.to(device)
        if recipe.sampler == "renoise":
            self.family.noise(pipe, (len(x), recipe.height, recipe.width), x.dtype, device, generators)
        scheduler = prepared_scheduler(pipe, self.family, recipe, generators, device=device)
        scheduler.set_begin_index(0)
        path = [x]
        for t, v in zip(scheduler.timesteps, velocities, strict=False):
            x = scheduler.step(v.to(device), t, x, return_dict=False)[0]
            path.append(x)
        return path

    @entry_point(recipe=RESOLVED)
    @_no_grad
    def initial_noise(self, recipe: ResolvedRecipe) -> State:
        """The noise (1, ...) that a run of this recipe begins from, drawn by the pipeline from the recipe's seed."""
        dtype: torch.dtype = getattr(torch, self.family.state_dtype or self.dtype)
        generator = torch.Generator("cpu").manual_seed(recipe.seed)
        noise = self.family.noise(self.pipe, (1, recipe.height, recipe.width), dtype, self.device, generator)
        return noise.to("cpu")

    @entry_point("image")
    @_locked
    @_no_grad
    def encode_image(self, image: Image.Image) -> Float[Tensor, "channels height width"]:
        """Encode a picture to latents in space (channels, rows, columns), on the CPU: the mean of the VAE's posterior.

        Raises:
            InputError: a pipeline without a VAE, or sides that are no multiples of a token's pixels.
            RunError: the VAE gave latents that are not finite.

        Example:
            >>> flux.encode_image(trajectory.image).shape                               # doctest: +SKIP
            torch.Size([16, 16, 16])
        """
        self.require_vae()
        pixels = self.geometry.pixels
        if image.width % pixels or image.height % pixels:
            raise InputError(
                f"an image of {image.width} x {image.height} pixels",
                f"both sides are multiples of {pixels}",
                f"type image.resize(({max(1, image.width // pixels) * pixels}, "
                f"{max(1, image.height // pixels) * pixels}))",
            )
        picture = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
        with convert_out_of_memory(self.plan, f"encoding an image with {self.model}"):
            latents = encode_picture(self.pipe.vae, picture[None], self.device, from_vae=self.family.from_vae)
        self.pipe.maybe_free_model_hooks()
        if not bool(torch.isfinite(latents).all()):
            raise RunError(
                f"the latents that the VAE ({self.pipe.vae.dtype}) encoded are not finite".replace("torch.", ""),
                "a picture that began from them would be black",
                'load with dtype="float32" and compare; if the error stays, the weights may be damaged',
            )
        return latents[0]

    # ------------------------------------------------------------------------------------------------ decode
    @entry_point(latents='latents=trajectory.steps[-1].latents("clean")[None]')
    def decode(self, latents: Latents, *, lock: bool = True, batched: bool = False) -> tuple[Image.Image, ...]:
        """Decode latents in space (n, channels, rows, columns), one by one, into pictures, as the pipeline does.

        Arguments:
            lock: False decodes while another thread samples with this pipeline, where `decoders_beside` allows it.
            batched: True decodes all in one call, which sums in another order. It is faster for small pictures on a
                CPU; a GPU needs the memory for its transformer.
        """
        return self.begin_decoding(latents, lock=lock, batched=batched)()

    def begin_decoding(
        self, latents: Latents, *, lock: bool = True, batched: bool = False, together: bool = False
    ) -> Callable[[], tuple[Image.Image, ...]]:
        """Queue a decoding on the device and return a function that waits for the pictures.

        Arguments:
            lock, batched: as in `decode`.
            together: under a parallel preset, all processes decode these latents together, as in a call of the
                pipeline. Otherwise this process decodes alone.

        Raises:
            InputError: a pipeline without a VAE.
            RunError: from the returned function, if the VAE gave a picture that is not finite.
        """
        self.require_vae()
        vae, device = self.pipe.vae, self.device
        queued: list[tuple[Tensor, Tensor]] = []
        # Inference mode computes the same numbers with less bookkeeping. It marks the tensors that it creates, which
        # hooks that move weights cannot use afterwards, so it is for the CPU alone.
        no_gradients = torch.inference_mode() if device.type == "cpu" else torch.no_grad()
        guard = self.lock if lock and device.type != "cpu" else contextlib.nullcontext()
        ending = ending_interrupted_calls(self.pipe)
        with ending, no_gradients, guard, convert_out_of_memory(self.plan, f"decoding with {self.model}"):
            for part in latents.split(len(latents) if batched else 1):
                colors = decode_latents(
                    vae,
                    self.pipe.image_processor,
                    part,
                    device,
                    "pt",
                    to_vae=self.family.to_vae,
                    together=together,
                )
                queued.append((to_pixels(colors), torch.isfinite(colors).all()))
            if has_model_hooks(self.pipe):
                self.pipe.maybe_free_model_hooks()

        def fetch() -> tuple[Image.Image, ...]:
            pictures = [(batch.cpu(), bool(finite)) for batch, finite in queued]
            if not all(finite for _, finite in pictures):
                raise _picture_not_finite(vae)
            return tuple(Image.fromarray(picture.numpy()) for batch, _ in pictures for picture in batch)

        return fetch

    @property
    def can_decode(self) -> bool:
        """Whether the pipeline has a VAE."""
        return getattr(self.pipe, "vae", None) is not None

    def require_vae(self) -> None:
        """Raise InputError for a pipeline without a VAE."""
        if not self.can_decode:
            raise InputError(
                "decoding without a VAE",
                "the VAE of a pipeline turns latents into pictures",
                "give a pipeline with one: pipe.register_modules(vae=...)",
            )

    @property
    def decoder_displaces_transformer(self) -> bool:
        """Whether decoding moves the transformer off the GPU, so that several pictures are best decoded at once."""
        return has_model_hooks(self.pipe) or self.plan.offload_blocks

    def decoders_beside(self, height: int, width: int) -> int:
        """How many pictures of this size a GPU can decode while its transformer samples another; 0 for none.

        All of them need memory at the same time, and nothing may have to move out of the decoder's way.
        """
        if self.device.type != "cuda" or self.decoder_displaces_transformer or not self.can_decode:
            return 0
        # Each stream caches what it has freed: for 2.4 GiB at once it holds more than 4.
        needed = 2 * DECODING * height * width * self.pipe.vae.dtype.itemsize / 2
        return min(CONCURRENT_DECODERS, int(detect().vram_gib * GIB / needed))

    def decode_state(self, x: Float[Tensor, "*shape"], height: int, width: int) -> Image.Image:
        """Decode the x of one picture of height x width pixels."""
        return self.decode(self.geometry.latents(x[None], height, width))[0]

    @property
    def preview(self) -> LinearRGB | None:
        """A linear map from this model's latents to colors, fitted once to its VAE on pictures drawn in code.

        None where there is no VAE that it can be fitted to.
        """
        return preview_of(self.pipe)


def _picture_not_finite(vae: Any) -> RunError:
    name = str(vae.dtype).removeprefix("torch.")
    advice = 'load with dtype="float32" and compare; if the error stays, the weights may be damaged'
    if name == "float16":
        advice = 'load with dtype="bfloat16" or dtype="float32": the VAE of FLUX overflows in float16'
    return RunError(
        f"the picture that the VAE ({name}) decoded is not finite", "it would be black or have black areas", advice
    )


def _markers_of(pipe: Any) -> Markers:
    return change_markers(pipe), deep_markers(pipe)
