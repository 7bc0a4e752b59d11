"""Fonts for texts beyond the default font, such as prompts in Chinese or with emoji.

The default font ships with matplotlib, so that figures are equal on every machine. A character that it does not have is
drawn with a font of the machine, and one that no font has as an empty box.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["DEFAULT", "MISSING", "drawable", "font_for", "shortened"]

DEFAULT = "DejaVu Sans"
MISSING = "\N{WHITE SQUARE}"
# Families with many characters, tried before all others: Linux, then Windows, then macOS.
PREFERRED = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "Droid Sans Fallback", "IPAexGothic", "NanumGothic", "Noto Sans", "Noto Emoji", "Symbola", "FreeSans", "Unifont",
    "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Segoe UI Emoji", "Segoe UI Symbol", "Nirmala UI",
    "Arial Unicode MS", "Hiragino Sans", "PingFang SC", "Apple SD Gothic Neo",
)  # fmt: skip
# Without outlines, or made to show that a character is missing.
UNSUITABLE = ("Noto Color Emoji", "Apple Color Emoji", "Last Resort")


def drawable(text: str) -> tuple[str, tuple[str, ...]]:
    """A text that can be drawn here, and the families that draw it.

    Returns:
        The text with `MISSING` in place of each character that no font has, and the names of the families, the default
        first. Invisible characters, such as joiners of emoji, are removed where no font has them.

    Example:
        >>> drawable("a fox")
        ('a fox', ('DejaVu Sans',))
    """
    missing = _without_glyph(text, _default())
    families = [DEFAULT]
    for name, path in _others() if missing else ():
        if remaining := missing - _without_glyph(missing, path):
            missing = missing - remaining
            families.append(name)
        if not missing:
            break
    return _replaced(text, missing), tuple(families)


def font_for(text: str) -> tuple[Path, str]:
    """The file of the font that draws most of a text, and the text as that font can draw it."""
    missing, best = _without_glyph(text, _default()), _default()
    for _, path in _others() if missing else ():
        if len(left := _without_glyph(text, path)) < len(missing):
            missing, best = left, path
        if not missing:
            break
    return Path(best), _replaced(text, missing)


def shortened(text: str, font: Any, width: int) -> str:
    """A line of text cut with an ellipsis to a width in pixels.

    Arguments:
        font: a FreeTypeFont of Pillow.
    """
    while text and font.getlength(text) > width:
        text = text[:-2].rstrip() + "…" if len(text) > 2 else ""
    return text


def _replaced(text: str, missing: frozenset[str]) -> str:
    return "".join(("" if _invisible(char) else MISSING) if char in missing else char for char in text)


def _without_glyph(text: Iterable[str], path: str) -> frozenset[str]:
    """The characters of a text, other than line breaks, that a font does not have."""
    known = _characters(path)
    return frozenset(char for char in text if ord(char) not in known and not char.isspace())


def _invisible(char: str) -> bool:
    return unicodedata.category(char) in ("Cf", "Mn", "Cc")


def _default() -> str:
    from matplotlib import get_data_path

    return str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def _installed() -> list[Any]:
    """The fonts that matplotlib found on this machine."""
    from matplotlib.font_manager import fontManager

    return list(fontManager.ttflist)


def _others() -> list[tuple[str, str]]:
    """Names and files of the other families, the preferred ones first."""
    regular: dict[str, str] = {}
    for font in _installed():
        if font.style == "normal" and str(font.weight) in ("400", "normal", "regular", "book"):
            regular.setdefault(font.name, font.fname)
    suitable = [name for name in regular if name != DEFAULT and not name.startswith(UNSUITABLE)]
    order = {name: place for place, name in enumerate(PREFERRED)}
    suitable.sort(key=lambda name: (order.get(name, len(order)), name))
    return [(name, regular[name]) for name in suitable]


@cache
def _characters(path: str) -> frozenset[int]:
    """The characters of a font; none where it cannot be read or has no outlines."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except (OSError, RuntimeError, ValueError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
