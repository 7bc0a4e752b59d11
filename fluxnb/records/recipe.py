"""What was asked: a Recipe is one picture's whole question.

Same key, same picture on the same machine. A recipe is checked when it is made, so whoever holds one may trust it,
whether it was typed in a notebook or read from the metadata of a stranger's PNG.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fluxnb.errors import InputError, shorten, unknown_choice, validates_own_input

__all__ = ["SAMPLERS", "Recipe"]

FORMAT = 1  # raised when a field changes its meaning; readers refuse what they do not know
SAMPLERS = ("euler", "renoise")
DTYPES = ("float32", "bfloat16", "float16")
LONGEST_TEXT = 20_000  # characters; far above any encoder's limit, far below what would stall a tokenizer
LONGEST_JSON = 1_000_000
LARGEST_SIDE = 8192
MOST_STEPS = 1000
DEFAULT_STEPS = 4


@validates_own_input
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides a picture; frozen, hashable, and JSON both ways.

    Sizes are pixels, multiples of 16. `None` means "as the model does it" and is filled in by the run, so the recipe
    inside a Trajectory has no `None` left where the model has an answer.

    Arguments:
        prompt: what to draw; not empty, at most 20,000 characters.
        negative: what to steer away from, used by models guided by two evaluations a step.
        seed: 0 to 2**64 - 1; it fixes the noise, drawn on the CPU, on every device.
        steps: 1 to 1000 evaluations along the path.
        height, width: pixels, multiples of 16, 16 to 8192.
        guidance: strength, 0 to 100; what it means depends on the model (true CFG or an embedded number).
        sampler: "euler" follows the velocity; "renoise" goes to the clean estimate and adds fresh noise.
        sigmas: own noise levels instead of the even ones, strictly falling, within (0, 1], before any shift.
        shift: own time shift (1 is none) instead of the model's.
        max_sequence_length: T5 tokens, 1 to 512.
        model, revision, dtype: who draws; filled in by the run.
        numerics: "exact", or the name of the lossy thing in the preset that changes the numbers.

    Raises:
        InputError: a ValueError that says what came, what is possible and what to type.

    Example:
        >>> ask = Recipe(prompt="a fox in the snow", seed=3)
        >>> ask.replace(steps=1).steps
        1
        >>> Recipe.from_json(ask.to_json()) == ask
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
    numerics: str = "exact"

    def __post_init__(self) -> None:
        for name, value in _checked(self).items():
            object.__setattr__(self, name, value)

    def replace(self, **changes: Any) -> Recipe:
        """The same recipe with some fields changed, checked again.

        Changing `steps` alone lets go of own sigmas: they were for another count.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise unknown_choice("field", name, known)
        if "steps" in changes and "sigmas" not in changes and self.sigmas and changes["steps"] != self.steps:
            changes["sigmas"] = None
        if changes.get("sigmas") is not None and "steps" not in changes:
            changes["steps"] = len(changes["sigmas"])
        return dataclasses.replace(self, **changes)

    @property
    def exact(self) -> bool:
        """True where the numbers are those of the plain model, False under a lossy preset."""
        return self.numerics == "exact"

    def to_json(self) -> str:
        """The canonical text of the recipe: one line of ASCII JSON, keys sorted, with the format's version.

        Equal recipes have equal text, byte for byte, on every machine.
        """
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return _canonical({"fluxnb_recipe": FORMAT, **fields})

    @classmethod
    @validates_own_input
    def from_json(cls, text: str | bytes) -> Recipe:
        """A recipe from its JSON text; nothing in it is trusted.

        Raises:
            InputError: not JSON, too long, another version, an unknown or doubled field, a wrong type or value.
        """
        fields = _parsed(text)
        version = fields.pop("fluxnb_recipe", None)
        if type(version) is not int or version != FORMAT:
            raise InputError(
                f"recipe format {shorten(version)}",
                f"this fluxnb reads format {FORMAT}",
                "if a newer fluxnb wrote it, run pip install -U fluxnb",
            )
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - known):
            raise InputError(
                f"unknown recipe field {shorten(unknown[0])}",
                f"known are {', '.join(sorted(known))}",
                "remove the field",
            )
        if "prompt" not in fields:
            raise InputError("a recipe without a prompt", "every recipe has one", 'add "prompt": "..."')
        return cls(**fields)

    def key(self, versions: Mapping[str, str] | None = None) -> str:
        """The recipe's address, 64 hex digits: SHA-256 of its canonical JSON and the library versions given.

        Example:
            >>> ask = Recipe(prompt="a fox")
            >>> ask.key() == ask.replace(seed=1).key(), len(ask.key())
            (False, 64)
        """
        libraries = _canonical({str(name): str(version) for name, version in (versions or {}).items()})
        return hashlib.sha256(f"{self.to_json()}\n{libraries}".encode()).hexdigest()


