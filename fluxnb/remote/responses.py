"""What the responses of the providers mean: a picture, a link to one, a request to wait, or a refusal.

Each parser takes a response with a status below 300. Every field is checked, since a response is not trusted.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fluxnb.errors import shorten
from fluxnb.remote.exchange import Response

__all__ = ["PARSERS", "Link", "Parsed", "Picture", "Refused", "Unclear", "Wait", "explanation", "is_refusal"]

REFUSAL = re.compile(r"nsfw|moderat|content[_ ]policy|safety", re.IGNORECASE)
ID = re.compile(r"[\w.-]{1,128}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The picture itself, encoded.

    Arguments:
        data: PNG, JPEG or WebP.
        seed: the seed that the provider states, None if it states none.
        withheld: whether the provider states that its filter replaced the picture.
    """

    data: bytes = field(repr=False)
    seed: int | None = None
    withheld: bool = False


@dataclass(frozen=True, kw_only=True)
class Link:
    """Where the picture can be downloaded; the other fields are those of Picture. The link may hold a signature."""

    url: str = field(repr=False)
    seed: int | None = None
    withheld: bool = False


@dataclass(frozen=True, kw_only=True)
class Wait:
    """The provider works on an accepted request.

    Arguments:
        id: of the request.
        url: where its state is read, "" where the provider's rules give it.
    """

    id: str
    url: str = field(default="", repr=False)


@dataclass(frozen=True)
class Refused:
    """The provider's filter withheld the picture and sent none."""

    reason: str


@dataclass(frozen=True)
class Unclear:
    """A response that is not a picture, with what it is instead."""

    reason: str


Parsed = Picture | Link | Wait | Refused | Unclear


def _fal(response: Response) -> Parsed:
    content = response.content
    url = _item(_get(content, "images"), 0, "url")
    if not isinstance(url, str):
        return _no_picture(response)
    flag = _item(_get(content, "has_nsfw_concepts"), 0)
    return Link(url=url, seed=_integer(_get(content, "seed")), withheld=flag is True)


def _replicate(response: Response) -> Parsed:
    content = response.content
    state, output, id = (_get(content, name) for name in ("status", "output", "id"))
    if state in ("failed", "canceled"):
        reason = shorten(_get(content, "error") or state, 200)
        return Refused(reason) if REFUSAL.search(reason) else Unclear(f"the request ended as {state}: {reason}")
    url = output if isinstance(output, str) else _item(output, 0)
    if isinstance(url, str):
        return Link(url=url)
    if state in ("starting", "processing") and isinstance(id, str) and ID.fullmatch(id):
        return Wait(id=id)
    return _no_picture(response)


def _together(response: Response) -> Parsed:
    encoded = _item(_get(response.content, "data"), 0, "b64_json")
    if not isinstance(encoded, str):
        return _no_picture(response)
    try:
        return Picture(data=base64.b64decode(encoded, validate=True))
    except (binascii.Error, ValueError):
        return Unclear("its picture is not base64")


def _hf_inference(response: Response) -> Parsed:
    return Picture(data=response.body) if response.kind.startswith("image/") else _no_picture(response)


def _bfl(response: Response) -> Parsed:
    content = response.content
    state, id, url = (_get(content, name) for name in ("status", "id", "polling_url"))
    if state in ("Request Moderated", "Content Moderated"):
        return Refused(str(state))
    sample = _get(_get(content, "result"), "sample")
    if state == "Ready" and isinstance(sample, str):
        return Link(url=sample, seed=_integer(_get(_get(content, "result"), "seed")))
    if isinstance(id, str) and ID.fullmatch(id) and (state is None or state in ("Pending", "Queued")):
        return Wait(id=id, url=url if isinstance(url, str) else "")
    return Unclear(f"the request ended as {shorten(state, 60)}") if state else _no_picture(response)


PARSERS: Mapping[str, Callable[[Response], Parsed]] = {
    "fal-ai": _fal,
    "replicate": _replicate,
    "together": _together,
    "hf-inference": _hf_inference,
    "bfl": _bfl,
}


# -------------------------------------------------------------------------------------------------------------- errors
def is_refusal(response: Response) -> bool:
    """Whether an error is a refusal of the provider's content filter. Fields that repeat the request are not read."""
    return response.status in (400, 403, 422, 451) and bool(REFUSAL.search(" ".join(_messages(response.content))))


def explanation(response: Response) -> str:
    """What an error states, shortened; "" for one without a text, such as a page in HTML."""
    return shorten("; ".join(_messages(response.content)), 200).strip("'\"") if response.content is not None else ""


def _messages(content: Any, depth: int = 3) -> list[str]:
    """The texts of the fields that providers use for errors."""
    if isinstance(content, str):
        return [content[:500]]
    if depth and isinstance(content, list):
        return [text for each in content[:5] for text in _messages(each, depth - 1)]
    if depth and isinstance(content, Mapping):
        place = content.get("loc")
        names = [".".join(map(str, place[:4]))] if isinstance(place, list) else []
        fields = ("error", "detail", "message", "msg", "type", "title", "code")
        return names + [text for name in fields for text in _messages(content.get(name), depth - 1)]
    return []


def _no_picture(response: Response) -> Unclear:
    return Unclear(f"it is {response.kind or 'data without a type'} of {len(response.body)} bytes and holds no picture")


def _get(content: Any, name: str) -> Any:
    return content.get(name) if isinstance(content, Mapping) else None


def _item(content: Any, index: int, name: str = "") -> Any:
    item = content[index] if isinstance(content, list) and len(content) > index else None
    return _get(item, name) if name else item


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
