"""Recipe, everything that determines one picture, and ResolvedRecipe, the same with the model's defaults filled in.

Equal keys give equal pictures on one machine. A recipe is checked when it is made, whether its values were typed in a
notebook or read from the metadata of a PNG of unknown origin.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar, Unpack

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, shorten, unknown_choice
from fluxnb.installation import update_command

__all__ = ["DTYPES", "REMOTE_DTYPE", "SAMPLERS", "Recipe", "RecipeFields", "ResolvedRecipe"]

FORMAT = 2  # raised when a field changes its meaning; readers refuse formats that they do not know
READABLE = (1, 2)  # format 1 had a field `numerics`, which is now a field of cells and trajectories
SAMPLERS = ("euler", "renoise", "heun", "midpoint")
TWO_STAGES = ("heun", "midpoint")  # samplers that evaluate twice in a step
DTYPES = ("float32", "bfloat16", "float16")
REMOTE_DTYPE = "remote"  # of the pictures of hosted endpoints, which do not state theirs
LONGEST_TEXT = 20_000  # characters; far above any encoder's limit, far below what would stall a tokenizer
LONGEST_JSON = 1_000_000
LARGEST_SIDE = 8192
MOST_STEPS = 1000
DEFAULT_STEPS = 4

R = TypeVar("R", bound="Recipe")


class RecipeFields(TypedDict, total=False):
    """The fields of a Recipe as keyword arguments, of which any may be left out."""

    prompt: str
    negative: str | None
    seed: int
    steps: int
    height: int | None
    width: int | None
    guidance: float | None
    sampler: str
    sigmas: Sequence[float] | None
    shift: float | None
    max_sequence_length: int | None
    model: str | None
    revision: str | None
    dtype: str | None


@entry_point()
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a picture; frozen, hashable, and JSON both ways.

    Sizes are pixels, multiples of 16. `None` means the model's default; `ResolvedRecipe` holds the value instead.
    Recipes are equal if their fields are, resolved or not.

    Arguments:
        prompt: what to draw; not empty, at most 20,000 characters.
        negative: what to steer away from, for models with two evaluations a step (true CFG).
        seed: 0 to 2**64 - 1; it fixes the noise, which is drawn on the CPU for every device.
        steps: 1 to 1000 along the path; each is one evaluation with "euler" and "renoise".
        height, width: pixels, multiples of 16, 16 to 8192.
        guidance: strength, 0 to 100; true CFG or an embedded number, depending on the model. For true CFG it is the
            scale s of v = negative + s (positive - negative), of which 1 is none; `guidance_scale=` of Z-Image's
            pipeline is s - 1.
        sampler: "euler" follows the velocity; "renoise" goes to the clean estimate and adds fresh noise.
            "heun" and "midpoint" are of second order and evaluate twice in a step.
        sigmas: own noise levels instead of the even ones, strictly falling, within (0, 1], before any shift.
        shift: own time shift (1 is none) instead of the model's.
        max_sequence_length: tokens that the main text encoder reads, 1 to 512.
        model, revision, dtype: the model, its version and the number format of its transformer; "remote" for a picture
            of a hosted endpoint.

    Raises:
        InputError: a value of a wrong type or out of range.

    Example:
        >>> recipe = Recipe(prompt="a fox in the snow", seed=3)
        >>> recipe.replace(steps=1).steps
        1
        >>> Recipe.from_json(recipe.to_json()) == recipe
        True
    """

    prompt: str
    negative: str | None = None
    seed: int = 0
    steps: int = DEFAULT_STEPS
    height: int | None = None
    width: int | None = None
    guidance: float | None = None
    sampler: str = "euler"
    sigmas: tuple[float, ...] | None = None
    shift: float | None = None
    max_sequence_length: int | None = None
    model: str | None = None
    revision: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        for name, value in _checked(self).items():
            object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        # A dataclass compares instances of one class only, but a recipe read from a file equals the one that was run.
        return self._values() == other._values() if isinstance(other, Recipe) else NotImplemented

    @property
    def stages(self) -> int:
        """Evaluations in a step, without those of guidance: 2 for "heun" and "midpoint", else 1."""
        return 2 if self.sampler in TWO_STAGES else 1

    @property
    def evaluations(self) -> int:
        """Evaluations along the path, without those of guidance; the last step of "heun" takes one.

        Example:
            >>> [Recipe(prompt="a fox", steps=4, sampler=each).evaluations for each in ("euler", "heun", "midpoint")]
            [4, 7, 8]
        """
        return self.steps * self.stages - (self.sampler == "heun")

    @entry_point(accepts=RecipeFields)
    def replace(self, **changes: Unpack[RecipeFields]) -> Recipe:
        """A recipe with some fields changed, checked again; of a ResolvedRecipe, one that has to be resolved again.

        If `steps` changes and `sigmas` is not given, own sigmas are removed, since they belong to the other count.
        """
        values = self._values()
        if "steps" in changes and "sigmas" not in changes and self.sigmas and changes["steps"] != self.steps:
            changes["sigmas"] = None
        sigmas = changes.get("sigmas")
        if sigmas is not None and "steps" not in changes:
            changes["steps"] = len(sigmas)
        return Recipe(**{**values, **changes})

    def to_json(self) -> str:
        """The canonical text of the recipe: one line of ASCII JSON, keys sorted, with the number of the format.

        Equal recipes have equal text, byte for byte, on every machine.
        """
        return _canonical({"fluxnb_recipe": FORMAT, **self._values()})

    @classmethod
    @entry_point()
    def from_json(cls: type[R], text: str | bytes) -> R:
        """A recipe from its JSON text, of this format or an older one; every field is checked.

        Raises:
            InputError: not JSON, too long, an unknown format, an unknown, missing or repeated field, a wrong type or
                value.
        """
        fields = _parsed(text)
        version = fields.pop("fluxnb_recipe", None)
        if type(version) is not int or version not in READABLE:
            raise InputError(
                f"recipe format {shorten(version)}",
                f"this fluxnb reads formats {READABLE[0]} to {READABLE[-1]}",
                f"if a newer fluxnb wrote it, run {update_command()}",
            )
        if version == 1:
            _text("numerics", fields.pop("numerics", "exact"))
        known = {field.name: field for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - set(known)):
            raise InputError(
                f"unknown recipe field {shorten(unknown[0])}",
                f"known are {', '.join(sorted(known))}",
                "remove the field",
            )
        for name, field in known.items():
            if name not in fields and field.default is dataclasses.MISSING:
                raise InputError(f"a recipe without {name}", f"a {cls.__name__} has one", f'add "{name}": ...')
        return cls(**fields)

    @entry_point(versions="versions=trajectory.versions", numerics='numerics="exact"')
    def key(self, versions: Mapping[str, str] | None = None, *, numerics: str = "exact") -> str:
        """The address of a result of this recipe, 64 hex digits: SHA-256 of canonical JSON.

        Arguments:
            versions: of the libraries and the device that decide the bits of the picture.
            numerics: of the result, as in `Trajectory.numerics`.

        Example:
            >>> recipe = Recipe(prompt="a fox")
            >>> recipe.key() == recipe.replace(seed=1).key(), len(recipe.key())
            (False, 64)
        """
        libraries = {str(name): str(version) for name, version in (versions or {}).items()}
        conditions = _canonical({"numerics": numerics, "versions": libraries})
        return hashlib.sha256(f"{self.to_json()}\n{conditions}".encode()).hexdigest()

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@entry_point()
@dataclass(frozen=True, kw_only=True, eq=False)
class ResolvedRecipe(Recipe):
    """A recipe with every default of its model filled in; made by `Flux.resolve`.

    The fields below always have a value. `guidance` and `negative` are None only where the model takes none: `guidance`
    has a value for "true_cfg" and "embedded" guidance, `negative` for "true_cfg". `sigmas` and `shift` are None where
    the model's own schedule is used.

    Raises:
        InputError: as Recipe, and for a field below that is None.
    """

    height: int = dataclasses.field()
    width: int = dataclasses.field()
    max_sequence_length: int = dataclasses.field()
    model: str = dataclasses.field()
    revision: str = dataclasses.field()
    dtype: str = dataclasses.field()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("height", "width", "max_sequence_length", "model", "revision", "dtype"):
            if getattr(self, name) is None:
                raise InputError(f"{name}=None", "a resolved recipe has a value", "try flux.resolve(recipe)")


