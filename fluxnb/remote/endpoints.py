"""The hosted endpoints: what each takes and honors, and what is sent to it.

The rows follow the pages of the providers and the requests that huggingface_hub 2.4 sends. What a row does not honor is
refused before a request. mystic.ai, which the card of FLUX.1 [schnell] names, publishes no API now and has no row.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from fluxnb.errors import InputError, shorten
from fluxnb.families.defaults import DEFAULTS, ModelDefaults
from fluxnb.families.registry import MODELS
from fluxnb.records.recipe import REMOTE_DTYPE, Recipe, ResolvedRecipe

__all__ = ["ENDPOINTS", "Endpoint", "EndpointName", "endpoint_of", "parameters", "resolve"]

NAME = re.compile(r"(?P<model>[\w.-]+)@(?P<provider>[\w.-]+)(?::(?P<id>[\w.:/-]+))?")
HUB_HOST = "router.huggingface.co"
HUB_VARIABLE = "HF_TOKEN"
LARGEST_SEED = 2**53 - 1  # JSON numbers above it may be rounded

Size = tuple[int, int]  # width and height in pixels
EndpointName = Literal[
    "schnell@fal-ai", "schnell@together", "schnell@replicate", "schnell@hf-inference", "klein@fal-ai", "klein@bfl"
]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One model at one provider.

    Arguments:
        model: name of the model, as in `fnb.load`.
        provider: name of the provider.
        id: the provider's own name of the model.
        repo: the model's repository on the hub.
        defaults: default size, steps and text length.
        host: receives the requests that have the provider's own token.
        variable: environment variable of that token.
        routed: whether a token of the hub is possible too, with which requests go through the hub's router.
        steps: possible step counts, None where the provider takes none.
        sizes: possible sizes and the parameters that request each, None where width and height are free.
        seeds: whether the provider takes a seed.
        deterministic: whether its pages state that a seed repeats its picture.
        extra: further parameters that are sent.
        lossy: how its pictures are compressed, "" for PNG.
        notes: what else a user has to know.
    """

    model: str
    provider: str
    id: str
    repo: str
    defaults: ModelDefaults
    host: str
    variable: str
    routed: bool = True
    steps: range | None = None
    sizes: Mapping[Size, Mapping[str, str]] | None = None
    seeds: bool = True
    deterministic: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)
    lossy: str = ""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name for `fnb.load`, without the provider's own name of the model."""
        return f"{self.model}@{self.provider}"

    @property
    def variables(self) -> tuple[str, ...]:
        """The environment variables of the tokens that are possible, in the order in which they are read."""
        return tuple(dict.fromkeys((self.variable, HUB_VARIABLE) if self.routed else (self.variable,)))

    def describe(self) -> str:
        """Host, token and what is sent, as text; no request is sent, and no token is part of it."""
        variable, host = self.token_in_use()
        token = f"{variable} is set" if variable else f"none is set; set {' or '.join(self.variables)}"
        return "\n".join(
            [
                f"{self.name}: pictures are drawn by {self.provider} ({self.id}), and each request is paid for",
                f"  host    {host}",
                f"  token   {token}",
                f"  sent    {', '.join(self._sent())}",
                f"  seeds   {self._seed_note()}",
                f"  file    {self.lossy or 'PNG'}",
                *(f"  note    {note}" for note in self.notes),
            ]
        )

    def token_in_use(self) -> tuple[str, str]:
        """The variable of the token that a request would have, "" for none, and the host it would go to."""
        if self.variable != HUB_VARIABLE and os.environ.get(self.variable):
            return self.variable, self.host
        if self.routed and (os.environ.get(HUB_VARIABLE) or _logged_in()):
            return HUB_VARIABLE, HUB_HOST
        return "", f"{self.host} or {HUB_HOST}" if self.routed and self.host != HUB_HOST else self.host

    def _sent(self) -> list[str]:
        steps = "" if self.steps is None else f"steps ({self.steps[0]} to {self.steps[-1]})"
        size = "size" if self.sizes is None else f"size ({len(self.sizes)} are possible)"
        extra = [f"{name}={value!r}" for name, value in self.extra.items()]
        return [part for part in ("prompt", "seed" if self.seeds else "", size, steps, *extra) if part]

    def _seed_note(self) -> str:
        if not self.seeds:
            return "not taken: each picture has a random one"
        repeats = "a seed repeats its picture" if self.deterministic else "a seed is not stated to repeat its picture"
        return f"{repeats}; it is not the picture of that seed here, since {self.provider} draws other noise"


