"""Checks of the arguments of public functions, with errors in three parts.

Python's own TypeError for an unknown keyword does not name what to type instead, and a value of a wrong type fails far
from the call. `entry_point` raises an error for both at the call, and translates the keywords of diffusers.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import itertools
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from fluxnb.errors import ArgumentError, shorten

__all__ = ["EXAMPLES", "entry_point"]

T = TypeVar("T")

# What to type for parameters that several functions have.
EXAMPLES: Mapping[str, str] = {
    "ax": "ax=matplotlib.figure.Figure().add_subplot()",
    "decode": "decode=flux.decode",
    "flux": 'flux = fnb.load("pocket")',
    "folder": 'folder="pictures"',
    "image": "image=trajectory.image",
    "keep": "keep=fnb.Keep()",
    "labels": 'labels=["teacher", "student"]',
    "on_step": "on_step=lambda step: print(step.sigma)",
    "path": 'path="fox.html"',
    "prompts": 'prompts=["a fox in the snow"]',
    "seeds": "seeds=range(4)",
    "recipe": 'recipe=fnb.Recipe(prompt="a fox")',
    "seconds": "seconds=3",
    "show": 'show="clean"',
    "shows": 'shows=["clean", "x"]',
    "size": "size=512",
    "steps": "steps=4",
    "store": 'store="pictures"',
    "sweep": 'sweep = fnb.sweep(flux, prompts=["a fox"], seeds=range(4))',
    "timeout": "timeout=60",
    "trajectories": 'trajectories = [fnb.run(flux, "a fox", steps=n) for n in (1, 4)]',
    "trajectory": 'trajectory = fnb.run(flux, "a fox")',
    "what": 'what="clean"',
}

# Keywords of diffusers, and singular or plural forms, to the keywords that mean the same here.
TRANSLATIONS: Mapping[str, tuple[str, ...]] = {
    "num_inference_steps": ("steps",),
    "guidance_scale": ("guidance",),
    "true_cfg_scale": ("guidance",),
    "negative_prompt": ("negative",),
    "generator": ("seed", "seeds"),
    "num_images_per_prompt": ("seeds",),
    "batch_size": ("batch",),
    "callback_on_step_end": ("on_step",),
    "latents": ("noise",),
    "noise": ("noise",),
    "image": ("image",),
    "strength": ("strength",),
    "torch_dtype": ("dtype",),
    "device": ("preset",),
    "device_map": ("preset",),
    "prompt": ("prompts",),
    "prompts": ("prompt",),
    "seed": ("seeds",),
    "seeds": ("seed",),
}
# The call to type where the function itself has no such parameter, by the name of ours.
CALLS: Mapping[str, str] = {
    "dtype": 'fnb.load("pocket", {})',
    "preset": 'fnb.load("pocket", {})',
    "batch": 'fnb.sweep(flux, prompts=["a fox"], {})',
    "prompts": "fnb.sweep(flux, {})",
    "seeds": 'fnb.sweep(flux, prompts=["a fox"], {})',
    "prompt": "fnb.run(flux, {})",
}
ELSEWHERE = 'fnb.run(flux, "a fox", {})'
# Keywords of FluxPipeline.__call__ that have no counterpart here.
PIPELINE_ONLY = (
    "callback_on_step_end_tensor_inputs",
    "ip_adapter_image",
    "joint_attention_kwargs",
    "output_type",
    "pooled_prompt_embeds",
    "prompt_2",
    "prompt_embeds",
    "return_dict",
    "timesteps",
)
MOST_CHECKED = 10_000  # items of a list; longer ones are checked at their beginning


def entry_point(*checked: str, accepts: type | Iterable[str] = (), **examples: str) -> Callable[[T], T]:
    """Decorate a public function or class so that wrong arguments raise an error that names what to type.

    Arguments:
        checked: parameters whose type is checked against their annotation, with what to type from `EXAMPLES`. Values
            that are checked elsewhere, as those of a Recipe are, need not be listed.
        accepts: the keywords that a `**` parameter accepts; any where left out. Those of a TypedDict also appear in
            the signature of the decorated function, for `help` and for completion in a notebook.
        examples: further parameters to check, and what to type for each.

    Raises:
        ArgumentError: from the decorated function, for an unknown keyword, a missing argument or a wrong type.

    Example:
        >>> @entry_point(path='path="picture.png"')
        ... def write(path: str) -> str:
        ...     return path
        >>> write(3)
        Traceback (most recent call last):
        fluxnb.errors.ArgumentError: write(path=3), an int: path is text. Type path="picture.png".
    """
    typed = {**{name: EXAMPLES[name] for name in checked}, **examples}

    def decorate(target: T) -> T:
        if isinstance(target, type):
            target.__init__ = _checked(target.__init__, target.__name__, typed, accepts)  # type: ignore[misc]
            target.__no_type_check__ = True  # type: ignore[attr-defined]
            return target
        return typing.cast(T, _checked(typing.cast(Any, target), getattr(target, "__name__", "call"), typed, accepts))

    return decorate


def _checked(
    function: Callable[..., Any], name: str, examples: Mapping[str, str], accepts: type | Iterable[str]
) -> Callable[..., Any]:
    further = tuple(accepts.__annotations__ if isinstance(accepts, type) else accepts)
    # The tests check every annotation; here that would come before the error of `call`.
    function.__no_type_check__ = True  # type: ignore[attr-defined]
    signature = inspect.signature(function)
    bound = _Binding(signature)
    hints: dict[str, Any] = {}
    classes: dict[str, frozenset[type]] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given: Mapping[str, Any] | None = bound.of(args, kwargs)
        if given is None:
            try:
                given = signature.bind(*args, **kwargs).arguments
            except TypeError as problem:
                raise _wrong_call(
                    name, signature, args, kwargs, examples=examples, further=further, text=str(problem)
                ) from None
            for keyword in _variable_keywords(signature, given):
                if wrong := _wrong_keyword(name, keyword, kwargs[keyword], signature, further):
                    raise wrong
        if examples and not hints:
            hints.update(inspect.get_annotations(function, eval_str=True))
            classes.update({parameter: frozenset(_classes(hints[parameter])) for parameter in examples})
        for parameter, example in examples.items():
            if parameter not in given or type(given[parameter]) in classes[parameter]:
                continue
            if not _is_a(given[parameter], hints[parameter]):
                value = given[parameter]
                if (refusal := getattr(type(value), "refusal", None)) is not None:
                    raise refusal(value, name)  # of a handle, which has an advice of its own
                kind = "" if value is None else f", {_with_article(type(value).__name__)}"
                raise ArgumentError(
                    f"{name}({parameter}={shorten(value)}){kind}",
                    f"{parameter} is {_described(hints[parameter])}",
                    f"type {example}",
                )
        return function(*args, **kwargs)

    if isinstance(accepts, type):
        call.__signature__ = _with_keywords(signature, accepts)  # type: ignore[attr-defined]
    return call


class _Binding:
    """Which argument is which parameter, for right calls of functions without `*` and for known keywords.

    `inspect.Signature.bind` takes a hundredth of a millisecond, and one run of pocket passes ten entry points.
    """

    def __init__(self, signature: inspect.Signature) -> None:
        parameters = list(signature.parameters.values())
        self.positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.keywords = {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        self.required = {p.name for p in parameters if p.default is p.empty and p.kind not in variable}

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """The arguments by parameter; None for a call that `bind` has to look at."""
        if len(args) > len(self.positional) or not kwargs.keys() <= self.keywords:
            return None
        given = dict(zip(self.positional, args, strict=False))
        if not given.keys().isdisjoint(kwargs):
            return None
        given.update(kwargs)
        return given if self.required <= given.keys() else None


def _classes(hint: Any) -> list[type]:
    """Classes whose instances fit an annotation without a closer look."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [each for inner in typing.get_args(hint) for each in _classes(inner)]
    if hint is None:
        return [types.NoneType]
    return [hint, int] if hint is float else [hint] if type(hint) is type else []


