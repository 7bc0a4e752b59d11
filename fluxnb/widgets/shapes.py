"""Shapes of points in the plane: what a canvas offers, and data for a two-dimensional flow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fluxnb.arguments import entry_point
from fluxnb.errors import InputError, unknown_choice
from fluxnb.visuals.fonts import font_for

__all__ = ["HALF", "SHAPES", "Array", "shape"]

HALF = 2.5  # the plane reaches from -HALF to HALF in both directions; noise has a standard deviation of 1
PEN = 0.06  # standard deviation of the points around a line

Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Draw = Callable[[int, np.random.Generator], np.ndarray]


def _turn(radius: np.ndarray | float, angle: np.ndarray) -> np.ndarray:
    return radius * np.stack([np.cos(angle), np.sin(angle)], 0)


def _two_moons(count: int, draw: np.random.Generator) -> np.ndarray:
    angle, is_upper = draw.uniform(0, math.pi, count), draw.integers(2, size=count) == 0
    upper = _turn(1.25, angle) + np.array([[-0.62], [-0.3]])
    return np.where(is_upper, upper, -upper).T


def _ring(count: int, draw: np.random.Generator) -> np.ndarray:
    return _turn(1.6, draw.uniform(0, 2 * math.pi, count)).T


def _spiral(count: int, draw: np.random.Generator) -> np.ndarray:
    share = np.sqrt(draw.uniform(0.02, 1, count))  # evenly along the line
    return _turn(2 * share, 3.5 * math.pi * share).T


def _letters(count: int, draw: np.random.Generator) -> np.ndarray:
    picture = Image.new("L", (256, 128))
    font = ImageFont.truetype(font_for("FLUX")[0], 96)
    ImageDraw.Draw(picture).text((128, 64), "FLUX", fill=255, font=font, anchor="mm")
    rows, columns = np.nonzero(np.asarray(picture) > 127)
    chosen = draw.integers(len(rows), size=count)
    places = np.stack([columns[chosen] - 127.5, 63.5 - rows[chosen]], 1)
    return places * 2.1 / np.abs(columns - 127.5).max()


def _scribble(count: int, draw: np.random.Generator) -> np.ndarray:
    """One to three closed curves at random places."""
    curves = []
    for _ in range(draw.integers(1, 4)):
        center, position = draw.uniform(-1.2, 1.2, (2, 1)), draw.uniform(0, 2 * math.pi, count)
        waves = [draw.normal(size=(2, 1)) * np.sin(k * position + draw.uniform(0, 6.28, (2, 1))) / k for k in (1, 2, 3)]
        curves.append(center + 0.7 * np.sum(waves, 0))
    return np.stack(curves)[draw.integers(len(curves), size=count), :, np.arange(count)]


#: By name, in the order in which a canvas offers them: functions that draw points along lines.
SHAPES: Mapping[str, Draw] = {
    "two moons": _two_moons,
    "ring": _ring,
    "spiral": _spiral,
    "letters": _letters,
    "scribble": _scribble,
}


@entry_point(name='name="two moons"', count="count=600", seed="seed=0")
def shape(name: str, count: int = 600, seed: int = 0) -> Array:
    """Points of a named shape, as a canvas offers it.

    Arguments:
        name: "two moons", "ring", "spiral", "letters", or "scribble", which is another drawing for each seed.
        count: number of points, 1 to 100,000.
        seed: of the places of the points, 0 or more.

    Returns:
        An array (count, 2) of float32, with coordinates from -2.5 to 2.5.

    Raises:
        InputError: an unknown name, or a count or seed out of range.

    Example:
        >>> shape("ring", count=3).shape
        (3, 2)
    """
    if name not in SHAPES:
        raise unknown_choice("name", name, SHAPES)
    if not 1 <= count <= 100_000:
        raise InputError(f"count={count}", "1 to 100,000 points are possible", "try count=600")
    if seed < 0:
        raise InputError(f"seed={seed}", "a seed is 0 or more", "try seed=0")
    draw = np.random.default_rng(seed)
    points = SHAPES[name](count, draw)
    points = points + (0.2 * PEN if name == "letters" else PEN) * draw.normal(size=points.shape)
    return np.clip(points, -HALF, HALF).astype(np.float32)
