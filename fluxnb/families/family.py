"""Family: how one kind of model differs from the others, as one frozen value.

The diffusion stays diffusers' own call, for which the family lists the keywords. Everything
else about sampling is the same for all families.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

from fluxnb.records import Geometry, Pair

__all__ = ["Family", "Guidance", "Limit", "Model"]

Embeds: TypeAlias = Tensor | list[Tensor]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How a pipeline takes true classifier-free guidance.

    Arguments:
        argument: keyword of the pipeline's call.
        less: the pipeline's number is this much below the scale s of v = negative + s (positive - negative), of which 1
            is no guidance. Z-Image computes positive + g (positive - negative), so g = s - 1.
        off: the value of the keyword that turns guidance off; None to leave the keyword out.
        negative: the keyword with a negative prompt as text; "" where the pipeline has none and takes embeddings alone.
        needs_negative: whether the pipeline guides only where a negative prompt is given.
    """

    argument: str
    less: float = 0.0
    off: float | None = None
    negative: str = "negative_prompt"
    needs_negative: bool = False

    def given(self, scale: float) -> float:
        """The pipeline's number for a scale."""
        return scale - self.less

    def scale(self, given: float) -> float | None:
        """The scale of a number that was given to the pipeline; None where `given` does not lead back to it."""
        scale = given + self.less
        return scale if self.given(scale) == given else None


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model with a name of its own.

    Arguments:
        repo: on the Hugging Face hub; "" for a packaged one.
        licence: as its card names it.
        gated: whether the hub serves it only to accounts that accepted its terms.
        defaults: of `ModelDefaults`.
    """

    repo: str = ""
    licence: str = "Apache-2.0"
    gated: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Limit:
    """How much of a prompt an encoder reads.

    Arguments:
        encoder: its name in a warning.
        tokenizer: of the encoder.
        tokens: that it reads of the text.
        text: the text that is tokenized, which may hold the prompt within a template.
    """

    encoder: str
    tokenizer: Any
    tokens: int
    text: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """One kind of model: geometry, schedule, guidance, prompt encoding and the keywords of its call.

    Arguments:
        name: as people write it.
        pipelines: names of the pipeline classes of diffusers that sample from text.
        since: the version of diffusers that has them.
        geometry: of x; `geometry_of` reads the number of channels from a pipeline.
        state_dtype: number format of x; "" for that of the transformer.
        predicts: what the network computes, see `fluxnb.records.geometry.PREDICTIONS`.
        even: the noise levels of a number of steps before the shift, the final 0 left out, as the pipeline makes them.
        shift: the rule for the schedule's time shift: "by size", as FLUX.1's, or "by size and steps", as FLUX.2's.
        guidance: of true CFG.
        encoders: the components that encode a prompt.
        components: of a pipeline's folder, each with its library and its class as a regular expression.
        expressed: further keywords of the call that a recipe expresses or that do not change the picture.
        models: by name, for `fnb.load`.
        pairs: teachers with their students.
        encode: (pipe, prompt, length, device) to the prompt's embeddings and a pooled vector or None.
        limits: (pipe, prompt, length) to what each encoder reads of it.
        noise: (pipe, (count, height, width), dtype, device, generators), draws the noise of a call as its pipeline
            does.
        given_latents: (x, height, width) to what the pipeline takes as `latents=`.
        to_vae: (vae, latents in space in the dtype of the VAE) to what the VAE decodes, in the order of operations of
            the pipeline.
        from_vae: (vae, what the VAE encoded) to latents in space, in the scale of the transformer.
        configured: the defaults that a pipeline's configuration gives.
        exclusive: abilities that only FLUX.1 has: presets, compilation, attention maps.
    """

    name: str
    pipelines: tuple[str, ...]
    since: str
    geometry: Geometry
    state_dtype: str = ""
    predicts: str = "velocity"
    even: Callable[[int], list[float]]
    shift: str = "by size"
    guidance: Guidance
    encoders: tuple[str, ...]
    components: Mapping[str, tuple[str, str]]
    expressed: frozenset[str] = frozenset()
    models: Mapping[str, Model]
    pairs: tuple[Pair, ...] = ()
    encode: Callable[..., tuple[Embeds, Tensor | None]]
    limits: Callable[[Any, str, int], tuple[Limit, ...]]
    noise: Callable[..., Any]
    given_latents: Callable[[Tensor, int, int], Tensor]
    to_vae: Callable[[Any, Tensor], Tensor]
    from_vae: Callable[[Any, Tensor], Tensor]
    configured: Callable[[Any], dict[str, Any]]
    exclusive: bool = False

    def __repr__(self) -> str:
        return f"Family({self.name!r})"

    def geometry_of(self, pipe: Any) -> Geometry:
        """The geometry of a pipeline, with its transformer's number of channels."""
        usual = self.geometry
        numbers = usual.features if usual.layout == "tokens" else usual.channels
        given = getattr(getattr(pipe.transformer, "config", None), "in_channels", numbers)
        return dataclasses.replace(usual, channels=given * usual.channels // numbers)

    def owns(self, pipe: Any) -> bool:
        """Whether a pipeline is of this family, by the names of its classes; importing diffusers takes seconds."""
        return bool({base.__name__ for base in type(pipe).__mro__} & set(self.pipelines))