def _checked(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe as plain, finite, in-range Python values, or the error of the first that cannot be."""
    prompt = _text("prompt", recipe.prompt)
    if not prompt.strip():
        raise InputError(
            f"prompt={shorten(prompt)}", "a prompt has at least one word", 'try prompt="a fox in the snow"'
        )
    sigmas = recipe.sigmas if recipe.sigmas is None else _falling(recipe.sigmas)
    steps = _whole("steps", recipe.steps, 1, MOST_STEPS, "schnell and pocket are made for 1 to 4; try steps=4")
    if sigmas is not None and steps != len(sigmas):
        if steps != DEFAULT_STEPS:
            raise InputError(
                f"steps={steps} with {len(sigmas)} sigmas",
                "each sigma is one step",
                f"leave steps out or say steps={len(sigmas)}",
            )
        steps = len(sigmas)
    if not isinstance(recipe.sampler, str) or recipe.sampler not in SAMPLERS:
        raise unknown_choice("sampler", recipe.sampler, SAMPLERS)
    if recipe.dtype is not None and recipe.dtype not in DTYPES:
        raise unknown_choice("dtype", recipe.dtype, DTYPES)
    length, shift = recipe.max_sequence_length, recipe.shift
    return {
        "prompt": prompt,
        "negative": None if recipe.negative is None else _text("negative", recipe.negative),
        "seed": _whole("seed", recipe.seed, 0, 2**64 - 1, "try seed=0"),
        "steps": steps,
        "height": None if recipe.height is None else _side("height", recipe.height),
        "width": None if recipe.width is None else _side("width", recipe.width),
        "guidance": None if recipe.guidance is None else _real("guidance", recipe.guidance, 0.0, 100.0, 3.5),
        "sampler": recipe.sampler,
        "sigmas": sigmas,
        "shift": None if shift is None else _real("shift", shift, 0.01, 100.0, 3.0),
        "max_sequence_length": None if length is None else _whole("max_sequence_length", length, 1, 512, "try 256"),
        "model": None if recipe.model is None else _text("model", recipe.model),
        "revision": None if recipe.revision is None else _text("revision", recipe.revision),
        "dtype": recipe.dtype,
        "numerics": _text("numerics", recipe.numerics),
    }


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name}={shorten(value)} ({type(value).__name__})", "it must be text", f'try {name}="..."')
    if len(value) > LONGEST_TEXT:
        raise InputError(f"{name} of {len(value)} characters", f"at most {LONGEST_TEXT} are taken", "shorten it")
    if re.search("[\ud800-\udfff]", value):
        raise InputError(f"{name}={shorten(value)}", "half a character (a lone surrogate) is no text", "remove it")
    return str(value)


def _whole(name: str, value: object, low: int, high: int, remedy: str) -> int:
    """An integer in range; numpy's and torch's integers are welcome, True, "3" and 3.0 are not."""
    truth = isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")  # numpy's, under either of its names
    try:
        number = None if truth else operator.index(value)  # type: ignore[arg-type]
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
    side = _whole(name, value, 16, LARGEST_SIDE, f"try {name}=1024, or {name}=128 for pocket")
    if side % 16:
        below, above = side // 16 * 16, min(side // 16 * 16 + 16, LARGEST_SIDE)
        raise InputError(
            f"{name}={side}", "sizes are multiples of 16 (one token is 16 pixels)", f"try {name}={below} or {above}"
        )
    return side


def _real(name: str, value: object, low: float, high: float, example: float) -> float:
    try:
        # float("3.5") would take text, and float(True) a yes: both are confusion, not numbers.
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.nan
    if not low <= number <= high:
        raise InputError(
            f"{name}={shorten(value)} ({type(value).__name__})",
            f"it must be a number from {low:g} to {high:g}",
            f"try {name}={example:g}",
        )
    return number + 0.0  # -0.0 and 0.0 are one question and must have one key


def _falling(value: object) -> tuple[float, ...]:
    example = "try sigmas=(1.0, 0.75, 0.5, 0.25); the last 0 is added for you"
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise InputError(f"sigmas={shorten(value)}", "they are a list of numbers within (0, 1]", example)
    given = list(itertools.islice(value, MOST_STEPS + 1))
    if not 1 <= len(given) <= MOST_STEPS:
        raise InputError(f"{len(given)} sigmas", f"1 to {MOST_STEPS} are possible", example)
    sigmas = tuple(_real("sigmas", sigma, 0.0, 1.0, 0.5) for sigma in given)
    if sigmas[-1] == 0.0 or any(a <= b for a, b in itertools.pairwise(sigmas)):
        raise InputError(f"sigmas={shorten(sigmas)}", "they fall strictly and stay above 0", example)
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
        raise InputError("a recipe with a doubled field", "each field stands once", "remove one of them")
    return fields


def _no_constant(name: str) -> float:
    raise InputError(f"{name} in a recipe", "numbers are finite", "write a finite number")
