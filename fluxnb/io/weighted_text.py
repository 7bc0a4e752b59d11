"""Prompts with weights in brackets, as ComfyUI and A1111 write them, as plain text."""

from __future__ import annotations

import re

__all__ = ["without_weights"]

# Escaped characters, brackets, and the text between them.
_SEGMENTS = {
    "()": re.compile(r"\\[()]|[()]|[^()\\]+|\\"),
    "()[]": re.compile(r"\\[()\[\]\\]|[()\[\]]|[^()\[\]\\]+|\\"),
}
_WEIGHT = re.compile(r":\s*[+-]?(?:\d+(?:\.\d*)?|\.\d+)\s*\Z")


def without_weights(text: str, *, brackets: str = "()") -> tuple[str, tuple[str, ...]]:
    r"""The text without weights, and its weighted parts as they were written; escaped brackets become plain ones.

    A bracket without its counterpart is text.

    Arguments:
        brackets: "()" for ComfyUI; "()[]" for A1111, where square brackets lower the weight and a backslash escapes
            itself.

    Example:
        >>> without_weights(r"a (red:1.2) fox \(alone\)")
        ('a red fox (alone)', ('(red:1.2)',))
    """
    opening, closing = brackets[::2], brackets[1::2]
    parts: list[str] = []
    open_at: list[tuple[int, str]] = []
    weights: list[str] = []
    for segment in _SEGMENTS[brackets].findall(text):
        if len(segment) == 2 and segment[0] == "\\":
            parts.append(segment[1])
        elif segment in opening:
            open_at.append((len(parts), segment))
            parts.append(segment)
        elif segment in closing and open_at and opening[closing.index(segment)] == open_at[-1][1]:
            start, _ = open_at.pop()
            weights.append("".join(parts[start : start + 50])[:200] + segment)
            parts[start] = ""
            parts[-1] = _WEIGHT.sub("", parts[-1]) if segment == ")" else parts[-1]
        else:
            parts.append(segment)
    return "".join(parts), tuple(weights)
