"""Checks of the arguments of public functions, with errors in three parts.

Python's own TypeError for an unknown keyword does not name what to type instead, and a value of a wrong type fails far
from the call. `entry_point` raises an error for both at the call, and translates the keywords of diffusers.
"""

from __future__ import annotations

import collections.abc
import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from fluxnb.errors import ArgumentError, shorten

__all__ = ["entry_point"]

T = TypeVar("T")

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
    "torch_dtype": ("dtype",),
    "prompt": ("prompts",),
    "prompts": ("prompt",),
    "seed": ("seeds",),
    "seeds": ("seed",),
}


def entry_point(**examples: str) -> Callable[[T], T]:
    """Decorate a public function or class so that wrong arguments raise an error that names what to type.

    Arguments:
        examples: for each parameter whose type is checked against its annotation, what to type. Values that are
            checked elsewhere, as those of a Recipe are, need none.

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

    def decorate(target: T) -> T:
        if isinstance(target, type):
            target.__init__ = _checked(target.__init__, target.__name__, examples)  # type: ignore[misc]
            target.__no_type_check__ = True  # type: ignore[attr-defined]
            return target
        return typing.cast(T, _checked(typing.cast(Any, target), getattr(target, "__name__", "call"), examples))

    return decorate


def _checked(function: Callable[..., Any], name: str, examples: Mapping[str, str]) -> Callable[..., Any]:
    # The tests check every annotation; here that would come before the error of `call`.
    function.__no_type_check__ = True  # type: ignore[attr-defined]
    signature = inspect.signature(function)
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as problem:
            raise _wrong_call(name, signature, kwargs, examples, problem) from None
        for more in _variable_keywords(signature, given):
            if translation := _translated(more, kwargs[more], signature):
                raise _translate(name, more, kwargs[more], translation)
        if examples and not hints:
            hints.update(_annotations(function))
        for parameter, example in examples.items():
            if parameter in given and not _is_a(given[parameter], hints[parameter]):
                value = given[parameter]
                raise ArgumentError(
                    f"{name}({parameter}={shorten(value)}), {_with_article(type(value).__name__)}",
                    f"{parameter} is {_described(hints[parameter])}",
                    f"type {example}",
                )
        return function(*args, **kwargs)

    return call


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    del function.__no_type_check__  # type: ignore[attr-defined]  # typing gives no hints of a function marked so
    try:
        return typing.get_type_hints(function)
    finally:
        function.__no_type_check__ = True  # type: ignore[attr-defined]


def _is_a(value: object, hint: Any) -> bool:
    from beartype.door import is_bearable

    return is_bearable(value, hint)


def _variable_keywords(signature: inspect.Signature, given: Mapping[str, Any]) -> list[str]:
    """The keywords that only a `**` parameter takes."""
    variable = [p.name for p in signature.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    return [keyword for name in variable for keyword in given.get(name, ())]


def _translated(keyword: str, value: object, signature: inspect.Signature) -> str:
    """What to type for a keyword of diffusers; "" where there is no translation."""
    for ours in TRANSLATIONS.get(keyword, ()):
        if ours in signature.parameters:
            if hasattr(value, "initial_seed"):
                value = value.initial_seed()
            return f"{ours}={shorten(value)}"
    return ""


def _translate(name: str, keyword: str, value: object, translation: str) -> ArgumentError:
    ours = translation.partition("=")[0]
    return ArgumentError(f"{name}({keyword}={shorten(value)})", f"this is called {ours} here", f"type {translation}")


def _wrong_call(
    name: str, signature: inspect.Signature, kwargs: Mapping[str, Any], examples: Mapping[str, str], problem: TypeError
) -> ArgumentError:
    known = [p.name for p in signature.parameters.values() if p.name != "self" and p.kind is not p.VAR_KEYWORD]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for keyword, value in kwargs.items():
        if keyword in known:
            continue
        if translation := _translated(keyword, value, signature):
            return _translate(name, keyword, value, translation)
        if keyword == "device" and "preset" in known:
            return ArgumentError(
                f"{name}(device={shorten(value)})", "a preset decides where the model is held", 'type preset="auto"'
            )
        if not open_ended:
            near = difflib.get_close_matches(keyword, known, n=1)
            remedy = f"type {near[0]}=..." if near else f"type help(fnb.{name})"
            return ArgumentError(f"{name}({keyword}={shorten(value)})", f"known are {', '.join(known)}", remedy)
    required = [p for p in known if signature.parameters[p].default is inspect.Parameter.empty]
    missing = next((p for p in required if f"'{p}'" in str(problem)), "")
    if missing:
        return ArgumentError(
            f"{name} without {missing}", f"{missing} is needed", f"type {examples.get(missing, missing + '=...')}"
        )
    return ArgumentError(f"{name}: {problem}", f"the arguments are {', '.join(known)}", f"type help(fnb.{name})")


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
    if hint in WORDS:
        return WORDS[hint]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(_described(each) for each in inner))
    if hint is Callable or origin is collections.abc.Callable:
        return "a function"
    if origin is typing.Literal:
        return " or ".join(repr(each) for each in inner)
    if origin is not None and issubclass(origin, collections.abc.Iterable) and not issubclass(origin, Mapping):
        return f"a list of {_described(inner[0]).removeprefix('a ').removeprefix('an ')}" if inner else "a list"
    return _with_article(getattr(origin or hint, "__name__", str(hint)))


def _with_article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