class _Unset:
    def __repr__(self) -> str:
        return "unset"


def _with_keywords(signature: inspect.Signature, keywords: type) -> inspect.Signature:
    """A signature with the fields of a TypedDict in the place of its `**` parameter."""
    named = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    further = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_Unset(),
            annotation=getattr(hint, "__forward_arg__", hint),
        )
        for name, hint in keywords.__annotations__.items()
    ]
    return signature.replace(parameters=[*named, *further])


# --------------------------------------------------------------------------------------------------------------- values
def _is_a(value: object, hint: Any) -> bool:
    """Whether a value fits an annotation. Unlike beartype's, this check reads every item of a list."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_a(value, each) for each in inner)
    if hint in (int, float) and getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # a number of numpy or torch
    if hint in (int, float) and isinstance(value, bool):
        return False
    if _is_list(hint) and len(inner) == 1:
        if isinstance(value, str | bytes) or not isinstance(value, origin):
            return False
        items = value if isinstance(value, collections.abc.Collection) else ()  # an iterator can be read once only
        return all(_is_a(item, inner[0]) for item in itertools.islice(items, MOST_CHECKED))
    if hasattr(hint, "array_type"):
        from jaxtyping import jaxtyped

        with jaxtyped("context"):  # apart from the sizes that an outer check has bound to the same names
            return isinstance(value, hint)
    from beartype import BeartypeConf
    from beartype.door import is_bearable

    return is_bearable(value, hint, conf=BeartypeConf(is_pep484_tower=True))


def _is_list(hint: Any) -> bool:
    origin = typing.get_origin(hint)
    return (
        isinstance(origin, type)
        and issubclass(origin, collections.abc.Iterable)
        and not issubclass(origin, Mapping | tuple)
    )


# ------------------------------------------------------------------------------------------------------------- keywords
def _variable_keywords(signature: inspect.Signature, given: Mapping[str, Any]) -> list[str]:
    """The keywords that only a `**` parameter takes."""
    variable = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    return [keyword for name in variable for keyword in given.get(name, ())]


def _named(signature: inspect.Signature) -> list[str]:
    """The parameters that a caller can name."""
    unnamed = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [p.name for p in signature.parameters.values() if p.name not in ("self", "cls") and p.kind not in unnamed]


def _wrong_keyword(
    name: str, keyword: str, value: object, signature: inspect.Signature, further: tuple[str, ...]
) -> ArgumentError | None:
    """The error for a keyword that is no parameter; None where a `**` parameter accepts it."""
    known = list(dict.fromkeys((*_named(signature), *further)))
    if keyword in further:
        return None
    given, ours = f"{name}({keyword}={shorten(value)})", TRANSLATIONS.get(keyword, ())
    for each in ours:
        if each in known and not (each in ("prompt", "seed") and _several(value)):
            return ArgumentError(given, _reason(each), f"type {each}={_value(keyword, each, value)}")
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()) and not further
    if open_ended:
        return None
    if keyword in PIPELINE_ONLY:
        return ArgumentError(
            given,
            "it is an argument of the pipeline, whose own calls can be recorded",
            f'type with fnb.recording(flux.pipe) as recorder: flux.pipe("a fox", {keyword}=...)',
        )
    if ours:
        each = "seeds" if "seeds" in ours or (ours[0] == "seed" and _several(value)) else ours[0]
        each = "prompts" if each == "prompt" and _several(value) else each
        call = CALLS.get(each, ELSEWHERE).format(f"{each}={_value(keyword, each, value)}")
        return ArgumentError(given, f"{each} is an argument of {call.partition('(')[0]}", f"type {call}")
    near = difflib.get_close_matches(keyword, known, n=1)
    remedy = f"type {near[0]}={shorten(value)}" if near else f"leave {keyword} out"
    return ArgumentError(given, f"known are {', '.join(known)}" if known else "it has no arguments", remedy)


def _several(value: object) -> bool:
    return isinstance(value, list | tuple | range) and len(value) > 1


def _reason(ours: str) -> str:
    return "a preset decides where the model is held" if ours == "preset" else f"this is called {ours} here"


def _value(keyword: str, ours: str, value: object) -> str:
    """The value of a keyword of diffusers, written as the value of ours."""
    if ours == "preset":
        return '"auto"'
    if ours == "dtype":
        return repr(str(value).removeprefix("torch.")).replace("'", '"')
    if keyword == "num_images_per_prompt" and isinstance(value, int):
        return f"range({value})"
    if ours in ("seed", "seeds"):
        if isinstance(value, list | tuple):
            return shorten([_seed(each) for each in value])
        return shorten(_seed(value))
    return "lambda step: print(step.sigma)" if ours == "on_step" else shorten(value)


def _seed(value: Any) -> Any:
    return value.initial_seed() if hasattr(value, "initial_seed") else value


def _wrong_call(
    name: str,
    signature: inspect.Signature,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    examples: Mapping[str, str],
    further: tuple[str, ...],
    text: str,
) -> ArgumentError:
    """The error for a call that does not fit the signature.

    Arguments:
        text: of the TypeError of `inspect.Signature.bind`.
    """
    known = _named(signature)
    for keyword, value in kwargs.items():
        if keyword not in known and (wrong := _wrong_keyword(name, keyword, value, signature, further)):
            return wrong
    parameters = signature.parameters
    required = [each for each in known if parameters[each].default is inspect.Parameter.empty]
    missing = next((each for each in required if f"'{each}'" in text and "missing" in text), "")
    if missing:
        return ArgumentError(
            f"{name} without {missing}", f"{missing} is needed", f"type {examples.get(missing, missing + '=...')}"
        )
    by_position = [p for p in parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(args) > len(by_position):
        extra = args[len(by_position)]
        free = [each for each in known if parameters[each].kind is inspect.Parameter.KEYWORD_ONLY]
        unset = [each for each in free if each not in kwargs]
        remedy = f"type {unset[0]}={shorten(extra)}" if len(unset) == 1 else "give the others by name"
        accepted = f"it takes {', '.join(known)}" if known else "it takes none"
        return ArgumentError(
            f"{name} with {shorten(extra)} as a further argument", accepted, remedy if unset else "leave it out"
        )
    return ArgumentError(f"{name}: {text}", f"the arguments are {', '.join(known)}", "give each of them once")


# ------------------------------------------------------------------------------------------------------------ in words
WORDS: Mapping[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    bytes: "bytes",
    type(None): "None",
    None: "None",
    Any: "anything",
}


def _described(hint: Any) -> str:
    """An annotation in words, for example "a Trajectory or a list of Trajectory"."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(hint, collections.abc.Hashable) and hint in WORDS:
        return WORDS[hint]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(each) for each in inner))
    if hint is Callable or origin is collections.abc.Callable:
        return "a function"
    if origin is typing.Literal:
        return " or ".join(repr(each) for each in inner)
    if _is_list(hint) or origin is tuple:
        items = re.sub(r"\b(a|an) ", "", _described(inner[0])) if inner else ""
        return f"a list of {items}" if items else "a list"
    if hasattr(hint, "array_type"):
        return f"a {hint.array_type.__name__} of the shape ({', '.join(hint.dim_str.split())})"
    return _with_article(getattr(origin or hint, "__name__", str(hint)))


def _with_article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