def _logged_in() -> bool:
    from huggingface_hub import constants

    return Path(constants.HF_TOKEN_PATH).is_file()  # without `get_token`, which may send a request


# ------------------------------------------------------------------------------------------------------------ the table
# Width and height that flux-schnell of replicate draws at one megapixel; a quarter megapixel has half of each.
RATIOS: Mapping[str, Size] = {
    "1:1": (1024, 1024),
    "16:9": (1344, 768),
    "21:9": (1536, 640),
    "3:2": (1216, 832),
    "2:3": (832, 1216),
    "4:5": (896, 1088),
    "5:4": (1088, 896),
    "3:4": (896, 1152),
    "4:3": (1152, 896),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
}
REPLICATE_SIZES: Mapping[Size, Mapping[str, str]] = MappingProxyType(
    {
        (width // divisor, height // divisor): {"aspect_ratio": ratio, "megapixels": megapixels}
        for ratio, (width, height) in RATIOS.items()
        for divisor, megapixels in ((1, "1"), (2, "0.25"))
    }
)


def _model(name: str) -> dict[str, Any]:
    return {"model": name, "repo": MODELS[name].repo, "defaults": ModelDefaults(**DEFAULTS[name])}


_SCHNELL, _KLEIN = _model("schnell"), _model("klein")
_FAL: dict[str, Any] = {
    "provider": "fal-ai",
    "host": "fal.run",
    "variable": "FAL_KEY",
    "extra": {"output_format": "png"},
}
ENDPOINTS: tuple[Endpoint, ...] = (
    Endpoint(**_SCHNELL, **_FAL, id="fal-ai/flux/schnell", steps=range(1, 13)),
    Endpoint(
        **_SCHNELL,
        provider="together",
        id="black-forest-labs/FLUX.1-schnell",
        host="api.together.xyz",
        variable="TOGETHER_API_KEY",
        steps=range(1, 13),
        lossy="JPEG",
    ),
    Endpoint(
        **_SCHNELL,
        provider="replicate",
        id="black-forest-labs/flux-schnell",
        host="api.replicate.com",
        variable="REPLICATE_API_TOKEN",
        steps=range(1, 5),
        sizes=REPLICATE_SIZES,
        # The default is computed in 8 bits, with which a seed does not repeat its picture, and compressed.
        extra={"go_fast": False, "output_format": "png"},
        notes=("its published code takes seed 0 for no seed, and draws one",),
    ),
    Endpoint(
        **_SCHNELL,
        provider="hf-inference",
        id="black-forest-labs/FLUX.1-schnell",
        host=HUB_HOST,
        variable=HUB_VARIABLE,
        steps=range(1, 51),
        deterministic=False,
    ),
    Endpoint(**_KLEIN, **_FAL, id="fal-ai/flux-2/klein/4b", steps=range(4, 9)),
    Endpoint(
        **_KLEIN,
        provider="bfl",
        id="flux-2-klein-4b",
        host="api.bfl.ai",
        variable="BFL_API_KEY",
        routed=False,
        extra={"output_format": "png"},
    ),
)


def endpoint_of(model: object) -> Endpoint | None:
    """The endpoint that a name such as "schnell@fal-ai" means; None for a name of another form.

    Arguments:
        model: "<model>@<provider>", or "<model>@<provider>:<id>" with the provider's own name of the model, where it
            is not that of the table.

    Raises:
        InputError: a name of this form for which there is no endpoint.

    Example:
        >>> endpoint_of("schnell@fal-ai").id, endpoint_of("schnell")
        ('fal-ai/flux/schnell', None)
    """
    match = NAME.fullmatch(model) if isinstance(model, str) else None
    if match is None or Path(match[0]).exists():
        return None
    name = f"{match['model']}@{match['provider']}"
    for endpoint in ENDPOINTS:
        if endpoint.name == name:
            return dataclasses.replace(endpoint, id=match["id"]) if match["id"] else endpoint
    known = [endpoint.name for endpoint in ENDPOINTS]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise InputError(f"model={shorten(model)}", f"the endpoints are {', '.join(known)}", f"try {near!r}")


# ----------------------------------------------------------------------------------------------- recipes and parameters
def parameters(endpoint: Endpoint, recipe: ResolvedRecipe) -> dict[str, Any]:
    """The parameters of a recipe under the names that huggingface_hub has for them, without the prompt."""
    sent: dict[str, Any] = {"seed": recipe.seed} if endpoint.seeds else {}
    if endpoint.sizes is None:
        sent |= {"width": recipe.width, "height": recipe.height}
    else:
        sent |= endpoint.sizes[recipe.width, recipe.height]
    if endpoint.steps is not None:
        sent["num_inference_steps"] = recipe.steps
    return {**sent, **endpoint.extra}


def resolve(endpoint: Endpoint, recipe: Recipe) -> ResolvedRecipe:
    """Fill in the defaults of the endpoint's model.

    Raises:
        InputError: a recipe with a value that the endpoint does not honor.
    """
    if recipe.model not in (None, endpoint.name):  # of another model, whose text length and guidance are not meant
        recipe = recipe.replace(guidance=None, negative=None, max_sequence_length=None)
    defaults, given = endpoint.defaults, recipe.max_sequence_length
    length = None if given == defaults.max_sequence_length else given
    unsupported = {
        "guidance": recipe.guidance or None,
        "negative": recipe.negative or None,
        "sampler": None if recipe.sampler == "euler" else recipe.sampler,
        "sigmas": recipe.sigmas,
        "shift": recipe.shift,
        "max_sequence_length": length,
    }
    for name, value in unsupported.items():
        if value is not None:
            raise InputError(
                f"{name}={shorten(value)}",
                f"{endpoint.name} takes {', '.join(endpoint._sent())}",
                f'leave {name} out, or sample here with fnb.load("{endpoint.model}")',
            )
    width, height = recipe.width or defaults.size, recipe.height or defaults.size
    _require_steps(endpoint, recipe.steps)
    _require_size(endpoint, width, height)
    _require_seed(endpoint, recipe.seed)
    return ResolvedRecipe(
        prompt=recipe.prompt,
        seed=recipe.seed,
        steps=recipe.steps,
        height=height,
        width=width,
        max_sequence_length=defaults.max_sequence_length,
        model=endpoint.name,
        revision=endpoint.id,
        dtype=REMOTE_DTYPE,
    )


def _require_steps(endpoint: Endpoint, steps: int) -> None:
    default = endpoint.defaults.steps
    if endpoint.steps is None and steps != default:
        raise InputError(f"steps={steps}", f"{endpoint.provider} takes no number of steps", "leave steps out")
    if endpoint.steps is not None and steps not in endpoint.steps:
        possible = f"{endpoint.name} takes {endpoint.steps[0]} to {endpoint.steps[-1]}"
        raise InputError(f"steps={steps}", possible, f"try steps={default}")


def _require_size(endpoint: Endpoint, width: int, height: int) -> None:
    if endpoint.sizes is None or (width, height) in endpoint.sizes:
        return
    near = min(endpoint.sizes, key=lambda size: (abs(width / height - size[0] / size[1]), abs(width - size[0])))
    listed = ", ".join(f"{size[0]} x {size[1]}" for size in endpoint.sizes)
    raise InputError(
        f"{width} x {height} pixels", f"{endpoint.provider} draws {listed}", f"try width={near[0]}, height={near[1]}"
    )


def _require_seed(endpoint: Endpoint, seed: int) -> None:
    if not endpoint.seeds and seed:
        raise InputError(f"seed={seed}", f"{endpoint.provider} takes no seed", "leave seeds out")
    if seed > LARGEST_SEED:
        raise InputError(f"seed={seed}", "a request holds seeds below 2**53", "try seed=0")