def _checked(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe as plain Python values; raises for the first that is invalid."""
    prompt = _text("prompt", recipe.prompt)
    if not prompt.strip():
        raise InputError(
            f"prompt={shorten(prompt)}", "a prompt has at least one word", 'try prompt="a fox in the snow"'
        )
    sigmas = recipe.sigmas if recipe.sigmas is None else _falling(recipe.sigmas)
    steps = _integer("steps", recipe.steps, 1, MOST_STEPS, "schnell and pocket are made for 1 to 4; try steps=4")
    if sigmas is not None and steps != len(sigmas):
        if steps != DEFAULT_STEPS:
            raise InputError(
                f"steps={steps} with {len(sigmas)} sigmas",
                "each sigma is one step",
                f"leave steps out, or try steps={len(sigmas)}",
            )
        steps = len(sigmas)
    if not isinstance(recipe.sampler, str) or recipe.sampler not in SAMPLERS:
        raise unknown_choice("sampler", recipe.sampler, SAMPLERS)
    if recipe.dtype is not None and recipe.dtype not in (*DTYPES, REMOTE_DTYPE):
        raise unknown_choice("dtype", recipe.dtype, DTYPES)
    length, shift = recipe.max_sequence_length, recipe.shift
    return {
        "prompt": prompt,
        "negative": None if recipe.negative is None else _text("negative", recipe.negative),
        "seed": _integer("seed", recipe.seed, 0, 2**64 - 1, "try seed=0"),
        "steps": steps,
        "height": None if recipe.height is None else _side("height", recipe.height),
        "width": None if recipe.width is None else _side("width", recipe.width),
        "guidance": None if recipe.guidance is None else _real("guidance", recipe.guidance, 0.0, 100.0, 3.5),
        "sampler": recipe.sampler,
        "sigmas": sigmas,
        "shift": None if shift is None else _real("shift", shift, 0.01, 100.0, 3.0),
        "max_sequence_length": None if length is None else _integer("max_sequence_length", length, 1, 512, "try 256"),
        "model": None if recipe.model is None else _text("model", recipe.model),
        "revision": None if recipe.revision is None else _text("revision", recipe.revision),
        "dtype": recipe.dtype,
    }


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name}={shorten(value)} ({type(value).__name__})", "it must be text", f'try {name}="..."')
    if len(value) > LONGEST_TEXT:
        raise InputError(f"{name} of {len(value)} characters", f"at most {LONGEST_TEXT} are possible", "shorten it")
    if re.search("[\ud800-\udfff]", value):
        raise InputError(f"{name}={shorten(value)}", "a lone surrogate is not a character", "remove it")
    return str(value)


def _integer(name: str, value: object, low: int, high: int, remedy: str) -> int:
    """An integer in range. Integers of numpy and torch are accepted; True, "3" and 3.0 are not."""
    boolean = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")  # both names of the type of numpy
    try:
        number = None if boolean else operator.index(value)  # type: ignore[arg-type]
    except (TypeError, RuntimeError, ValueError):
        number = None
    if number is None:
        kind = type(value).__name__
        raise InputError(f"{name}={shorten(value)} ({kind})", f"it must be a whole number from {low} to {high}", remedy)
    if not low <= number <= high:
        possible = f"at least {low} is needed" if number < low else f"at most {high} is possible"
        raise InputError(f"{name}={shorten(number)}", possible, remedy)
    return number


def _side(name: str, value: object) -> int:
    side = _integer(name, value, 16, LARGEST_SIDE, f"try {name}=1024, or leave it out for the size of the model")
    if side % 16:
        below, above = side // 16 * 16, min(side // 16 * 16 + 16, LARGEST_SIDE)
        raise InputError(
            f"{name}={side}", "sizes are multiples of 16 (one token is 16 pixels)", f"try {name}={below} or {above}"
        )
    return side


def _real(name: str, value: object, low: float, high: float, example: float) -> float:
    try:
        # float() would also convert "3.5" and True.
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not low <= number <= high:
        raise InputError(
            f"{name}={shorten(value)} ({type(value).__name__})",
            f"it must be a number from {low:g} to {high:g}",
            f"try {name}={example:g}",
        )
    return number + 0.0  # turns -0.0 into 0.0, so that equal recipes have equal keys


def _falling(value: object) -> tuple[float, ...]:
    example = "try sigmas=(1.0, 0.75, 0.5, 0.25); the final 0 is added"
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InputError(f"sigmas={shorten(value)}", "a list of numbers within (0, 1] is needed", example)
    given = list(itertools.islice(value, MOST_STEPS + 1))
    if not 1 <= len(given) <= MOST_STEPS:
        raise InputError(f"{len(given)} sigmas", f"1 to {MOST_STEPS} are possible", example)
    sigmas = tuple(_real("sigmas", sigma, 0.0, 1.0, 0.5) for sigma in given)
    if sigmas[-1] == 0.0 or any(a <= b for a, b in itertools.pairwise(sigmas)):
        raise InputError(f"sigmas={shorten(sigmas)}", "they must fall strictly and stay above 0", example)
    return sigmas


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _parsed(text: object) -> dict[str, Any]:
    remedy = "give the text that Recipe.to_json() wrote"
    if not isinstance(text, str | bytes):
        raise InputError(f"a recipe as {type(text).__name__}", "a recipe is read from JSON text", remedy)
    if len(text) > LONGEST_JSON:
        raise InputError(f"a recipe of {len(text)} characters", f"at most {LONGEST_JSON} are read", remedy)
    try:
        fields = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except InputError:
        raise
    except (ValueError, RecursionError) as problem:  # bad JSON, bad UTF-8, absurd nesting or digits
        raise InputError(f"a recipe that is not JSON ({shorten(str(problem))})", "a recipe is JSON", remedy) from None
    if not isinstance(fields, dict):
        raise InputError(f"a recipe as JSON {type(fields).__name__}", "a recipe is a JSON object", remedy)
    return fields


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise InputError("a recipe with a repeated field", "each field is given once", "remove one of them")
    return fields


def _no_constant(name: str) -> float:
    raise InputError(f"{name} in a recipe", "only finite numbers are possible", "write a finite number")
